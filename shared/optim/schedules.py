"""Learning rates as pure functions of the epoch or step."""

import math

import torch


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


def cosine_momentum(first: float, step: int, total: int) -> float:
    """Momentum of a moving-average teacher at a step (from 0): `first`, by half a cosine to 1."""
    return cosine(first, 1.0, step, total)


def set_lr(optimizer: torch.optim.Optimizer, lr: float):
    """Sets the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group['lr'] = lr
