"""Equal segments of whole files, for scores averaged over crops."""

import torch
from torch import Tensor


def cut_segments(waves: Tensor, lengths: Tensor, count: int, size: int) -> Tensor:
    """S segments of `size` samples from each file, evenly from its start to its end, (B, S, size).

    They start at int(linspace(0, length - size, S)), in float64 as numpy computes it, and overlap
    in a short file; one shorter than `size` is repeated from its start until it fills the segment
    (spec nawsv 2). On the device, without waiting for it; padding never gets into a segment.

    Args:
        waves: (B, L), zero-padded.
        lengths: (B,) samples of each file, 1..L.
        count: S.
        size: samples of a segment.

    Raises:
        ValueError: count or size below 1.
    """
    if count < 1 or size < 1:
        raise ValueError(f'{count} segments of {size} samples: both must be at least 1')
    slack = (lengths - size).clamp(min=0)  # (B,)
    starts = torch.zeros(count, len(waves), dtype=torch.int64, device=waves.device)  # (S, B)
    if count > 1:
        step = slack.double() / (count - 1)
        numbers = torch.arange(count, dtype=torch.float64, device=waves.device)
        starts = (numbers[:, None] * step).long()
        starts[-1] = slack  # exactly, whatever the rounding of the step
    samples = torch.arange(size, device=waves.device)
    segments = [waves.gather(1, (start[:, None] + samples) % lengths[:, None]) for start in starts]
    return torch.stack(segments, dim=1)
