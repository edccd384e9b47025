"""From waves to embeddings."""

from torch import Tensor, nn


class SpeakerEncoder(nn.Module):
    """A front-end and a network as one module.

    Args:
        frontend: (waves (B, L), lengths (B,) or None) -> (features (B, F, T), frames or None).
        network: (features, frames) -> embeddings (B, D).
    """

    def __init__(self, frontend: nn.Module, network: nn.Module):
        super().__init__()
        self.frontend = frontend
        self.network = network

    def forward(self, waves: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embeds waves (B, L), zero-padded after `lengths` (B,) samples when given, as (B, D)."""
        return self.network(*self.frontend(waves, lengths))
