"""Loudness, batched: clipped amplitudes, envelopes that fade a crop in or out, peaks brought to 1.

Source: spec oskdft 2.3 but for the peaks. The six envelopes are Penner's easing curves; of 'bounce' the released code
multiplies by u where the curve has the square (9.1, item 8), here it is the curve.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

PEAK_OFFSET = 1e-4  # added to a peak before it divides (spec enskd 2.4)


def _bounce(u: np.ndarray) -> np.ndarray:
    """Four arcs of n (u - a)^2 + c that meet at 1/d, 2/d, 2.5/d, as a ball that comes to rest."""
    n, d = 7.5625, 2.75
    arcs = [n * (u - a / d) ** 2 + c for a, c in ((0, 0), (1.5, 0.75), (2.25, 0.9375))]
    last = n * (u - 2.625 / d) ** 2 + 0.984375
    return np.select([u < 1 / d, u < 2 / d, u < 2.5 / d], arcs, last)


# from 0 at u = 0 to 1 at u = 1, u float64 (L,)
CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'sine': lambda u: 1 - np.cos(np.pi * u / 2),
    'quad': lambda u: u**2,
    'cubic': lambda u: u**3,
    'circ': lambda u: 1 - np.sqrt(1 - u**2),
    'expo': lambda u: np.where(u > 0, 2.0 ** (10 * u - 10), 0.0),
    'bounce': _bounce,
}


def clip_amplitude(waves: Tensor, row: Tensor, ratio: Tensor) -> Tensor:
    """Limits waves[row[p]] to ratio[p] times its least and its greatest value.

    Other rows come back unchanged.

    Args:
        waves: (N, L).
        row: (P,) int64, none twice; P may be 0.
        ratio: (P,), 0 to 1.
    """
    if not len(row):
        return waves
    rows, ratio = waves[row], ratio[:, None]
    low, high = (ratio * bound(-1, keepdim=True) for bound in (rows.amin, rows.amax))  # (P, 1)
    return waves.index_copy(0, row, rows.clamp(low, high))


def apply_gain(waves: Tensor, row: Tensor, gain: Tensor) -> Tensor:
    """Multiplies waves[row[g]] by gain[g], sample by sample; other rows come back unchanged.

    Args:
        waves: (N, L).
        row: (G,) int64, none twice; G may be 0.
        gain: (G, L).
    """
    return waves.index_copy(0, row, waves[row] * gain) if len(row) else waves


def normalise_peak(waves: Tensor, *rows: Tensor) -> Tensor:
    """Divides waves[row] by max|x| + 1e-4, for every row that is named; others come back unchanged.

    Source: spec enskd 2.4, of augmented crops.

    Args:
        waves: (N, L).
        rows: int64, of any length, repeated or not.
    """
    named = torch.zeros(len(waves), 1, dtype=torch.bool, device=waves.device)
    for row in rows:
        named.index_fill_(0, row, True)
    peak = waves.abs().amax(-1, keepdim=True)  # (N, 1)
    return torch.where(named, waves / (peak + PEAK_OFFSET), waves)


def easing_envelope(curve: str, length: int, floor: float, reverse: bool) -> np.ndarray:
    """Gain of each sample of a crop, from `floor` at its first to 1 at its last, float32 (length,).

    b + (1 - b) * curve(u) with u = 0 ... 1 over the crop and b the floor (spec oskdft 2.3).

    Args:
        curve: name in `CURVES`.
        length: samples.
        floor: 0 to 1.
        reverse: from 1 at the first sample to `floor` at the last.
    """
    values = CURVES[curve](np.linspace(0, 1, length))
    if reverse:
        values = values[::-1]
    return (floor + (1 - floor) * values).astype(np.float32)
