"""WavLM + MHFA checkpoints of the authors' layout (spec wavlm_ssl 3.5, 3.6)."""

import pytest
import torch
import transformers
from author_layouts import drawn, linear, modules_of, save

from shared import weight_files
from shared.errors import UserError
from shared.models.ssl_config import WAVLM_BASE, SslConfig
from shared.models.ssl_names import hugging_face_names

BASE = {
    'layers': 12,
    'width': 768,
    'ffn': 3072,
    'heads': 12,
    'conv': 512,
    'kernel': 128,
    'groups': 16,
    'mhfa_heads': 64,
    'compression': 128,
    'dim': 256,
}
TINY = {
    'layers': 2,
    'width': 16,
    'ffn': 24,
    'heads': 2,
    'conv': 8,
    'kernel': 8,
    'groups': 4,
    'mhfa_heads': 3,
    'compression': 5,
    'dim': 6,
}
SSLSV = ('encoder.upstream.upstream.model.', 'encoder.pooling.')


@pytest.fixture
def published(monkeypatch):
    for modules in modules_of('wavlm_ssl', ('published',), monkeypatch):
        yield modules.published


def wavlm_keys(layers, width, ffn, heads, conv, kernel, groups, **_):
    """Names and shapes of the `model` dict of WavLM-Base+.pt."""
    keys = {'mask_emb': (width,)}
    for i, size in enumerate((10, 3, 3, 3, 3, 2, 2)):
        keys[f'feature_extractor.conv_layers.{i}.0.weight'] = (conv, conv if i else 1, size)
    keys |= linear('feature_extractor.conv_layers.0.2', conv)
    keys |= linear('post_extract_proj', width, conv)
    keys['encoder.pos_conv.0.bias'] = (width,)
    keys['encoder.pos_conv.0.weight_g'] = (1, 1, kernel)
    keys['encoder.pos_conv.0.weight_v'] = (width, width // groups, kernel)
    keys['encoder.layers.0.self_attn.relative_attention_bias.weight'] = (320, heads)
    for i in range(layers):
        layer = f'encoder.layers.{i}'
        keys[f'{layer}.self_attn.grep_a'] = (1, heads, 1, 1)
        keys |= linear(f'{layer}.self_attn.grep_linear', 8, width // heads)
        for part in ('q', 'k', 'v', 'out'):
            keys |= linear(f'{layer}.self_attn.{part}_proj', width, width)
        keys |= linear(f'{layer}.self_attn_layer_norm', width)
        keys |= linear(f'{layer}.fc1', ffn, width) | linear(f'{layer}.fc2', width, ffn)
        keys |= linear(f'{layer}.final_layer_norm', width)
    return keys | linear('encoder.layer_norm', width) | linear('layer_norm', conv)


def mhfa_keys(layers, width, mhfa_heads, compression, dim, **_):
    keys = {'weights_k': (layers + 1,), 'weights_v': (layers + 1,)}
    keys |= linear('cmp_linear_k', compression, width) | linear('cmp_linear_v', compression, width)
    keys |= linear('att_head', mhfa_heads, compression)
    return keys | linear('pooling_fc', dim, mhfa_heads * compression)


def speaker_keys(sizes, classes=7500, prefixes=('__S__.model.', '__S__.backend.')):
    keys = {prefixes[0] + name: shape for name, shape in wavlm_keys(**sizes).items()}
    keys |= {prefixes[1] + name: shape for name, shape in mhfa_keys(**sizes).items()}
    return keys | ({'__L__.weight': (classes, sizes['dim'])} if classes else {})


# --- released sizes


def test_released_layout_has_the_entries_and_numbers_of_the_spec(published):
    keys = speaker_keys(BASE)
    assert (len(wavlm_keys(**BASE)), len(mhfa_keys(**BASE)), len(keys)) == (248, 10, 259)
    with torch.device('meta'):
        entries = {key: torch.empty(shape) for key, shape in keys.items()}
        form = published.LAYOUT.form_of(entries, 'x')
        sizes = form.sizes(entries)
        module = form.make(**sizes)
    assert sizes['config'] == WAVLM_BASE and sizes['classes'] == 7500
    count = {n: sum(p.numel() for p in m.parameters()) for n, m in module.named_children()}
    assert count == {'encoder': 94_381_936, 'backend': 2_302_554, 'criterion': 1_920_000}
    layers = [p.numel() for n, p in module.named_parameters() if n.startswith('encoder.encoder.l')]
    assert sum(layers) == 85_064_688 + 1_536  # encoder.layer_norm too
    written = published.to_published(module.state_dict())
    assert {key: tuple(value.shape) for key, value in written.items()} == keys


def test_names_of_the_authors_are_those_that_the_reader_of_wavlm_files_knows(published):
    names = {'wavlm': 'x.', 'mhfa': 'y.'}
    keys = wavlm_keys(**BASE)
    ours = hugging_face_names({key: torch.empty(0) for key in keys})
    assert {published.theirs(f'encoder.{name}', **names) for name in ours} == {
        f'x.{key}' for key in keys
    }


# --- embeddings, against transformers and MHFA by hand

HF_OF = {  # Microsoft's name: transformers' name, spec 3.6 c
    'mask_emb': 'masked_spec_embed',
    'feature_extractor.conv_layers.0.2': 'feature_extractor.conv_layers.0.layer_norm',
    'post_extract_proj': 'feature_projection.projection',
    'layer_norm': 'feature_projection.layer_norm',
    'encoder.pos_conv.0.bias': 'encoder.pos_conv_embed.conv.bias',
    'encoder.pos_conv.0.weight_g': 'encoder.pos_conv_embed.conv.parametrizations.weight.original0',
    'encoder.pos_conv.0.weight_v': 'encoder.pos_conv_embed.conv.parametrizations.weight.original1',
    'encoder.layer_norm': 'encoder.layer_norm',
}
HF_OF |= {
    f'feature_extractor.conv_layers.{i}.0': f'feature_extractor.conv_layers.{i}.conv'
    for i in range(7)
}
IN_LAYER = {
    'self_attn.grep_a': 'attention.gru_rel_pos_const',
    'self_attn.grep_linear': 'attention.gru_rel_pos_linear',
    'self_attn.relative_attention_bias': 'attention.rel_attn_embed',
    'self_attn_layer_norm': 'layer_norm',
    'final_layer_norm': 'final_layer_norm',
    'fc1': 'feed_forward.intermediate_dense',
    'fc2': 'feed_forward.output_dense',
    **{f'self_attn.{part}_proj': f'attention.{part}_proj' for part in ('q', 'k', 'v', 'out')},
}
HF_OF |= {
    f'encoder.layers.{i}.{theirs}': f'encoder.layers.{i}.{hf}'
    for i in range(2)
    for theirs, hf in IN_LAYER.items()
}


def transformers_name(theirs):
    module, _, leaf = theirs.rpartition('.')
    return HF_OF.get(theirs) or f'{HF_OF[module]}.{leaf}'


def their_embeddings(entries, waves, prefixes=('__S__.model.', '__S__.backend.')):
    """WavLM of transformers, then MHFA as spec 3.3 writes it."""
    config = transformers.WavLMConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm='group',
    )
    wavlm = transformers.WavLMModel(config).eval()
    own = {k.removeprefix(prefixes[0]): x for k, x in entries.items() if k.startswith(prefixes[0])}
    wavlm.load_state_dict({transformers_name(name): x for name, x in own.items()})
    e = {k.removeprefix(prefixes[1]): x for k, x in entries.items() if k.startswith(prefixes[1])}
    states = torch.stack(wavlm(waves, output_hidden_states=True).hidden_states)  # (3, B, T, 16)
    key, value = (
        torch.tensordot(e[f'weights_{x}'].softmax(0), states, 1) @ e[f'cmp_linear_{x}.weight'].T
        + e[f'cmp_linear_{x}.bias']
        for x in 'kv'
    )
    attention = (key @ e['att_head.weight'].T + e['att_head.bias']).softmax(1)  # over time
    heads = [(attention[..., h, None] * value).sum(1) for h in range(attention.shape[-1])]
    return torch.cat(heads, 1) @ e['pooling_fc.weight'].T + e['pooling_fc.bias']


def waves():
    return 0.1 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(1))


