"""From the hidden states of an SSL encoder to speaker embeddings: the back-ends."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.models.ecapa_small import EcapaSmall
from shared.models.ecapa_tdnn import EcapaTdnn
from shared.models.masks import frame_mask
from shared.models.ssl_pooling import WeightedSum, instance_norm, mean_and_deviation, weighted_sum


class LinearBackEnd(nn.Module):
    """States to one, mean and deviation over time, linear, BN (specs nawsv 3.3, oskdft 3.5).

    295,501 parameters with 13 states of 768, 295,491 with 3.

    Args:
        states: hidden states summed with learned weights, one more than the encoder has layers;
            None: the last state alone.
        width: of the hidden states.
        embed_size: D.
    """

    def __init__(self, states: int | None = 13, width: int = 768, embed_size: int = 192):
        super().__init__()
        self.weighted_sum = _one_of(states)
        self.projection = nn.Linear(2 * width, embed_size)
        self.norm = nn.BatchNorm1d(embed_size)

    def forward(self, states: Sequence[Tensor], frames: Tensor | None = None) -> Tensor:
        """Embeds states (B, T, width), of which `frames` (B,) belong to each row, as (B, D)."""
        x = self.weighted_sum(states).transpose(1, 2)  # (B, width, T)
        mask = None if frames is None else frame_mask(frames, x.shape[-1])
        return self.norm(self.projection(mean_and_deviation(x, mask)))


class EcapaBackEnd(nn.Module):
    """States to one, instance norm, ECAPA-TDNN (specs nawsv 3.4, oskdft 3.5).

    8,739,469 parameters with 13 states of 768; 9,394,816 with the last state, of 1024.

    Args:
        states: hidden states summed with learned weights, one more than the encoder has layers;
            None: the last state alone.
        width: of the hidden states.
        embed_size: D.
        channels: of the ECAPA blocks.
        mfa_width: channels of the multi-layer feature aggregation.
        attention_width: hidden channels of the pooling's attention.
        se_width: hidden channels of the squeeze-excitation.
    """

    def __init__(
        self,
        states: int | None = 13,
        width: int = 768,
        embed_size: int = 192,
        channels: int = 512,
        mfa_width: int = 1536,
        attention_width: int = 256,
        se_width: int = 128,
    ):
        super().__init__()
        self.weighted_sum = _one_of(states)
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


class EcapaSmallBackEnd(nn.Module):
    """States mixed by a softmax, instance norm, `EcapaSmall` (spec enskd 3.5 c, d).

    8,410,841 parameters at the defaults. The reference adds 1e-6 before the instance norm, whose
    mean takes it away again; here nothing is added.

    Args:
        states: hidden states, one more than the encoder has layers.
        width: of the hidden states.
        embed_size: D.
        channels: of the ECAPA blocks.
        mfa_width: channels of the multi-layer feature aggregation.
        attention_width: hidden channels of the pooling's attention.
        se_width: hidden channels of the squeeze-excitation.
    """

    def __init__(
        self,
        states: int = 25,
        width: int = 1024,
        embed_size: int = 256,
        channels: int = 512,
        mfa_width: int = 1536,
        attention_width: int = 128,
        se_width: int = 128,
    ):
        super().__init__()
        self.state_scores = nn.Parameter(torch.zeros(states))  # their softmax weighs the states
        self.network = EcapaSmall(
            inputs=width,
            channels=channels,
            mfa_width=mfa_width,
            attention_width=attention_width,
            se_width=se_width,
            dim=embed_size,
        )

    def forward(self, states: Sequence[Tensor], frames: Tensor | None = None) -> Tensor:
        """Embeds states (B, T, width) as (B, D).

        With `frames` (B,), the own number of frames of each row, it gets what it would get alone;
        in eval mode only.
        """
        return self.network(self.features(states, frames), frames)

    def features(self, states: Sequence[Tensor], frames: Tensor | None = None) -> Tensor:
        """What the ECAPA-TDNN sees of the states (B, T, width): (B, width, T), normalised."""
        x = weighted_sum(states, self.state_scores.softmax(0)).transpose(1, 2)
        return instance_norm(x, None if frames is None else frame_mask(frames, x.shape[-1]))


class LastState(nn.Module):
    """The last of the hidden states, where a back-end has no weights for them."""

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        return states[-1]


def _one_of(states: int | None) -> nn.Module:
    return LastState() if states is None else WeightedSum(states)


class SslSpeakerEncoder(nn.Module):
    """An SSL encoder and a back-end as one module.

    Args:
        encoder: (waves (B, L), lengths (B,) or None) -> (states of (B, T, width), frames or None).
        backend: (states, frames) -> embeddings (B, D).
    """

    def __init__(self, encoder: nn.Module, backend: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.backend = backend

    def forward(self, waves: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embeds waves (B, L), padded after `lengths` (B,) samples when given, as (B, D)."""
        return self.backend(*self.encoder(waves, lengths))
