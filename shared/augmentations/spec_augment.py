"""Masks over time and frequency of features, batched."""

import torch
from torch import Tensor

DRAWS = 5  # uniform numbers a row: chosen?, width and start in time, width and start in frequency


def spec_augment(
    features: Tensor, draws: Tensor, prob: float = 0.6, max_t: int = 10, max_f: int = 8
) -> Tensor:
    """Zeroes one span of frames and one span of bins in each row that chance chooses.

    Source: spec enskd 2.3, item 11, with its values as defaults. Where it is silent: each width is
    uniform over 1 ... its greatest, cut to the features' own size; each start is uniform over the
    places where the span fits. Zero is the mean of each bin after the mean is subtracted. Nothing is
    drawn here: the same numbers give the same masks on every device.

    Args:
        features: (B, F, T); they stay as they are.
        draws: (B, 5), uniform in [0, 1), as of `torch.rand(B, DRAWS, generator=generator)`.
        prob: of a row to be masked.
        max_t: frames, longest time mask; 0: none.
        max_f: bins, widest frequency mask; 0: none.

    Returns:
        (B, F, T).

    Raises:
        ValueError: `draws` has another shape.
    """
    if draws.shape != (len(features), DRAWS):
        raise ValueError(
            f'draws must be ({len(features)}, {DRAWS}) for features {tuple(features.shape)}, '
            f'not {tuple(draws.shape)}'
        )
    chosen, t_width, t_start, f_width, f_start = draws.to(features.device).unbind(1)  # (B,)
    hidden_t = _span(t_width, t_start, features.shape[2], max_t)[:, None, :]  # (B, 1, T)
    hidden_f = _span(f_width, f_start, features.shape[1], max_f)[:, :, None]  # (B, F, 1)
    hidden = (hidden_t | hidden_f) & (chosen < prob)[:, None, None]  # (B, F, T)
    return features.masked_fill(hidden, 0)


def _span(width: Tensor, start: Tensor, size: int, most: int) -> Tensor:
    """One span a row, from uniform numbers (B,): (B, size) bool."""
    most = min(most, size)
    if most < 1:
        return torch.zeros(len(width), size, dtype=torch.bool, device=width.device)
    length = 1 + (width * most).long()  # (B,), 1 ... most
    first = (start * (size - length + 1)).long()  # (B,), 0 ... size - length
    after = torch.arange(size, device=width.device) - first[:, None]  # (B, size)
    return (after >= 0) & (after < length[:, None])
