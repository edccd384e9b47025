"""The loss gate and the controller of Stage II."""

import torch
from torch import Tensor

from shared import ddp

NO_GATE = float('inf')


def gated_mean(losses: Tensor, gate: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of the losses that do not exceed the gate, the mask of these samples (B,), their count.

    Mean and count are over the selected samples of all ranks: this rank's sum is divided by the global
    count and multiplied by the number of ranks, because DDP will average. No sample selected gives
    a loss of 0 with zero gradient (the authors' code gives NaN); the caller then skips the update.
    """
    mask = ~(losses.detach() > gate)  # a NaN loss stays in, to be seen
    count = ddp.all_reduce(mask.sum())
    total = torch.where(mask, losses, 0.0).sum() * ddp.world_size()
    return total / count.clamp(min=1), mask, count


def phase_over(eers: list[float], patience: int, minimum: int) -> bool:
    """True when the last `patience` EERs are all above the best one so far.

    As the authors' controller does, EERs are compared as printed, with two decimals.
    """
    printed = [round(eer, 2) for eer in eers]
    if len(printed) < max(minimum, patience):
        return False
    return all(eer > min(printed) for eer in printed[-patience:])
