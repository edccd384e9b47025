"""What an SSL encoder is made of: one description for WavLM, HuBERT and wav2vec 2.0."""

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

FAMILIES = ('wavlm', 'hubert', 'wav2vec2')
CONV_NORMS = ('group', 'layer')
Count = TypeVar('Count', int, Tensor)


@dataclass(frozen=True)
class SslConfig:
    """Structure and dropout rates of an SSL encoder; the defaults are those of the Base models.

    Sources: Chen et al. 2022 (WavLM), Hsu et al. 2021 (HuBERT), Baevski et al. 2020 (wav2vec 2.0).
    The published models differ in the fields that `WAVLM_BASE` ... `XLSR_53` below set.

    Raises:
        ValueError: fields that contradict each other.
    """

    family: str  # one of FAMILIES: 'wavlm' has the gated relative position bias
    layers: int = 12  # N
    width: int = 768  # D
    heads: int = 12
    ffn_width: int = 3072
    conv_channels: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)  # samples, then frames
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)  # 320 samples a frame together
    conv_bias: bool = False
    conv_norm: str = 'group'  # 'group': over time, after the first convolution; 'layer': after each
    projection_norm: bool = True
    pre_norm: bool = False  # layer norm before attention and feed-forward, and after the last layer
    position_kernel: int = 128  # frames
    position_groups: int = 16
    position_buckets: int = 320  # of relative distances, WavLM only
    position_distance: int = 800  # frames; all longer distances share a bucket
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    projection_dropout: float = 0.0
    layer_drop: float = 0.05
    norm_eps: float = 1e-5
    normalise_wave: bool = False  # each utterance to zero mean and unit variance

    def __post_init__(self):
        stack = {len(self.conv_channels), len(self.conv_kernels), len(self.conv_strides)}
        wrong = [
            (self.family not in FAMILIES, f'family {self.family!r} is none of {FAMILIES}'),
            (self.conv_norm not in CONV_NORMS, f'conv_norm {self.conv_norm!r}: not {CONV_NORMS}'),
            (len(stack) > 1 or 0 in stack, 'conv_* need the same number of entries, at least 1'),
            (
                self.conv_bias and self.conv_norm == 'group',
                "conv_bias: the norm of conv_norm 'group' would cancel the first convolution's",
            ),
            (self.layers < 1, f'layers {self.layers} must be at least 1'),
            (self.width % self.heads, f'width {self.width} is no multiple of heads {self.heads}'),
            (
                self.width % self.position_groups,
                f'width {self.width} is no multiple of position_groups {self.position_groups}',
            ),
        ]
        for is_wrong, message in wrong:
            if is_wrong:
                raise ValueError(message)


def frame_counts(lengths: Count, config: SslConfig) -> Count:
    """Frames that the convolutions make of `lengths` samples, an int or (B,).

    At least 400 samples for the published models; zero or less where the utterance is too short.
    """
    for kernel, stride in zip(config.conv_kernels, config.conv_strides):
        lengths = (lengths - kernel) // stride + 1
    return lengths


# The published models. Dropout rates: config.json of the models of these names on Hugging Face.
WAVLM_BASE = SslConfig('wavlm', projection_dropout=0.1)  # and Base+
WAVLM_LARGE = SslConfig(
    'wavlm',
    layers=24,
    width=1024,
    heads=16,
    ffn_width=4096,
    conv_norm='layer',
    pre_norm=True,
    projection_dropout=0.1,
    normalise_wave=True,
)
HUBERT_BASE = SslConfig('hubert', activation_dropout=0.1, projection_dropout=0.1, layer_drop=0.1)
HUBERT_LARGE = SslConfig(
    'hubert',
    layers=24,
    width=1024,
    heads=16,
    ffn_width=4096,
    conv_bias=True,
    conv_norm='layer',
    pre_norm=True,
    layer_drop=0.1,
    normalise_wave=True,
)
WAV2VEC2_BASE = SslConfig('wav2vec2', projection_dropout=0.1)
XLSR_53 = SslConfig(
    'wav2vec2',
    layers=24,
    width=1024,
    heads=16,
    ffn_width=4096,
    conv_bias=True,
    conv_norm='layer',
    pre_norm=True,
    projection_dropout=0.1,
    layer_drop=0.1,
    normalise_wave=True,
)
