import pytest
import torch

from shared.optim.schedules import cosine, exponential_steps, set_lr


@pytest.mark.parametrize(
    'epoch, lr', [(1, 1e-3), (5, 1e-3), (6, 9e-4), (10, 9e-4), (43, 4.305e-4), (50, 3.874e-4)]
)
def test_exponential_steps_decay_after_each_five_epochs(epoch, lr):
    assert exponential_steps(1e-3, 0.9, 5, epoch) == pytest.approx(lr, abs=5e-8)


@pytest.mark.parametrize(  # spec nawsv section 5, 27 epochs counted from 0
    'done, lr',
    [(0, 5.00e-5), (5, 4.59e-5), (9, 3.76e-5), (15, 2.10e-5), (20, 8.27e-6), (26, 6.7e-7)],
)
def test_cosine_gives_the_published_rates(done, lr):
    assert cosine(5e-5, 5e-7, done, 27) == pytest.approx(lr, rel=5e-3)


def test_cosine_ends_at_the_minimum_and_may_be_constant():
    assert cosine(1.0, 0.1, 10, 10) == pytest.approx(0.1)
    assert cosine(0.3, 0.3, 7, 10) == 0.3


def test_set_lr_reaches_every_group():
    groups = [{'params': [torch.zeros(1, requires_grad=True)]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_lr(optimizer, 0.25)
    assert [group['lr'] for group in optimizer.param_groups] == [0.25, 0.25]
