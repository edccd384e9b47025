"""Hidden states and gradients against transformers and torchaudio, then what only ours can do."""

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchaudio
import transformers
from torch import nn

from shared.models import ssl_encoder
from shared.models.adapters import AdapterSettings
from shared.models.ssl_config import (
    HUBERT_BASE,
    HUBERT_LARGE,
    WAV2VEC2_BASE,
    WAVLM_BASE,
    WAVLM_LARGE,
    XLSR_53,
    SslConfig,
)
from shared.models.ssl_encoder import SpanMasks, SslEncoder

PUBLISHED = {
    'wavlm_base': WAVLM_BASE,
    'wavlm_large': WAVLM_LARGE,
    'hubert_base': HUBERT_BASE,
    'hubert_large': HUBERT_LARGE,
    'wav2vec2_base': WAV2VEC2_BASE,
    'xlsr_53': XLSR_53,
}
ORACLES = {
    'wavlm': (transformers.WavLMConfig, transformers.WavLMModel),
    'hubert': (transformers.HubertConfig, transformers.HubertModel),
    'wav2vec2': (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
}
STILL = {
    'dropout': 0.0,
    'attention_dropout': 0.0,
    'activation_dropout': 0.0,
    'projection_dropout': 0.0,
    'layer_drop': 0.0,
}


def narrow(config: SslConfig, **changes) -> SslConfig:
    """The published structure with thin layers: all kernels, heads, norms and biases as they are.

    The waves go in as they are, since transformers normalises them outside of the model.
    """
    thin = {
        'layers': 3,
        'width': 8 * config.heads,
        'ffn_width': 24 * config.heads,
        'conv_channels': (24,) * 7,
        'normalise_wave': False,
    }
    return replace(config, **{**thin, **changes})


def roughen(encoder: nn.Module, seed: int = 0) -> nn.Module:
    """Random norms, biases and gates too, so that none of them can be forgotten unnoticed."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if parameter.dim() == 1 or 'gru_rel_pos' in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            if 'rel_attn_embed' in name:
                parameter.add_(torch.randn_like(parameter))
    return encoder


def encoder_of(config, seed=0, **options) -> SslEncoder:
    torch.manual_seed(seed)
    return roughen(SslEncoder(config, **options), seed).eval()


def waves(rows=2, samples=8000, seed=1):
    return torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))


def hugging_face(encoder: SslEncoder) -> nn.Module:
    """transformers' model with the same structure and weights, in eval mode."""
    c = encoder.config
    config_class, model_class = ORACLES[c.family]
    special = {
        'wavlm': {'num_buckets': c.position_buckets, 'max_bucket_distance': c.position_distance},
        'hubert': {'feat_proj_layer_norm': c.projection_norm},
        'wav2vec2': {},
    }[c.family]
    config = config_class(
        hidden_size=c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        intermediate_size=c.ffn_width,
        conv_dim=c.conv_channels,
        conv_kernel=c.conv_kernels,
        conv_stride=c.conv_strides,
        num_feat_extract_layers=len(c.conv_channels),
        conv_bias=c.conv_bias,
        feat_extract_norm=c.conv_norm,
        do_stable_layer_norm=c.pre_norm,
        num_conv_pos_embeddings=c.position_kernel,
        num_conv_pos_embedding_groups=c.position_groups,
        hidden_dropout=c.dropout,
        attention_dropout=c.attention_dropout,
        activation_dropout=c.activation_dropout,
        feat_proj_dropout=c.projection_dropout,
        layerdrop=c.layer_drop,
        layer_norm_eps=c.norm_eps,
        mask_feature_prob=0.1,
        **special,
    )
    config.mask_feature_min_masks = 0  # transformers 5 reads but does not define WavLM's
    model = model_class(config)
    model.load_state_dict(encoder.state_dict())  # strict: the same names
    return model.eval()


def hugging_face_states(model, x, **options):
    """transformers 5 leaves the last norm of pre-norm models out of `hidden_states`."""
    out = model(x, output_hidden_states=True, **options)
    return [*out.hidden_states[:-1], out.last_hidden_state]


def torchaudio_model(encoder: SslEncoder) -> nn.Module:
    """torchaudio's model with the same structure and weights, in eval mode."""
    c = encoder.config
    options = {
        'extractor_mode': f'{c.conv_norm}_norm',
        'extractor_conv_layer_config': list(zip(c.conv_channels, c.conv_kernels, c.conv_strides)),
        'extractor_conv_bias': c.conv_bias,
        'encoder_embed_dim': c.width,
        'encoder_projection_dropout': 0.0,
        'encoder_pos_conv_kernel': c.position_kernel,
        'encoder_pos_conv_groups': c.position_groups,
        'encoder_num_layers': c.layers,
        'encoder_num_heads': c.heads,
        'encoder_attention_dropout': 0.0,
        'encoder_ff_interm_features': c.ffn_width,
        'encoder_ff_interm_dropout': 0.0,
        'encoder_dropout': 0.0,
        'encoder_layer_norm_first': c.pre_norm,
        'encoder_layer_drop': 0.0,
        'aux_num_out': None,
    }
    if c.family == 'wavlm':
        options['encoder_num_buckets'] = c.position_buckets
        options['encoder_max_distance'] = c.position_distance
    make = (
        torchaudio.models.wavlm_model if c.family == 'wavlm' else torchaudio.models.wav2vec2_model
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = make(**options)
    model.load_state_dict(torchaudio_names(encoder))
    return model.eval()


def torchaudio_names(encoder: SslEncoder) -> dict:
    state = dict(encoder.state_dict())
    del state['masked_spec_embed']
    if encoder.config.family == 'wavlm':
        for i in range(encoder.layers):
            at = f'encoder.layers.{i}.attention.'
            for kind in ('weight', 'bias'):
                parts = [state.pop(f'{at}{name}_proj.{kind}') for name in 'qkv']
                state[f'{at}attention.in_proj_{kind}'] = torch.cat(parts)
                state[f'{at}attention.out_proj.{kind}'] = state.pop(f'{at}out_proj.{kind}')
    renamed = {}
    for name, tensor in state.items():
        name = name.replace('encoder.', 'encoder.transformer.', 1)
        renamed[name.replace('feature_projection', 'encoder.feature_projection')] = tensor
    for i, spelling in enumerate('gv'):
        new = f'encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original{i}'
        renamed[f'encoder.transformer.pos_conv_embed.conv.weight_{spelling}'] = renamed.pop(new)
    return renamed


def assert_states(ours, theirs, atol=1e-5):
    assert len(ours) == len(theirs)
    for number, (a, b) in enumerate(zip(ours, theirs)):
        error = (a - b).abs().max().item()
        assert error <= atol, f'state {number} is {error:.1e} off'


def loss_of(states):
    """A scalar to which every number of every state contributes differently."""
    torch.manual_seed(5)
    return sum((state * torch.randn(state.shape)).mean() for state in states)


def gradients_of(model: nn.Module, states, inputs) -> dict:
    loss_of(states).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    gradients['input'], inputs.grad = inputs.grad, None
    return gradients


def assert_gradients(ours: SslEncoder, theirs, own_states, their_states, inputs):
    mine = gradients_of(ours, own_states, inputs)
    gradients = gradients_of(theirs, their_states, inputs)
    assert mine.keys() == gradients.keys()
    for name, gradient in mine.items():
        if gradient is None:  # the vector of masks, without masks
            assert name == 'masked_spec_embed' and gradients[name] is None
            continue
        scale = gradients[name].abs().max().clamp(min=1e-3)
        error = ((gradient - gradients[name]).abs().max() / scale).item()
        assert error <= 1e-4, f'gradient of {name} is {error:.1e} off'


@pytest.mark.parametrize('name', PUBLISHED)
def test_states_and_gradients_equal_transformers(name):
    encoder = encoder_of(narrow(PUBLISHED[name]))
    model = hugging_face(encoder)
    x = waves().requires_grad_()
    own, theirs = encoder(x).states, hugging_face_states(model, x)
    assert_states(own, theirs)
    assert_gradients(encoder, model, own, theirs, x)


@pytest.mark.parametrize('name', PUBLISHED)
def test_states_and_gradients_equal_torchaudio(name):
    encoder = encoder_of(narrow(PUBLISHED[name]))
    model = torchaudio_model(encoder)
    x = waves(samples=9000).requires_grad_()
    own = encoder(x).states[1:]  # torchaudio keeps state 0 to itself
    assert_states(own, [*model.extract_features(x)[0][:-1], model(x)[0]])
    torch.stack([loss_of(own)]).sum().backward()
    mine, x.grad = x.grad, None
    loss_of([*model.extract_features(x)[0][:-1], model(x)[0]]).backward()
    torch.testing.assert_close(mine, x.grad, rtol=1e-4, atol=1e-4 * x.grad.abs().max().item())


@pytest.mark.parametrize('name', ['wavlm_base', 'wavlm_large', 'hubert_base', 'xlsr_53'])
def test_states_at_the_published_width_equal_both_libraries(name):
    # Their float32 is up to 2e-5 off their own float64 here, ours at most 1e-5.
    encoder = encoder_of(replace(PUBLISHED[name], layers=2, normalise_wave=False))
    x = waves(rows=1, samples=3000)
    with torch.no_grad():
        states = encoder(x).states
        theirs = hugging_face_states(hugging_face(encoder).double(), x.double())
        assert_states(states, theirs)
        model = torchaudio_model(encoder).double()
        last, _ = model(x.double())
        assert_states(states[1:], [*model.extract_features(x.double())[0][:-1], last])
        assert_states(encoder.double()(x.double()).states, theirs, atol=1e-11)


@pytest.mark.parametrize('name', ['wavlm_base', 'wavlm_large', 'hubert_base', 'xlsr_53'])
def test_masked_states_and_gradients_equal_transformers(name, monkeypatch):
    encoder = encoder_of(narrow(PUBLISHED[name], **STILL), masks=SpanMasks(0.3, 4, 2, 0.1, 5))
    model = hugging_face(encoder)
    generator = torch.Generator().manual_seed(2)
    hidden = {size: torch.rand(2, size, generator=generator) < 0.3 for size in (24, encoder.width)}
    library = __import__(type(model).__module__, fromlist=['_compute_mask_indices'])
    monkeypatch.setattr(
        library, '_compute_mask_indices', lambda shape, *_, **__: hidden[shape[1]].numpy()
    )
    monkeypatch.setattr(ssl_encoder, 'draw_spans', lambda own, size, **_: hidden[size])
    x = waves(samples=8000).requires_grad_()
    encoder.train(), model.train()
    model.feature_extractor._requires_grad = False  # or it sets the flag of a view of x
    own, theirs = encoder(x).states, hugging_face_states(model, x)
    assert_states(own, theirs)
    assert_gradients(encoder, model, own, theirs, x)
    assert encoder.masked_spec_embed.grad.abs().sum() > 0


@pytest.mark.parametrize('name', ['wavlm_large', 'hubert_large', 'xlsr_53'])
def test_padded_states_and_gradients_equal_transformers(name):
    encoder = encoder_of(narrow(PUBLISHED[name]))
    model = hugging_face(encoder)
    lengths, x = torch.tensor([8000, 4321, 6000]), waves(rows=3)
    inside = torch.arange(8000) < lengths[:, None]
    x = (x * inside).requires_grad_()
    out = encoder(x, lengths)
    frames = out.frames.tolist()
    theirs = hugging_face_states(model, x, attention_mask=inside.long())
    own, theirs = (
        [state[b, :count] for state in states for b, count in enumerate(frames)]
        for states in (out.states, theirs)
    )
    assert_states(own, theirs)
    assert_gradients(encoder, model, own, theirs, x)


@pytest.mark.parametrize('name', PUBLISHED)
def test_padded_rows_get_what_they_get_alone(name):
    # group norm over time included, which transformers and torchaudio take over the padding too
    config = narrow(PUBLISHED[name], normalise_wave=PUBLISHED[name].normalise_wave)
    encoder = encoder_of(config)
    lengths = [8000, 4321, 400, 6000]
    x = 0.3 + waves(rows=4)
    x[torch.arange(8000) >= torch.tensor(lengths)[:, None]] = 7.0  # padding need not be zero
    batch = encoder(x, torch.tensor(lengths))
    assert batch.frames.tolist() == [24, 13, 1, 18]
    alone = [encoder(row[None, :length]).states for row, length in zip(x, lengths)]
    own = [state[b, :count] for b, count in enumerate(batch.frames) for state in batch.states]
    assert_states(own, [state[0] for states in alone for state in states])
    loss_of(own).backward()
    together = [p.grad for p in encoder.parameters()]
    encoder.zero_grad()
    loss_of([state[0] for states in alone for state in states]).backward()
    for gradient, parameter in zip(together, encoder.parameters()):
        if gradient is not None:
            scale = parameter.grad.abs().max().item() + 1e-3
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize('name', ['wavlm_base', 'wavlm_large', 'hubert_base', 'hubert_large'])
@pytest.mark.parametrize('placed', ['dropout', 'attention', 'activation', 'projection'])
def test_dropouts_are_where_transformers_has_them(name, placed):
    # a dropout of everything is not random
    rates = {**STILL, placed if placed == 'dropout' else f'{placed}_dropout': 1.0}
    encoder = encoder_of(narrow(PUBLISHED[name], layers=2, **rates))
    model, x = hugging_face(encoder), waves(samples=2000)
    model.config.apply_spec_augment = False
    quiet = encoder(x).states
    encoder.train(), model.train()
    with torch.no_grad():
        states = encoder(x).states
        assert_states(states, hugging_face_states(model, x))
    assert max((a - b).abs().max() for a, b in zip(states, quiet)) > 0.01


def test_waves_are_normalised_over_their_own_samples():
    config = narrow(XLSR_53, normalise_wave=True, layers=1)
    encoder = encoder_of(config)
    plain = encoder_of(replace(config, normalise_wave=False))
    x = 3 + 5 * waves(rows=1)
    own = encoder(x).states
    mean, std = x.double().mean(), x.double().var(correction=0).add(1e-5).sqrt()
    assert_states(own, plain(((x - mean) / std).float()).states)


ELU, RELU = AdapterSettings(width=64), AdapterSettings(width=64, activation='relu')
NORMED = AdapterSettings(64, 'relu', norm=True, scale=0.1, input='stream')
COUNTS = [  # layers, None: all
    (WAVLM_BASE, None, None, 94_381_936),
    (WAVLM_BASE, None, ELU, 95_571_568),
    (HUBERT_BASE, None, None, 94_371_712),
    (HUBERT_BASE, None, ELU, 95_561_344),
    (XLSR_53, None, None, 315_438_720),
    (WAVLM_LARGE, None, None, 315_453_120),
    (HUBERT_BASE, 2, None, 23_492_992),  # students of spec oskdft 3.2
    (HUBERT_BASE, 2, RELU, 23_691_264),
    (WAVLM_BASE, 2, ELU, 23_696_168),
    (XLSR_53, 4, NORMED, 64_051_072),  # and of 3.3
    (XLSR_53, 4, None, 64_051_072 - 536_832),
]


@pytest.mark.parametrize('config, layers, adapters, count', COUNTS)
def test_parameters_are_as_many_as_published(config, layers, adapters, count):
    with torch.device('meta'):
        encoder = SslEncoder(config, layers=layers, adapters=adapters)
    groups = encoder.parameters_by_depth()
    assert sum(p.numel() for p in encoder.parameters()) == count
    assert sum(p.numel() for group in groups for p in group) == count
    assert len(groups) == 1 + encoder.layers == encoder.states


def test_base_plus_has_the_published_groups_and_13_states_of_149_frames():
    with torch.device('meta'):
        encoder = SslEncoder(WAVLM_BASE).eval()
        out = encoder(torch.empty(2, 48_000))
    assert [tuple(state.shape) for state in out.states] == 13 * [(2, 149, 768)]
    sizes = [sum(p.numel() for p in group) for group in encoder.parameters_by_depth()]
    assert sizes == [9_317_248, 7_092_244, *11 * [7_088_404]]  # spec wavlm_ssl 3.5
    assert (encoder.width, encoder.layers, out.frames) == (768, 12, None)


def test_kept_layers_are_the_first_ones():
    config = narrow(WAVLM_BASE)
    whole = encoder_of(config)
    cut = SslEncoder(config, layers=2).eval()
    state = {k: v for k, v in whole.state_dict().items() if 'layers.2' not in k}
    cut.load_state_dict(state | {k: v for k, v in whole.state_dict().items() if 'conv_layers' in k})
    assert_states(cut(waves()).states, whole(waves()).states[:3], atol=0)
    for layers in (0, 4):
        with pytest.raises(ValueError, match='1 to 3'):
            SslEncoder(config, layers=layers)


def test_layer_drop_has_its_rate_and_spares_the_first_layer_of_wavlm():
    for base, spared in ((WAVLM_BASE, [0]), (HUBERT_BASE, [])):
        config = narrow(base, **{**STILL, 'layer_drop': 0.3}, layers=10, width=48, ffn_width=8)
        encoder = encoder_of(config).train()
        dropped = torch.zeros(10)
        x = encoder.features(waves(rows=1, samples=400))[0]
        for _ in range(60):
            states = encoder.encode(x).states
            dropped += torch.tensor([torch.equal(*states[i : i + 2]) for i in range(10)])
        rate = dropped / 60
        assert (rate[spared] == 0).all()
        assert ((rate[len(spared) :] - 0.3).abs() < 0.25).all()
        assert abs(rate[len(spared) :].mean() - 0.3) < 0.08
        encoder.eval()
        states = encoder.encode(x).states
        assert not any(torch.equal(*states[i : i + 2]) for i in range(10))


def test_a_dropped_layer_has_zero_gradients_and_passes_them_through():
    encoder = encoder_of(narrow(HUBERT_BASE, **{**STILL, 'layer_drop': 1.0})).train()
    loss_of(encoder(waves()).states).backward()
    assert all((p.grad == 0).all() for layer in encoder.encoder.layers for p in layer.parameters())
    assert encoder.feature_projection.projection.weight.grad.abs().sum() > 0


def everything_on(base=WAVLM_BASE, **options):
    """Every random part of training at once."""
    config = narrow(base, layers=2, activation_dropout=0.1, projection_dropout=0.1, layer_drop=0.3)
    adapters = AdapterSettings(width=4, noise=(0.1, 0.5))
    masks = SpanMasks(0.2, 3, 2, 0.1, 5)
    return encoder_of(config, adapters=adapters, masks=masks, **options).train()


@pytest.mark.parametrize('base', [WAVLM_BASE, XLSR_53])
def test_nothing_in_training_waits_for_the_host(base):
    # a tensor on the meta device has no value: reading one raises
    encoder = everything_on(base).to('meta')
    x = torch.empty(2, 8000, device='meta')
    lengths = torch.empty(2, dtype=torch.long, device='meta')
    out = encoder(x, lengths, torch.empty(2, dtype=torch.bool, device='meta'))
    sum(state.sum() for state in out.states).backward()
    assert out.frames.shape == (2,)


@pytest.mark.parametrize('base', [WAVLM_BASE, WAVLM_LARGE, HUBERT_BASE])
def test_training_compiles_without_a_graph_break(base):
    encoder = everything_on(base)
    compiled = torch.compile(encoder, backend='aot_eager', fullgraph=True)
    lengths, adapt = torch.tensor([8000, 6000]), torch.tensor([True, False])
    sum(s.float().square().mean() for s in compiled(waves(), lengths, adapt).states).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    encoder.eval()
    with torch.no_grad():
        assert_states(
            compiled(waves(), lengths, adapt).states, encoder(waves(), lengths, adapt).states
        )


@pytest.mark.parametrize('base', [WAVLM_BASE, WAVLM_LARGE])
def test_bf16_autocast_stays_near_fp32_with_states_in_fp32(base):
    encoder = encoder_of(narrow(base))
    exact = encoder(waves()).states
    with torch.autocast('cpu', dtype=torch.bfloat16):
        states = encoder(waves(), torch.tensor([8000, 8000])).states
        sum(state.square().mean() for state in states).backward()
    for state, reference in zip(states, exact):
        assert state.dtype == torch.float32 and state.isfinite().all()
        assert (state - reference).square().mean() < 1e-3 * reference.square().mean()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        encoder = everything_on(checkpointing=checkpointing)
        torch.manual_seed(3)
        loss_of(encoder(waves()).states).backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed)


def test_an_encoder_used_in_inference_mode_is_copied_and_then_trained():
    encoder = encoder_of(narrow(WAVLM_BASE))
    with torch.inference_mode():
        quiet = encoder(waves()).states
    copied = copy.deepcopy(encoder)
    assert_states(copied(waves()).states, quiet)
    loss_of(copied(waves()).states).backward()
    assert copied.encoder.layers[0].attention.rel_attn_embed.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('base', [WAVLM_BASE, WAVLM_LARGE])
def test_rows_without_adapters_equal_an_encoder_without_and_give_them_no_gradient(base):
    config = narrow(base)
    adapted = encoder_of(config, adapters=AdapterSettings(width=4))
    plain = SslEncoder(config).eval()
    plain.load_state_dict({k: v for k, v in adapted.state_dict().items() if 'adapter' not in k})
    x, adapt = waves(rows=4), torch.tensor([False, True, False, True])
    mixed = adapted(x, adapt=adapt).states
    for state, without, with_all in zip(mixed, plain(x).states, adapted(x).states):
        assert torch.equal(state[~adapt], without[~adapt])
        assert torch.equal(state[adapt], with_all[adapt])
    assert (mixed[1][1] - plain(x).states[1][1]).abs().max() > 1e-3
    loss_of([state[~adapt] for state in mixed]).backward()
    for name, parameter in adapted.named_parameters():
        if 'adapter' in name:
            assert parameter.grad is None or (parameter.grad == 0).all()
    loss_of([state[adapt] for state in adapted(x, adapt=adapt).states]).backward()
    assert adapted.encoder.layers[0].adapter.down.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('pre_norm', [False, True])
@pytest.mark.parametrize('source', ['normed', 'stream'])
def test_adapters_run_beside_the_feed_forward_block(pre_norm, source):
    # spec nawsv 3.2: a = LN(x + Attn(x)); y = LN(a + FFN(a) + A(a)), or before the blocks;
    # oskdft 3.3: h = x + Attn(LN(x)); y = h + FFN(LN(h)) + S(h)
    base = WAVLM_LARGE if pre_norm else WAVLM_BASE
    settings = AdapterSettings(width=4, input=source, residual=source == 'stream')
    layer = encoder_of(narrow(base), adapters=settings).encoder.layers[1]
    x = torch.randn(2, 5, 8 * base.heads)
    if pre_norm:
        h = x + layer.attention(layer.layer_norm(x), None, None)
        a = layer.final_layer_norm(h)
        read = h if source == 'stream' else a
        expected = h + layer.feed_forward(a) + layer.adapter(read)
    else:
        a = layer.layer_norm(x + layer.attention(x, None, None))
        expected = layer.final_layer_norm(a + layer.feed_forward(a) + layer.adapter(a))
    torch.testing.assert_close(layer(x, None, None, None), expected)
    off = layer(x, None, None, torch.tensor([True, False]))
    torch.testing.assert_close(off[0], expected[0])
    layer.adapter = None
    torch.testing.assert_close(off[1], layer(x, None, None, None)[1])


def test_muted_adapters_change_no_state_at_the_start():
    torch.manual_seed(0)
    encoder = SslEncoder(narrow(HUBERT_BASE), adapters=AdapterSettings(4, zero_up=True)).eval()
    plain = SslEncoder(encoder.config).eval()
    plain.load_state_dict({k: v for k, v in encoder.state_dict().items() if 'adapter' not in k})
    assert_states(encoder(waves()).states, plain(waves()).states, atol=0)


def test_masks_hide_frames_behind_the_vector_and_features_behind_zeros(monkeypatch):
    encoder = encoder_of(narrow(HUBERT_BASE, **STILL), masks=SpanMasks(0.3, 3, 2, 0.2, 5)).train()
    seen = []
    monkeypatch.setattr(encoder.encoder, 'forward', lambda x, *_: seen.append(x) or (x,))
    x = encoder.features(waves(rows=3))[0]
    encoder.encode(x)
    encoder.eval().encode(x)
    masked, plain = seen
    for row in range(3):
        zeros = (masked[row] == 0).all(0)
        vector = (masked[row] == encoder.masked_spec_embed) | zeros
        kept = (masked[row] == plain[row]) | zeros
        assert zeros.any() and vector.all(1).any() and kept.all(1).any()
        assert (vector.all(1) ^ kept.all(1)).all()


def test_initial_weights_are_those_of_hugging_face():
    torch.manual_seed(0)
    encoder = SslEncoder(narrow(WAVLM_BASE, ffn_width=768))
    model = hugging_face(encoder)
    torch.manual_seed(1)
    theirs = dict(type(model)(model.config).named_parameters())
    for name, parameter in encoder.named_parameters():
        if 'pos_conv' in name:
            continue
        own = [parameter.mean().item(), parameter.std(correction=0).item()]
        expected = [theirs[name].mean().item(), theirs[name].std(correction=0).item()]
        tolerance = 6 * max(expected[1], 1e-6) / np.sqrt(parameter.numel())
        np.testing.assert_allclose(own, expected, atol=tolerance, err_msg=name)
    weight = encoder.encoder.pos_conv_embed.conv.weight  # transformers' draw misses its mark
    assert abs(weight.std().item() / (2 / np.sqrt(128 * 96)) - 1) < 0.02
