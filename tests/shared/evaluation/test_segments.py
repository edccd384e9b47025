"""Segments against numpy's own loops, alone and in a padded batch."""

import numpy as np
import pytest
import torch

from shared.evaluation.segments import cut_segments


def naive(wave, count, size):
    """One file as the spec says it, in numpy."""
    if len(wave) < size:
        wave = np.pad(wave, (0, size - len(wave)), mode='wrap')
    starts = [int(start) for start in np.linspace(0, len(wave) - size, count)]
    return np.stack([wave[start : start + size] for start in starts])


def padded(waves):
    """(B, L) with NaN behind each file: whatever touches padding shows."""
    lengths = torch.tensor([len(wave) for wave in waves])
    table = torch.full((len(waves), int(lengths.max())), torch.nan)
    for line, wave in zip(table, waves):
        line[: len(wave)] = torch.from_numpy(wave)
    return table, lengths


@pytest.mark.parametrize('count', [1, 5])
def test_segments_of_a_padded_batch_are_those_of_each_file_alone(count):
    rng = np.random.default_rng(0)
    sizes = [
        100_000,
        48_000,
        48_001,
        20_000,
        400,
        131_071,
    ]  # samples; the third and fourth are short
    waves = [rng.standard_normal(size).astype(np.float32) for size in sizes]
    found = cut_segments(*padded(waves), count, 48_000)
    assert found.shape == (len(waves), count, 48_000) and found.dtype == torch.float32
    for file, wave in zip(found, waves):
        np.testing.assert_array_equal(file, naive(wave, count, 48_000))
        alone = cut_segments(torch.from_numpy(wave)[None], torch.tensor([len(wave)]), count, 48_000)
        assert torch.equal(alone[0], file)


def test_five_segments_of_three_seconds_start_evenly_and_end_at_the_end():
    wave = torch.arange(100_003)[None]
    starts = cut_segments(wave, torch.tensor([100_003]), 5, 48_000)[0, :, 0]
    assert starts.tolist() == [0, 13_000, 26_001, 39_002, 52_003]


@pytest.mark.parametrize('count', [2, 3, 7, 50, 100])
def test_starts_are_rounded_as_numpy_rounds_them(count):
    lengths = torch.arange(1, 1200)
    waves = torch.arange(1200).expand(len(lengths), -1)
    found = cut_segments(waves, lengths, count, 3)
    for length, file in zip(lengths.tolist(), found.numpy()):
        np.testing.assert_array_equal(file, naive(np.arange(length), count, 3))


def test_segments_are_cut_without_waiting_for_the_device(monkeypatch):
    def waits(*_):
        raise AssertionError('a value was read back')

    for name in ('item', 'tolist', 'cpu', 'numpy', '__int__', '__bool__', '__index__', 'nonzero'):
        monkeypatch.setattr(torch.Tensor, name, waits)
    cut_segments(torch.ones(2, 90), torch.tensor([90, 20]), 5, 30)


@pytest.mark.parametrize('count, size', [(0, 10), (3, 0)])
def test_no_segment_and_no_sample_are_refused(count, size):
    with pytest.raises(ValueError, match='at least 1'):
        cut_segments(torch.zeros(1, 20), torch.tensor([20]), count, size)
