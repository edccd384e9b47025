"""CAM++: a densely connected time-delay network whose layers are gated by their context."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.models.frame_checks import checked_mask
from shared.models.masks import masked_mean, zero_padding
from shared.models.pooling import statistics_pooling
from shared.models.resnet import stage

DILATIONS = (1, 2, 2)  # of the dense blocks
SEGMENT = 100  # frames of one context
HEAD_STRIDE = 8  # of the head, in bins
SHORTEST = 3  # frames: two are left to pool


class CamPlusPlus(nn.Module):
    """CAM++ as in spec enskd 3.3.

    Source: Wang et al., CAM++, Interspeech 2023. Its modules have the published names. 7,176,224
    parameters at the defaults, 6,914,080 with an embedding of 256.

    Args:
        dim: D, embedding.
        n_mels: F, input bins, a multiple of 8.
        growth: channels that each dense layer adds; its bottleneck and the first layer have 4 times
            as many.
        blocks: dense layers of the three blocks.
        head_width: channels of the convolutions over frequency and time.

    Raises:
        ValueError: `n_mels` is not a multiple of 8.
    """

    def __init__(
        self,
        dim: int = 512,
        n_mels: int = 80,
        growth: int = 32,
        blocks: tuple[int, int, int] = (12, 24, 16),
        head_width: int = 32,
    ):
        super().__init__()
        if n_mels % HEAD_STRIDE or n_mels < HEAD_STRIDE:
            raise ValueError(f'{n_mels} bins must be a multiple of {HEAD_STRIDE}')
        self.dim = dim
        self.head = ConvolutionHead(head_width)
        self.xvector = DenseTdnn(head_width * (n_mels // HEAD_STRIDE), dim, growth, blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Tensor, frames: Tensor | None = None) -> Tensor:
        """Embeds features (B, F, T), at least 3 frames, as (B, D), not length-normalised.

        With `frames` (B,), the own number of frames of each utterance, each row gets what it would
        get alone.

        Raises:
            ValueError: too few frames; `frames` in training mode, where padding would enter the
                batch statistics.
        """
        mask = checked_mask(features, frames, SHORTEST, self.training)
        return self.xvector(self.head(features, mask), mask)


class ConvolutionHead(nn.Module):
    """Residual convolutions that stride over frequency alone, by 8."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = stage(width, width, blocks=2, stride=(2, 1))
        self.layer2 = stage(width, width, blocks=2, stride=(2, 1))
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Features (B, F, T), with a mask (B, 1, T), to (B, width * F / 8, T)."""
        x = zero_padding(features, mask).unsqueeze(1)  # (B, 1, F, T)
        mask = None if mask is None else mask.unsqueeze(1)  # (B, 1, 1, T)
        x = zero_padding(self.bn1(self.conv1(x)).relu_(), mask)
        for block in (*self.layer1, *self.layer2):
            x, _ = block(x, mask)
        return self.bn2(self.conv2(x)).relu_().flatten(1, 2)


class DenseTdnn(nn.Module):
    """A strided layer, three dense blocks with a transit after each, pooling, embedding.

    Args:
        inputs: channels in.
        dim: D, embedding.
        growth: as in `CamPlusPlus`.
        blocks: as in `CamPlusPlus`.
    """

    def __init__(self, inputs: int, dim: int, growth: int, blocks: tuple[int, int, int]):
        super().__init__()
        width = 4 * growth
        self.tdnn = nn.Sequential(
            OrderedDict(
                linear=nn.Conv1d(inputs, width, 5, stride=2, padding=2, bias=False),
                nonlinear=norm_relu(width),
            )
        )
        for number, (layers, dilation) in enumerate(zip(blocks, DILATIONS), start=1):
            self.add_module(f'block{number}', DenseBlock(width, growth, layers, dilation))
            width += layers * growth
            self.add_module(f'transit{number}', transit(width))
            width //= 2
        self.out_nonlinear = norm_relu(width)
        self.dense = nn.Sequential(
            OrderedDict(
                linear=nn.Conv1d(2 * width, dim, 1, bias=False),
                nonlinear=nn.Sequential(
                    OrderedDict(batchnorm=nn.BatchNorm1d(dim, affine=False)),
                ),
            )
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Embeds (B, inputs, T), with a mask (B, 1, T), as (B, D)."""
        x = self.tdnn(zero_padding(x, mask))  # (B, C, T/2)
        mask = None if mask is None else mask[..., ::2]
        for number in range(1, len(DILATIONS) + 1):
            x = getattr(self, f'block{number}')(x, mask)
            x = getattr(self, f'transit{number}')(x)
        pooled = statistics_pooling(self.out_nonlinear(x), mask)
        return self.dense(pooled.unsqueeze(-1)).squeeze(-1)


