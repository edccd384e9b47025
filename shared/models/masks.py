"""Masks over frames, so that zero-padded batches give what single utterances give."""

import torch
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
