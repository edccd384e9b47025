"""ECAPA-TDNN whose blocks form a chain."""

import torch
from torch import Tensor, nn

from shared.models.ecapa_tdnn import DILATIONS, SCALE, ConvReluNorm, SqueezeExcitation
from shared.models.frame_checks import checked_mask
from shared.models.masks import reflect_padding
from shared.models.pooling import AttentiveStatisticsPooling

FLOOR = 1e-12  # of the pooling's variances


class ChainedEcapa(nn.Module):
    """ECAPA-TDNN as in spec wavlm_ssl 8.1, which follows SpeechBrain's.

    Source: Desplanques et al., Interspeech 2020. Differences from `EcapaTdnn`: each block sees the
    one before it alone; ends are reflected, not zero; a Res2Net layer leaves its first group, not
    its last; no batch norm in the squeeze-excitation and after the embedding; ReLU and batch norm
    after the aggregation; biased variances. 22,733,952 parameters at the defaults.

    Args:
        width: channels of the blocks, a multiple of 8.
        mfa_width: channels of the multi-layer feature aggregation.
        attention_width: hidden channels of the pooling's attention.
        se_width: hidden channels of the squeeze-excitation.
        dim: D, embedding.
        n_mels: F, input bins.

    Raises:
        ValueError: `width` is not a multiple of 8.
    """

    def __init__(
        self,
        width: int = 1024,
        mfa_width: int = 3072,
        attention_width: int = 128,
        se_width: int = 128,
        dim: int = 512,
        n_mels: int = 80,
    ):
        super().__init__()
        if width % SCALE:
            raise ValueError(f'width {width} must be a multiple of {SCALE}')
        self.dim = dim
        self.stem = ReflectConvReluNorm(n_mels, width, kernel_size=5)
        self.blocks = nn.ModuleList(ChainedBlock(width, se_width, d) for d in DILATIONS)
        self.mfa = ConvReluNorm(len(DILATIONS) * width, mfa_width)
        self.pooling = AttentiveStatisticsPooling(mfa_width, attention_width, 0, FLOOR)
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
        x = self.mfa(torch.cat(outputs, dim=1))
        return self.projection(self.pooled_norm(self.pooling(x, mask)))


class ReflectConvReluNorm(ConvReluNorm):
    """Convolution of unchanged length, ReLU, batch norm; the input is reflected at its ends."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, dilation: int = 1):
        super().__init__(inputs, outputs, kernel_size, dilation)
        self.conv.padding = (0,)  # type: ignore[assignment]
        self.reach = dilation * (kernel_size // 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.norm(self.conv(reflect_padding(x, self.reach, mask)).relu())


class ChainedBlock(nn.Module):
    """Res2Net layer between two pointwise layers, squeeze-excitation, residual.

    Args:
        width: channels in and out.
        se_width: hidden channels of the squeeze-excitation.
        dilation: frames between the taps of the Res2Net convolutions.
    """

    def __init__(self, width: int, se_width: int, dilation: int):
        super().__init__()
        group = width // SCALE
        self.expand = ConvReluNorm(width, width)
        self.branches = nn.ModuleList(
            ReflectConvReluNorm(group, group, 3, dilation) for _ in range(SCALE - 1)
        )
        self.merge = ConvReluNorm(width, width)
        self.excitation = SqueezeExcitation(width, se_width, norm=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        first, *groups = self.expand(x).chunk(SCALE, dim=1)
        outputs = [first]  # as it is, and the next group does not see it
        for number, (branch, group) in enumerate(zip(self.branches, groups)):
            outputs.append(branch(outputs[-1] + group if number else group, mask))
        return x + self.excitation(self.merge(torch.cat(outputs, dim=1)), mask)
