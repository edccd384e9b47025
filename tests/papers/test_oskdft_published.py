"""Files of the authors' layouts (spec oskdft 3.6): names, shapes, strictness, same embeddings."""

import re

import pytest
import torch
import torch.nn.functional as F
import transformers
from author_layouts import (
    backend_keys,
    drawn,
    head_keys,
    linear,
    modules_of,
    save,
    student_keys,
    their_backend,
    their_head,
)
from torch import nn

from shared import weight_files
from shared.errors import UserError
from shared.losses.aam_softmax import AamSoftmax
from shared.models.adapters import AdapterSettings
from shared.models.ssl_backends import EcapaBackEnd, LinearBackEnd
from shared.models.ssl_config import HUBERT_BASE, WAVLM_BASE, XLSR_53, SslConfig
from shared.models.ssl_encoder import SslEncoder

ADAPTER_B = {'os_kdft_adapter.down': (64, 768), 'os_kdft_adapter.up': (768, 64)}
ADAPTER_A = {
    'sv_adapter.adapter_layer_norm_before': (1024,),
    'sv_adapter.down_proj': (64, 1024),
    'sv_adapter.up_proj': (1024, 64),
}
RELEASED = {  # of spec 3.6; entries counted from its list, parameters from 3.2, 3.3, 3.5, 4.4
    'student HuBERT': (student_keys('hubert.', ADAPTER_B, 2), 59, 23_691_264),
    'student WavLM': (student_keys('wavlm.', ADAPTER_B, 2, gated=True), 66, 23_696_168),
    'student A': (
        student_keys('', ADAPTER_A, 4, 1024, 4096, conv_norms=True),
        126,
        64_051_072,
    ),
    'linear back-end': (head_keys(3), 8, 295_491),
    'ECAPA A': (backend_keys(None, 1024), 231, 9_394_816),
    'ECAPA B': (backend_keys(3), 232, 8_739_459),
    'kd_loss': (
        {
            k: v
            for i in range(3)
            for j in (0, 2)
            for k, v in linear(f'predict_layer.{i}.{j}', 768, 768).items()
        },
        12,
        3_543_552,
    ),
    'ft_loss': (linear('fc', 1211, 192) | {'cce.weight': (1211,)}, 3, 1211 * 193),
}
KINDS = {'kd_loss': 'kd_loss', 'ft_loss': 'ft_loss', 'linear back-end': 'backend'}
KINDS |= {name: name.split()[0].replace('ECAPA', 'backend') for name in RELEASED if ' ' in name}
KINDS['linear back-end'] = 'backend'


@pytest.fixture
def oskdft(monkeypatch):
    yield from modules_of('oskdft', ('losses', 'published'), monkeypatch)


# --- released sizes


@pytest.mark.parametrize('name', RELEASED)
def test_released_layout_has_the_entries_and_parameters_of_the_spec(oskdft, name):
    keys, count, parameters = RELEASED[name]
    assert len(keys) == count
    with torch.device('meta'):
        entries = {key: torch.empty(shape) for key, shape in keys.items()}
    form = oskdft.published.LAYOUT.form_of(entries, name)
    assert form.kind == KINDS[name]
    with torch.device('meta'):
        module = form.make(**form.sizes(entries))
    theirs = {form.name(ours) for ours in module.state_dict()}
    assert theirs == set(keys)
    learned = sum(p.numel() for n, p in module.named_parameters() if n != 'class_weights')
    assert learned == parameters


def test_modules_of_the_released_sizes_are_written_under_the_published_names(oskdft):
    scaled = AdapterSettings(norm=True, scale=0.1)
    with torch.device('meta'):
        modules = {
            'student HuBERT': SslEncoder(HUBERT_BASE, layers=2, adapters=AdapterSettings()),
            'student WavLM': SslEncoder(WAVLM_BASE, layers=2, adapters=AdapterSettings()),
            'student A': SslEncoder(XLSR_53, layers=4, adapters=scaled),
            'linear back-end': LinearBackEnd(3),
            'ECAPA A': EcapaBackEnd(None, 1024),
            'ECAPA B': EcapaBackEnd(3),
            'kd_loss': oskdft.losses.DistilHubertLoss(768, 768),
        }
    for name, module in modules.items():
        entries = oskdft.published.to_published(KINDS[name], module.state_dict())
        found = {key: tuple(value.shape) for key, value in entries.items()}
        assert found == {f'module.{key}': shape for key, shape in RELEASED[name][0].items()}


# --- students, against transformers with adapters put on by hand


class TheirAdapter(nn.Module):
    """System B: without norm, scale or residual."""

    def __init__(self, width, hidden, activation):
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, h):
        return self.up(self.activation(self.down(h)))


