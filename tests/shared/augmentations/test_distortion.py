"""Clipping and envelopes against loops over rows, and golden values of the curves (spec oskdft 2.3)."""

import numpy as np
import pytest
import torch

from shared.augmentations.distortion import (
    CURVES,
    apply_gain,
    clip_amplitude,
    easing_envelope,
    normalise_peak,
)

# at u = 0, 0.25, 0.5, 0.75, 1, by hand from the formulas
GOLDEN = {
    'sine': (0, 0.0761204675, 0.2928932188, 0.6173165676, 1),
    'quad': (0, 1 / 16, 1 / 4, 9 / 16, 1),
    'cubic': (0, 1 / 64, 1 / 8, 27 / 64, 1),
    'circ': (0, 0.0317541634, 0.1339745962, 0.3385621722, 1),
    'expo': (0, 0.0055242717, 0.03125, 0.1767766953, 1),
    'bounce': (0, 0.47265625, 0.765625, 0.97265625, 1),
}


def case(rows=6, length=300):
    rng = np.random.default_rng(0)
    waves = rng.standard_normal((rows, length)) + rng.uniform(-1, 1, (rows, 1))  # not symmetric
    return torch.from_numpy(waves), torch.tensor([4, 0, 3]), rng


def test_clip_amplitude_equals_the_loop_over_samples():
    waves, row, rng = case()
    ratio = torch.from_numpy(rng.uniform(0.5, 0.9, len(row)))
    before, expected = waves.clone(), waves.clone()
    for r, part in zip(row.tolist(), ratio.tolist()):
        low, high = part * min(waves[r].tolist()), part * max(waves[r].tolist())
        for i, x in enumerate(waves[r].tolist()):
            expected[r, i] = low if x < low else high if x > high else x
    out = clip_amplitude(waves, row, ratio)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-15)
    assert torch.equal(waves, before) and not torch.equal(out, waves)
    assert torch.equal(out[[1, 2, 5]], waves[[1, 2, 5]])


def test_apply_gain_multiplies_its_rows_and_leaves_the_others():
    waves, row, rng = case()
    gain = torch.from_numpy(rng.uniform(0, 1, (len(row), waves.shape[1])))
    before, expected = waves.clone(), waves.clone()
    for g, r in enumerate(row.tolist()):
        for i in range(waves.shape[1]):
            expected[r, i] = gain[g, i] * waves[r, i]
    assert torch.equal(apply_gain(waves, row, gain), expected)
    assert torch.equal(waves, before)


def test_distortions_of_no_row_give_the_waves():
    waves, _, _ = case()
    none = torch.empty(0, dtype=torch.int64)
    assert clip_amplitude(waves, none, torch.empty(0)) is waves
    assert apply_gain(waves, none, torch.empty(0, waves.shape[1])) is waves


def test_distortions_let_the_gradient_through_where_nothing_is_clipped():
    waves, row, rng = case(rows=5)
    ratio = torch.from_numpy(rng.uniform(0.5, 0.9, len(row)))
    gain = torch.from_numpy(rng.uniform(0, 1, (len(row), waves.shape[1])))
    waves.requires_grad_()
    apply_gain(clip_amplitude(waves, row, ratio), row, gain).sum().backward()
    low, high = torch.aminmax(waves.detach(), dim=1)
    for r in range(5):
        g = row.tolist().index(r) if r in row else None
        extremes = [int(waves[r].argmin()), int(waves[r].argmax())]  # the bounds follow them
        for i in set(range(waves.shape[1])) - set(extremes):
            x = waves[r, i].item()
            inside = g is None or ratio[g] * low[r] < x < ratio[g] * high[r]
            expected = (1.0 if g is None else gain[g, i].item()) if inside else 0.0
            assert waves.grad[r, i].item() == pytest.approx(expected, abs=1e-12)


def test_curves_are_the_six_of_the_source():
    assert set(CURVES) == set(GOLDEN)


@pytest.mark.parametrize('name', GOLDEN)
def test_curve_has_its_golden_values(name):
    np.testing.assert_allclose(CURVES[name](np.linspace(0, 1, 5)), GOLDEN[name], atol=1e-9)


@pytest.mark.parametrize('name', GOLDEN)
def test_curve_stays_between_zero_and_one_without_jumps(name):
    values = CURVES[name](np.linspace(0, 1, 10001))
    assert values.min() >= 0 and values.max() <= 1  # the released 'bounce' exceeds 1
    # circ is steepest at its end: 1 - (1 - 1e-4)^2 = 2e-4 is left below the root
    assert abs(np.diff(values)).max() < 0.0142


@pytest.mark.parametrize('name', GOLDEN)
def test_easing_envelope_rises_from_its_floor_to_one_or_falls_to_it(name):
    rising = easing_envelope(name, 5, 0.2, reverse=False)
    assert rising.dtype == np.float32 and rising.shape == (5,)
    np.testing.assert_allclose(rising, [0.2 + 0.8 * value for value in GOLDEN[name]], atol=1e-6)
    falling = easing_envelope(name, 5, 0.2, reverse=True)
    np.testing.assert_array_equal(falling, rising[::-1])
    assert torch.from_numpy(falling)[0] == 1  # no negative strides, which torch refuses


def test_peaks_of_the_named_rows_become_one_and_others_stay_bit_for_bit():
    rng = np.random.default_rng(4)
    waves = torch.from_numpy(rng.normal(size=(4, 50)).astype(np.float32))
    waves[2] = 0
    found = normalise_peak(waves, torch.tensor([1, 2]), torch.tensor([1]), torch.tensor([]).long())
    for n in range(4):
        peak = max(abs(x) for x in waves[n].tolist()) + 1e-4
        expected = waves[n] / peak if n in (1, 2) else waves[n]
        np.testing.assert_allclose(found[n], expected, rtol=1e-6)
    assert torch.equal(found[[0, 3]], waves[[0, 3]])
