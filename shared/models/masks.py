"""Masks over frames, so that zero-padded batches give what single utterances give."""

import torch
import torch.nn.functional as F
from torch import Tensor


def frame_mask(frames: Tensor, count: int) -> Tensor:
    """Marks the frames that belong to each utterance.

    Args:
        frames: (B,) own number of frames of each utterance.
        count: T, frames of the padded batch.

    Returns:
        (B, 1, T) bool, true inside the utterance.
    """
    return (torch.arange(count, device=frames.device) < frames.unsqueeze(-1)).unsqueeze(1)


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Sets x (B, C, T) to zero past each utterance's end; x itself without a mask."""
    return x if mask is None else x.masked_fill(~mask, 0)


def reflect_padding(x: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
    """Puts `count` reflected frames before x (B, C, T) and after each utterance's own end.

    The frame at the edge is not repeated; utterances of `count` frames or fewer are reflected to
    and fro. Past the reflected frames the result means nothing.

    Args:
        x: (B, C, T), T > 1.
        count: frames at either end.
        mask: (B, 1, T) of `frame_mask`, or None when every frame counts.

    Returns:
        (B, C, T + 2 * count).
    """
    if mask is None and x.shape[-1] > count:
        return F.pad(x, (count, count), mode='reflect')
    frames = torch.full((1, 1, 1), x.shape[-1]) if mask is None else mask.sum(-1, keepdim=True)
    place = torch.arange(-count, x.shape[-1] + count, device=x.device).abs()
    last = frames.to(x.device) - 1  # (B, 1, 1)
    place = place % (2 * last).clamp(min=1)
    place = torch.where(place > last, 2 * last - place, place).clamp(min=0)
    return x.gather(2, place.expand(*x.shape[:2], -1))


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the frames inside each utterance, summed in fp32 at least.

    Args:
        x: (B, C, T).
        mask: (B, 1, T) of `frame_mask`, or None when every frame counts.

    Returns:
        (B, C, 1); NaN for an utterance without frames.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if mask is None:
        return x.mean(-1, keepdim=True, dtype=dtype)
    return zero_padding(x, mask).sum(-1, keepdim=True, dtype=dtype) / mask.sum(-1, keepdim=True)