class TheirScaledAdapter(nn.Module):
    """System A: norm before, a tenth of the output, its own residual (9.1-2) when asked for."""

    def __init__(self, width, hidden, residual):
        super().__init__()
        self.adapter_layer_norm_before = nn.LayerNorm(width)
        self.down_proj, self.up_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.residual = residual

    def forward(self, h):
        y = 0.1 * self.up_proj(self.down_proj(self.adapter_layer_norm_before(h)).relu())
        return h + y if self.residual else y


SIZES = {
    'hidden_size': 64,  # one head of 64: HuBERT's heads are in no file
    'num_hidden_layers': 2,
    'num_attention_heads': 1,
    'intermediate_size': 48,
    'conv_dim': [16] * 7,
    'num_conv_pos_embeddings': 16,
    'num_conv_pos_embedding_groups': 4,
}


def attach(layer, name, adapter):
    """Adds an adapter to a layer: it reads what the sum after attention is."""
    layer.add_module(name, adapter)
    stream = []
    if 'StableLayerNorm' in type(layer).__name__:
        layer.final_layer_norm.register_forward_pre_hook(lambda _, x: stream.append(x[0]))
    else:
        layer.feed_forward.register_forward_pre_hook(lambda _, x: stream.append(x[0]))
    layer.feed_forward.register_forward_hook(lambda _, x, y: y + adapter(stream.pop()))


def their_student(system, residual=False):
    torch.manual_seed(1)
    if system == 'A':
        config = transformers.Wav2Vec2Config(
            **SIZES, feat_extract_norm='layer', conv_bias=True, do_stable_layer_norm=True
        )
        encoder = student = transformers.Wav2Vec2Model(config)
    else:
        kind = {'hubert': 'Hubert', 'wavlm': 'WavLM'}[system]
        config = getattr(transformers, f'{kind}Config')(**SIZES)
        encoder = getattr(transformers, f'{kind}Model')(config)
        student = nn.Module()
        student.add_module(system, encoder)
    for layer in encoder.encoder.layers:
        if system == 'A':
            attach(layer, 'sv_adapter', TheirScaledAdapter(64, 6, residual))
        else:
            activation = F.relu if system == 'hubert' else F.elu
            attach(layer, 'os_kdft_adapter', TheirAdapter(64, 6, activation))
    for parameter in student.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return student.eval(), encoder.eval()


def spelled(entries, spelling):
    """Entries with the names of the weight norm of old or new torch."""
    if spelling == 'new':
        return entries
    return {
        re.sub(
            r'parametrizations\.weight\.original(\d)', lambda m: f'weight_{"gv"[int(m[1])]}', k
        ): x
        for k, x in entries.items()
    }


