"""What the student learns from its teacher, and the classifier of system B (spec oskdft 4)."""

import torch
import torch.nn.functional as F
from torch import nn

from shared.losses.hint import hint_loss


class DistilHubertLoss(nn.Module):
    """System B: heads on the student's last state predict some of the teacher's (spec 4.1).

    L_KD = 1/B sum over b, k of mean_td |p - y| - cos_lambda * sum_t log sigmoid(cos(p, y)). The
    cosine is summed over time and the difference averaged, which weighs it T-fold, as published;
    `mean` averages both (9.2-4).

    Args:
        width: D of the student.
        teacher_width: of the teacher.
        targets: layers of the teacher, one head each; 0 is the input of its first layer.
        cos_lambda: weight of the cosine.
        cosine: 'sum' or 'mean' over time.
    """

    def __init__(self, width, teacher_width, targets=(4, 8, 12), cos_lambda=1.0, cosine='sum'):
        super().__init__()
        self.targets, self.cos_lambda, self.cosine = targets, cos_lambda, cosine
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, teacher_width))
            for _ in targets
        )

    def forward(self, student, teacher):
        """Loss of the states of the student's KD rows against the teacher's, N of (B, T, D)."""
        loss = 0
        for head, target in zip(self.heads, self.targets):
            p, y = in_fp32(head(student[-1]), teacher[target])
            difference = (p - y).abs().mean((1, 2))  # (B,)
            cosine = F.logsigmoid(F.cosine_similarity(p, y, dim=-1))  # (B, T)
            cosine = cosine.sum(1) if self.cosine == 'sum' else cosine.mean(1)
            loss = loss + (difference - self.cos_lambda * cosine).mean()
        return loss


class LastStateLoss(nn.Module):
    """System A: scale * mean squared difference of the last states (spec 4.2)."""

    def __init__(self, scale=100.0):
        super().__init__()
        self.scale = scale

    def forward(self, student, teacher):
        """Loss of the states of the student's KD rows against the teacher's, N of (B, T, D)."""
        return self.scale * F.mse_loss(*in_fp32(student[-1], teacher[-1]))


class HintLoss(nn.Module):
    """FitHuBERT: every state of the student against the teacher's layer of its number (4.3)."""

    def __init__(self, hint_lambda=0.1):
        super().__init__()
        self.hint_lambda = hint_lambda

    def forward(self, student, teacher):
        """Loss of L states of the student against those of the teacher's layers 1 to L."""
        return hint_loss(student, teacher[1:], self.hint_lambda)


class LinearSoftmax(nn.Linear):
    """System B's classifier: cross-entropy of a linear layer (spec 4.4)."""

    def __init__(self, classes, dim):
        super().__init__(dim, classes)

    def forward(self, embeddings, labels):
        """Loss of each sample (B,), and the logits (B, C)."""
        with torch.autocast(embeddings.device.type, enabled=False):  # in fp32
            logits = super().forward(embeddings.to(self.weight.dtype))
            return F.cross_entropy(logits, labels, reduction='none'), logits


def in_fp32(*tensors):
    """In fp32 at least: bf16 would lose small differences."""
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]
