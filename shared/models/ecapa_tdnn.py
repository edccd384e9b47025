"""ECAPA-TDNN with batch normalisation after the activation."""

import torch
from torch import Tensor, nn

from shared.models.frame_checks import checked_mask
from shared.models.masks import masked_mean, zero_padding
from shared.models.pooling import AttentiveStatisticsPooling

SCALE = 8  # groups of channels in a Res2Net layer
DILATIONS = (2, 3, 4)


class EcapaTdnn(nn.Module):
    """ECAPA-TDNN as in spec lgl 4.1 and, without the norm in the excitation, nawsv 3.4.

    Source: Desplanques et al., Interspeech 2020. Differences: batch norm follows the ReLU and
    exists in the squeeze-excitation too; the links between blocks are sums; no ReLU or batch norm
    in the attention other than the first layer's.

    Args:
        width: channels of the blocks, a multiple of 8 (512, large model 1024).
        mfa_width: channels of the multi-layer feature aggregation.
        attention_width: hidden channels of the pooling's attention.
        se_width: hidden channels of the squeeze-excitation.
        dim: D, embedding.
        n_mels: F, input bins, or the width of the hidden states it is put on.
        se_norm: whether the squeeze-excitation has a batch norm.

    Raises:
        ValueError: `width` is not a multiple of 8.
    """

    def __init__(
        self,
        width: int = 512,
        mfa_width: int = 1536,
        attention_width: int = 256,
        se_width: int = 128,
        dim: int = 192,
        n_mels: int = 80,
        se_norm: bool = True,
    ):
        super().__init__()
        if width % SCALE:
            raise ValueError(f'width {width} must be a multiple of {SCALE}')
        self.dim = dim
        self.stem = ConvReluNorm(n_mels, width, kernel_size=5)
        self.blocks = nn.ModuleList(SeRes2Block(width, se_width, d, se_norm) for d in DILATIONS)
        self.mfa = nn.Conv1d(len(DILATIONS) * width, mfa_width, kernel_size=1)
        self.pooling = AttentiveStatisticsPooling(mfa_width, attention_width)
        self.pooled_norm = nn.BatchNorm1d(2 * mfa_width)
        self.projection = nn.Linear(2 * mfa_width, dim)
        self.embedding_norm = nn.BatchNorm1d(dim)

    def forward(self, features: Tensor, frames: Tensor | None = None) -> Tensor:
        """Embeds features (B, F, T) as (B, D), not length-normalised.

        With `frames` (B,), the own number of frames of each utterance (at least 2), each row gets
        what it would get alone.

        Raises:
            ValueError: `frames` in training mode, where padding would enter the batch statistics.
        """
        mask = checked_mask(features, frames, 1, self.training)
        total = self.stem(features, mask)
        outputs = []
        for block in self.blocks:  # each block sees the sum of all before it
            outputs.append(block(total, mask))
            total = total + outputs[-1]
        x = self.mfa(torch.cat(outputs, dim=1)).relu()
        return self.embedding_norm(self.projection(self.pooled_norm(self.pooling(x, mask))))


class ConvReluNorm(nn.Module):
    """Convolution of unchanged length, ReLU, batch norm; the input is zero past the end."""

    def __init__(self, inputs: int, outputs: int, kernel_size=1, dilation=1, norm=True):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel_size, dilation=dilation, padding='same')
        self.norm = nn.BatchNorm1d(outputs) if norm else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.norm(self.conv(zero_padding(x, mask)).relu())


class SeRes2Block(nn.Module):
    """Res2Net layer between two pointwise layers, squeeze-excitation, residual.

    Args:
        width: channels in and out.
        se_width: hidden channels of the squeeze-excitation.
        dilation: frames between the taps of the Res2Net convolutions.
        se_norm: whether the squeeze-excitation has a batch norm.
    """

    def __init__(self, width: int, se_width: int, dilation: int, se_norm: bool = True):
        super().__init__()
        group = width // SCALE
        self.expand = ConvReluNorm(width, width)
        self.branches = nn.ModuleList(
            ConvReluNorm(group, group, kernel_size=3, dilation=dilation) for _ in range(SCALE - 1)
        )
        self.merge = ConvReluNorm(width, width)
        self.excitation = SqueezeExcitation(width, se_width, se_norm)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        *groups, last = self.expand(x).chunk(SCALE, dim=1)
        outputs: list[Tensor] = []
        for branch, group in zip(self.branches, groups):
            outputs.append(branch(outputs[-1] + group if outputs else group, mask))
        return x + self.excitation(self.merge(torch.cat([*outputs, last], dim=1)), mask)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from all channels' means over time."""

    def __init__(self, width: int, hidden: int, norm: bool = True):
        super().__init__()
        self.squeeze = ConvReluNorm(width, hidden, norm=norm)
        self.excite = nn.Conv1d(hidden, width, kernel_size=1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x * self.excite(self.squeeze(masked_mean(x, mask))).sigmoid()
