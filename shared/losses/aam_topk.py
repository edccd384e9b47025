"""Additive angular margin softmax that also pulls the hardest other classes closer."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.losses.aam_softmax import SINE_FLOOR, AamSoftmax


class AamSoftmaxTopK(AamSoftmax):
    """AAM-softmax with the inter-top-k penalty.

    Source: Zhao et al., Multi-query multi-head attention pooling and inter-topK penalty for speaker
    verification, ICASSP 2022; formulas as in spec nawsv 4.4. The target's angle grows by `margin`
    and nothing special happens beyond pi; the angles of the `top_k` most similar other classes
    shrink by `top_k_margin`. Computed in fp32 under autocast.

    Args:
        classes: C.
        dim: D of the embeddings.
        margin: m, radians.
        scale: s.
        top_k: K, other classes to be penalised.
        top_k_margin: m', radians.

    Raises:
        ValueError: there are not `top_k` other classes.
    """

    def __init__(
        self,
        classes: int,
        dim: int,
        margin: float = 0.2,
        scale: float = 30.0,
        top_k: int = 5,
        top_k_margin: float = 0.1,
    ):
        if not 0 <= top_k < classes:
            raise ValueError(f'top_k {top_k} does not fit {classes} classes: 0 to {classes - 1}')
        super().__init__(classes, dim, margin=margin, scale=scale)
        self.top_k = top_k
        self.top_k_margin = top_k_margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each sample.

        Args:
            embeddings: (B, D), of any length.
            labels: (B,) int64 in [0, C).

        Returns:
            Cross-entropy (B,), and the logits (B, C) it was computed from, margins included.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(self.weight.dtype)
            cosine = F.linear(F.normalize(embeddings), F.normalize(self.weight))
            target = labels.unsqueeze(1)  # (B, 1)
            others = cosine.detach().scatter(1, target, -torch.inf)
            hardest = others.topk(self.top_k).indices  # (B, K), never the target
            logits = cosine.scatter(1, target, turned(cosine.gather(1, target), self.margin))
            closer = turned(cosine.gather(1, hardest), -self.top_k_margin)
            logits = self.scale * logits.scatter(1, hardest, closer)
            return F.cross_entropy(logits, labels, reduction='none'), logits


def turned(cosine: Tensor, angle: float) -> Tensor:
    """cos(theta + angle) of cosines of theta in [0, pi], angle in radians."""
    sine = (1 - cosine.square()).clamp(min=SINE_FLOOR).sqrt()
    return cosine * math.cos(angle) - sine * math.sin(angle)
