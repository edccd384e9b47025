"""Self-distillation of crops (DINO), and the regulariser against redundant or dead dimensions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import ddp


class DinoLoss(nn.Module):
    """Cross-entropy of the student's crops against the teacher's centred, sharpened global crops.

    Source: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021;
    values of spec wavlm_ssl 8.1. Outputs are crop-major: all utterances of crop 0, then of crop 1.
    The mean over ranks is the loss of one process. Computed in fp32 under autocast.

    Args:
        dim: K, outputs of the heads.
        student_temperature: divides the student's logits.
        teacher_temperature: divides the teacher's; the smaller, the sharper its distribution.
        centre_momentum: part of the centre that a step leaves.
    """

    centre: Tensor  # (1, K)

    def __init__(
        self,
        dim: int,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        centre_momentum: float = 0.9,
    ):
        super().__init__()
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.centre_momentum = centre_momentum
        self.register_buffer('centre', torch.zeros(1, dim))

    def forward(self, student: Tensor, teacher: Tensor, globals: int = 2) -> Tensor:
        """Mean over the pairs (g, v) of different crops, g of the teacher, v of the student.

        The centre is used as it is; `update_centre` moves it after the step.

        Args:
            student: (V * B, K), the global crops first.
            teacher: (globals * B, K), of the same crops as the student's first; no gradient.
            globals: crops that the teacher sees.

        Raises:
            ValueError: fewer than two crops of the student, or rows that are no multiple of B.
        """
        rows = len(teacher) // globals  # B
        crops = len(student) // max(rows, 1)  # V
        if (
            rows * globals != len(teacher)
            or rows * crops != len(student)
            or crops < max(globals, 2)
        ):
            raise ValueError(f'{len(student)} student rows, {len(teacher)} of {globals} globals')
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = student.to(self.centre.dtype), teacher.to(self.centre.dtype)
            with torch.no_grad():
                logits = (teacher - self.centre) / self.teacher_temperature
                target = logits.softmax(-1).view(globals, rows, -1)  # (G, B, K)
            log_q = (student / self.student_temperature).log_softmax(-1).view(crops, rows, -1)
            others = log_q.sum(0) - log_q[:globals]  # (G, B, K), summed over v != g
            return -(target * others).sum() / (rows * globals * (crops - 1))

    @torch.no_grad()
    def update_centre(self, teacher: Tensor) -> None:
        """Moves the centre towards the mean of the teacher's outputs (G * B, K) over all ranks."""
        mean = teacher.to(self.centre.dtype).mean(0, keepdim=True)
        self.centre.lerp_(ddp.all_reduce(mean, op='mean'), 1 - self.centre_momentum)


class RedundancyLoss(nn.Module):
    """Keeps every dimension alive over the batch (std) and tells them apart (covariance).

    Source: Chen et al., RDINO, ICASSP 2023, after VICReg; spec wavlm_ssl 8.2. Over the global
    batch: rows are gathered from all ranks, whose equal losses DDP then averages. fp32.

    Args:
        divisor: of the sum of squared covariances; published 65,536, though D is 8,192.
        std: weight of the deviations' term.
        cov: weight of the covariances' term.
    """

    def __init__(self, divisor: float = 65536, std: float = 10.0, cov: float = 1.0):
        super().__init__()
        self.divisor, self.std, self.cov = divisor, std, cov

    def forward(self, student: Tensor, teacher: Tensor, globals: int = 2) -> Tensor:
        """Sum of both networks' terms; the teacher's has no gradient.

        Args:
            student: (globals * B, D), crop-major; the mean over an utterance's crops counts.
            teacher: the same of the teacher.
            globals: crops of an utterance.

        Raises:
            ValueError: a global batch of one utterance, which has no deviation.
        """
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = (
                x.to(torch.promote_types(x.dtype, torch.float32))
                .unflatten(0, (globals, -1))
                .mean(0)
                for x in (student, teacher)
            )
            x, y = ddp.gather_with_grad(student), ddp.all_gather(teacher)  # (B of all ranks, D)
            if len(x) < 2:
                raise ValueError('a batch of one utterance has no deviation: enlarge the batch')
            return self._terms(x) + self._terms(y)

    def _terms(self, x: Tensor) -> Tensor:
        x = x - x.mean(0)
        variance = x.var(0)
        dead = F.relu(1 - (variance + 1e-4).sqrt()).mean() / 2
        return self.std * dead + self.cov * off_diagonal_squares(x) / self.divisor


def off_diagonal_squares(x: Tensor) -> Tensor:
    """Sum of the squared covariances of different dimensions of x (N, D), which has zero means.

    Where N < D the (D, D) matrix is never made: X'X and XX' have the same sum of squares.
    """
    count, dim = x.shape
    if count < dim:
        squares = (x @ x.T).square().sum() - x.square().sum(0).square().sum()
    else:
        products = x.T @ x
        squares = products.square().sum() - products.diagonal().square().sum()
    return squares / (count - 1) ** 2
