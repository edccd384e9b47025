"""The projection head of self-distillation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02  # of the linear layers, truncated normal


class DinoHead(nn.Module):
    """MLP to a bottleneck of unit length, then its cosines with K learned directions.

    Source: Caron et al., DINO, ICCV 2021; spec wavlm_ssl 8.1, with `regulariser` 8.2. The entries
    of the state are the published ones, but for the directions: `last_layer.weight` is their
    `last_layer.weight_v`, and their fixed magnitudes `weight_g`, all 1, are not kept. 22,556,928
    parameters at the defaults with inputs of 512, 40,915,200 with a regulariser of 8192.

    Args:
        inputs: D of the embeddings.
        hidden: width of the two hidden layers.
        bottleneck: width of the last, unit-length layer.
        outputs: K.
        regulariser: width of a further linear layer before the bottleneck, whose output is given
            out too; None: none.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        outputs: int = 65536,
        regulariser: int | None = None,
    ):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.BatchNorm1d(hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.GELU(),
            nn.Linear(hidden, regulariser or bottleneck),
        )
        self.add_layer = nn.Linear(regulariser, bottleneck) if regulariser else None
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=INIT_STD)
                nn.init.zeros_(layer.bias)
        self.last_layer = Directions(bottleneck, outputs)

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (N, K) of embeddings (N, D), and the regulariser layer's output or None."""
        x = self.mlp(embeddings)
        wide = None
        if self.add_layer is not None:
            x, wide = self.add_layer(x), x
        return self.last_layer(x), wide


class Directions(nn.Linear):
    """Cosines of rows (N, D) with learned directions (K, D): weight norm with magnitude 1; fp32."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)  # keeps the default initialisation

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = F.normalize(x.to(self.weight.dtype), dim=-1)
            return F.linear(x, F.normalize(self.weight, dim=-1))
