"""Contrastive loss between two views of each utterance."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import ddp


class ContrastiveLoss(nn.Module):
    """NT-Xent over the global batch with a learned scale w, the inverse temperature.

    Source: Chen et al., SimCLR, ICML 2020, eq. 1; scale as in spec lgl 5.1. Each rank takes the
    rows of its own utterances against the columns of all ranks, so that the mean over ranks is the
    loss of one process. Computed in fp32 under autocast.

    Args:
        init_scale: initial w, unconstrained.
        init_bias: b. It cancels in the softmax, so it is neither used nor trained; it is kept
            because published checkpoints hold it (spec lgl 9.2).
    """

    def __init__(self, init_scale: float = 10.0, init_bias: float = -5.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(init_scale))
        self.bias = nn.Parameter(torch.tensor(init_bias), requires_grad=False)

    def forward(self, view0: Tensor, view1: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of this rank's utterances.

        Args:
            view0: (B, D) embeddings of one crop of each utterance, B equal on all ranks.
            view1: (B, D) embeddings of another crop of the same utterances.

        Returns:
            Mean loss over the 2B rows; percent of the rows whose most similar column is the other
            view of the same utterance.
        """
        losses, hits = self._rows(view0, view1)
        return losses.mean(), 100 * hits.float().mean()

    def _rows(self, view0: Tensor, view1: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (2B,) of each row, view0's first, and whether it found its partner (2B,)."""
        with torch.autocast(view0.device.type, enabled=False):
            pairs = torch.stack([view0, view1], dim=1).to(self.scale.dtype)  # (B, 2, D)
            pairs = F.normalize(pairs, dim=-1, eps=1e-8)
            columns = ddp.gather_with_grad(pairs)  # (G, 2, D), G utterances on all ranks
            count, total = len(pairs), len(columns)
            own = ddp.rank() * count + torch.arange(count, device=pairs.device)
            own = torch.cat([own, own + total])  # columns of the rows themselves, view-major
            partner = (own + total) % (2 * total)
            # (2B, D) x (D, 2G)
            logits = (
                self.scale
                * pairs.transpose(0, 1).flatten(0, 1)
                @ (columns.transpose(0, 1).flatten(0, 1).T)
            )
            logits = logits.scatter(1, own.unsqueeze(1), -torch.inf)
            return F.cross_entropy(logits, partner, reduction='none'), logits.argmax(1) == partner
