"""Additive noise at a signal-to-noise ratio, batched."""

import torch
from torch import Tensor

CPU_ROWS = 16  # worked on at a time, so that what is in between stays in the processor's cache
POWER_FLOOR = 1e-4  # spec lgl 2.4; makes the SNR of quiet signals wrong: 3 dB at -40 dBFS (9.2)


def power_db(waves: Tensor) -> Tensor:
    """P(z) = 10 log10(mean z^2 + 1e-4) in dB over the last dimension (spec lgl 2.4)."""
    norm = torch.linalg.vector_norm(waves, dim=-1)  # reads once and writes nothing of size L
    mean_square = norm.square() / waves.shape[-1]
    return 10 * torch.log10(mean_square + POWER_FLOOR)


def add_noise(waves: Tensor, noise: Tensor, row: Tensor, snr: Tensor) -> Tensor:
    """Adds noise m to waves[row[m]] with gain sqrt(10^((P(wave) - P(noise) - snr) / 10)).

    Several noises of one row (babble) are all scaled against the same clean level and summed (spec
    lgl 2.5). Rows without noise come back unchanged; nothing is clipped or normalised.

    Args:
        waves: (N, L), after reverberation.
        noise: (M, L), M may be 0.
        row: (M,) int64.
        snr: (M,) in dB.
    """
    if not len(row):
        return waves
    decibels = power_db(waves)[row] - power_db(noise) - snr
    gain = torch.pow(10, decibels / 20)[:, None]
    rows = len(row) if waves.is_cuda else CPU_ROWS
    out = waves.clone()
    for r, v, g in zip(row.split(rows), noise.split(rows), gain.split(rows)):
        out.index_add_(0, r, g * v)
    return out
