"""Which pseudo-labels are learnt, and the pull towards the pre-trained weights (spec 4.2 to 4.5)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import ddp

NO_GATE = float('inf')  # tau before the first threshold: every sample is reliable
SMALLEST = 1e-8  # of a loss: one of exactly 0 has no logarithm (quirk 7)


class Gated(NamedTuple):
    """Loss of a batch and what became of its samples; nothing in both masks: rejected."""

    loss: Tensor
    kept: Tensor  # M (B,) bool: reliable
    corrected: Tensor  # N (B,) bool: not reliable, and the network is sure of its own label
    labels: Tensor  # (B,) what is learnt: of a kept sample the pseudo-label, else y*
    count: Tensor | None = None  # of the samples, of all ranks, that the loss is the mean of


def gate_and_correct(
    losses, logits, clean_logits, labels, log_gate, *, plain_logits=None, sure=0.5, temperature=0.1
):
    """L = sum_i M_i l_i / sum_i M_i (4.3); with a clean view 1/B sum_i (M_i l_i + N_i l*_i) (4.4).

    M_i = [log l_i <= tau]; p = softmax(clean_logits / temperature), y* = argmax p and
    N_i = (1 - M_i) [max p_i > sure]. 'hard' correction, as published: l* = CE(logits, y*), the
    margin still on the pseudo-label; 'soft': l* = -sum p log softmax(plain_logits). Sums and counts
    are over all ranks (times their number: DDP averages). Nothing passed: a loss of 0 (quirk 6).

    Args:
        losses: l (B,) of the augmented view against its pseudo-labels.
        logits: (B, C) they were computed from, margin included.
        clean_logits: W z' (B, C), plain inner products of the clean view; None: gate only.
        labels: (B,) pseudo-labels.
        log_gate: tau, on the logarithm of the loss.
        plain_logits: s * cos (B, C) of the augmented view, for 'soft'; None: 'hard'.
        sure: least probability of a label that replaces another.
        temperature: below 1 sharpens p.
    """
    kept = ~(losses.detach().clamp(min=SMALLEST).log() > log_gate)  # a NaN loss is to be seen
    corrected, learnt, count = torch.zeros_like(kept), labels, kept.sum()
    each = torch.where(kept, losses, 0.0)
    if clean_logits is not None:
        p = (clean_logits.detach() / temperature).softmax(1)
        confidence, own = p.max(1)
        corrected, learnt = ~kept & (confidence > sure), torch.where(kept, labels, own)
        if plain_logits is None:
            new = F.cross_entropy(logits, own, reduction='none')
        else:
            new = F.cross_entropy(plain_logits, p, reduction='none')
        each, count = torch.where(corrected, new, each), torch.full_like(count, len(losses))
    count = ddp.all_reduce(count)
    total = each.sum() * ddp.world_size() / count.clamp(min=1)
    return Gated(total, kept, corrected, learnt, count)


def shares(gated, logits):
    """Shares of the batch kept and corrected, and of hits: learnt, and recognised as its label."""
    learnt = gated.kept | gated.corrected  # quirk 26: accuracy is of these
    hits = learnt & (logits.argmax(1) == gated.labels)
    parts = {'kept': gated.kept, 'corrected': gated.corrected, 'hits': hits}
    return {name: part.float().mean() for name, part in parts.items()}


def pull(parameters, pretrained, squared=False):
    """R = sum_k ||theta_k - theta_k^0||_2 of what is trained (4.5); slides: squared (quirk 14)."""
    distances = (now - before for now, before in zip(parameters, pretrained, strict=True))
    if squared:
        return sum(difference.square().sum() for difference in distances)
    return sum(torch.linalg.vector_norm(difference) for difference in distances)


def level_of(loss):
    """sg(L) (4.5), of L the mean over ranks: N processes learn what one would."""
    return ddp.all_reduce(loss, 'mean')


def objective(loss, distance, weight=0.01, eps=1e-5, level=None):
    """L / sg(L) + lambda R / (sg(R) + eps) (4.5); `level`: `level_of` L where it is known."""
    level = level_of(loss) if level is None else level
    return loss / level.clamp(min=SMALLEST) + weight * distance / (distance.detach() + eps)
