"""Hint loss and E-APN of phase 1, class weighting of phase 2 (spec nawsv 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import ddp


def hint_loss(student_states, teacher_states, hint_lambda):
    """L_hint = m_N + lambda * sum of m_1 .. m_(N-1) (spec 4.1).

    m_l is the mean squared difference of states l (B, T, D); state 0, the input of the first layer,
    is not compared. Masked frames count.
    """
    hints = []
    for student, teacher in list(zip(student_states, teacher_states, strict=True))[1:]:
        dtype = torch.promote_types(student.dtype, torch.float32)  # bf16 would lose the difference
        hints.append(F.mse_loss(student.to(dtype), teacher.to(dtype)))
    return hints[-1] + hint_lambda * sum(hints[:-1])


class EApn(nn.Module):
    """E-APN: a noisy embedding has to find its speaker among clean prototypes (spec 4.2).

    The logits are w * cos + b with learned w and b (b cancels in the softmax). Other speakers are
    those of this rank, as published; with `gather` those of all ranks, which makes N processes
    equal one.
    """

    def __init__(self, init_w=10.0, init_b=-5.0, gather=False):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(init_w))
        self.b = nn.Parameter(torch.tensor(init_b))
        self.gather = gather

    def forward(self, noisy: Tensor, *prototypes: Tensor) -> Tensor:
        """Mean over the families of `prototypes` of the loss of N queries among N prototypes.

        `noisy` are the student's embeddings (N, D) of the noisy utterances; each family holds one
        embedding of each speaker in the same order: s1 alone, or s1, t1 and t2.
        """
        with torch.autocast(noisy.device.type, enabled=False):
            queries = self._unit(noisy)
            own = torch.arange(len(queries), device=queries.device)
            if self.gather:
                own = own + ddp.rank() * len(queries)
            losses = []
            for family in prototypes:
                columns = self._unit(family)
                columns = ddp.gather_with_grad(columns) if self.gather else columns
                logits = self.w.clamp(min=1e-6) * queries @ columns.T + self.b
                losses.append(F.cross_entropy(logits, own))
            return torch.stack(losses).mean()

    def _unit(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings.to(self.w.dtype), eps=1e-8)


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """alpha_c = N_total / n_c (C,) of the labels of all training files (spec 2.1)."""
    return len(labels) / torch.bincount(labels, minlength=classes).clamp(min=1)


def weighted_mean(losses: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """sum(alpha_y * l) / sum(alpha_y) over the samples of all ranks (spec 4.4).

    This rank's sum is divided by the global sum of weights and multiplied by the number of ranks,
    because DDP will average.
    """
    alpha = weights[labels]
    return (alpha * losses).sum() * ddp.world_size() / ddp.all_reduce(alpha.sum())
