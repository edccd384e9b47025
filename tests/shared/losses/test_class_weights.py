"""Class-weighted mean of losses, on one process and on two."""

import pytest
import torch
import torch.nn.functional as F

from shared import ddp
from shared.losses.class_weights import class_weights, weight_sum, weighted_mean

LABELS = torch.tensor([0, 2, 2, 1, 0, 2])
WEIGHTS = torch.tensor([3.0, 0.5, 1.5], dtype=torch.float64)


def test_class_weights_are_all_files_over_those_of_the_class():
    found = class_weights(LABELS, 3)
    assert found.tolist() == [6 / 2, 6 / 1, 6 / 3] and found.dtype == torch.float32
    assert class_weights(LABELS, 4).isfinite().all()  # of a class without files too


def drawn(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def weighted_mean_of_a_rank():
    """Loss of this rank's part, the halves of unequal weight, and the averaged gradient."""
    logits = drawn(6, 3)
    half = slice(3 * ddp.rank(), 3 * ddp.rank() + 3)
    sample_losses = F.cross_entropy(logits[half], LABELS[half], reduction='none')
    loss = weighted_mean(sample_losses, LABELS[half], WEIGHTS)
    loss.backward()
    return loss.item(), ddp.all_reduce(logits.grad, 'mean').tolist()


def test_weighted_mean_equals_torchs_in_value_and_gradient():
    logits = drawn(6, 3)
    expected = F.cross_entropy(logits, LABELS, weight=WEIGHTS)
    sample_losses = F.cross_entropy(logits, LABELS, reduction='none')
    naive = sum(WEIGHTS[y] * loss for y, loss in zip(LABELS, sample_losses))
    naive = naive / sum(WEIGHTS[y] for y in LABELS)
    found = weighted_mean(sample_losses, LABELS, WEIGHTS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert found.item() == pytest.approx(naive.item(), rel=1e-12)
    expected_gradient = torch.autograd.grad(expected, logits)[0]
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], expected_gradient)


def test_weighted_mean_on_two_processes_is_that_of_one(run_ranks):
    (loss0, gradient), (loss1, same) = run_ranks(weighted_mean_of_a_rank)
    assert gradient == same
    logits = drawn(6, 3)
    expected = F.cross_entropy(logits, LABELS, weight=WEIGHTS)
    assert (loss0 + loss1) / 2 == pytest.approx(expected.item(), rel=1e-12)
    expected.backward()
    torch.testing.assert_close(torch.tensor(gradient, dtype=torch.float64), logits.grad)


@pytest.mark.parametrize('parts', [1, 2, 3])
def test_mean_over_parts_of_a_batch_is_that_of_the_batch(parts):
    losses = drawn(6).detach()
    total = weight_sum(LABELS, WEIGHTS)
    assert total.ndim == 0 and total == sum(WEIGHTS[y] for y in LABELS)
    pairs = zip(losses.chunk(parts), LABELS.chunk(parts))
    found = [weighted_mean(own, labels, WEIGHTS, total / parts) for own, labels in pairs]
    expected = weighted_mean(losses, LABELS, WEIGHTS)
    assert (sum(found) / parts).item() == pytest.approx(expected.item(), rel=1e-12)
    assert parts > 1 or torch.equal(found[0], expected)
