"""Parts of an SSL encoder behind its convolutions: projection, positions, Transformer layer."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from shared.models.adapters import AdapterSettings, ParallelAdapter
from shared.models.ssl_config import SslConfig

ALIGN = 8  # elements; rows of an attention mask are padded to it, or CUDA kernels copy the mask


class FeatureProjection(nn.Module):
    """Layer norm and projection of the frames (B, T, C) to the width D."""

    def __init__(self, config: SslConfig):
        super().__init__()
        inputs = config.conv_channels[-1]
        self.layer_norm = (
            nn.LayerNorm(inputs, eps=config.norm_eps) if config.projection_norm else nn.Identity()
        )
        self.projection = nn.Linear(inputs, config.width)
        self.dropout = nn.Dropout(config.projection_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.projection(self.layer_norm(x)))


class PositionalConv(nn.Module):
    """Grouped convolution over time, weight-normed for each tap of the kernel, and GELU."""

    def __init__(self, config: SslConfig):
        super().__init__()
        kernel = config.position_kernel
        conv = nn.Conv1d(
            config.width,
            config.width,
            kernel,
            padding=kernel // 2,
            groups=config.position_groups,
        )
        nn.init.normal_(conv.weight, std=2 / math.sqrt(kernel * config.width))
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        self.conv = weight_norm(conv, dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) of x (B, T, D); an even kernel's one frame too many is cut off."""
        return F.gelu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention, with WavLM's gated relative position bias or without one.

    Args:
        config: of the encoder.
        table: owns the embedding of distances, which all layers share (WavLM's first layer).
    """

    buckets: Tensor

    def __init__(self, config: SslConfig, table: bool = False):
        super().__init__()
        self.heads, self.drop = config.heads, config.attention_dropout
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)
        if config.family == 'wavlm':
            self.gru_rel_pos_linear = nn.Linear(config.width // config.heads, 8)
            self.gru_rel_pos_const = nn.Parameter(torch.ones(1, config.heads, 1, 1))
        if table:
            self.rel_attn_embed = nn.Embedding(config.position_buckets, config.heads)
            self.position_distance = config.position_distance
            # of every distance -position_distance..position_distance: no table of T x T, and
            # nothing to compute when a new length comes
            buckets = distance_buckets(config.position_buckets, config.position_distance)
            self.register_buffer('buckets', buckets, persistent=False)

    def position_bias(self, frames: int) -> Tensor:
        """Bias of each key for each query before the gate, (heads, T, T rounded up to ALIGN)."""
        columns = -(-frames // ALIGN) * ALIGN
        longest = self.position_distance
        buckets = self.buckets
        if columns > longest:  # all longer distances share the outermost buckets
            ends = columns - longest
            before, after = buckets[:1].expand(ends), buckets[-1:].expand(ends)
            buckets, longest = torch.cat([before, buckets, after]), columns
        # entry n belongs to the distance n - (T - 1), key minus query
        entries = buckets[longest - frames + 1 : longest + columns]
        distances = self.rel_attn_embed(entries).T.contiguous()  # (heads, entries)
        shape, stride = (len(distances), frames, columns), (len(entries), 1, 1)
        # row r is of query T - 1 - r; contiguous before the flip, which keeps strides
        return distances.as_strided(shape, stride).contiguous().flip(1)

    def gate(self, x: Tensor) -> Tensor:
        """How much of the bias each query of x (B, T, D) takes, (B, heads, T, 1).

        The 2 x 4 outputs of the linear layer are summed over the 4: its weights are summed instead.
        """
        linear = self.gru_rel_pos_linear
        weight = linear.weight.unflatten(0, (2, 4)).sum(1)
        bias = linear.bias.unflatten(0, (2, 4)).sum(1)
        gates = F.linear(x.unflatten(-1, (self.heads, -1)), weight, bias).sigmoid()
        a, b = gates.transpose(1, 2).unsqueeze(-2).unbind(-1)  # (B, heads, T, 1)
        return a * (b * self.gru_rel_pos_const - 1) + 2

    def forward(self, x: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        """(B, T, D) of x (B, T, D).

        Args:
            x: input of the layer.
            bias: of `position_bias`; None: no position bias.
            mask: (B, 1, 1, T) bool, true for keys that are no padding, as wide as the bias where
                there is one; None: all.
        """
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if bias is not None:
            gated = self.gate(x).to(q.dtype) * bias.to(q.dtype)
            gated = gated if mask is None else gated.masked_fill(~mask, -torch.inf)
            mask = gated[..., : x.shape[1]]
        drop = self.drop if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)
        return self.out_proj(y.transpose(1, 2).flatten(2))


def distance_buckets(buckets: int, longest: int) -> Tensor:
    """Bucket of each distance -longest..longest, key minus query (spec wavlm_ssl 3.2).

    One half for keys behind the query, the other for keys ahead of it; in each, short distances
    have a bucket of their own and longer ones share it on a logarithmic scale. (2 * longest + 1,)
    """
    half, exact = buckets // 2, buckets // 4
    distance = torch.arange(-longest, longest + 1)
    far = distance.abs()
    shared = (far.clamp(min=1).double() / exact).log() / math.log(longest / exact)
    shared = exact + (shared * (half - exact)).long()
    return torch.where(far < exact, far, shared.clamp(max=half - 1)) + half * (distance > 0)


class FeedForward(nn.Module):
    """Linear, GELU, linear, with dropout after each half."""

    def __init__(self, config: SslConfig):
        super().__init__()
        self.intermediate_dense = nn.Linear(config.width, config.ffn_width)
        self.intermediate_dropout = nn.Dropout(config.activation_dropout)
        self.output_dense = nn.Linear(config.ffn_width, config.width)
        self.output_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.intermediate_dropout(F.gelu(self.intermediate_dense(x)))
        return self.output_dropout(self.output_dense(x))


class EncoderLayer(nn.Module):
    """Transformer layer, norms behind the residual sums or before the blocks (`pre_norm`).

    An adapter runs beside the feed-forward block and reads what that reads (spec nawsv 3.2), or
    with `input` 'stream' the sum before its norm (spec oskdft 3.3).

    Args:
        config: of the encoder.
        table: whether its attention owns the table of position biases.
        adapters: None: no adapter.
    """

    def __init__(
        self, config: SslConfig, table: bool = False, adapters: AdapterSettings | None = None
    ):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = Attention(config, table)
        self.dropout = nn.Dropout(config.dropout)
        self.layer_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.adapter = None if adapters is None else ParallelAdapter(config.width, adapters)

    def forward(
        self, x: Tensor, bias: Tensor | None, mask: Tensor | None, adapt: Tensor | None
    ) -> Tensor:
        """(B, T, D) of x (B, T, D); bias, mask as in `Attention`, adapt (B,) or None."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.layer_norm(x), bias, mask))
            return x + self._feed(self.final_layer_norm(x), x, adapt)
        x = self.layer_norm(x + self.dropout(self.attention(x, bias, mask)))
        return self.final_layer_norm(x + self._feed(x, x, adapt))

    def _feed(self, x: Tensor, stream: Tensor, adapt: Tensor | None) -> Tensor:
        y = self.feed_forward(x)
        if self.adapter is None:
            return y
        return y + self.adapter(stream if self.adapter.settings.input == 'stream' else x, adapt)
