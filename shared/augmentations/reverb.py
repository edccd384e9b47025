"""Reverberation: convolution with room impulse responses, batched, and their scaling."""

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor


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
    size = next_fast_len(length + rir.shape[-1] - 1, real=True)  # no wrap-around into the first L
    spectrum = torch.fft.rfft(waves[row], n=size)
    spectrum *= torch.fft.rfft(rir, n=size)
    wet = torch.fft.irfft(spectrum, n=size)[:, :length]
    return waves.index_copy(0, row, wet)
