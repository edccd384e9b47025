"""WavLM + ECAPA-TDNN in the layout of microsoft/UniSpeech (spec enskd 3.5-3.8)."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from author_layouts import batch_norm, conv, drawn, linear, norm

from shared import weight_files
from shared.errors import UserError
from shared.losses.aam_softmax import AamSoftmax
from shared.models.ssl_backends import EcapaSmallBackEnd, SslSpeakerEncoder
from shared.models.ssl_config import WAVLM_LARGE, SslConfig
from shared.models.ssl_encoder import SslEncoder
from shared.models.ssl_names import hugging_face_names
from shared.published import unispeech
from shared.published.wavlm_names import microsoft_name

LARGE = {
    'layers': 24,
    'width': 1024,
    'ffn': 4096,
    'heads': 16,
    'convs': (512,) * 7,
    'kernel': 128,
    'groups': 16,
    'conv_norm': 'layer',
    'c': 512,
    'mfa': 1536,
    'attention': 128,
    'se': 128,
    'dim': 256,
}
TINY = {
    'layers': 2,
    'width': 16,
    'ffn': 24,
    'heads': 2,
    'convs': (8,) * 7,
    'kernel': 8,
    'groups': 4,
    'conv_norm': 'layer',
    'c': 16,
    'mfa': 12,
    'attention': 6,
    'se': 5,
    'dim': 7,
}
BASE = TINY | {'conv_norm': 'group', 'convs': (4, 4, 6, 6, 8, 8, 8)}
WAVLM, CLASSIFIER = 'feature_extract.model.', 'loss_calculator.projection.weight'


def wavlm_keys(layers, width, ffn, heads, convs, kernel, groups, conv_norm, **_):
    """Names and shapes of a WavLM in Microsoft's spelling."""
    keys = {'mask_emb': (width,)}
    for i, size in enumerate((10, 3, 3, 3, 3, 2, 2)):
        layer = f'feature_extractor.conv_layers.{i}'
        keys[f'{layer}.0.weight'] = (convs[i], convs[i - 1] if i else 1, size)
        if conv_norm == 'layer':
            keys |= linear(f'{layer}.2.1', convs[i])
        elif i == 0:
            keys |= linear(f'{layer}.2', convs[i])
    keys |= linear('layer_norm', convs[-1]) | linear('post_extract_proj', width, convs[-1])
    keys['encoder.pos_conv.0.bias'] = (width,)
    keys['encoder.pos_conv.0.weight_g'] = (1, 1, kernel)
    keys['encoder.pos_conv.0.weight_v'] = (width, width // groups, kernel)
    keys['encoder.layers.0.self_attn.relative_attention_bias.weight'] = (320, heads)
    for i in range(layers):
        layer = f'encoder.layers.{i}'
        keys[f'{layer}.self_attn.grep_a'] = (1, heads, 1, 1)
        keys |= linear(f'{layer}.self_attn.grep_linear', 8, width // heads)
        for part in ('k', 'v', 'q', 'out'):
            keys |= linear(f'{layer}.self_attn.{part}_proj', width, width)
        keys |= linear(f'{layer}.self_attn_layer_norm', width)
        keys |= linear(f'{layer}.fc1', ffn, width) | linear(f'{layer}.fc2', width, ffn)
        keys |= linear(f'{layer}.final_layer_norm', width)
    return keys | linear('encoder.layer_norm', width)


def ecapa_keys(width, c, mfa, attention, se, dim, **_):
    keys = linear('layer1.conv', c, width, 5) | norm('layer1.bn', c)
    for block in ('layer2', 'layer3', 'layer4'):
        for i in (1, 2):
            keys |= linear(f'{block}.Conv1dReluBn{i}.conv', c, c, 1)
            keys |= norm(f'{block}.Conv1dReluBn{i}.bn', c)
        for i in range(7):
            keys |= linear(f'{block}.Res2Conv1dReluBn.convs.{i}', c // 8, c // 8, 3)
            keys |= norm(f'{block}.Res2Conv1dReluBn.bns.{i}', c // 8)
        keys |= linear(f'{block}.SE_Connect.linear1', se, c)
        keys |= linear(f'{block}.SE_Connect.linear2', c, se)
    keys |= linear('conv', mfa, 3 * c, 1)
    keys |= linear('pooling.linear1', attention, mfa, 1)
    keys |= linear('pooling.linear2', mfa, attention, 1)
    return keys | norm('bn', 2 * mfa) | linear('linear', dim, 2 * mfa)


def speaker_keys(sizes, classes=5994):
    keys = {'feature_weight': (sizes['layers'] + 1,)}
    keys |= {WAVLM + name: shape for name, shape in wavlm_keys(**sizes).items()}
    keys |= ecapa_keys(**sizes)
    return keys | ({CLASSIFIER: (classes, sizes['dim'])} if classes else {})


def config_of(layers, width, ffn, heads, convs, kernel, groups, conv_norm, **_):
    layered = conv_norm == 'layer'
    return SslConfig(
        'wavlm',
        layers=layers,
        width=width,
        heads=heads,
        ffn_width=ffn,
        conv_channels=convs,
        position_kernel=kernel,
        position_groups=groups,
        conv_norm=conv_norm,
        pre_norm=layered,
        normalise_wave=layered,
        projection_dropout=0.1,
    )


# --- released sizes


def test_released_layout_has_the_entries_and_numbers_of_the_spec():
    keys = speaker_keys(LARGE)
    assert len(keys) == 711 and sum(key.startswith(WAVLM) for key in keys) == 488
    with torch.device('meta'):
        module = SslSpeakerEncoder(SslEncoder(WAVLM_LARGE), EcapaSmallBackEnd())
    count = {n: sum(p.numel() for p in m.parameters()) for n, m in module.named_children()}
    assert count == {'encoder': 315_453_120, 'backend': 25 + 8_410_816}
    assert sum(count.values()) + 5994 * 256 == 325_398_425
    stored = unispeech.to_published(module.state_dict(), torch.empty(5994, 256), 0.5)
    assert stored.keys() == {'model', 'best_valid_eer'} and stored['best_valid_eer'] == 0.5
    assert {key: tuple(value.shape) for key, value in stored['model'].items()} == keys


@pytest.mark.parametrize('sizes', [LARGE, BASE], ids=['layer norms', 'group norm'])
def test_names_of_a_wavlm_are_those_that_the_reader_of_wavlm_files_knows(sizes):
    keys = wavlm_keys(**sizes)
    ours = hugging_face_names({key: torch.empty(0) for key in keys})
    assert {microsoft_name(name, sizes['conv_norm']) for name in ours} == keys.keys()
    with pytest.raises(ValueError, match="conv_norm 'batch': not"):
        microsoft_name('masked_spec_embed', 'batch')


# --- golden values: spec 3.6


def reference_fill(keys):
    """Every tensor from its name and size alone, as spec 3.6 has it."""
    sines, entries = {}, {}
    for key, shape in keys.items():
        if key.endswith('num_batches_tracked'):
            entries[key] = torch.tensor(0)
            continue
        n, letters = math.prod(shape), len(key)
        if (n, letters) not in sines:
            angle = 0.7 * torch.arange(n, dtype=torch.float64) + letters
            sines[n, letters] = angle.sin()
        s = sines[n, letters].view(shape)
        if key.endswith('running_var'):
            entries[key] = 1 + 0.5 * s.square()
        elif key.endswith('running_mean') or key.endswith('bias'):
            entries[key] = 0.1 * s
        elif key.endswith(('grep_a', 'weight_g')) or len(shape) < 2:
            entries[key] = 1 + 0.1 * s
        else:
            entries[key] = s * math.sqrt(1 / (n / shape[0]))
        entries[key] = entries[key].float()
    return entries


def assert_golden(found, first, size, noise=1e-3):
    """The first four numbers, and the Euclidean norm, to the fp32 noise of the reference."""
    torch.testing.assert_close(found.flatten()[:4], torch.tensor(first), rtol=0, atol=noise)
    torch.testing.assert_close(found.norm(), torch.tensor(size), rtol=1e-4, atol=0)


@pytest.mark.slow  # half a minute and 3.5 GB: WavLM-Large itself
@torch.no_grad()
def test_teacher_gives_the_golden_values_of_the_reference():
    found = unispeech.from_published(reference_fill(speaker_keys(LARGE)), 'x')
    assert found.kind == 'speaker' and found.sizes['config'] == WAVLM_LARGE
    assert found.beside['classifier'].sizes == {'classes': 5994, 'dim': 256}
    teacher = found.module()
    classifier = AamSoftmax(5994, 256, margin=0.2, scale=32.0)
    classifier.load_state_dict(found.beside['classifier'].state)
    n = torch.arange(32240, dtype=torch.float64)
    wave = 0.1 * (2 * math.pi * 200 * n / 16000).sin()
    wave += 0.05 * (2 * math.pi * 1234 * n / 16000 + 1).sin()

    states = teacher.encoder(wave.float().unsqueeze(0)).states
    assert len(states) == 25
    # in float64 -1.26887, with torch's own convolutions in fp32 -1.26716: the filters are alike
    assert_golden(states[0], [-1.2684, -1.5253, -1.7599, -1.9095], 461.214, noise=4e-3)
    assert_golden(states[1], [-3.2461, -2.9007, 0.3414, -1.0897], 720.889, noise=4e-3)
    assert_golden(states[24], [-1.0699, -0.6281, 1.2221, 0.3803], 321.122)
    features = teacher.backend.features(states)
    assert features.shape == (1, 1024, 100)
    # channel 0 is -21.5 +- 0.08 before the norm, which enlarges the noise: -0.0447 in float64
    assert_golden(features, [-0.0392, 0.8482, 0.1698, 0.0806], 319.730, noise=2e-2)
    embedding = teacher.backend(states)
    assert_golden(embedding, [2.69372, -0.24337, -2.81702, 0.10506], 31.7819)
    assert embedding.sum().item() == pytest.approx(2.0255, abs=1e-3)
    _, logits = classifier(embedding, torch.tensor([7]))
    assert_golden(logits, [-1.13113, 1.09973, -1.05003, 0.98284], 62.8863)
    assert logits[0, 7].item() == pytest.approx(-5.80222, abs=1e-3)


# --- embeddings, against transformers and the ECAPA-TDNN by hand on the authors' names


def their_block(e, name, x, dilation):
    def layer(part, y, **options):
        bn = part.replace('convs', 'bns') if 'convs' in part else f'{part}.bn'
        return batch_norm(e, f'{name}.{bn}', conv(e, f'{name}.{part}', y, **options).relu())

    def pointwise(number, y):
        y = conv(e, f'{name}.Conv1dReluBn{number}.conv', y).relu()
        return batch_norm(e, f'{name}.Conv1dReluBn{number}.bn', y)

    chunks, outputs = pointwise(1, x).chunk(8, dim=1), []
    for i in range(7):
        u = chunks[i] + outputs[-1] if i else chunks[i]
        outputs.append(layer(f'Res2Conv1dReluBn.convs.{i}', u, dilation=dilation, padding=dilation))
    y = pointwise(2, torch.cat([*outputs, chunks[7]], dim=1))
    gate = F.linear(y.mean(2), *(e[f'{name}.SE_Connect.linear1.{p}'] for p in ('weight', 'bias')))
    gate = F.linear(gate.relu(), *(e[f'{name}.SE_Connect.linear2.{p}'] for p in ('weight', 'bias')))
    return x + y * gate.sigmoid().unsqueeze(2)


def their_ecapa(e, states):
    x = torch.tensordot(e['feature_weight'].softmax(0), torch.stack(states), 1)
    x = F.instance_norm(x.transpose(1, 2) + 1e-6)
    x = batch_norm(e, 'layer1.bn', conv(e, 'layer1.conv', x, padding=2).relu())
    outputs = []
    for dilation in (2, 3, 4):
        x = their_block(e, f'layer{dilation}', x, dilation)
        outputs.append(x)
    x = conv(e, 'conv', torch.cat(outputs, dim=1)).relu()
    weight = conv(e, 'pooling.linear2', conv(e, 'pooling.linear1', x).tanh()).softmax(2)
    mean = (weight * x).sum(2)
    deviation = ((weight * x**2).sum(2) - mean**2).clamp(min=1e-9).sqrt()
    x = batch_norm(e, 'bn', torch.cat([mean, deviation], dim=1))
    return F.linear(x, e['linear.weight'], e['linear.bias'])


IN_LAYER = {  # Microsoft's name: transformers' name, spec 3.7
    'self_attn.grep_a': 'attention.gru_rel_pos_const',
    'self_attn.grep_linear': 'attention.gru_rel_pos_linear',
    'self_attn.relative_attention_bias': 'attention.rel_attn_embed',
    'self_attn_layer_norm': 'layer_norm',
    'final_layer_norm': 'final_layer_norm',
    'fc1': 'feed_forward.intermediate_dense',
    'fc2': 'feed_forward.output_dense',
    **{f'self_attn.{part}_proj': f'attention.{part}_proj' for part in ('q', 'k', 'v', 'out')},
}
HF_OF = {
    'mask_emb': 'masked_spec_embed',
    'layer_norm': 'feature_projection.layer_norm',
    'post_extract_proj': 'feature_projection.projection',
    'encoder.pos_conv.0.bias': 'encoder.pos_conv_embed.conv.bias',
    'encoder.pos_conv.0.weight_g': 'encoder.pos_conv_embed.conv.parametrizations.weight.original0',
    'encoder.pos_conv.0.weight_v': 'encoder.pos_conv_embed.conv.parametrizations.weight.original1',
    'encoder.layer_norm': 'encoder.layer_norm',
}
for i in range(7):
    layer = f'feature_extractor.conv_layers.{i}'
    HF_OF |= {f'{layer}.0': f'{layer}.conv', f'{layer}.2': f'{layer}.layer_norm'}
    HF_OF |= {f'{layer}.2.1': f'{layer}.layer_norm'}
    HF_OF |= {f'encoder.layers.{i}.{ms}': f'encoder.layers.{i}.{hf}' for ms, hf in IN_LAYER.items()}


def transformers_name(theirs):
    module, _, leaf = theirs.rpartition('.')
    return HF_OF.get(theirs) or f'{HF_OF[module]}.{leaf}'


def their_embeddings(e, waves, layers, width, ffn, heads, convs, kernel, groups, conv_norm, **_):
    layered = conv_norm == 'layer'
    config = transformers.WavLMConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        conv_dim=convs,
        num_conv_pos_embeddings=kernel,
        num_conv_pos_embedding_groups=groups,
        feat_extract_norm=conv_norm,
        do_stable_layer_norm=layered,
    )
    wavlm = transformers.WavLMModel(config).eval()
    own = {k.removeprefix(WAVLM): x for k, x in e.items() if k.startswith(WAVLM)}
    wavlm.load_state_dict({transformers_name(name): x for name, x in own.items()})
    waves = F.layer_norm(waves, waves.shape[1:]) if layered else waves
    found = wavlm(waves, output_hidden_states=True)
    return their_ecapa(e, [*found.hidden_states[:-1], found.last_hidden_state])


def waves():
    return 0.1 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(1))


def in_new_spelling(entries):
    for letter, number in (('g', 0), ('v', 1)):
        old = f'{WAVLM}encoder.pos_conv.0.weight_{letter}'
        new = old.replace(f'weight_{letter}', f'parametrizations.weight.original{number}')
        entries[new] = entries.pop(old)
    return entries


@torch.no_grad()
@pytest.mark.parametrize('wrapped', [True, False], ids=['as published', 'bare state'])
@pytest.mark.parametrize('classes', [9, None])
@pytest.mark.parametrize('sizes', [TINY, BASE], ids=['layer norms', 'group norm'])
def test_file_gives_the_embeddings_of_transformers_and_ecapa_by_hand(
    tmp_path, sizes, classes, wrapped
):
    entries = drawn(speaker_keys(sizes, classes))
    expected = their_embeddings(entries, waves(), **sizes)
    stored = {'model': entries, 'best_valid_eer': 0.7}
    if not wrapped:
        stored = {f'module.{key}': x for key, x in in_new_spelling(dict(entries)).items()}
    torch.save(stored, tmp_path / 'x.pth')
    found = unispeech.read(tmp_path / 'x.pth')
    assert found.sizes['config'] == config_of(**sizes)
    module = found.module()
    assert not module.training
    torch.testing.assert_close(module(waves()), expected, rtol=1e-4, atol=1e-4)
    assert found.beside.keys() == ({'classifier'} if classes else set())
    if classes:
        classifier = found.beside['classifier']
        assert classifier.sizes == {'classes': 9, 'dim': 7}
        assert torch.equal(classifier.state['weight'], entries[CLASSIFIER])


@pytest.mark.parametrize('classes', [9, None])
@pytest.mark.parametrize('sizes', [TINY, BASE], ids=['layer norms', 'group norm'])
def test_what_a_run_writes_is_read_back_unchanged(tmp_path, sizes, classes):
    torch.manual_seed(0)
    backend = EcapaSmallBackEnd(3, 16, 7, 16, 12, 6, 5)
    state = SslSpeakerEncoder(SslEncoder(config_of(**sizes)), backend).state_dict()
    weight = torch.randn(9, 7) if classes else None
    weight_files.write(unispeech.to_published(state, weight, 3.5), tmp_path / 'x.pth')
    stored = weight_files.read(tmp_path / 'x.pth')
    assert stored['best_valid_eer'] == 3.5
    shapes = {key: tuple(value.shape) for key, value in stored['model'].items()}
    assert shapes == speaker_keys(sizes, classes)
    found = unispeech.read(tmp_path / 'x.pth')
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[name], value) for name, value in state.items())
    assert ('classifier' in found.beside) == (classes is not None)
    if classes:
        assert torch.equal(found.beside['classifier'].state['weight'], weight)


