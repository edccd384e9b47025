"""Learning rates, momenta and margins as pure functions of the epoch or step."""

import math

import torch

MARGIN_LEFT = 1e-3 / (1 + 1e-6)  # share of its way a growing margin still has when it is fixed


def exponential_steps(lr: float, decay: float, every: int, epoch: int) -> float:
    """Learning rate of an epoch (from 1), multiplied by `decay` after each `every` epochs."""
    return lr * decay ** ((epoch - 1) // every)


def cosine(lr: float, lr_min: float, done: int, total: int) -> float:
    """Half a cosine from `lr` (none done) to `lr_min` (all done), in epochs or steps."""
    return lr_min + (lr - lr_min) * (1 + math.cos(math.pi * done / total)) / 2


def warmup_cosine(peak: float, last: float, step: int, warmup: int, total: int) -> float:
    """Learning rate of a step (from 0): a line from 0 to `peak`, then half a cosine to `last`.

    Source: DINO's per-step schedule (spec wavlm_ssl 8.2). The peak is reached by the last of the
    `warmup` steps and held by the next; `last` would be that of step `total`.
    """
    if step < warmup:
        return peak * step / max(warmup - 1, 1)
    return cosine(peak, last, step - warmup, total - warmup)


def warmup_exponential(
    lr: float, lr_last: float, step: int, warmup: int, total: int, scale: float = 1.0
) -> float:
    """Learning rate of a step (from 0): r * lr * (lr_last / lr)^(step / total).

    Source: wespeaker's per-step schedule (spec enskd 5.2). The decay runs from the first step on;
    r grows on a line from 0 to `scale` (the reference: global batch / 64) within `warmup` steps.
    """
    grown = min(step / warmup, 1.0) if warmup else 1.0
    return scale * grown * lr * (lr_last / lr) ** (step / total)


def growing_margin(
    step: int, per_epoch: int, first: float, last: float, start_epoch: int, fixed_epoch: int
) -> float:
    """Margin of a step (from 0), radians: `first`, an exponential approach, `last`.

    Source: wespeaker's per-step margin (spec enskd 5.3): it grows by
    (last - first)(1 - MARGIN_LEFT^x), x in [0, 1) its share of the way between the beginnings of
    `start_epoch` and `fixed_epoch` (from 1); there the remaining 0.1 % is a jump.

    Args:
        step: over all epochs.
        per_epoch: steps of an epoch.
        first: before `start_epoch`.
        last: from `fixed_epoch` on.
        start_epoch: whose first step still has `first`.
        fixed_epoch: whose first step has `last`.
    """
    start, fixed = ((epoch - 1) * per_epoch for epoch in (start_epoch, fixed_epoch))
    if step >= fixed:
        return last
    if step <= start:
        return first
    x = (step - start) / (fixed - start)
    return first + (last - first) * (1 - MARGIN_LEFT**x)


def cosine_momentum(first: float, step: int, total: int) -> float:
    """Momentum of a moving-average teacher at a step (from 0): `first`, by half a cosine to 1."""
    return cosine(first, 1.0, step, total)


def set_lr(optimizer: torch.optim.Optimizer, lr: float):
    """Sets the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group['lr'] = lr
