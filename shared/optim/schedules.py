"""Learning rates as pure functions of the epoch or step."""

import torch


def exponential_steps(lr: float, decay: float, every: int, epoch: int) -> float:
    """Learning rate of an epoch (from 1), multiplied by `decay` after each `every` epochs."""
    return lr * decay ** ((epoch - 1) // every)


def set_lr(optimizer: torch.optim.Optimizer, lr: float):
    """Sets the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group['lr'] = lr
