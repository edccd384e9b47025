import pytest
import torch

from shared.optim.schedules import exponential_steps, set_lr


@pytest.mark.parametrize(
    'epoch, lr', [(1, 1e-3), (5, 1e-3), (6, 9e-4), (10, 9e-4), (43, 4.305e-4), (50, 3.874e-4)]
)
def test_exponential_steps_decay_after_each_five_epochs(epoch, lr):
    assert exponential_steps(1e-3, 0.9, 5, epoch) == pytest.approx(lr, abs=5e-8)


def test_set_lr_reaches_every_group():
    groups = [{'params': [torch.zeros(1, requires_grad=True)]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_lr(optimizer, 0.25)
    assert [group['lr'] for group in optimizer.param_groups] == [0.25, 0.25]
