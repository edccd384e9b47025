"""The convolutions of an SSL encoder, computed as matrix products on frames in rows.

A strided convolution without padding is, on frames laid out in rows (T, C), a sum of ceil(kernel /
stride) matrix products with views of the same memory. Nothing is copied or transposed, the channels
stay next to each other for the layer norm, and a backward pass takes about three quarters of the
time of torch's convolution on a CPU. The utterances of a batch lie one after the other as one long
sequence: frames that reach into the next utterance are computed and dropped.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.models.masks import frame_mask
from shared.models.ssl_config import SslConfig, frame_counts


class FeatureExtractor(nn.Module):
    """The convolutions that turn a waveform into frames."""

    def __init__(self, config: SslConfig):
        super().__init__()
        self.config = config
        self.conv_layers = nn.ModuleList(
            FirstConv(config) if i == 0 else ConvLayer(config, i)
            for i in range(len(config.conv_channels))
        )
        self.lost = 0  # frames that the long sequence has less than its samples are worth
        for kernel, stride in zip(config.conv_kernels[1:], config.conv_strides[1:]):
            self.lost = -(-self.lost // stride) + -(-kernel // stride) - 1

    def forward(self, waves: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Frames (B, T, C) of waves (B, L); `lengths` (B,) where rows are padded.

        Raises:
            ValueError: L is too short for a frame.
        """
        rows, samples = waves.shape
        count = frame_counts(samples, self.config)
        if count < 1:
            raise ValueError(f'{samples} samples are too short for one frame of the SSL encoder')
        hop = math.prod(self.config.conv_strides)  # samples from frame to frame
        room = max(count + self.lost, -(-samples // hop))  # frames each takes in the sequence
        own = torch.full((rows,), samples, device=waves.device) if lengths is None else lengths
        x = self.conv_layers[0](F.pad(waves, (0, room * hop - samples)), own, samples)
        for layer in self.conv_layers[1:]:
            x = layer(x)
        return F.pad(x, (0, 0, 0, self.lost)).view(rows, room, -1)[:, :count]


class FirstConv(nn.Module):
    """The convolution of the waves, with group norm or layer norm, and GELU.

    The group norm has one channel a group, so its statistics are those of the channel over time.
    As the convolution is linear, they follow from the mean and the covariance of the few samples
    under the kernel, and the norm becomes a factor of the weights: the largest tensor of the
    network is written once and never read for its statistics.
    Under autocast the product stays in fp32, its result does not: in bf16 a channel that suppresses
    what is loud in speech would be noise. It is one hundredth of the work of the convolutions.
    """

    def __init__(self, config: SslConfig):
        super().__init__()
        self.conv, channels = _conv(config, 0), config.conv_channels[0]
        grouped = config.conv_norm == 'group'
        self.layer_norm = nn.GroupNorm(channels, channels) if grouped else nn.LayerNorm(channels)

    def forward(self, waves: Tensor, lengths: Tensor, longest: int) -> Tensor:
        """Frames (B * L / stride, channels), of the utterances one after the other.

        Args:
            waves: (B, L), L a multiple of the stride.
            lengths: (B,) own samples of each row.
            longest: samples of the longest row.
        """
        device = waves.device.type
        if waves.is_meta or not torch.is_autocast_enabled(device):  # meta: knows no autocast
            return F.gelu(self._normalised(waves, lengths, longest))
        with torch.autocast(device, enabled=False):
            y = self._normalised(waves, lengths, longest)
        return F.gelu(y.to(torch.get_autocast_dtype(device)))

    def _normalised(self, waves: Tensor, lengths: Tensor, longest: int) -> Tensor:
        (kernel,), (stride,) = self.conv.kernel_size, self.conv.stride
        weight = self.conv.weight.squeeze(1)  # (channels, kernel)
        windows = F.pad(waves.flatten(), (0, max(kernel - stride, 0))).unfold(0, kernel, stride)
        if isinstance(self.layer_norm, nn.LayerNorm):
            return self.layer_norm(F.linear(windows, weight, self.conv.bias))
        windows = windows.unflatten(0, (len(waves), -1))  # (B, L / stride, kernel)
        whole = windows[:, : (longest - kernel) // stride + 1]
        mean, variance = _statistics(whole, (lengths - kernel) // stride + 1, weight)
        scale = (variance + self.layer_norm.eps).rsqrt() * self.layer_norm.weight
        weight = scale.unsqueeze(1) * weight.T  # (B, kernel, channels)
        shift = self.layer_norm.bias.expand(len(waves), 1, -1)
        return torch.baddbmm(shift, windows - mean, weight).flatten(0, 1)


def _statistics(windows: Tensor, own: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the windows (B, 1, kernel), variance of what the weights make of them (B, channels).

    In float64: a channel that suppresses what is loud in speech has a variance many orders of
    magnitude below that of the samples.

    Args:
        windows: (B, T, kernel).
        own: (B,) windows of each row that are no padding.
        weight: (channels, kernel).
    """
    mask = frame_mask(own, windows.shape[1]).mT  # (B, T, 1)
    inside = windows.double().masked_fill(~mask, 0)
    count, wide = own[:, None, None], weight.double()
    mean = inside.sum(1, keepdim=True) / count
    covariance = inside.mT @ inside / count - mean.mT @ mean  # (B, kernel, kernel)
    variance = ((wide @ covariance) * wide).sum(-1)
    return mean.to(windows.dtype), variance.to(weight.dtype)


class ConvLayer(nn.Module):
    """Convolution without padding, layer norm where the encoder has it, GELU."""

    def __init__(self, config: SslConfig, index: int):
        super().__init__()
        self.conv = _conv(config, index)
        layer = config.conv_norm == 'layer'
        self.layer_norm = nn.LayerNorm(config.conv_channels[index]) if layer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Frames (R, C) -> about R / stride frames (r, channels)."""
        (kernel,), (stride,) = self.conv.kernel_size, self.conv.stride
        step = stride * x.shape[1]
        blocks = x[: len(x) // stride * stride].view(-1, step)  # `stride` frames a row
        count = len(blocks) - -(-kernel // stride) + 1
        weight = self.conv.weight.mT.flatten(1).T  # (kernel * C, channels)
        y = self.conv.bias
        for part, w in enumerate(weight.split(step)):
            frames = blocks[part : part + count, : len(w)]
            y = frames @ w if y is None else torch.addmm(y, frames, w)
        return F.gelu(self.layer_norm(y))


def _conv(config: SslConfig, index: int) -> nn.Conv1d:
    inputs = 1 if index == 0 else config.conv_channels[index - 1]
    return nn.Conv1d(
        inputs,
        config.conv_channels[index],
        kernel_size=config.conv_kernels[index],
        stride=config.conv_strides[index],
        bias=config.conv_bias,
    )
