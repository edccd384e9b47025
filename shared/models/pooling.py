"""Pooling of frames into one vector per utterance."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.models.masks import masked_mean, zero_padding

VARIANCE_FLOOR = 1e-4
VARIANCE_OFFSET = 1e-7  # added to a variance before its root


def statistics_pooling(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean and standard deviation over time, the root of the unbiased variance + 1e-7.

    Source: Snyder et al., X-vectors, ICASSP 2018; order and offset as in spec enskd 3. Computed in
    fp32 at least, under autocast too.

    Args:
        x: (B, ..., T), at least 2 frames of each utterance; the axes between are flattened, the
            first of them the slowest.
        mask: (B, 1, T) of `frame_mask`, or None when every frame counts.

    Returns:
        (B, 2C): C means, then C deviations; C is the product of the axes between.
    """
    x = x.flatten(1, -2)  # (B, C, T)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = masked_mean(x, mask)
    if mask is None:
        variance = x.var(-1)
    else:
        squares = zero_padding((x - mean).square(), mask).sum(-1)
        variance = squares / (mask.sum(-1) - 1)
    return torch.cat([mean.squeeze(-1), (variance + VARIANCE_OFFSET).sqrt()], dim=1)


def attentive_statistics(x: Tensor, scores: Tensor, mask: Tensor | None, floor: float) -> Tensor:
    """Mean and deviation over time, each frame of a channel weighted by the softmax of its score.

    Args:
        x: (B, C, T) frames.
        scores: (B, C, T) of the same type.
        mask: (B, 1, T) of `frame_mask`, or None when every frame counts.
        floor: of every variance, below which the deviation is its square root.

    Returns:
        (B, 2C): C means, then C deviations.
    """
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
        x = zero_padding(x, mask)
    weight = scores.softmax(dim=-1)  # over time, for each channel
    mean = (weight * x).sum(-1, keepdim=True)
    # equals sum(w x^2) - mean^2 without its cancellation
    variance = (weight * (x - mean).square()).sum(-1)
    return torch.cat([mean.squeeze(-1), variance.clamp(min=floor).sqrt()], dim=1)


class AttentiveStatisticsPooling(nn.Module):
    """Channel- and context-dependent attentive statistics pooling.

    Source: Desplanques et al., ECAPA-TDNN, Interspeech 2020, section 3.1; order of the layers as in
    spec lgl 4.1 (batch norm after the ReLU), whose context and floor are the defaults.
    The attention sees each frame together with the utterance's mean and standard deviation; as the
    latter two are constant over time, their product with the weight is computed once per utterance.
    Statistics and softmax are fp32 under autocast.

    Args:
        channels: C of the frames.
        hidden: width of the attention.
        correction: of the context's variance: 1 unbiased, 0 biased.
        floor: of every variance, below which the deviation is its square root.
    """

    def __init__(
        self, channels: int, hidden: int, correction: int = 1, floor: float = VARIANCE_FLOOR
    ):
        super().__init__()
        self.correction, self.floor = correction, floor
        self.context = nn.Conv1d(3 * channels, hidden, kernel_size=1)
        self.norm = nn.BatchNorm1d(hidden)
        self.score = nn.Conv1d(hidden, channels, kernel_size=1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pools frames (B, C, T), T > 1, with a mask (B, 1, T), to mean and deviation (B, 2C)."""
        frames = x.to(torch.promote_types(x.dtype, torch.float32))
        scores = self._scores(x, self._context(frames, mask)).to(frames.dtype)
        return attentive_statistics(frames, scores, mask, self.floor)

    def _context(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """Mean and standard deviation over time, (B, 2C)."""
        mean = masked_mean(frames, mask)
        if mask is None:
            variance = frames.var(-1, correction=self.correction)
        else:
            squares = zero_padding((frames - mean).square(), mask).sum(-1)
            variance = squares / (mask.sum(-1) - self.correction)
        return torch.cat([mean.squeeze(-1), variance.clamp(min=self.floor).sqrt()], dim=1)

    def _scores(self, x: Tensor, context: Tensor) -> Tensor:
        weight, channels = self.context.weight, x.shape[1]
        hidden = F.conv1d(x, weight[:, :channels], self.context.bias)
        hidden = hidden + F.linear(context, weight[:, channels:].squeeze(-1)).unsqueeze(-1)
        return self.score(self.norm(hidden.relu()).tanh())
