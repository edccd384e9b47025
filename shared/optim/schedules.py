"""Learning rates as pure functions of the epoch or step."""

import math

import torch


def exponential_steps(lr: float, decay: float, every: int, epoch: int) -> float:
    """Learning rate of an epoch (from 1), multiplied by `decay` after each `every` epochs."""
    return lr * decay ** ((epoch - 1) // every)


def cosine(lr: float, lr_min: float, done: int, total: int) -> float:
    """Half a cosine from `lr` (none done) to `lr_min` (all done), in epochs or steps."""
    return lr_min + (lr - lr_min) * (1 + math.cos(math.pi * done / total)) / 2


def set_lr(optimizer: torch.optim.Optimizer, lr: float):
    """Sets the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group['lr'] = lr
