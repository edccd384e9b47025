"""Masks of features against a loop over rows (spec enskd 2.3)."""

import pytest
import torch

from shared.augmentations.spec_augment import DRAWS, spec_augment


def case(rows=16, bins=12, frames=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(rows, bins, frames, generator=generator, dtype=torch.float64) + 1
    return features, torch.rand(rows, DRAWS, generator=generator, dtype=torch.float64)


def loop(features, draws, prob, max_t, max_f):
    """One cell at a time."""
    out = features.clone()
    _, bins, frames = features.shape
    for b, (chosen, t_width, t_start, f_width, f_start) in enumerate(draws.tolist()):
        if chosen >= prob:
            continue
        if min(max_t, frames):
            width = 1 + int(t_width * min(max_t, frames))
            begin = int(t_start * (frames - width + 1))
            for t in range(begin, begin + width):
                for f in range(bins):
                    out[b, f, t] = 0
        if min(max_f, bins):
            width = 1 + int(f_width * min(max_f, bins))
            begin = int(f_start * (bins - width + 1))
            for f in range(begin, begin + width):
                for t in range(frames):
                    out[b, f, t] = 0
    return out


@pytest.mark.parametrize('prob', [0.0, 0.6, 1.0])
@pytest.mark.parametrize('max_t, max_f', [(10, 8), (10, 0), (0, 8), (99, 99), (1, 1)])
def test_spec_augment_equals_the_loop_and_so_does_its_gradient(prob, max_t, max_f):
    features, draws = case()
    draws[0], draws[1] = 0, 1 - 1e-16  # the ends of the range
    features.requires_grad_()
    masked = spec_augment(features, draws, prob, max_t, max_f)
    expected = loop(features, draws, prob, max_t, max_f)
    assert torch.equal(masked, expected)
    weight = torch.rand_like(masked)
    (own,) = torch.autograd.grad((masked * weight).sum(), features)
    (looped,) = torch.autograd.grad((expected * weight).sum(), features)
    assert torch.equal(own, looped)


def test_rows_are_chosen_and_spans_are_drawn_as_often_as_they_should():
    draws = torch.rand(20000, DRAWS, generator=torch.Generator().manual_seed(0))
    cells = spec_augment(torch.ones(20000, 20, 40), draws, prob=0.6, max_t=10, max_f=8) == 0
    assert abs(cells.any(2).any(1).float().mean() - 0.6) < 0.02
    width = cells.all(1).sum(1)[cells.any(2).any(1)]  # frames hidden in a chosen row
    shares = width.bincount(minlength=11).float() / len(width)
    assert shares[0] == 0 and ((shares[1:] - 0.1).abs() < 0.015).all() and len(shares) == 11
    width = cells.all(2).sum(1)[cells.any(2).any(1)]  # bins
    shares = width.bincount(minlength=9).float() / len(width)
    assert shares[0] == 0 and ((shares[1:] - 0.125).abs() < 0.015).all() and len(shares) == 9
    hidden = cells.all(1).float().mean(0)  # (T,): both ends are reached, the middle is even
    assert hidden[0] > 0.005 and hidden[-1] > 0.005
    assert hidden[10:30].std() < 0.006 and abs(hidden.sum() - 0.6 * 5.5) < 0.1


def test_equal_draws_give_equal_masks_whatever_the_precision_of_the_features():
    features, draws = case()
    single = spec_augment(features.bfloat16(), draws.float())
    assert single.dtype == torch.bfloat16
    assert torch.equal(single == 0, spec_augment(features, draws.float()) == 0)


def test_spec_augment_leaves_its_inputs_as_they_are():
    features, draws = case()
    before = features.clone(), draws.clone()
    assert not torch.equal(spec_augment(features, draws), features)
    assert torch.equal(features, before[0]) and torch.equal(draws, before[1])


@pytest.mark.parametrize('shape', [(3, DRAWS), (4, DRAWS - 1), (4,)])
def test_spec_augment_refuses_draws_of_another_shape(shape):
    with pytest.raises(ValueError, match=r'draws must be \(4, 5\)'):
        spec_augment(torch.ones(4, 8, 20), torch.zeros(shape))