@pytest.mark.parametrize('spelling', ['old', 'new'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('system', ['hubert', 'wavlm', 'A'])
def test_student_file_gives_the_states_of_transformers(oskdft, tmp_path, system, prefix, spelling):
    student, encoder = their_student(system)
    entries = spelled(student.state_dict(), spelling)
    found = oskdft.published.read(save(tmp_path / 'x.pt', entries, prefix))
    assert found.kind == 'student' and found.sizes['config'].layers == 2
    waves = 0.1 * torch.randn(2, 4000)
    with torch.no_grad():
        output = encoder(waves, output_hidden_states=True)
        theirs = [*output.hidden_states[:-1], output.last_hidden_state]
        ours = found.module()(waves).states
    assert len(ours) == len(theirs) == 3
    for ours_l, theirs_l in zip(ours, theirs):
        torch.testing.assert_close(ours_l, theirs_l, rtol=1e-4, atol=1e-4)


def test_settings_that_no_weight_tells_are_the_published_unless_given(oskdft, tmp_path):
    read, path = oskdft.published.read, tmp_path / 'x.pt'
    expected = {
        'hubert': ('relu', False, 1.0),
        'wavlm': ('elu', False, 1.0),
        'A': ('relu', True, 0.1),
    }
    for system, (activation, norm, scale) in expected.items():
        save(path, their_student(system)[0].state_dict())
        own = read(path).sizes['adapters']
        assert (own.activation, own.norm, own.scale) == (activation, norm, scale)
        assert (own.width, own.residual) == (6, False)
        given = read(path, activation='gelu', residual=True).sizes['adapters']
        assert (given.activation, given.residual, given.norm) == ('gelu', True, norm)
    student, encoder = their_student('A', residual=True)
    waves = 0.1 * torch.randn(1, 3000)
    with torch.no_grad():
        ours = read(save(path, student.state_dict()), residual=True).module()(waves).states[-1]
        theirs = encoder(waves).last_hidden_state
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        single = read(path).module()(waves).states[-1]
    assert (single - theirs).abs().max() > 0.1


def test_student_takes_what_has_no_weights_from_the_config_of_its_teacher(oskdft, tmp_path):
    student, _ = their_student('wavlm')
    found = oskdft.published.read(save(tmp_path / 'x.pt', student.state_dict()))
    teacher = SslConfig(**vars(found.sizes['config']) | {'layers': 12, 'layer_drop': 0.5})
    module = found.module(teacher)
    assert (module.layers, module.config.layer_drop) == (2, 0.5)


# --- back-ends


TINY = {'states': 3, 'width': 8, 'dim': 5}
TINY_ECAPA = {**TINY, 'c': 16, 'mfa': 12, 'attention': 6, 'se': 4}
CASES = {
    'linear': (their_head, head_keys(**TINY)),
    'linear, last state': (their_head, head_keys(**TINY | {'states': None})),
    'ECAPA of B': (their_backend, backend_keys(**TINY_ECAPA)),
    'ECAPA of A': (their_backend, backend_keys(**TINY_ECAPA | {'states': None})),
}


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('name', CASES)
def test_backend_file_gives_the_embeddings_of_the_layout_it_has(oskdft, tmp_path, name, prefix):
    theirs, keys = CASES[name]
    entries = drawn(keys)
    found = oskdft.published.read(save(tmp_path / 'x.pt', entries, prefix), activation='relu')
    assert (found.kind, found.beside) == ('backend', {})
    states = [torch.randn(2, 15, 8) for _ in range(3)]
    with torch.no_grad():
        torch.testing.assert_close(
            found.module()(states), theirs(entries, states), rtol=1e-5, atol=1e-5
        )


def test_classifier_inside_an_ecapa_file_is_given_beside_it(oskdft, tmp_path):
    inside = drawn({'softmax_loss.weight': (11, 5), 'softmax_loss.ce.weight': (11,)})
    entries = drawn(backend_keys(**TINY_ECAPA | {'states': None})) | inside
    found = oskdft.published.read(save(tmp_path / 'x.pt', entries))
    classifier = found.beside['ft_loss']
    assert not any('softmax' in name for name in found.module().state_dict())
    assert (classifier.kind, classifier.sizes) == ('ft_loss', {'classes': 11, 'dim': 5})
    assert torch.equal(classifier.state['class_weights'], entries['softmax_loss.ce.weight'])
    AamSoftmax(11, 5).load_state_dict({'weight': classifier.state['weight']})


# --- heads and classifiers


def test_heads_of_a_file_predict_what_its_layers_do(oskdft, tmp_path):
    keys = {}
    for k in range(3):
        keys |= linear(f'predict_layer.{k}.0', 6, 6) | linear(f'predict_layer.{k}.2', 8, 6)
    e = drawn(keys)
    found = oskdft.published.read(save(tmp_path / 'x.pt', e))
    module, x = found.module(), torch.randn(2, 7, 6)
    assert (found.kind, module.targets) == ('kd_loss', (4, 8, 12))
    for k, head in enumerate(module.heads):
        hidden = F.gelu(x @ e[f'predict_layer.{k}.0.weight'].T + e[f'predict_layer.{k}.0.bias'])
        expected = hidden @ e[f'predict_layer.{k}.2.weight'].T + e[f'predict_layer.{k}.2.bias']
        torch.testing.assert_close(head(x), expected)


def test_classifier_files_give_weights_bias_and_class_weights(oskdft, tmp_path):
    entropy = drawn(linear('fc', 11, 5) | {'cce.weight': (11,)})
    aam = drawn({'fc': (11, 5), 'ce.weight': (11,)})
    found = [oskdft.published.read(save(tmp_path / 'x.pt', e)) for e in (entropy, aam)]
    assert [one.kind for one in found] == ['ft_loss', 'ft_loss']
    assert [one.sizes for one in found] == [{'classes': 11, 'dim': 5}] * 2
    assert {name: x.tolist() for name, x in found[0].state.items()} == {
        'weight': entropy['fc.weight'].tolist(),
        'bias': entropy['fc.bias'].tolist(),
        'class_weights': entropy['cce.weight'].tolist(),
    }
    assert torch.equal(found[1].state['weight'], aam['fc'])
    assert torch.equal(found[1].state['class_weights'], aam['ce.weight'])
    assert found[1].state.keys() == {'weight', 'class_weights'}


# --- round trips and strictness


def states_of_a_run(oskdft):
    torch.manual_seed(0)
    students = {name: their_student(name)[0].state_dict() for name in ('hubert', 'wavlm', 'A')}
    read = {name: oskdft.published.from_published(state, name) for name, state in students.items()}
    return [('student', one.state) for one in read.values()] + [
        ('student', {k: x for k, x in read['wavlm'].state.items() if '.adapter.' not in k}),
        ('backend', LinearBackEnd(3, 8, 5).state_dict()),
        ('backend', LinearBackEnd(None, 8, 5).state_dict()),
        ('backend', EcapaBackEnd(3, 8, 5, 16, 12, 6, 4).state_dict()),
        ('backend', EcapaBackEnd(None, 8, 5, 16, 12, 6, 4).state_dict()),
        ('kd_loss', oskdft.losses.DistilHubertLoss(6, 8, (1, 2)).state_dict()),
        ('ft_loss', {'weight': torch.rand(9, 5), 'class_weights': torch.rand(9)}),
        (
            'ft_loss',
            {'weight': torch.rand(9, 5), 'bias': torch.rand(9), 'class_weights': torch.rand(9)},
        ),
    ]


def test_what_a_run_exports_is_read_back_unchanged(oskdft, tmp_path):
    for number, (kind, state) in enumerate(states_of_a_run(oskdft)):
        path = tmp_path / f'{number}.pt'
        weight_files.write(oskdft.published.to_published(kind, state), path)
        found = oskdft.published.read(path)
        assert found.kind == kind and found.state.keys() == state.keys()
        for name, value in state.items():
            assert found.state[name].dtype == value.dtype
            torch.testing.assert_close(found.state[name], value, rtol=0, atol=0)


def test_a_missing_entry_is_an_error_that_names_it(oskdft):
    for kind, state in states_of_a_run(oskdft):
        entries = oskdft.published.to_published(kind, state)
        for key in list(entries)[:: 1 + len(entries) // 8]:
            # without it: a back-end of the last state, a student of six convolutions
            if key == 'module.w' or 'conv_layers.6' in key:
                continue
            short = {name: value for name, value in entries.items() if name != key}
            with pytest.raises(UserError) as caught:
                oskdft.published.from_published(short, 'x.pt')
            assert key.removeprefix('module.') in str(caught.value)
            assert '\n' not in str(caught.value) and len(str(caught.value)) < 450


ECAPA = backend_keys(**TINY_ECAPA | {'states': None})
WRONG = {  # what is the matter: (entries, words of the error)
    'not a state': ({'epoch': 3}, 'no bare state'),
    'another paper': ({'Network.conv1.weight': torch.zeros(8, 80, 5)}, 'no file of this paper'),
    'data2vec': ({'data2vec.masked_spec_embed': torch.zeros(768)}, 'begin with wavlm or hubert'),
    'only an embedding': (
        {'hubert.masked_spec_embed': torch.zeros(768)},
        "not a student's weights",
    ),
    'TFT': (drawn(head_keys(**TINY) | linear('TTT.tune_layers.0.down', 64, 8)), 'unexpected (TTT'),
    'two spellings': ({'a': torch.ones(1), 'module.a': torch.ones(1)}, 'entries twice'),
    'only heads': ({'predict_layer.0.0.weight': torch.zeros(6, 6)}, '3 missing'),
    'classifier cut': (
        drawn(ECAPA | {'softmax_loss.weight': (11, 5)}),
        '1 missing (softmax_loss.ce.weight)',
    ),
    'classifier of another': (
        drawn(ECAPA | {'softmax_loss.weight': (11, 4), 'softmax_loss.ce.weight': (11,)}),
        'its classifier is of 4, not 5 features',
    ),
    'linear with a classifier': (
        drawn(head_keys(**TINY) | {'softmax_loss.weight': (11, 5)}),
        '1 unexpected (softmax_loss.weight)',
    ),
    'not finite': (
        drawn(linear('fc', 3, 5)) | {'cce.weight': torch.full((3,), torch.nan)},
        '1 not finite (cce.weight)',
    ),
}


@pytest.mark.parametrize('name', WRONG)
def test_other_files_are_refused_in_one_line_that_tells_why(oskdft, tmp_path, name):
    entries, words = WRONG[name]
    torch.save(entries, tmp_path / 'other.pt')
    with pytest.raises(UserError) as caught:
        oskdft.published.read(tmp_path / 'other.pt')
    message = str(caught.value)
    assert words in message and 'other.pt' in message and '\n' not in message


def test_unknown_field_of_the_adapters_is_an_error(oskdft):
    entries = their_student('hubert')[0].state_dict()
    with pytest.raises(TypeError, match='scales'):
        oskdft.published.from_published(entries, 'x.pt', scales=2.0)