def test_what_has_no_weights_is_taken_from_the_config_of_the_encoder():
    found = unispeech.from_published(drawn(speaker_keys(TINY)), 'x')
    own = SslConfig(**vars(found.sizes['config']) | {'layer_drop': 0.5, 'layers': 9})
    config = found.module(own).encoder.config
    assert (config.layer_drop, config.layers) == (0.5, 2)


def test_numbers_of_other_programs_beside_the_state_do_no_harm(tmp_path):
    stored = {'model': drawn(speaker_keys(TINY)), 'best_valid_eer': np.float64(0.7)}
    torch.save(stored, tmp_path / 'x.pth')
    assert unispeech.read(tmp_path / 'x.pth').kind == 'speaker'


# --- strictness


MISSING = [
    'feature_weight',
    'layer1.conv.weight',
    'layer1.bn.num_batches_tracked',
    'layer2.SE_Connect.linear1.weight',
    'layer4.Res2Conv1dReluBn.bns.6.running_var',
    'conv.weight',
    'pooling.linear1.weight',
    'bn.weight',
    'linear.weight',
    f'{WAVLM}mask_emb',
    f'{WAVLM}feature_extractor.conv_layers.0.0.weight',
    f'{WAVLM}feature_extractor.conv_layers.0.2.1.bias',
    f'{WAVLM}feature_extractor.conv_layers.3.0.weight',
    f'{WAVLM}layer_norm.weight',
    f'{WAVLM}post_extract_proj.weight',
    f'{WAVLM}encoder.pos_conv.0.weight_g',
    f'{WAVLM}encoder.pos_conv.0.weight_v',
    f'{WAVLM}encoder.layers.0.self_attn.relative_attention_bias.weight',
    f'{WAVLM}encoder.layers.0.fc1.weight',
    f'{WAVLM}encoder.layers.1.self_attn.grep_a',
    f'{WAVLM}encoder.layer_norm.weight',
]


