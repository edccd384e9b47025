"""Gradient reversal for adversarial training."""

import torch
from torch import Tensor


class GradientReversal(torch.autograd.Function):
    """Identity forward, gradient times -1 backward (Ganin and Lempitsky, ICML 2015, eq. 14-15)."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return -gradient


def reverse_gradient(x: Tensor) -> Tensor:
    """Returns x, of any shape; what lies behind it learns to increase the loss."""
    return GradientReversal.apply(x)