def in_new_spelling(entries):
    for letter, number in (('g', 0), ('v', 1)):
        for key in [key for key in entries if key.endswith(f'pos_conv.0.weight_{letter}')]:
            new = key.replace(f'weight_{letter}', f'parametrizations.weight.original{number}')
            entries[new] = entries.pop(key)
    return entries


@torch.no_grad()
@pytest.mark.parametrize('spelling', ['old', 'new'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('classes', [7, None])
def test_checkpoint_gives_the_embeddings_of_transformers_and_mhfa_by_hand(
    published, tmp_path, prefix, spelling, classes
):
    entries = drawn(speaker_keys(TINY, classes))
    expected = their_embeddings(entries, waves())
    if spelling == 'new':
        entries = in_new_spelling(entries)
    found = published.read(save(tmp_path / 'model000000018.model', entries, prefix))
    assert found.kind == 'speaker' and found.sizes['classes'] == classes
    module = found.module()
    torch.testing.assert_close(module(waves()), expected, rtol=1e-4, atol=1e-4)
    if classes:
        assert torch.equal(module.criterion.weight, entries['__L__.weight'])
        assert torch.equal(found.state['criterion.weight'], entries['__L__.weight'])


@torch.no_grad()
def test_checkpoint_of_sslsv_is_read_without_what_trained_it(published, tmp_path):
    entries = drawn(speaker_keys(TINY, None, SSLSV))
    beside = {f'encoder_momentum.{k}': x for k, x in entries.items()}
    beside |= {'loss_fn.weight': torch.ones(7, 6), 'head.mlp.0.weight': torch.ones(2, 6)}
    stored = {'epoch': 3, 'model': {**entries, **beside}, 'optimizer': {'state': {}}}
    torch.save(stored, tmp_path / 'model_avg.pt')
    found = published.read(tmp_path / 'model_avg.pt')
    assert found.sizes['classes'] is None
    expected = their_embeddings(entries, waves(), SSLSV)
    torch.testing.assert_close(found.module()(waves()), expected, rtol=1e-4, atol=1e-4)


def test_what_has_no_weights_is_taken_from_the_config_of_the_encoder(published):
    found = published.from_published(drawn(speaker_keys(TINY, None)), 'x')
    assert found.sizes['config'].layer_drop == 0.05 and found.sizes['config'].layers == 2
    own = SslConfig(**vars(found.sizes['config']) | {'layer_drop': 0.0, 'layers': 5})
    config = found.module(own).encoder.config
    assert (config.layer_drop, config.layers) == (0.0, 2)


def test_what_a_run_exports_is_read_back_unchanged(published, tmp_path):
    for classes in (7, None):
        sizes = published.from_published(drawn(speaker_keys(TINY, classes)), 'x').sizes
        torch.manual_seed(0)
        state = published.Trained(**sizes).state_dict()
        weight_files.write(published.to_published(state), tmp_path / 'x.model')
        assert weight_files.read(tmp_path / 'x.model').keys() == speaker_keys(TINY, classes).keys()
        found = published.read(tmp_path / 'x.model')
        assert found.state.keys() == state.keys() and found.sizes == sizes
        for name, value in state.items():
            torch.testing.assert_close(found.state[name], value, rtol=0, atol=0)


# --- strictness


def test_a_missing_entry_is_an_error_that_names_it(published):
    entries = drawn(speaker_keys(TINY, 7))
    for key in entries:
        if key == '__L__.weight' or 'conv_layers.6' in key or key.endswith('0.self_attn.grep_a'):
            continue  # without it: no classifier, six convolutions, the 12 heads of Base
        short = {name: value for name, value in entries.items() if name != key}
        with pytest.raises(UserError) as caught:
            published.from_published(short, 'x.model')
        message = str(caught.value)
        told = key.removeprefix('__S__.model.')
        told = {'feature_extractor.conv_layers.0.0.weight': 'feature_extractor.conv_layers.0'}.get(
            told, told
        )
        assert told in message or transformers_name(told) in message
        assert 'x.model' in message and '\n' not in message and len(message) < 450


def with_one(**changes):
    return drawn(speaker_keys(TINY, 7)) | changes


WRONG = {  # what is the matter: (entries, words of the error)
    'not a state': ({'epoch': 3}, 'no bare state'),
    'a WavLM alone': (
        {'cfg': {}, 'model': drawn(wavlm_keys(**TINY))},
        'WavLM-Base+.pt is no such file',
    ),
    'another paper': ({'Network.conv1.weight': torch.zeros(8, 80, 5)}, 'begin with __S__.model'),
    'unknown entry': (with_one(**{'__S__.model.head.weight': torch.zeros(3)}), '1 unexpected (__S'),
    'a head of WavLM': (with_one(**{'__S__.model.final_proj.bias': torch.ones(1)}), '1 unexpected'),
    'heads': (
        with_one(**{'__S__.backend.att_head.weight': torch.zeros(4, 5)}),
        'of another shape (__S__.backend.att_head.bias (3,) instead of (4,)',
    ),
    'states': (
        with_one(**{'__S__.backend.weights_v': torch.zeros(4)}),
        '1 of another shape (__S__.backend.weights_v (4,) instead of (3,)',
    ),
    'more states than layers': (
        with_one(**{f'__S__.backend.weights_{x}': torch.zeros(5) for x in 'kv'}),
        '5 states of an encoder with 2 layers',
    ),
    'classifier of another': (
        with_one(**{'__L__.weight': torch.zeros(7, 5)}),
        '1 of another shape (__L__.weight (7, 5) instead of (7, 6)',
    ),
    'not finite': (
        with_one(**{'__L__.weight': torch.full((7, 6), torch.nan)}),
        '1 not finite (__L__.weight)',
    ),
    'only a classifier': ({'__L__.weight': torch.zeros(7, 6)}, 'no speech encoder'),
    'two spellings': (
        with_one(**{'module.__L__.weight': torch.zeros(7, 6)}),
        'entries twice',
    ),
}


@pytest.mark.parametrize('name', WRONG)
def test_other_files_are_refused_in_one_line_that_tells_why(published, tmp_path, name):
    entries, words = WRONG[name]
    torch.save(entries, tmp_path / 'other.pt')
    with pytest.raises(UserError) as caught:
        published.read(tmp_path / 'other.pt')
    message = str(caught.value)
    assert words in message and 'other.pt' in message and '\n' not in message
