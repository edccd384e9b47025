"""A whole batch: reverberation first, then noise at the level of what came out."""

import numpy as np
import pytest
import torch
from scipy.signal import convolve

from shared.augmentations.augment import augment, augment_in_turn
from shared.datasets.items import Sample, collate


def batch_and_expected(utterances=4, views=2, length=500):
    """A batch in which each row has neither, one or both, and what a loop makes of it.

    Utterance 1 is clipped as well, utterance 2 faded.
    """
    rng = np.random.default_rng(0)
    samples, expected = [], np.zeros((utterances, views, length))
    for b in range(utterances):
        waves = rng.standard_normal((views, length)).astype(np.float32)
        sample = Sample(waves, label=b, index=b)
        for v in range(views):
            y = waves[v].astype(np.float64)
            kind = (b * views + v) % 4
            if kind & 1:
                h = rng.standard_normal(rng.integers(20, 700)).astype(np.float32)
                sample.rirs.append((v, h))
                y = convolve(y, h.astype(np.float64), method='direct')[:length]
            level, total = 10 * np.log10(np.mean(y**2) + 1e-4), 0.0
            for _ in range(3 if kind & 2 else 0):
                noise = rng.standard_normal(length).astype(np.float32)
                snr = float(rng.uniform(0, 15))
                sample.noises.append((v, noise, snr))
                own = 10 * np.log10(np.mean(noise.astype(np.float64) ** 2) + 1e-4)
                total = total + np.sqrt(10 ** ((level - own - snr) / 10)) * noise
            y = y + total
            if b == 1:
                sample.clips.append((v, 0.6 + 0.1 * v))
                y = np.clip(y, (0.6 + 0.1 * v) * y.min(), (0.6 + 0.1 * v) * y.max())
            if b == 2:
                sample.gains.append((v, rng.uniform(0, 1, length).astype(np.float32)))
                y = y * sample.gains[-1][1]
            expected[b, v] = y
        samples.append(sample)
    return collate(samples), expected


def test_augment_equals_the_loop_over_utterances_and_views():
    batch, expected = batch_and_expected()
    out = augment(batch)
    assert out.shape == expected.shape and out.dtype == torch.float32
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out.numpy() / scale, expected / scale, atol=1e-5)


def test_augment_of_a_clean_batch_gives_its_waves():
    waves = np.ones((2, 8), np.float32)
    batch = collate([Sample(waves, label=0, index=0), Sample(2 * waves, label=0, index=1)])
    assert torch.equal(augment(batch), batch['waves'])


def test_augment_in_turn_scales_each_noise_against_the_mixture_so_far():
    rng, length = np.random.default_rng(1), 300
    samples, expected = [], []
    for b, count in enumerate((2, 0, 1, 3)):
        sample = Sample(rng.standard_normal((1, length)).astype(np.float32), label=b, index=b)
        y = sample.waves[0].astype(np.float64)
        for _ in range(count):
            noise = (5 * rng.standard_normal(length)).astype(np.float32)
            snr = float(rng.uniform(0, 5))
            sample.noises.append((0, noise, snr))
            levels = [10 * np.log10(np.mean(z.astype(np.float64) ** 2) + 1e-4) for z in (y, noise)]
            y = y + np.sqrt(10 ** ((levels[0] - levels[1] - snr) / 10)) * noise
        samples.append(sample)
        expected.append(y)
    batch = collate(samples)
    assert batch['noise_turns'] == [3, 2, 1]
    assert batch['noise_row'].tolist() == [0, 2, 3, 0, 3, 3]
    before = batch['waves'].clone()
    out = augment_in_turn(batch)[:, 0].numpy()
    np.testing.assert_allclose(out, expected, atol=1e-4)
    assert torch.equal(batch['waves'], before)  # the clean reference is still there
    assert not np.allclose(augment(batch)[0, 0], expected[0], atol=1e-2)  # which is not in turn


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_augment_on_a_gpu_never_waits_and_gives_the_same():
    batch, expected = batch_and_expected()
    moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    augment(moved)
    torch.cuda.set_sync_debug_mode('error')
    try:
        out = augment(moved)
        augment_in_turn(moved)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out.cpu().numpy() / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize('function', [augment, augment_in_turn])
def test_what_was_mixed_is_clipped_and_then_faded(function):
    rng, length = np.random.default_rng(2), 200
    samples, expected = [], np.zeros((4, 2, length))
    for b in range(4):
        waves = rng.standard_normal((2, length)).astype(np.float32)
        sample = Sample(waves, label=b, index=b)
        expected[b] = waves
        noise = rng.standard_normal(length).astype(np.float32)
        levels = [
            10 * np.log10(np.mean(z.astype(np.float64) ** 2) + 1e-4) for z in (waves[1], noise)
        ]
        sample.noises.append((1, noise, 0.0))
        y = waves[1] + np.sqrt(10 ** ((levels[0] - levels[1]) / 10)) * noise
        if b & 1:
            sample.clips.append((1, 0.5))
            y = np.clip(y, 0.5 * y.min(), 0.5 * y.max())
        if b & 2:
            sample.gains.append((1, np.linspace(0, 1, length, dtype=np.float32)))
            y = y * np.linspace(0, 1, length)
        expected[b, 1] = y
        samples.append(sample)
    batch = collate(samples)
    before = batch['waves'].clone()
    out = function(batch)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    assert torch.equal(batch['waves'], before)
    assert torch.equal(out[:, 0], before[:, 0])  # what the other view hears stays as it was
