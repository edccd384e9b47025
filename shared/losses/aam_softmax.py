"""Additive angular margin softmax."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SINE_FLOOR = 1e-12  # of sin^2: the slope of the root stays finite at |cos| = 1


def plain_logits(embeddings: Tensor, weight: Tensor, scale: float = 30.0) -> Tensor:
    """s * cos (B, C), the logits of `AamSoftmax` without its margin, in fp32 under autocast.

    Args:
        embeddings: (B, D), of any length.
        weight: (C, D), of any length.
        scale: s.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = embeddings.to(weight.dtype)
        return scale * F.linear(F.normalize(embeddings), F.normalize(weight))


class AamSoftmax(nn.Module):
    """Cross-entropy over cosines, the target's angle enlarged by a margin.

    Source: Deng et al., ArcFace, CVPR 2019, eq. 3, with the linear continuation of the reference
    where angle + margin would exceed pi (spec lgl 5.3). Computed in fp32 under autocast.

    Args:
        classes: C.
        dim: D of the embeddings.
        margin: m, radians.
        scale: s.
    """

    def __init__(self, classes: int, dim: int, margin: float = 0.2, scale: float = 30.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, dim))
        nn.init.xavier_normal_(self.weight)
        self.margin = margin
        self.scale = scale

    def set_margin(self, margin: float):
        """Sets the margin, in radians, for the following forwards."""
        self.margin = margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each sample.

        Args:
            embeddings: (B, D), of any length.
            labels: (B,) int64 in [0, C).

        Returns:
            Cross-entropy (B,), and the logits (B, C) it was computed from, margin included.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(self.weight.dtype)
            cosine = F.linear(F.normalize(embeddings), F.normalize(self.weight))
            target = labels.unsqueeze(1)  # (B, 1)
            logits = cosine.scatter(1, target, self._with_margin(cosine.gather(1, target)))
            logits = self.scale * logits
            return F.cross_entropy(logits, labels, reduction='none'), logits

    def _with_margin(self, cosine: Tensor) -> Tensor:
        """cos(angle + m), continued linearly beyond angle = pi - m."""
        sine = (1 - cosine.square()).clamp(min=SINE_FLOOR).sqrt()
        shifted = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        beyond = cosine - self.margin * math.sin(self.margin)
        return torch.where(cosine > -math.cos(self.margin), shifted, beyond)
