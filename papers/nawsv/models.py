"""What turns hidden states into embeddings: the head of phase 1 and the back-end of phase 2."""

from collections.abc import Sequence

from torch import Tensor, nn

from shared.models.ecapa_tdnn import EcapaTdnn
from shared.models.masks import frame_mask
from shared.models.ssl_pooling import WeightedSum, instance_norm, mean_and_deviation


class LinearHead(nn.Module):
    """Weighted sum of the states, mean and deviation over time, linear, BN (spec nawsv 3.3).

    295,501 parameters with 13 states of 768.

    Args:
        states: hidden states given, one more than the encoder has layers.
        width: of the hidden states.
        embed_size: D.
    """

    def __init__(self, states: int = 13, width: int = 768, embed_size: int = 192):
        super().__init__()
        self.weighted_sum = WeightedSum(states)
        self.projection = nn.Linear(2 * width, embed_size)
        self.norm = nn.BatchNorm1d(embed_size)

    def forward(self, states: Sequence[Tensor], frames: Tensor | None = None) -> Tensor:
        """Embeds states (B, T, width), of which `frames` (B,) belong to each row, as (B, D)."""
        x = self.weighted_sum(states).transpose(1, 2)  # (B, width, T)
        mask = None if frames is None else frame_mask(frames, x.shape[-1])
        return self.norm(self.projection(mean_and_deviation(x, mask)))


class BackEnd(nn.Module):
    """Weighted sum of the states, instance norm, ECAPA-TDNN (spec nawsv 3.4).

    8,739,469 parameters with 13 states of 768.

    Args:
        states: hidden states given, one more than the encoder has layers.
        width: of the hidden states.
        embed_size: D.
        channels: of the ECAPA blocks.
        mfa_width: channels of the multi-layer feature aggregation.
        attention_width: hidden channels of the pooling's attention.
        se_width: hidden channels of the squeeze-excitation.
    """

    def __init__(
        self,
        states: int = 13,
        width: int = 768,
        embed_size: int = 192,
        channels: int = 512,
        mfa_width: int = 1536,
        attention_width: int = 256,
        se_width: int = 128,
    ):
        super().__init__()
        self.weighted_sum = WeightedSum(states)
        self.network = EcapaTdnn(
            width=channels,
            mfa_width=mfa_width,
            attention_width=attention_width,
            se_width=se_width,
            dim=embed_size,
            n_mels=width,
            se_norm=False,
        )

    def forward(self, states: Sequence[Tensor], frames: Tensor | None = None) -> Tensor:
        """Embeds states (B, T, width) as (B, D).

        With `frames` (B,), the own number of frames of each row, it gets what it would get alone;
        in eval mode only.
        """
        x = self.weighted_sum(states).transpose(1, 2)  # (B, width, T)
        mask = None if frames is None else frame_mask(frames, x.shape[-1])
        return self.network(instance_norm(x, mask), frames)
