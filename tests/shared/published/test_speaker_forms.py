"""Layouts of students: the configuration that entries tell, adapters of any name."""

from dataclasses import replace

import pytest
import torch

from shared.errors import UserError
from shared.models.adapters import AdapterSettings
from shared.models.ssl_config import (
    HUBERT_BASE,
    HUBERT_LARGE,
    WAV2VEC2_BASE,
    WAVLM_BASE,
    WAVLM_LARGE,
    XLSR_53,
)
from shared.models.ssl_encoder import SslEncoder
from shared.published.layout import Layout
from shared.published.speaker_forms import student_form

NAMES = {'norm': 'side.before', 'down': 'side.narrow', 'up': 'side.wide'}
SETTINGS = AdapterSettings(width=9, activation='gelu', residual=True)
MODELS = {
    'wavlm base': (WAVLM_BASE, WAVLM_BASE),
    'wavlm large': (WAVLM_LARGE, WAVLM_BASE),
    'hubert base': (HUBERT_BASE, HUBERT_BASE),
    'hubert large': (HUBERT_LARGE, HUBERT_BASE),
    'wav2vec2 base': (WAV2VEC2_BASE, XLSR_53),
    'xlsr': (XLSR_53, XLSR_53),
}
RATES = ('dropout', 'attention_dropout', 'activation_dropout', 'projection_dropout', 'layer_drop')


def form_of(base, prefix='net.', settings=SETTINGS):
    return student_form(base, prefix, NAMES, settings, marks=('net',))


def read(form, state):
    return Layout((form,)).from_published(form.write(state), 'x.pt')


@pytest.mark.parametrize('model', MODELS)
def test_configuration_of_every_published_model_is_told_by_its_entries(model):
    config, base = MODELS[model]
    with torch.device('meta'):
        state = SslEncoder(config, layers=2).state_dict()
    form = form_of(base)
    sizes = form.sizes({f'net.{name}': x for name, x in state.items()})
    rates = {name: getattr(base, name) for name in RATES}
    assert sizes['config'] == replace(config, layers=2, normalise_wave=False, **rates)
    assert sizes['adapters'] is None


@pytest.mark.parametrize('norm', [False, True])
def test_adapters_of_any_name_are_read_as_ours(norm):
    settings = AdapterSettings(width=5, norm=norm)
    thin = replace(WAVLM_BASE, layers=2, width=48, ffn_width=8, conv_channels=(4,) * 7)
    state = SslEncoder(thin, adapters=settings).state_dict()
    written = form_of(WAVLM_BASE).write(state)
    assert ('module.net.encoder.layers.1.side.before.weight' in written) == norm
    assert 'module.net.encoder.layers.0.side.narrow.bias' in written
    assert not any('.adapter.' in name for name in written)
    found = read(form_of(WAVLM_BASE), state)
    assert found.sizes['adapters'] == replace(SETTINGS, width=5, norm=norm)
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[name], x) for name, x in state.items())


def test_adapters_in_some_layers_only_are_refused():
    thin = replace(HUBERT_BASE, layers=2, width=64, heads=1, ffn_width=8, conv_channels=(4,) * 7)
    state = SslEncoder(thin, adapters=AdapterSettings(width=5)).state_dict()
    state = {k: x for k, x in state.items() if not k.startswith('encoder.layers.1.adapter')}
    with pytest.raises(UserError, match='4 missing .*layers.1.side.narrow.bias'):
        read(form_of(HUBERT_BASE), state)


def test_student_module_keeps_its_depth_but_takes_the_strides_of_a_config():
    thin = replace(HUBERT_BASE, layers=2, width=64, heads=1, ffn_width=8)
    thin = replace(thin, conv_channels=(4,) * 2, conv_kernels=(8, 4), conv_strides=(5, 3))
    found = read(form_of(HUBERT_BASE), SslEncoder(thin).state_dict())
    with pytest.raises(UserError, match='needs its config'):
        found.module()
    module = found.module(replace(thin, layers=12, conv_strides=(4, 2)))
    assert (module.layers, module.config.conv_strides) == (2, (4, 2))
    with pytest.raises(UserError, match="a student's weights: checkpoint of another model"):
        found.module(replace(thin, width=32))


@pytest.mark.parametrize(
    'name', ['encoder.layers.999999999.x', 'feature_extractor.conv_layers.99999999.conv.weight']
)
def test_absurd_numbers_in_names_are_refused_at_once(name):
    entries = {'net.masked_spec_embed': torch.ones(768), f'net.{name}': torch.ones(1)}
    with pytest.raises(UserError, match="not a student's weights"):
        Layout((form_of(HUBERT_BASE),)).from_published(entries, 'x.pt')
