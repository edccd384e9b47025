"""From the hidden states of a self-supervised encoder to frames and statistics of an utterance.

The pieces of the back-ends in specs nawsv 3.3 and 3.4, oskdft 3.5. Everything here is fp32 at least,
under autocast too.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.models.masks import masked_mean, zero_padding


class WeightedSum(nn.Module):
    """Weighted sum of N hidden states; the weights are raw: no softmax, any sign.

    Args:
        states: N, the input of the first layer included.
    """

    def __init__(self, states: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(states))

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        """Sums N states (B, T, D) to (B, T, D), as `weighted_sum`."""
        return weighted_sum(states, self.weight)


def weighted_sum(states: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Sums N states (B, T, D) to (B, T, D), one after the other: they are never stacked.

    Args:
        states: N of (B, T, D).
        weights: (N,).

    Raises:
        ValueError: other than N states.
    """
    if len(states) != len(weights):
        raise ValueError(f'{len(states)} hidden states for {len(weights)} weights')
    dtype = torch.promote_types(states[0].dtype, weights.dtype)
    total = states[0].to(dtype) * weights[0]
    for state, weight in zip(states[1:], weights[1:]):
        total = torch.addcmul(total, weight, state.to(dtype))
    return total


def instance_norm(x: Tensor, mask: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance of each channel of each utterance over time.

    Args:
        x: (B, D, T).
        mask: (B, 1, T) of `frame_mask`; the result is zero outside it.
        eps: added to the biased variance.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if mask is None:
        return F.instance_norm(x, eps=eps)
    x = x - masked_mean(x, mask)
    return zero_padding(x * (masked_mean(x.square(), mask) + eps).rsqrt(), mask)


def mean_and_deviation(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean and unbiased standard deviation over time, without a floor.

    Args:
        x: (B, D, T), at least 2 frames of each utterance.
        mask: (B, 1, T) of `frame_mask`, or None when every frame counts.

    Returns:
        (B, 2D).
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = masked_mean(x, mask)
    if mask is None:
        deviation = x.std(-1)  # its gradient is 0, not infinite, where the frames are constant
    else:
        squares = zero_padding((x - mean).square(), mask).sum(-1)
        deviation = (squares / (mask.sum(-1) - 1)).sqrt()
    return torch.cat([mean.squeeze(-1), deviation], dim=1)
