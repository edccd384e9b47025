"""WavLM, HuBERT and wav2vec 2.0 / XLSR: one encoder of waveforms, with all its hidden states."""

import math
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.checkpoint import checkpoint

from shared.models.adapters import AdapterSettings, ParallelAdapter
from shared.models.masks import frame_mask, masked_mean, zero_padding
from shared.models.span_masks import SpanMasks, draw_spans
from shared.models.ssl_config import SslConfig, frame_counts
from shared.models.ssl_convolutions import FeatureExtractor
from shared.models.ssl_layers import EncoderLayer, FeatureProjection, PositionalConv

INIT_STD = 0.02  # of linear layers and embeddings
WAVE_EPS = 1e-5  # of the waves' variance: what the published models were trained with


class SslOutput(NamedTuple):
    """What an SSL encoder returns."""

    states: tuple[Tensor, ...]  # N + 1 of (B, T, D); state 0 is the input of the first layer
    frames: Tensor | None  # (B,) own frames of each row; None: no row is padded


class SslEncoder(nn.Module):
    """Speech encoder of the WavLM, HuBERT or wav2vec 2.0 family (specs nawsv 3, oskdft 3.1).

    Parameters are named as in Hugging Face's base models. Dropout, LayerDrop and masks act in
    training mode only and are drawn on the device: nothing waits for the host. A layer that
    LayerDrop drops is computed, and its input taken as its output.

    Args:
        config: structure; the weights are initialised as Hugging Face initialises them.
        layers: keep only the first so many layers; None: all.
        adapters: a bottleneck adapter in every layer; None: none.
        masks: time and feature masks of training; None: none.
        checkpointing: recompute each layer in the backward pass instead of storing it.

    Raises:
        ValueError: more `layers` than there are, or none.
    """

    def __init__(
        self,
        config: SslConfig,
        *,
        layers: int | None = None,
        adapters: AdapterSettings | None = None,
        masks: SpanMasks | None = None,
        checkpointing: bool = False,
    ):
        super().__init__()
        kept = config.layers if layers is None else layers
        if not 1 <= kept <= config.layers:
            raise ValueError(f'layers {layers}: the encoder has 1 to {config.layers}')
        self.config = replace(config, layers=kept)
        self.masks = masks
        self.feature_extractor = FeatureExtractor(self.config)
        self.feature_projection = FeatureProjection(self.config)
        self.masked_spec_embed = nn.Parameter(torch.empty(config.width).uniform_())
        self.encoder = Transformer(self.config, adapters, checkpointing)
        self.apply(_initialise)

    @property
    def width(self) -> int:
        """D, features of each state."""
        return self.config.width

    @property
    def layers(self) -> int:
        """N, Transformer layers kept."""
        return self.config.layers

    @property
    def states(self) -> int:
        """N + 1, hidden states returned."""
        return self.config.layers + 1

    def forward(
        self, waves: Tensor, lengths: Tensor | None = None, adapt: Tensor | None = None
    ) -> SslOutput:
        """All hidden states of waves (B, L).

        Args:
            waves: (B, L) at 16 kHz, within -1..1, zero-padded.
            lengths: (B,) own samples of each row; None: no row is padded. Rows get what they would
                get alone; states of padded frames mean nothing.
            adapt: (B,) bool, rows whose adapters act; None: all rows.
        """
        x, frames = self.features(waves, lengths)
        return self.encode(x, frames, adapt)

    def features(
        self, waves: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The convolutions alone: frames (B, T, C), and how many (B,) belong to each row."""
        if self.config.normalise_wave:
            waves = _normalise(waves, lengths)
        x = self.feature_extractor(waves, lengths)
        return x, None if lengths is None else frame_counts(lengths, self.config)

    def encode(
        self, x: Tensor, frames: Tensor | None = None, adapt: Tensor | None = None
    ) -> SslOutput:
        """All but the convolutions: states of x (B, T, C), the output of `features`."""
        x = self.feature_projection(x)
        if self.training and self.masks is not None:
            x = self._hide(x, frames)
        return SslOutput(self.encoder(x, frames, adapt), frames)

    def _hide(self, x: Tensor, frames: Tensor | None) -> Tensor:
        """Hides spans of frames behind the learned vector, and spans of features behind zeros."""
        masks, (rows, count, width) = self.masks, x.shape
        assert masks is not None
        if masks.time_prob > 0:
            own = torch.full((rows,), count, device=x.device) if frames is None else frames
            hidden = draw_spans(
                own,
                count,
                prob=masks.time_prob,
                length=masks.time_length,
                min_count=masks.time_min,
            )
            x = torch.where(hidden.unsqueeze(-1), self.masked_spec_embed.to(x.dtype), x)
        if masks.feature_prob > 0:
            hidden = draw_spans(
                torch.full((rows,), width, device=x.device),
                width,
                prob=masks.feature_prob,
                length=masks.feature_length,
                min_count=masks.feature_min,
            )
            x = x.masked_fill(hidden.unsqueeze(1), 0)
        return x

    def parameters_by_depth(self) -> list[list[nn.Parameter]]:
        """Parameters for layer-wise learning rates: [0] below the layers, [i] of layer i.

        [0]: convolutions, projection, mask vector, positional convolution and encoder norm. The
        table of position biases belongs to layer 1, adapters to their layers.
        """
        layers = [list(layer.parameters()) for layer in self.encoder.layers]
        above = {id(parameter) for layer in layers for parameter in layer}
        return [[p for p in self.parameters() if id(p) not in above], *layers]


class Transformer(nn.Module):
    """Positional convolution and the layers, with padding, LayerDrop and gradient checkpointing."""

    def __init__(self, config: SslConfig, adapters: AdapterSettings | None, checkpointing: bool):
        super().__init__()
        self.config, self.checkpointing = config, checkpointing
        self.pos_conv_embed = PositionalConv(config)
        self.layer_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(config, table=config.family == 'wavlm' and i == 0, adapters=adapters)
            for i in range(config.layers)
        )

    def forward(self, x: Tensor, frames: Tensor | None, adapt: Tensor | None) -> tuple[Tensor, ...]:
        """N + 1 states (B, T, D) of x (B, T, D), numbered and normalised as by Hugging Face."""
        x = x.to(self.layer_norm.weight.dtype)  # under autocast the residual sums stay in fp32
        wavlm = self.config.family == 'wavlm'
        first = cast(EncoderLayer, self.layers[0]).attention
        bias = first.position_bias(x.shape[1]) if wavlm else None
        mask = None
        if frames is not None:
            x = x.masked_fill(~frame_mask(frames, x.shape[1]).mT, 0)
            columns = x.shape[1] if bias is None else bias.shape[-1]
            mask = frame_mask(frames, columns).unsqueeze(1)  # (B, 1, 1, columns)
        x = x + self.pos_conv_embed(x)
        x = self.dropout(x if self.config.pre_norm else self.layer_norm(x))
        kept = self._kept_layers(x)
        states = [x]
        for i, layer in enumerate(self.layers):
            y = self._layer(layer, x, bias, mask, adapt)
            x = y if kept is None or (wavlm and i == 0) else torch.where(kept[i], y, x)
            states.append(x)
        if self.config.pre_norm:
            states[-1] = self.layer_norm(x)
        return tuple(states)

    def _kept_layers(self, x: Tensor) -> Tensor | None:
        """(N,) bool: layers that LayerDrop keeps this time; None: all."""
        if not self.training or self.config.layer_drop == 0:
            return None
        return torch.rand(len(self.layers), device=x.device) >= self.config.layer_drop

    def _layer(self, layer: nn.Module, x: Tensor, *others: Tensor | None) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(layer, x, *others, use_reentrant=False)
        return layer(x, *others)


def _normalise(waves: Tensor, lengths: Tensor | None) -> Tensor:
    """Waves (B, L) with zero mean and unit variance over each row's own samples."""
    mask = None if lengths is None else frame_mask(lengths, waves.shape[1])
    waves = waves.unsqueeze(1)  # (B, 1, L)
    centred = waves - masked_mean(waves, mask)
    variance = masked_mean(centred.square(), mask)
    return zero_padding(centred * (variance + WAVE_EPS).rsqrt(), mask).squeeze(1)


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    """Initial weights of Hugging Face; called for the parts of a module before the module."""
    if isinstance(module, FeatureProjection):
        bound = 1 / math.sqrt(module.projection.in_features)
        nn.init.uniform_(module.projection.weight, -bound, bound)
        nn.init.uniform_(module.projection.bias, -bound, bound)
    elif isinstance(module, ParallelAdapter):
        module.mute()
    elif isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv1d) and not is_parametrized(module):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            bound = 1 / math.sqrt(module.in_channels * module.kernel_size[0])
            nn.init.uniform_(module.bias, -bound, bound)
