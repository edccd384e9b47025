"""Distillation by hints: hidden states compared layer by layer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def hint_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], weight: float) -> Tensor:
    """m_N + weight * (m_1 + ... + m_(N-1)), m_l the mean squared difference of states l.

    Source: Lee et al., FitHuBERT, Interspeech 2022 (specs nawsv 4.1, oskdft 4.3). Masked frames
    count. Computed in fp32 at least.

    Args:
        student: N states (B, T, D).
        teacher: N states (B, T, D).
        weight: of the layers below the last.

    Raises:
        ValueError: numbers of states that differ, or none.
    """
    hints = []
    for ours, theirs in zip(student, teacher, strict=True):
        dtype = torch.promote_types(ours.dtype, torch.float32)  # bf16 would lose the difference
        hints.append(F.mse_loss(ours.to(dtype), theirs.to(dtype)))
    if not hints:
        raise ValueError('no states to compare')
    return hints[-1] + weight * sum(hints[:-1])
