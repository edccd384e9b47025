"""E-APN, by which the warm-up keeps speakers apart (spec nawsv 4.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import ddp


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
