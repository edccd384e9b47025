"""Multi-head factorised attentive pooling: where to look and what to keep, from all states."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.models.masks import frame_mask
from shared.models.ssl_pooling import weighted_sum


class Mhfa(nn.Module):
    """Hidden states of an SSL encoder to a speaker embedding.

    Source: Peng et al., SLT 2022 (spec wavlm_ssl 3.3). Keys and values are two weighted sums of the
    states, softmax-normalised and compressed; the keys give each head its attention over time, with
    which it averages the values; one linear layer joins the heads. 2,302,554 parameters. Attention
    and average are fp32 under autocast.

    Args:
        states: hidden states, one more than the encoder has layers.
        width: of the hidden states.
        heads: H.
        compression: C, width of keys and values.
        dim: D of the embeddings.
    """

    def __init__(
        self,
        states: int = 13,
        width: int = 768,
        heads: int = 64,
        compression: int = 128,
        dim: int = 256,
    ):
        super().__init__()
        self.weights_k = nn.Parameter(torch.ones(states))
        self.weights_v = nn.Parameter(torch.ones(states))
        self.cmp_linear_k = nn.Linear(width, compression)
        self.cmp_linear_v = nn.Linear(width, compression)
        self.att_head = nn.Linear(compression, heads)
        self.pooling_fc = nn.Linear(heads * compression, dim)

    def forward(self, states: Sequence[Tensor], frames: Tensor | None = None) -> Tensor:
        """Embeds states as (B, D), of any length.

        Args:
            states: (B, T, width) each.
            frames: (B,) own frames of each row, which gets what it would get alone; None: all T.

        Raises:
            ValueError: other than the number of states.
        """
        keys = self.cmp_linear_k(weighted_sum(states, self.weights_k.softmax(0)))  # (B, T, C)
        values = self.cmp_linear_v(weighted_sum(states, self.weights_v.softmax(0)))  # (B, T, C)
        attention = self.att_head(keys)  # (B, T, H)
        if frames is not None:
            outside = ~frame_mask(frames, values.shape[1]).mT  # (B, T, 1)
            attention = attention.masked_fill(outside, -torch.inf)
            values = values.masked_fill(outside, 0)
        with torch.autocast(values.device.type, enabled=False):
            dtype = torch.promote_types(values.dtype, torch.float32)
            heads = attention.to(dtype).softmax(1).mT @ values.to(dtype)  # (B, H, C)
        return self.pooling_fc(heads.flatten(1))
