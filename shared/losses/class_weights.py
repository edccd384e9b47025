"""Cross-entropy weighted by how rare a class is."""

import torch
from torch import Tensor

from shared import ddp


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """alpha_c = N / n_c (C,) of the labels (N,) of all training files (spec nawsv 2.1, oskdft 2.1)."""
    return len(labels) / torch.bincount(labels, minlength=classes).clamp(min=1)


def weight_sum(labels: Tensor, weights: Tensor) -> Tensor:
    """sum(alpha_y) over the samples of all ranks, labels (B,) of this one; no dimension."""
    return ddp.all_reduce(weights[labels].sum())


def weighted_mean(
    losses: Tensor, labels: Tensor, weights: Tensor, total: Tensor | None = None
) -> Tensor:
    """sum(alpha_y * l) / sum(alpha_y) over the samples of all ranks (spec nawsv 4.4, oskdft 4.4).

    This rank's sum is divided by the global sum of weights and multiplied by the number of ranks,
    because DDP will average.

    Args:
        losses: (B,) of this rank's samples.
        labels: (B,) int64 in [0, C).
        weights: alpha (C,).
        total: what is divided by; None: the `weight_sum` of these samples. Where they are one of P
            parts of a batch, that of the batch over P: the mean of the parts is that of the batch.
    """
    if total is None:
        total = weight_sum(labels, weights)
    return (weights[labels] * losses).sum() * ddp.world_size() / total