@pytest.mark.parametrize('key', MISSING)
def test_a_missing_entry_is_an_error_that_names_it(key):
    entries = drawn(speaker_keys(TINY))
    del entries[key]
    with pytest.raises(UserError) as caught:
        unispeech.from_published({'model': entries}, 'x.pth')
    message, names = str(caught.value), {key}
    if key.startswith(WAVLM):  # sizes are told from the names of transformers
        names.add(transformers_name(key.removeprefix(WAVLM)))
    if key.endswith('conv_layers.0.0.weight'):
        names = {'no feature_extractor.conv_layers.0'}
    assert any(name in message for name in names), message
    assert message.startswith('x.pth: not a WavLM with an ECAPA-TDNN as published')
    assert '\n' not in message and len(message) < 450


def with_one(**changes):
    return {'model': drawn(speaker_keys(TINY)) | changes}


WRONG = {  # what is the matter: (content, words of the error)
    'not a state': ({'epoch': 3}, 'no bare state'),
    'a WavLM alone': ({'cfg': {}, 'model': drawn(wavlm_keys(**TINY))}, 'no speaker model on a Wa'),
    'an ECAPA-TDNN on filter banks': (
        {'model': drawn(ecapa_keys(**TINY))},
        'nothing begins with feature_extract.model.',
    ),
    'unknown entry': (with_one(**{f'{WAVLM}head.weight': torch.ones(3)}), '1 unexpected (feature_'),
    'a head of WavLM': (with_one(**{f'{WAVLM}final_proj.bias': torch.ones(1)}), '1 unexpected'),
    'another name of the classifier': (
        with_one(**{'loss_calculator.weight': torch.ones(9, 7)}),
        '1 unexpected (loss_calculator.weight)',
    ),
    'a HuBERT': (
        {'model': {k: x for k, x in with_one()['model'].items() if '.grep_' not in k}},
        'self_attn.grep_',
    ),
    'shape': (
        with_one(**{'layer2.SE_Connect.linear2.weight': torch.ones(16, 6)}),
        '1 of another shape (layer2.SE_Connect.linear2.weight (16, 6) instead of (16, 5)',
    ),
    'nothing in an entry': (
        with_one(**{'layer2.SE_Connect.linear1.weight': torch.ones(0, 16)}),
        'of another shape (layer2.SE_Connect.linear1.bias (5,) instead of (0,)',
    ),
    'more states than layers': (
        with_one(feature_weight=torch.ones(5)),
        '5 states of an encoder with 2 layers',
    ),
    'classifier of another': (
        with_one(**{CLASSIFIER: torch.ones(9, 6)}),
        'its classifier is of 6, not 7 features',
    ),
    'classifier of one axis': (
        with_one(**{CLASSIFIER: torch.ones(9)}),
        'not a classifier as published: 1 of another shape',
    ),
    'not finite': (
        with_one(**{'linear.bias': torch.full((7,), torch.nan)}),
        '1 not finite (linear.bias)',
    ),
    'two spellings': (with_one(**{'module.linear.bias': torch.ones(7)}), 'entries twice'),
}


@pytest.mark.filterwarnings('ignore:Initializing zero-element tensors')
@pytest.mark.parametrize('name', WRONG)
def test_other_files_are_refused_in_one_line_that_tells_why(tmp_path, name):
    content, words = WRONG[name]
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(UserError) as caught:
        unispeech.read(tmp_path / 'other.pth')
    message = str(caught.value)
    assert words in message and 'other.pth' in message and '\n' not in message


def test_page_that_a_download_left_is_told_from_weights(tmp_path):
    (tmp_path / 'x.pth').write_text('<!DOCTYPE html><title>Virus scan warning</title>')
    with pytest.raises(UserError, match='x.pth: a web page, not the weights'):
        unispeech.read(tmp_path / 'x.pth')
