"""The FitHuBERT-shaped student (spec 3.4); the other students are cut teachers (`systems.py`)."""

from dataclasses import replace

import torch
from torch import nn

from shared.models.masks import frame_mask
from shared.models.ssl_encoder import SslEncoder, SslOutput

CHANNELS = (128, 256, 256, 256, 256, 256, 512, 512, 512)
KERNELS = (10, 1, 3, 3, 3, 3, 1, 2, 2)
STRIDES = (5, 1, 2, 2, 2, 2, 1, 2, 2)  # as many samples a frame as the teacher's: 320
PACE = 2  # frames that the time reduction makes one of


class FitStudent(nn.Module):
    """Thin and deep: narrow pre-norm layers at half the frame rate, a head for each of them.

    Nothing of the teacher but its settings. Used as an `SslEncoder`: state l of B x T x Ht is what
    head l makes of layer l, at the frame rate of the teacher.

    Args:
        teacher_config: of the teacher; Ht is its width.
        layers: L, Transformer layers.
        width: Hs, of the layers and of their feed-forward blocks.
        adapters: None: none.
        masks: of frames at half the rate, and of features.
        channels: of the nine convolutions.
    """

    def __init__(
        self, teacher_config, layers=12, width=480, adapters=None, masks=None, channels=CHANNELS
    ):
        super().__init__()
        config = replace(
            teacher_config,
            layers=layers,
            width=width,
            ffn_width=width,
            conv_channels=channels,
            conv_kernels=KERNELS,
            conv_strides=STRIDES,
            pre_norm=True,
        )
        self.encoder = SslEncoder(config, adapters=adapters, masks=masks)
        self.time_reduction = nn.Conv1d(channels[-1], channels[-1], PACE, PACE, bias=False)
        self.heads = nn.ModuleList(Head(width, teacher_config.width) for _ in range(layers))
        nn.init.kaiming_normal_(self.time_reduction.weight)  # as the encoder's convolutions
        self.width = teacher_config.width
        self.states = self.layers = layers
        self.masks = masks

    def forward(self, waves, lengths=None, adapt=None):
        """States of waves (B, L); arguments and result as those of `SslEncoder`."""
        return self.encode(*self.features(waves, lengths), adapt)

    def features(self, waves, lengths=None):
        """The convolutions alone: frames (B, T, C), and how many (B,) belong to each row."""
        return self.encoder.features(waves, lengths)

    def encode(self, x, frames=None, adapt=None):
        """All but the convolutions: L states (B, T, Ht) of x (B, T, C), at least 2 frames."""
        slow = None if frames is None else frames // PACE
        y = self.time_reduction(x.mT).mT
        states = self.encoder.encode(y, slow, adapt).states[1:]  # the embedding output is dropped
        mask = None if slow is None else frame_mask(slow, y.shape[1]).mT
        states = [head(h, x.shape[1], mask) for head, h in zip(self.heads, states)]
        return SslOutput(tuple(states), frames)


class Head(nn.Module):
    """Back to the teacher's frame rate and width."""

    def __init__(self, width, teacher_width):
        super().__init__()
        self.tconv = nn.ConvTranspose1d(width, width, PACE, PACE)
        self.fc = nn.Linear(width, teacher_width)

    def forward(self, x, count, mask):
        """`count` frames of x (B, t, Hs); an odd one at the end is the bias alone."""
        if mask is not None:  # a row's odd frame would see the padding's
            x = torch.where(mask, x, 0)
        return self.fc(self.tconv(x.mT, output_size=[count]).mT)
