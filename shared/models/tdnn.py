"""X-vector: a time-delay network, statistics pooling, two linear layers."""

from torch import Tensor, nn

from shared.models.frame_checks import checked_mask
from shared.models.pooling import statistics_pooling

REACH = 14  # frames that the unpadded convolutions take away
SHORTEST = REACH + 2  # frames, two of which are left to pool


class XVector(nn.Module):
    """X-vector as in spec enskd 3.1; the embedding is the output of the second linear layer.

    Source: Snyder et al., X-vectors, ICASSP 2018. Differences: batch norms without affine, no
    hidden layer after the embedding. Its modules have the published names. 4,610,524 parameters at
    the defaults, 3,645,404 with an embedding of 256.

    Args:
        dim: D, embedding.
        n_mels: F, input bins.
        width: channels of the frame layers but the last.
        last_width: channels of the last frame layer, which is pooled.
    """

    def __init__(self, dim: int = 512, n_mels: int = 80, width: int = 512, last_width: int = 1500):
        super().__init__()
        self.dim = dim
        self.frame_1 = TdnnLayer(n_mels, width, kernel_size=5)
        self.frame_2 = TdnnLayer(width, width, kernel_size=3, dilation=2)
        self.frame_3 = TdnnLayer(width, width, kernel_size=3, dilation=3)
        self.frame_4 = TdnnLayer(width, width)
        self.frame_5 = TdnnLayer(width, last_width)
        self.seg_1 = nn.Linear(2 * last_width, dim)
        self.seg_bn_1 = nn.BatchNorm1d(dim, affine=False)
        self.seg_2 = nn.Linear(dim, dim)

    def forward(self, features: Tensor, frames: Tensor | None = None) -> Tensor:
        """Embeds features (B, F, T), at least 16 frames, as (B, D), not length-normalised.

        With `frames` (B,), the own number of frames of each utterance, each row gets what it would
        get alone.

        Raises:
            ValueError: too few frames; `frames` in training mode, where padding would enter the
                batch statistics.
        """
        mask = checked_mask(features, frames, SHORTEST, self.training)
        x = features
        for layer in (self.frame_1, self.frame_2, self.frame_3, self.frame_4, self.frame_5):
            x = layer(x)
        # frame t has seen t to t + REACH: it counts where the last of them does
        pooled = statistics_pooling(x, None if mask is None else mask[..., REACH:])
        return self.seg_2(self.seg_bn_1(self.seg_1(pooled).relu()))


class TdnnLayer(nn.Module):
    """Convolution without padding, ReLU, batch norm without affine."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 1, dilation: int = 1):
        super().__init__()
        self.conv_1d = nn.Conv1d(inputs, outputs, kernel_size, dilation=dilation)
        self.bn = nn.BatchNorm1d(outputs, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv_1d(x).relu_())
