"""Reverberation: convolution with room impulse responses, batched, and their scaling."""

import numpy as np
import torch
from torch import Tensor

CPU_ROWS = 16  # worked on at a time, so that what is in between stays in the processor's cache


def unit_energy(rir: np.ndarray) -> np.ndarray:
    """h / ||h||_2, (K,) (spec lgl 2.5)."""
    return rir / np.linalg.norm(rir)


def power_db_gain(rir: np.ndarray, gain_db: float) -> np.ndarray:
    """h * 10^(0.1 g), (K,): a power exponent on an amplitude, as published (spec lgl 2.4, 9.2)."""
    return rir * rir.dtype.type(10 ** (0.1 * gain_db))


def reverberate(waves: Tensor, rir: Tensor, row: Tensor) -> Tensor:
    """Replaces waves[row[r]] by the first L samples of its full convolution with rir[r].

    The direct path is not aligned and no level is restored (spec lgl 2.4, 2.5). Other rows come back
    unchanged.

    Args:
        waves: (N, L).
        rir: (R, K), zero-padded; taps beyond L cannot matter and are cut. R may be 0.
        row: (R,) int64, none twice.
    """
    if not len(row):
        return waves
    length = waves.shape[-1]
    rir = rir[:, :length]
    size = fft_size(length + rir.shape[-1] - 1)  # nothing wraps around into the first L samples
    rows = len(row) if waves.is_cuda else CPU_ROWS
    out = waves.clone()
    for r, h in zip(row.split(rows), rir.split(rows)):
        spectrum = torch.fft.rfft(waves[r], n=size)
        spectrum *= torch.fft.rfft(h, n=size)
        out.index_copy_(0, r, torch.fft.irfft(spectrum, n=size)[:, :length])
    return out


def fft_size(length: int) -> int:
    """Smallest k * 2^n of at least `length`, k one of 1, 3, 5, 9, 15: where FFTs are fastest."""
    return min(k << max(-(-length // k) - 1, 0).bit_length() for k in (1, 3, 5, 9, 15))