def norm_relu(channels: int) -> nn.Sequential:
    """Batch norm and ReLU."""
    return nn.Sequential(
        OrderedDict(batchnorm=nn.BatchNorm1d(channels), relu=nn.ReLU(inplace=True))
    )


def transit(channels: int) -> nn.Sequential:
    """Batch norm, ReLU and a layer that halves the channels."""
    linear = nn.Conv1d(channels, channels // 2, 1, bias=False)
    return nn.Sequential(OrderedDict(nonlinear=norm_relu(channels), linear=linear))


class DenseBlock(nn.ModuleDict):
    """Layers each of which sees the block's input and what all layers before it added."""

    def __init__(self, inputs: int, growth: int, layers: int, dilation: int):
        super().__init__(
            {
                f'tdnnd{number + 1}': DenseLayer(inputs + number * growth, growth, dilation)
                for number in range(layers)
            }
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, inputs, T) to (B, inputs + layers * growth, T)."""
        for layer in self.values():
            x = torch.cat([x, layer(x, mask)], dim=1)
        return x


class DenseLayer(nn.Module):
    """Pointwise bottleneck, then the gated convolution."""

    def __init__(self, inputs: int, growth: int, dilation: int):
        super().__init__()
        self.nonlinear1 = norm_relu(inputs)
        self.linear1 = nn.Conv1d(inputs, 4 * growth, 1, bias=False)
        self.nonlinear2 = norm_relu(4 * growth)
        self.cam_layer = ContextMasking(4 * growth, growth, dilation)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, inputs, T) to (B, growth, T)."""
        return self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))), mask)


class ContextMasking(nn.Module):
    """Convolution whose channels are gated by the means of the utterance and of the segment."""

    def __init__(self, inputs: int, outputs: int, dilation: int):
        super().__init__()
        self.linear_local = nn.Conv1d(
            inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.linear1 = nn.Conv1d(inputs, inputs // 2, 1)
        self.linear2 = nn.Conv1d(inputs // 2, outputs, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, inputs, T), with a mask (B, 1, T), to (B, outputs, T)."""
        x = zero_padding(x, mask)
        context = masked_mean(x, mask) + segment_means(x, mask)  # (B, inputs, T / SEGMENT)
        # the context is constant in a segment, and so is the gate: one for each is enough
        gate = self.linear2(self.linear1(context).relu_()).sigmoid()
        if gate.shape[-1] > 1:
            gate = gate.repeat_interleave(SEGMENT, dim=-1)[..., : x.shape[-1]]
        return self.linear_local(x) * gate


def segment_means(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Means of every 100 frames; the last mean of an utterance is of the frames that are left.

    Args:
        x: (B, C, T), zero outside the mask.
        mask: (B, 1, T) of `frame_mask`, or None when every frame counts.

    Returns:
        (B, C, S), S = T / 100 rounded up; zero for a segment without frames.
    """
    if mask is None:
        return F.avg_pool1d(x, SEGMENT, ceil_mode=True)
    dtype = torch.promote_types(x.dtype, torch.float32)
    padding = (0, -x.shape[-1] % SEGMENT)
    sums, counts = (
        F.pad(item.to(dtype), padding).unflatten(-1, (-1, SEGMENT)).sum(-1) for item in (x, mask)
    )
    return sums / counts.clamp(min=1)
