"""Noise at an SNR against a loop over rows, from the formulas of spec lgl 2.4 and 2.5."""

import numpy as np
import torch

from shared.augmentations.noise import add_noise, power_db


def loop(waves, noise, row, snr):
    """One noise at a time; the clean level is that of the row before any noise came."""
    out = waves.copy()
    for v, r, decibels in zip(noise, row, snr):
        p_clean = 10 * np.log10(np.mean(waves[r] ** 2) + 1e-4)
        p_noise = 10 * np.log10(np.mean(v**2) + 1e-4)
        out[r] += np.sqrt(10 ** ((p_clean - p_noise - decibels) / 10)) * v
    return out


def case(rows=5, noises=7, length=400, seed=0):
    rng = np.random.default_rng(seed)
    scales = 10 ** rng.uniform(-3, 0, (rows + noises, 1))  # quiet ones meet the floor
    signals = scales * rng.standard_normal((rows + noises, length))
    row = rng.integers(rows - 1, size=noises)  # several of a row; none of the last
    return signals[:rows], signals[rows:], row, rng.uniform(0, 20, noises)


def tensors(*arrays, dtype=torch.float64):
    return [
        torch.from_numpy(a).to(dtype) if a.dtype.kind == 'f' else torch.from_numpy(a)
        for a in arrays
    ]


def test_add_noise_equals_the_loop():
    arrays = case()
    np.testing.assert_allclose(add_noise(*tensors(*arrays)).numpy(), loop(*arrays), atol=1e-12)
    single = add_noise(*tensors(*arrays, dtype=torch.float32))
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), loop(*arrays), atol=1e-5)


def test_add_noise_floors_the_power_at_minus_forty_decibels():
    assert power_db(torch.zeros(3, 10)).allclose(torch.full((3,), -40.0))
    constant = torch.full((10,), 0.01, dtype=torch.float64)  # 1e-4 of power on 1e-4 of floor
    assert abs(power_db(constant).item() - 10 * np.log10(2e-4)) < 1e-9


def test_add_noise_leaves_other_rows_and_its_inputs_as_they_are():
    arrays = tensors(*case(), dtype=torch.float32)
    before = [tensor.clone() for tensor in arrays]
    out = add_noise(*arrays)
    assert torch.equal(out[-1], arrays[0][-1])
    assert not torch.equal(out, arrays[0])
    assert all(torch.equal(a, b) for a, b in zip(arrays, before))


def test_add_noise_does_not_depend_on_the_order_of_the_noises():
    waves, noise, row, snr = tensors(*case())
    order = torch.randperm(len(row), generator=torch.Generator().manual_seed(0))
    shuffled = add_noise(waves, noise[order], row[order], snr[order])
    torch.testing.assert_close(shuffled, add_noise(waves, noise, row, snr))


def test_add_noise_without_noise_gives_the_waves():
    waves = torch.randn(2, 8)
    nothing = add_noise(waves, torch.empty(0, 8), torch.empty(0, dtype=torch.int64), torch.empty(0))
    assert torch.equal(nothing, waves)


def test_add_noise_reaches_the_asked_snr():
    rng = np.random.default_rng(0)
    waves, noise = (torch.from_numpy(rng.standard_normal((1, 16000))) for _ in range(2))
    row, snr = torch.tensor([0]), torch.tensor([7.0], dtype=torch.float64)
    added = add_noise(waves, noise, row, snr) - waves
    ratio = 10 * torch.log10(waves.square().mean() / added.square().mean())
    assert abs(ratio.item() - 7) < 0.01
