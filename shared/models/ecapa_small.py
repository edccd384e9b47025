"""ECAPA-TDNN as the back-end of a large SSL encoder: chained blocks, attention without context."""

import torch
from torch import Tensor, nn

from shared.models.ecapa_tdnn import DILATIONS, SCALE, ConvReluNorm, SeRes2Block
from shared.models.frame_checks import checked_mask
from shared.models.pooling import attentive_statistics

FLOOR = 1e-9  # of the pooling's variances


class EcapaSmall(nn.Module):
    """ECAPA-TDNN of Microsoft's fine-tuned WavLM (spec enskd 3.5 d).

    Source: Desplanques et al., Interspeech 2020. Differences from `EcapaTdnn`: each block sees the
    one before it alone; the pooling's attention sees each frame alone; no batch norm in the
    squeeze-excitation and after the embedding. 8,410,816 parameters at the defaults.

    Args:
        inputs: F, features of a frame.
        channels: of the blocks, a multiple of 8.
        mfa_width: channels of the multi-layer feature aggregation.
        attention_width: hidden channels of the pooling's attention.
        se_width: hidden channels of the squeeze-excitation.
        dim: D, embedding.

    Raises:
        ValueError: `channels` is not a multiple of 8.
    """

    def __init__(
        self,
        inputs: int = 1024,
        channels: int = 512,
        mfa_width: int = 1536,
        attention_width: int = 128,
        se_width: int = 128,
        dim: int = 256,
    ):
        super().__init__()
        if channels % SCALE:
            raise ValueError(f'channels {channels} must be a multiple of {SCALE}')
        self.dim = dim
        self.stem = ConvReluNorm(inputs, channels, kernel_size=5)
        self.blocks = nn.ModuleList(
            SeRes2Block(channels, se_width, dilation, se_norm=False) for dilation in DILATIONS
        )
        self.mfa = nn.Conv1d(len(DILATIONS) * channels, mfa_width, kernel_size=1)
        self.pooling = FrameAttentivePooling(mfa_width, attention_width)
        self.pooled_norm = nn.BatchNorm1d(2 * mfa_width)
        self.projection = nn.Linear(2 * mfa_width, dim)

    def forward(self, features: Tensor, frames: Tensor | None = None) -> Tensor:
        """Embeds features (B, F, T) as (B, D), not length-normalised.

        With `frames` (B,), the own number of frames of each utterance, each row gets what it would
        get alone.

        Raises:
            ValueError: `frames` in training mode, where padding would enter the batch statistics.
        """
        mask = checked_mask(features, frames, 1, self.training)
        x, outputs = self.stem(features, mask), []
        for block in self.blocks:
            x = block(x, mask)
            outputs.append(x)
        x = self.mfa(torch.cat(outputs, dim=1)).relu()
        return self.projection(self.pooled_norm(self.pooling(x, mask)))


class FrameAttentivePooling(nn.Module):
    """Channel-dependent attentive statistics pooling, without context (spec enskd 3.5 d).

    Source: Okabe et al., Attentive Statistics Pooling, Interspeech 2018; here each channel has its
    own weights over time. Softmax and statistics are fp32 under autocast.

    Args:
        channels: C of the frames.
        hidden: width of the attention.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.hidden = nn.Conv1d(channels, hidden, kernel_size=1)
        self.score = nn.Conv1d(hidden, channels, kernel_size=1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pools frames (B, C, T), with a mask (B, 1, T), to mean and deviation (B, 2C)."""
        frames = x.to(torch.promote_types(x.dtype, torch.float32))
        scores = self.score(self.hidden(x).tanh()).to(frames.dtype)
        return attentive_statistics(frames, scores, mask, FLOOR)
