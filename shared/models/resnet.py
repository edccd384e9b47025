"""Residual network over frequency and time, with statistics pooling."""

from torch import Tensor, nn

from shared.models.frame_checks import checked_mask
from shared.models.masks import zero_padding
from shared.models.pooling import statistics_pooling

STRIDE = 8  # of the network, in bins and in frames
SHORTEST = STRIDE + 1  # frames: two are left to pool


class ResNet34(nn.Module):
    """ResNet34 on features taken as a picture, as in spec enskd 3.2.

    Source: He et al., Deep residual learning, CVPR 2016, basic blocks. Differences: no max-pool, a
    first convolution of 3 x 3, mean and deviation over time, one linear layer. Its modules have the
    published names. 6,634,336 parameters at the defaults.

    Args:
        dim: D, embedding.
        n_mels: F, input bins, a multiple of 8.
        width: channels of the first of four stages; each has twice those of the one before.
        blocks: residual blocks of the stages.

    Raises:
        ValueError: `n_mels` is not a multiple of 8.
    """

    def __init__(
        self,
        dim: int = 256,
        n_mels: int = 80,
        width: int = 32,
        blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
    ):
        super().__init__()
        if n_mels % STRIDE or n_mels < STRIDE:
            raise ValueError(f'{n_mels} bins must be a multiple of {STRIDE}')
        self.dim = dim
        self.conv1 = nn.Conv2d(1, width, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = stage(width, width, blocks[0], stride=(1, 1))
        self.layer2 = stage(width, 2 * width, blocks[1], stride=(2, 2))
        self.layer3 = stage(2 * width, 4 * width, blocks[2], stride=(2, 2))
        self.layer4 = stage(4 * width, 8 * width, blocks[3], stride=(2, 2))
        self.seg_1 = nn.Linear(2 * 8 * width * (n_mels // STRIDE), dim)

    def forward(self, features: Tensor, frames: Tensor | None = None) -> Tensor:
        """Embeds features (B, F, T), at least 9 frames, as (B, D), not length-normalised.

        With `frames` (B,), the own number of frames of each utterance, each row gets what it would
        get alone.

        Raises:
            ValueError: too few frames; `frames` in training mode, where padding would enter the
                batch statistics.
        """
        mask = checked_mask(features, frames, SHORTEST, self.training)
        x = zero_padding(features, mask).unsqueeze(1)  # (B, 1, F, T)
        mask = None if mask is None else mask.unsqueeze(1)  # (B, 1, 1, T)
        x = zero_padding(self.bn1(self.conv1(x)).relu_(), mask)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x, mask = block(x, mask)
        return self.seg_1(statistics_pooling(x, None if mask is None else mask.squeeze(1)))


def stage(inputs: int, outputs: int, blocks: int, stride: tuple[int, int]) -> nn.ModuleList:
    """Residual blocks of the same width, the first of which strides."""
    return nn.ModuleList(
        ResidualBlock(outputs if number else inputs, outputs, (1, 1) if number else stride)
        for number in range(blocks)
    )


class ResidualBlock(nn.Module):
    """Two convolutions of 3 x 3 with batch norms, and what goes round them.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: of the first convolution, in bins and frames. Unless it is 1 and the channels stay,
            the shortcut is a convolution too.
    """

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int]):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != (1, 1) or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))
        self.time_stride = stride[1]

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x (B, C, F, T), zero outside a mask (B, 1, 1, T), and the mask, both after the stride."""
        mask = None if mask is None else mask[..., :: self.time_stride]
        y = zero_padding(self.bn1(self.conv1(x)).relu_(), mask)
        y = self.bn2(self.conv2(y)) + self.shortcut(x)
        return zero_padding(y.relu_(), mask), mask
