"""What the student learns from its teacher: the posteriors, split in two, or the embedding (4.3-4.5).

p and q are the posteriors of teacher and student, softmax(logits / T) with the margin inside, y the
speaker. Teachers get no gradient; everything is computed in fp32 at least, under autocast too.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Distilled(NamedTuple):
    """What is minimised, and for the log the means of its two parts (without T^2 and gamma)."""

    loss: Tensor
    target: Tensor  # TCKD
    non_target: Tensor  # NCKD


def target_kd(student_logits, teacher_logits, labels, temperature=1.0):
    """TCKD = p_y ln(p_y / q_y) + (1 - p_y) ln((1 - p_y) / (1 - q_y)) (B,), of logits (B, C)."""
    teacher = log_odds(teacher_logits.detach(), labels, temperature)
    student = log_odds(student_logits, labels, temperature)
    known = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    return known + (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))


def non_target_kd(student_logits, teacher_logits, labels, temperature=1.0):
    """NCKD = sum over j != y of p^_j ln(p^_j / q^_j) (B,); p^, q^: softmax over the others only."""
    y = labels.unsqueeze(1)  # (B, 1)
    # ln p^_y = ln q^_y = -inf: set to 0 before they meet, for 0 * (inf - inf) is NaN
    log_p = non_targets(teacher_logits.detach(), labels, temperature).log_softmax(1)
    log_q = non_targets(student_logits, labels, temperature).log_softmax(1).scatter(1, y, 0.0)
    return (log_p.exp() * (log_p.scatter(1, y, 0.0) - log_q)).sum(1)


def enskd_loss(student_logits, teacher_logits, labels, gamma=2.0, temperature=1.0):
    """L = T^2 / B sum (TCKD + gamma NCKD), the emphasised non-target speakers (4.3)."""
    logits = student_logits, teacher_logits, labels, temperature
    return distilled(target_kd(*logits), non_target_kd(*logits), gamma, temperature)


def kl_loss(student_logits, teacher_logits, labels, temperature=1.0):
    """L = T^2 / B sum KL(p || q) = T^2 / B sum (TCKD + (1 - p_y) NCKD), label-level KD (4.4)."""
    logits = student_logits, teacher_logits, labels, temperature
    others = (-log_odds(teacher_logits.detach(), labels, temperature)).sigmoid()  # 1 - p_y (B,)
    return distilled(target_kd(*logits), non_target_kd(*logits), others, temperature)


def cosine_loss(student_embeddings, teacher_embeddings):
    """L = 1 - mean cos(e, u) of embeddings (B, D), embedding-level KD (4.5)."""
    student, teacher = in_fp32(student_embeddings), in_fp32(teacher_embeddings.detach())
    return 1 - F.cosine_similarity(student, teacher).mean()


def ramp(epoch, warmup):
    """w = min(epoch / warmup, 1), the weight of label-level losses in an epoch, from 1 (4.3)."""
    return min(epoch / warmup, 1.0) if warmup else 1.0


def distilled(target, non_target, gamma, temperature):
    """T^2 / B sum (TCKD + gamma NCKD); gamma one number or (B,)."""
    loss = temperature**2 * (target + gamma * non_target).mean()
    return Distilled(loss, target.detach().mean(), non_target.detach().mean())


def log_odds(logits, labels, temperature):
    """ln(p_y / (1 - p_y)) (B,): 1 - p_y is the sum over the others, exact where p_y rounds to 1."""
    target = in_fp32(logits).gather(1, labels.unsqueeze(1)).squeeze(1) / temperature
    return target - non_targets(logits, labels, temperature).logsumexp(1)


def non_targets(logits, labels, temperature):
    """Logits / T (B, C), the target's -inf: out of every sum, with a gradient of exactly 0."""
    return (in_fp32(logits) / temperature).scatter(1, labels.unsqueeze(1), float('-inf'))


def in_fp32(x):
    """In fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
