import math

import pytest
import torch

from shared.models.ssl_config import SslConfig
from shared.models.ssl_layers import Attention, PositionalConv, distance_buckets

SMALL = {'width': 12, 'heads': 3, 'attention_dropout': 0.0}


def attention(**fields):
    torch.manual_seed(0)
    module = Attention(SslConfig('wavlm', **{**SMALL, 'position_groups': 1, **fields}), table=True)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module.double()


def test_distances_have_the_published_buckets():
    # spec wavlm_ssl 3.2
    published = {0: 0, 1: 161, -1: 1, 79: 239, -79: 79, 80: 240, 100: 247, -100: 87, 200: 271}
    published |= {400: 295, 799: 319, 800: 319, -800: 159}
    buckets = distance_buckets(320, 800)
    assert {d: buckets[d + 800].item() for d in published} == published
    assert len(buckets) == 1601


@pytest.mark.parametrize('frames', [1, 7, 8, 13, 30])
def test_bias_is_looked_up_by_the_distance_of_key_and_query(frames):
    module = attention(position_buckets=16, position_distance=20)
    bias, table = module.position_bias(frames), module.rel_attn_embed.weight
    assert bias.shape[2] % 8 == 0
    for query in range(frames):
        for key in range(frames):
            far, bucket = abs(key - query), abs(key - query)
            if far >= 4:
                bucket = min(7, 4 + int(math.log(far / 4) / math.log(20 / 4) * 4))
            bucket += 8 if key > query else 0
            assert torch.equal(bias[:, query, key], table[bucket])


def test_bias_of_a_long_file_repeats_the_outermost_buckets():
    module = attention()
    bias, table = module.position_bias(2000), module.rel_attn_embed.weight
    for query, key, bucket in ((0, 1999, 319), (1999, 0, 159), (5, 805, 319), (1000, 1000, 0)):
        assert torch.equal(bias[:, query, key], table[bucket])


@pytest.mark.parametrize('padded', [False, True])
def test_attention_equals_a_loop_over_queries(padded):
    # spec wavlm_ssl 3.2: logits q.k / sqrt(d) + gate * bias; gate = a (b c - 1) + 2
    module, frames = attention(), 5
    x = torch.randn(2, frames, 12, dtype=torch.float64)
    own = [frames, 3 if padded else frames]
    bias = module.position_bias(frames)
    mask = torch.arange(bias.shape[2]) < torch.tensor(own)[:, None, None, None]
    y = module(x, bias, mask if padded else None)
    q, k, v = module.q_proj(x), module.k_proj(x), module.v_proj(x)
    linear = module.gru_rel_pos_linear
    for row, count in enumerate(own):
        for query in range(count):
            heads = []
            for head in range(3):
                part = slice(4 * head, 4 * head + 4)
                eight = linear.weight @ x[row, query, part] + linear.bias
                a, b = eight[:4].sum().sigmoid(), eight[4:].sum().sigmoid()
                gate = a * (b * module.gru_rel_pos_const[0, head, 0, 0] - 1) + 2
                logits = k[row, :count, part] @ q[row, query, part] / 2
                weights = (logits + gate * bias[head, query, :count]).softmax(0)
                heads.append(weights @ v[row, :count, part])
            expected = module.out_proj(torch.cat(heads))
            torch.testing.assert_close(y[row, query], expected)


def test_rows_of_the_mask_are_aligned_for_the_kernels_of_a_gpu():
    bias = attention().position_bias(149)
    assert bias.shape == (3, 149, 152) and bias.is_contiguous()


@pytest.mark.parametrize('kernel', [4, 5])
def test_positional_convolution_keeps_the_length_and_is_normed_for_each_tap(kernel):
    module = PositionalConv(
        SslConfig('hubert', width=6, heads=1, position_kernel=kernel, position_groups=3)
    )
    parts = module.conv.parametrizations.weight
    with torch.no_grad():
        parts.original0.copy_(torch.rand_like(parts.original0))
    assert module(torch.randn(2, 9, 6)).shape == (2, 9, 6)
    norms = module.conv.weight.square().sum((0, 1), keepdim=True).sqrt()
    torch.testing.assert_close(norms, parts.original0)
