"""Batched convolution against scipy, one row at a time."""

import numpy as np
import pytest
import torch
from scipy.signal import convolve

from shared.augmentations.reverb import fft_size, power_db_gain, reverberate, unit_energy


def case(rows=5, responses=3, length=1000, taps=300):
    rng = np.random.default_rng(0)
    waves, rir = rng.standard_normal((rows, length)), rng.standard_normal((responses, taps))
    rir[1, taps // 2 :] = 0  # padded, as collate does
    return waves, rir, rng.permutation(rows)[:responses]


def loop(waves, rir, row):
    out = waves.copy()
    for h, r in zip(rir, row):
        out[r] = convolve(waves[r], h, method='direct')[: waves.shape[1]]
    return out


@pytest.mark.parametrize('taps', [1, 2, 300, 1000, 2500])  # shorter and longer than the waves
def test_reverberate_equals_the_loop(taps):
    waves, rir, row = case(taps=taps)
    expected = loop(waves, rir, row)
    double = reverberate(*map(torch.from_numpy, (waves, rir, row)))
    np.testing.assert_allclose(double.numpy(), expected, atol=1e-10)
    waves, rir = (torch.from_numpy(x).float() for x in (waves, rir))
    single = reverberate(waves, rir, torch.from_numpy(row))
    assert single.dtype == torch.float32
    scale = np.abs(expected).max()
    np.testing.assert_allclose(single.numpy() / scale, expected / scale, atol=1e-5)


def test_reverberate_leaves_other_rows_and_its_inputs_as_they_are():
    waves, rir, row = map(torch.from_numpy, case())
    before = waves.clone(), rir.clone()
    out = reverberate(waves, rir, row)
    others = [i for i in range(len(waves)) if i not in row.tolist()]
    assert torch.equal(out[others], waves[others])
    assert torch.equal(waves, before[0]) and torch.equal(rir, before[1])


def test_reverberate_does_not_depend_on_the_order_of_the_responses():
    waves, rir, row = map(torch.from_numpy, case())
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        reverberate(waves, rir[order], row[order]), reverberate(waves, rir, row)
    )


def test_reverberate_of_many_rows_equals_each_alone():
    waves, rir, row = map(torch.from_numpy, case(rows=40, responses=37))
    together = reverberate(waves, rir, row)
    for i, r in enumerate(row):
        alone = reverberate(waves[r : r + 1], rir[i : i + 1], torch.tensor([0]))
        torch.testing.assert_close(together[r], alone[0])


def test_fft_size_is_the_next_of_few_odd_factors():
    sizes = sorted(k * 2**n for k in (1, 3, 5, 9, 15) for n in range(18))
    for length in (*range(1, 300), 48240 + 15999, 65536, 65537):
        assert fft_size(length) == next(size for size in sizes if size >= length)


def test_reverberate_without_responses_gives_the_waves():
    waves = torch.randn(2, 8)
    out = reverberate(waves, torch.zeros(0, 1), torch.empty(0, dtype=torch.int64))
    assert torch.equal(out, waves)


def test_unit_energy_divides_by_the_norm():
    rir = np.array([3, 0, 4], np.float32)
    assert unit_energy(rir).tolist() == pytest.approx([0.6, 0, 0.8])
    assert unit_energy(rir).dtype == np.float32


@pytest.mark.parametrize('gain', [-7.0, 0.0, 3.0])
def test_power_db_gain_is_a_power_exponent_on_the_amplitude(gain):
    rir = np.array([1, -2], np.float32)
    scaled = power_db_gain(rir, gain)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, rir * 10 ** (0.1 * gain), rtol=1e-6)
