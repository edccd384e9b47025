"""Random spans to hide from an SSL encoder, drawn on the device without a host synchronisation."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SpanMasks:
    """Rates of the time and feature masks (rule of Hugging Face, spec nawsv 3.2).

    Raises:
        ValueError: a probability outside 0..1, or spans without a length.
    """

    time_prob: float = 0.0  # about the share of frames replaced by the learned vector
    time_length: int = 10  # frames
    time_min: int = 2  # spans
    feature_prob: float = 0.0  # about the share of the D features set to zero in all frames
    feature_length: int = 10  # features
    feature_min: int = 0  # spans

    def __post_init__(self):
        for name in ('time', 'feature'):
            prob, length = getattr(self, f'{name}_prob'), getattr(self, f'{name}_length')
            if not 0 <= prob <= 1:
                raise ValueError(f'{name}_prob {prob} must be within 0..1')
            if prob > 0 and length < 1:
                raise ValueError(f'{name}_length {length} must be at least 1')


def draw_spans(own: Tensor, size: int, *, prob: float, length: int, min_count: int) -> Tensor:
    """Marks int(prob * own / length + eps) spans a row, which may overlap.

    One eps ~ U[0, 1) for the whole batch; starts are drawn without replacement from the row's own
    positions (Hugging Face, `_compute_mask_indices`).

    Args:
        own: (B,) positions of each row that are no padding.
        size: positions of the padded rows.
        prob: of a position to be in a span, if spans did not overlap.
        length: of a span, positions.
        min_count: lowest number of spans, unless they do not fit.

    Returns:
        (B, size) bool.

    Raises:
        ValueError: a span is longer than the rows.
    """
    if length > size:
        raise ValueError(f'a mask span of {length} does not fit into {size} positions')
    room = size - length + 1  # possible starts
    most = min(max(int(prob * size / length + 1), min_count), size // length, room)
    if most == 0:
        return torch.zeros(len(own), size, dtype=torch.bool, device=own.device)
    eps = torch.rand((), device=own.device)
    count = (prob / length * own + eps).floor().clamp(min=min_count, max=most)
    starts = torch.arange(room, device=own.device)
    order = torch.rand(len(own), room, device=own.device)
    order = order.masked_fill(starts >= (own - length + 1)[:, None], -1)  # own starts come first
    first = order.topk(most).indices  # (B, most)
    drawn = torch.arange(most, device=own.device) < torch.minimum(count, own - length + 1)[:, None]
    position = torch.arange(size, device=own.device)
    offset = position - first[:, :, None]  # (B, most, size)
    return ((offset >= 0) & (offset < length) & drawn[:, :, None]).any(1)
