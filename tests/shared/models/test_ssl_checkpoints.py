"""Each layout is written with random weights by the program it belongs to, or with its names.

The oracles are the modules of transformers and torchaudio that hold the same weights.
"""

import argparse
import builtins
import collections
import json
import os
import re
import subprocess
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchaudio.models.wav2vec2.model import hubert_pretrain_model
from torchaudio.models.wav2vec2.utils import import_huggingface_model
from transformers import (
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForXVector,
    WavLMModel,
)

from shared.errors import UserError
from shared.models.adapters import AdapterSettings
from shared.models.ssl_checkpoints import load_encoder, read_ssl, ssl_encoder, write_ssl
from shared.models.ssl_config import WAVLM_BASE, SslConfig
from shared.models.ssl_encoder import SslEncoder
from shared.models.ssl_names import hugging_face_names
from shared.models.weights_only import read_torch_file

ORACLES = {
    'wavlm': (WavLMConfig, WavLMModel),
    'hubert': (HubertConfig, HubertModel),
    'wav2vec2': (Wav2Vec2Config, Wav2Vec2Model),
}
TINY = {
    'hidden_size': 24,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'intermediate_size': 20,
    'conv_dim': [6] * 7,
    'num_conv_pos_embeddings': 9,
    'num_conv_pos_embedding_groups': 3,
    'vocab_size': 5,
}
LARGE = {'feat_extract_norm': 'layer', 'do_stable_layer_norm': True, 'conv_bias': True}
WAVLM_TINY = {'num_buckets': 12, 'max_bucket_distance': 20}
ORIGINAL = 'parametrizations.weight.original'
POSITION = 'encoder.pos_conv_embed.conv.'


def oracle(family, model=None, **settings):
    """A tiny model of transformers whose every number is random."""
    config, base = ORACLES[family]
    extra = WAVLM_TINY if family == 'wavlm' else {}
    torch.manual_seed(3)
    model = (model or base)(config(**{**TINY, **extra, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def waves():
    return torch.randn(2, 3200, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def assert_same_states(encoder, model):
    """All hidden states of `encoder` equal those of a base model of transformers."""
    ours = encoder.eval()(waves()).states
    output = model.eval()(waves(), output_hidden_states=True)
    # The last of a pre-norm model is normalised, or not, as the version of transformers likes.
    theirs = (*output.hidden_states[:-1], output.last_hidden_state)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def fairseq_names(model):
    """The weights of a base model of transformers, called as by fairseq and Microsoft."""
    renamed = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in (
            ('masked_spec_embed', 'mask_emb'),
            ('feature_projection.layer_norm', 'layer_norm'),
            ('feature_projection.projection', 'post_extract_proj'),
            (f'{POSITION}{ORIGINAL}0', 'encoder.pos_conv.0.weight_g'),
            (f'{POSITION}{ORIGINAL}1', 'encoder.pos_conv.0.weight_v'),
            ('encoder.pos_conv_embed.conv', 'encoder.pos_conv.0'),
            ('.attention.gru_rel_pos_linear', '.self_attn.grep_linear'),
            ('.attention.gru_rel_pos_const', '.self_attn.grep_a'),
            ('.attention.rel_attn_embed', '.self_attn.relative_attention_bias'),
            ('.attention.', '.self_attn.'),
            ('.feed_forward.intermediate_dense', '.fc1'),
            ('.feed_forward.output_dense', '.fc2'),
        ):
            name = name.replace(ours, theirs)
        name = re.sub(r'(encoder\.layers\.\d+)\.layer_norm', r'\1.self_attn_layer_norm', name)
        name = re.sub(r'(conv_layers\.\d+)\.conv', r'\1.0', name)
        part = '2.1' if model.config.feat_extract_norm == 'layer' else '2'
        name = re.sub(r'(conv_layers\.\d+)\.layer_norm', rf'\1.{part}', name)
        renamed[name] = tensor
    return renamed


def fairseq_settings(model):
    """As a fairseq or Microsoft file holds them, with rates no other test uses."""
    config = model.config
    return {
        'extractor_mode': 'default' if config.feat_extract_norm == 'group' else 'layer_norm',
        'encoder_layers': config.num_hidden_layers,
        'encoder_attention_heads': config.num_attention_heads,
        'layer_norm_first': config.do_stable_layer_norm,
        'conv_feature_layers': '[(6,10,5)] + [(6, 3, 2)] * 4 + [(6,2,2)] * 2',
        'normalize': config.do_stable_layer_norm,
        'dropout': 0.11,
        'attention_dropout': 0.12,
        'activation_dropout': 0.13,
        'dropout_input': 0.14,
        'encoder_layerdrop': 0.15,
        'max_distance': 20,
    }


RATES = {
    'dropout': 0.11,
    'attention_dropout': 0.12,
    'activation_dropout': 0.13,
    'projection_dropout': 0.14,
    'layer_drop': 0.15,
}


def assert_rates(config):
    assert {name: getattr(config, name) for name in RATES} == RATES


@pytest.fixture
def hub(tmp_path):
    """A folder of transformers with a tiny WavLM; `hub.model` is the model."""
    folder = tmp_path / 'hub'
    model = oracle('wavlm')
    model.save_pretrained(folder)
    return types.SimpleNamespace(folder=folder, file=folder / 'model.safetensors', model=model)


def change(file, edit):
    """Rewrites a .safetensors file after `edit(state)`."""
    state = load_file(file)
    edit(state)
    save_file(state, file, metadata={'format': 'pt'})


@pytest.mark.parametrize('family', ORACLES)
@pytest.mark.parametrize('settings', [{}, LARGE], ids=['base', 'large'])
def test_hugging_face_folder_gives_the_states_of_its_model(family, settings, tmp_path):
    model = oracle(family, **settings, layerdrop=0.07, feat_proj_dropout=0.03)
    model.save_pretrained(tmp_path)
    weights = read_ssl(tmp_path)
    assert (weights.layout, weights.config.family) == ('hugging face', family)
    assert (weights.config.layer_drop, weights.config.projection_dropout) == (0.07, 0.03)
    assert weights.config.normalise_wave == bool(settings)  # no preprocessor_config.json
    assert_same_states(ssl_encoder(tmp_path, normalise_wave=False), model)
    assert_same_states(ssl_encoder(tmp_path / 'model.safetensors', normalise_wave=False), model)


@pytest.mark.parametrize('stored', [True, False])
@pytest.mark.parametrize('settings', [{}, LARGE], ids=['base', 'large'])
def test_waves_are_normalised_as_the_preprocessor_file_says(stored, settings, tmp_path):
    oracle('hubert', **settings).save_pretrained(tmp_path)
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps({'do_normalize': stored}))
    assert read_ssl(tmp_path).config.normalise_wave is stored


@pytest.mark.parametrize(
    'family, kind, prefix',
    [
        ('wavlm', WavLMForXVector, 'wavlm'),
        ('wav2vec2', Wav2Vec2ForPreTraining, 'wav2vec2'),
        ('wav2vec2', Wav2Vec2ForCTC, 'wav2vec2'),
    ],
)
def test_heads_of_a_larger_hugging_face_model_are_left_out(family, kind, prefix, tmp_path):
    model = oracle(family, model=kind, tdnn_dim=[4, 4, 4, 4, 4], codevector_dim=4)
    model.save_pretrained(tmp_path)
    assert_same_states(ssl_encoder(tmp_path), getattr(model, prefix))


@pytest.mark.parametrize('prefix', ['', 'wavlm.', 'module.wavlm.'])
def test_old_weight_norm_names_and_half_precision_in_a_bin_file_are_read(prefix, hub):
    state = {}
    for name, tensor in hub.model.half().state_dict().items():
        name = name.replace(f'{ORIGINAL}0', 'weight_g').replace(f'{ORIGINAL}1', 'weight_v')
        state[prefix + name] = tensor
    hub.file.unlink()
    torch.save(state, hub.folder / 'pytorch_model.bin')
    assert sum('weight_g' in name or 'weight_v' in name for name in state) == 2
    assert {x.dtype for x in read_ssl(hub.folder).state.values()} == {torch.float32}
    assert_same_states(ssl_encoder(hub.folder), hub.model.float())


@pytest.mark.parametrize(
    'settings',
    [{}, {**LARGE, 'conv_bias': False}, {'feat_extract_norm': 'layer'}],
    ids=['base', 'large', 'post-norm'],
)
def test_microsoft_file_gives_the_states_of_its_model(settings, tmp_path):
    model = oracle('wavlm', **settings)
    file = tmp_path / 'WavLM.pt'
    torch.save({'cfg': fairseq_settings(model), 'model': fairseq_names(model)}, file)
    weights = read_ssl(file)
    assert (weights.layout, weights.config.family) == ('microsoft', 'wavlm')
    assert weights.config.normalise_wave is model.config.do_stable_layer_norm
    assert_rates(weights.config)
    assert_same_states(ssl_encoder(file, normalise_wave=False), model)


class ModelSettings:
    """As fairseq's dataclasses and omegaconf's containers: attributes, and a way back up."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


@pytest.fixture
def foreign(monkeypatch):
    """`ModelSettings` as if of a package 'elsewhere', which is there while the file is written."""
    module = types.ModuleType('elsewhere')
    module.ModelSettings = ModelSettings
    monkeypatch.setattr(ModelSettings, '__module__', 'elsewhere')
    monkeypatch.setitem(sys.modules, 'elsewhere', module)
    return ModelSettings


HUBERT_HEAD = {'label_embs_concat': torch.zeros(7, 4), 'final_proj.weight': torch.zeros(4, 24)}
WAV2VEC2_HEAD = {'quantizer.vars': torch.zeros(1, 6, 4), 'project_q.weight': torch.zeros(4, 4)}


@pytest.mark.parametrize('new_format', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('settings', [{}, LARGE], ids=['base', 'large'])
def test_fairseq_hubert_gives_the_states_of_its_model(settings, new_format, tmp_path, foreign):
    model = oracle('hubert', **settings)
    told = fairseq_settings(model)
    task = {'_name': 'hubert_pretraining', 'normalize': told.pop('normalize')}
    leaves = {name: foreign(_val=value) for name, value in told.items()}
    content = foreign(_content={'_name': foreign(_val='hubert'), **leaves, 'w2v_args': None})
    leaves['dropout']._parent = content  # as omegaconf does
    stored = {
        'args': None,
        'cfg': {'_name': None, 'model': content, 'task': task},
        'model': {**fairseq_names(model), **HUBERT_HEAD},
        'task_state': {'dictionary': foreign(symbols=['a'])},
        'extra_state': collections.defaultdict(list, best=[1.0]),
    }
    torch.save(stored, tmp_path / 'h.pt', _use_new_zipfile_serialization=new_format)
    del sys.modules['elsewhere']
    weights = read_ssl(tmp_path / 'h.pt')
    assert (weights.layout, weights.config.family) == ('fairseq', 'hubert')
    assert weights.config.normalise_wave is bool(settings)
    assert_rates(weights.config)
    assert_same_states(ssl_encoder(tmp_path / 'h.pt', normalise_wave=False), model)


@pytest.mark.parametrize('new_format', [True, False], ids=['zip', 'legacy'])
def test_fairseq_wav2vec2_with_argparse_settings_is_read(new_format, tmp_path):
    model = oracle('wav2vec2', conv_stride=[5, 2, 2, 2, 2, 1, 3])
    told = fairseq_settings(model)
    told['conv_feature_layers'] = '[(6,10,5)] + [(6, 3, 2)] * 4 + [(6,2,1), (6, 2, 3)]'
    args = argparse.Namespace(arch='wav2vec2', **told)
    args.itself, args.options = args, {}  # two circles
    args.options['options'] = args.options
    stored = {'args': args, 'model': {**fairseq_names(model), **WAV2VEC2_HEAD}}
    torch.save(stored, tmp_path / 'w.pt', _use_new_zipfile_serialization=new_format)
    weights = read_ssl(tmp_path / 'w.pt')
    assert (weights.layout, weights.config.family) == ('fairseq', 'wav2vec2')
    assert_rates(weights.config)
    assert_same_states(ssl_encoder(tmp_path / 'w.pt'), model)


def test_fairseq_recognition_model_is_read_below_its_prefix(tmp_path):
    model = oracle('wav2vec2', **LARGE)
    told = fairseq_settings(model)
    del told['normalize']
    told = argparse.Namespace(**told)
    args = argparse.Namespace(arch='wav2vec_ctc', normalize='${task.normalize}', w2v_args=told)
    state = {f'w2v_encoder.w2v_model.{name}': x for name, x in fairseq_names(model).items()}
    state['w2v_encoder.proj.weight'] = torch.zeros(5, 24)
    torch.save({'args': args, 'model': state}, tmp_path / 'ctc.pt')
    config = read_ssl(tmp_path / 'ctc.pt').config
    assert_rates(config)
    assert config.normalise_wave is True  # layer norm in the convolutions
    assert_same_states(ssl_encoder(tmp_path / 'ctc.pt', normalise_wave=False), model)


@pytest.mark.parametrize('old_names', [True, False])
@pytest.mark.parametrize('family', ['wavlm', 'wav2vec2'])
@pytest.mark.parametrize('settings', [{}, LARGE], ids=['base', 'large'])
def test_torchaudio_state_dict_gives_the_states_of_its_model(family, settings, old_names, tmp_path):
    model = oracle(family, **settings)
    theirs = import_huggingface_model(model).eval()
    state = theirs.state_dict()
    if old_names:
        state = {
            name.replace(f'{ORIGINAL}0', 'weight_g').replace(f'{ORIGINAL}1', 'weight_v'): tensor
            for name, tensor in state.items()
        }
    file = tmp_path / 'audio.pth'
    torch.save({**state, 'aux.weight': torch.zeros(5, 24)}, file)
    told = {'heads': 4, 'position_distance': 20}
    assert read_ssl(file, **told).layout == 'torchaudio'
    encoder = ssl_encoder(file, **told, normalise_wave=False)
    assert_same_states(encoder, model)
    with torch.no_grad():
        last = theirs(waves())[0]
        torch.testing.assert_close(encoder(waves()).states[-1], last, rtol=1e-5, atol=1e-5)


def test_torchaudio_hubert_pretraining_model_is_read_with_its_mask_vector(tmp_path):
    layers = [(6, kernel, stride) for kernel, stride in [(10, 5)] + [(3, 2)] * 4 + [(2, 2)] * 2]
    plain = import_huggingface_model(oracle('wav2vec2')).eval()
    theirs = hubert_pretrain_model(
        extractor_mode='group_norm',
        extractor_conv_layer_config=layers,
        extractor_conv_bias=False,
        encoder_embed_dim=24,
        encoder_projection_dropout=0.1,
        encoder_pos_conv_kernel=9,
        encoder_pos_conv_groups=3,
        encoder_num_layers=3,
        encoder_num_heads=4,
        encoder_attention_dropout=0.1,
        encoder_ff_interm_features=20,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.1,
        encoder_layer_norm_first=False,
        encoder_layer_drop=0.05,
        mask_prob=0.8,
        mask_selection='static',
        mask_other=0.0,
        mask_length=10,
        no_mask_overlap=False,
        mask_min_space=1,
        mask_channel_prob=0.0,
        mask_channel_selection='static',
        mask_channel_other=0.0,
        mask_channel_length=10,
        no_mask_channel_overlap=False,
        mask_channel_min_space=1,
        skip_masked=False,
        skip_nomask=False,
        num_classes=7,
        final_dim=4,
        feature_grad_mult=0.1,
    )
    theirs.wav2vec2.load_state_dict(plain.state_dict())
    torch.save(theirs.state_dict(), tmp_path / 'hubert.pt')
    weights = read_ssl(tmp_path / 'hubert.pt', heads=4)
    assert weights.config.family == 'hubert'
    mask = theirs.mask_generator.mask_embedding
    torch.testing.assert_close(weights.state['masked_spec_embed'], mask.detach())
    encoder = ssl_encoder(tmp_path / 'hubert.pt', heads=4)
    with torch.no_grad():
        last = theirs.wav2vec2.eval()(waves())[0]
        ours = encoder.eval()(waves()).states[-1]
    torch.testing.assert_close(ours, last, rtol=1e-5, atol=1e-5)


class Hostile:
    """Asks whoever unpickles it to call a function that would leave a file behind."""

    def __init__(self, function, text):
        self.call = function, (text,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('new_format', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize(
    'function, text, refused',
    [
        (os.system, 'touch {}', True),
        (subprocess.getoutput, 'touch {}', False),
        (builtins.eval, 'open({!r}, "w")', False),
        (builtins.exec, 'open({!r}, "w")', False),
    ],
    ids=['os.system', 'subprocess', 'eval', 'exec'],
)
def test_nothing_in_a_file_is_executed(function, text, refused, new_format, tmp_path):
    mark = tmp_path / 'executed'
    call = Hostile(function, text.format(str(mark)))
    model = oracle('wav2vec2')
    stored = {
        'args': argparse.Namespace(call=call, **fairseq_settings(model)),
        'model': fairseq_names(model),
        'extra': [call],
    }
    file = tmp_path / 'hostile.pt'
    torch.save(stored, file, _use_new_zipfile_serialization=new_format)
    if refused:  # torch blocks the whole module
        with pytest.raises(UserError, match=r'hostile\.pt: not a readable .* is blocked') as error:
            read_ssl(file)
        assert '\n' not in str(error.value)
    else:
        assert_same_states(ssl_encoder(file), model)
    assert not mark.exists()
    function(call.call[1][0])  # the call would have left it
    assert mark.exists()


def test_allowed_names_are_forgotten_after_reading(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({'a': argparse.Namespace(b=1)}, tmp_path / 'x.pt')
    assert read_torch_file(tmp_path / 'x.pt')['a'].state == {'b': 1}
    assert set(torch.serialization.get_safe_globals()) == before


def test_misfits_are_named_in_one_line(hub):
    def edit(state):
        state['encoder.layers.0.extra.weight'] = torch.zeros(2)
        state['encoder.layer_norm.bias'] = torch.zeros(5)
        for part in 'qkv':
            del state[f'encoder.layers.1.attention.{part}_proj.bias']
        del state['encoder.layers.2.layer_norm.weight']

    change(hub.file, edit)
    for read in (read_ssl, ssl_encoder):
        with pytest.raises(UserError) as error:
            read(hub.folder)
        assert str(error.value) == (
            f'{hub.folder}: weights of another model, or incomplete: 4 missing '
            '(encoder.layers.1.attention.k_proj.bias, encoder.layers.1.attention.q_proj.bias, '
            'encoder.layers.1.attention.v_proj.bias, ...); 1 unexpected '
            '(encoder.layers.0.extra.weight); 1 of another shape '
            '(encoder.layer_norm.bias (5,) instead of (24,))'
        )


def test_missing_tensor_that_the_structure_is_told_by_is_named(tmp_path):
    model = oracle('wavlm')
    state = fairseq_names(model)
    del state['post_extract_proj.weight']
    torch.save({'cfg': fairseq_settings(model), 'model': state}, tmp_path / 'w.pt')
    with pytest.raises(UserError, match=r'missing feature_projection\.projection\.weight'):
        read_ssl(tmp_path / 'w.pt')


@pytest.mark.parametrize('shape', [(24,), (24, 0)])
def test_tensor_of_a_shape_that_tells_nothing_is_named(shape, tmp_path):
    model = oracle('wavlm')
    state = {**fairseq_names(model), 'post_extract_proj.weight': torch.zeros(shape)}
    torch.save({'cfg': fairseq_settings(model), 'model': state}, tmp_path / 'w.pt')
    with pytest.raises(
        UserError, match=r'another model: feature_projection\.proj.* of shape \(24,'
    ):
        read_ssl(tmp_path / 'w.pt')


def remove_config(folder):
    (folder / 'config.json').unlink()


def other_config(**changes):
    def edit(folder):
        stored = json.loads((folder / 'config.json').read_text())
        (folder / 'config.json').write_text(json.dumps({**stored, **changes}))

    return edit


def several_files(folder):
    (folder / 'model.safetensors').rename(folder / 'model-00001-of-00002.safetensors')
    (folder / 'model.safetensors.index.json').write_text('{}')


def broken_weights(folder):
    (folder / 'model.safetensors').write_bytes(b'\x10' * 100)


def broken_config(folder):
    (folder / 'config.json').write_text('{')


@pytest.mark.parametrize(
    'edit, message',
    [
        (remove_config, 'config.json is missing in it'),
        (other_config(model_type='bert'), "model_type 'bert' is none of wavlm, hubert, wav2vec2"),
        (other_config(hidden_act='relu'), "hidden_act 'relu' is not supported"),
        (other_config(num_attention_heads=5), 'width 24 is no multiple of heads 5'),
        (other_config(num_hidden_layers=4), r'missing \(encoder\.layers\.3\.'),
        (other_config(num_hidden_layers=2), r'unexpected \(encoder\.layers\.2\.'),
        (several_files, 'weights in several files'),
        (lambda folder: (folder / 'model.safetensors').unlink(), 'neither model.safetensors nor'),
        (broken_weights, 'not a readable weight file'),
        (broken_config, r'config\.json: cannot be read'),
    ],
)
def test_wrong_folder_is_one_clear_error(edit, message, hub):
    edit(hub.folder)
    with pytest.raises(UserError, match=message) as error:
        read_ssl(hub.folder)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['x.pt', 'model.safetensors', 'pytorch_model.bin'])
@pytest.mark.parametrize(
    'content, message',
    [
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:ab\n', 'a git-LFS pointer'),
        (b'\n <!DOCTYPE html><html>Sign in', 'a web page'),
        (b'', 'an empty file'),
        (b'nothing of the kind', 'not a readable weight file'),
    ],
)
def test_file_that_holds_no_weights_says_what_it_is(name, content, message, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'wavlm'}))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f'{name}: {message}') as error:
        read_ssl(tmp_path / name)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'content, message',
    [
        ([1, 2], 'not a set of weights'),
        ({'model': 3}, 'not a set of weights'),
        ({'epoch': 3, 'net': {}}, "'epoch' is no tensor"),
        ({'fc.weight': torch.zeros(2)}, r'no speech encoder in it .* but fc\.weight'),
        ({}, 'no speech encoder in it .* but nothing'),
    ],
)
def test_file_of_something_else_says_what_it_holds(content, message, tmp_path):
    torch.save(content, tmp_path / 'x.pt')
    with pytest.raises(UserError, match=message):
        read_ssl(tmp_path / 'x.pt')


def test_missing_path_and_file_without_config_are_clear_errors(hub, tmp_path):
    with pytest.raises(UserError, match='no such file or folder'):
        read_ssl(tmp_path / 'nowhere')
    (hub.folder / 'config.json').unlink()
    with pytest.raises(UserError, match='config.json is missing beside it'):
        read_ssl(hub.file)


def test_two_encoders_in_one_file_are_not_guessed_at():
    state = oracle('wavlm').state_dict()
    both = {f'{role}.{name}': x for role in ('student', 'teacher') for name, x in state.items()}
    with pytest.raises(UserError, match=r"more than one encoder in it, below \['student\.', 'teac"):
        hugging_face_names(both, 'a file')


@pytest.mark.parametrize('field', ['heads', 'conv_strides'])
def test_what_a_bare_state_dict_does_not_tell_is_asked_for(field, tmp_path):
    kernels = [10, 3, 3, 3, 3, 2, 3] if field == 'conv_strides' else [10, 3, 3, 3, 3, 2, 2]
    model = oracle('wav2vec2', conv_kernel=kernels)
    torch.save(import_huggingface_model(model).state_dict(), tmp_path / 'x.pth')
    told = {'heads': 4, 'conv_strides': (5, 2, 2, 2, 2, 2, 2)}
    assert_same_states(ssl_encoder(tmp_path / 'x.pth', **told), model)
    del told[field]
    with pytest.raises(UserError, match=f'do not tell {field}; give it as an argument'):
        ssl_encoder(tmp_path / 'x.pth', **told)


@pytest.mark.parametrize('width, heads', [(768, 12), (1024, 16), (1280, 16), (1920, 16)])
def test_heads_of_published_widths_are_known(width, heads, tmp_path):
    with torch.device('meta'):
        encoder = SslEncoder(SslConfig('hubert', layers=1, width=width, heads=heads))
    state = {name: torch.zeros(1).expand(x.shape) for name, x in encoder.state_dict().items()}
    torch.save(state, tmp_path / 'x.pt')
    assert read_ssl(tmp_path / 'x.pt').config.heads == heads


def test_cut_encoder_has_the_first_states_of_the_whole(hub):
    whole, cut = ssl_encoder(hub.folder).eval(), ssl_encoder(hub.folder, layers=2).eval()
    assert cut.layers == 2
    with torch.no_grad():
        for a, b in zip(cut(waves()).states, whole(waves()).states[:3], strict=True):
            assert torch.equal(a, b)


def test_layers_can_be_taken_by_number(hub):
    stored = load_file(hub.file)
    taken = ssl_encoder(hub.folder, layers=(0, 2), adapters=AdapterSettings(width=5))
    assert taken.layers == 2
    found, at = taken.state_dict(), 'encoder.layers.'
    for name, tensor in found.items():
        if '.adapter.' not in name:
            assert torch.equal(tensor, stored[name.replace(f'{at}1.', f'{at}2.')])
    torch.manual_seed(0)
    fresh = ssl_encoder(hub.folder, layers=[0, 2], fresh=('encoder.layers.1.',)).state_dict()
    name = 'encoder.layers.1.attention.q_proj.weight'
    assert not torch.equal(fresh[name], found[name])
    first = ssl_encoder(hub.folder, layers=2).state_dict()
    same = ssl_encoder(hub.folder, layers=(0, 1)).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in first.items())


def test_adapters_of_the_file_follow_their_layers(hub):
    settings = AdapterSettings(width=5, norm=True)
    encoder = ssl_encoder(hub.folder, adapters=settings)
    adapters = {n: torch.randn(x.shape) for n, x in encoder.state_dict().items() if 'adapter' in n}
    assert len(adapters) == 3 * 6
    change(hub.file, lambda state: state.update(adapters))
    taken = ssl_encoder(hub.folder, layers=(0, 2), adapters=settings).encoder.layers[1].adapter
    for name, tensor in taken.state_dict().items():
        assert torch.equal(tensor, adapters[f'encoder.layers.2.adapter.{name}'])


@pytest.mark.parametrize(
    'layers, message',
    [
        (0, 'name at least one'),
        (4, 'layers 4: it has 3'),
        ((), 'name at least one'),
        ((0, 3), r'layers \(0, 3\): it has 3; number them from 0'),
        ((-1, 0), 'number them from 0'),
        ((0, 0), 'none twice'),
        ((1, 0), r"layers \(1, 0\): a WavLM's first must be 0"),
    ],
)
def test_layers_that_cannot_be_taken_are_refused_in_one_line(hub, layers, message):
    with pytest.raises(UserError, match=message) as error:
        ssl_encoder(hub.folder, layers=layers)
    assert str(hub.folder) in str(error.value) and '\n' not in str(error.value)


def test_only_wavlm_needs_its_first_layer(tmp_path):
    config = SslConfig('hubert', layers=3, width=16, heads=2, ffn_width=8, conv_channels=(4,) * 7)
    encoder = SslEncoder(config)
    write_ssl(config, encoder.state_dict(), tmp_path / 'x')
    taken = ssl_encoder(tmp_path / 'x', layers=(2, 0)).encoder.layers
    for layer, number in zip(taken, (2, 0), strict=True):
        for name, tensor in encoder.encoder.layers[number].state_dict().items():
            assert torch.equal(layer.state_dict()[name], tensor)


def test_fresh_prefixes_stay_as_initialised_whether_or_not_the_file_has_them(hub):
    stored = load_file(hub.file)
    name = 'encoder.layers.1.attention.q_proj.weight'
    torch.manual_seed(0)
    first = ssl_encoder(hub.folder, fresh=('encoder.layers.1.',)).state_dict()
    change(hub.file, lambda state: state.pop(name))
    torch.manual_seed(0)
    second = ssl_encoder(hub.folder, fresh=('encoder.layers.1.',)).state_dict()
    for other, tensor in first.items():
        assert torch.equal(tensor, second[other])
        if not other.startswith('encoder.layers.1.'):
            assert torch.equal(tensor, stored[other])
    assert not torch.equal(first[name], stored[name])
    with pytest.raises(UserError, match='1 missing'):
        ssl_encoder(hub.folder, fresh=('encoder.layers.2.',))
    with pytest.raises(ValueError, match="no weight begins with 'encoder.layer.1'"):
        ssl_encoder(hub.folder, fresh=('encoder.layer.1',))


def test_adapters_are_fresh_or_all_in_the_file(hub):
    settings = AdapterSettings(width=5)
    encoder = ssl_encoder(hub.folder, adapters=settings)
    adapters = {name: x + 1 for name, x in encoder.state_dict().items() if '.adapter.' in name}
    assert len(adapters) == 3 * 4
    change(hub.file, lambda state: state.update(adapters))
    loaded = ssl_encoder(hub.folder, adapters=settings).state_dict()
    assert all(torch.equal(loaded[name], x) for name, x in adapters.items())
    assert adapters.keys() <= read_ssl(hub.folder).state.keys()
    with pytest.raises(UserError, match='12 unexpected'):
        ssl_encoder(hub.folder)
    change(hub.file, lambda state: state.pop('encoder.layers.2.adapter.up.bias'))
    with pytest.raises(UserError, match=r'1 missing \(encoder\.layers\.2\.adapter\.up\.bias\)'):
        ssl_encoder(hub.folder, adapters=settings)


def test_mask_vector_may_be_missing_and_changes_reach_the_encoder(hub):
    change(hub.file, lambda state: state.pop('masked_spec_embed'))
    encoder = ssl_encoder(hub.folder, dropout=0.3, checkpointing=True)
    assert encoder.config.dropout == 0.3
    assert_same_states(encoder, hub.model)
    with pytest.raises(TypeError, match='drop_out'):
        ssl_encoder(hub.folder, drop_out=0.3)


@pytest.mark.parametrize('family', ORACLES)
@pytest.mark.parametrize('large', [False, True], ids=['base', 'large'])
def test_written_folder_is_opened_by_transformers_with_the_same_states(family, large, tmp_path):
    config = SslConfig(
        family,
        layers=2,
        width=24,
        heads=4,
        ffn_width=20,
        conv_channels=(6, 6, 7),
        conv_kernels=(10, 3, 3),
        conv_strides=(5, 3, 2),
        conv_bias=large,
        conv_norm='layer' if large else 'group',
        pre_norm=large,
        position_kernel=8,
        position_groups=3,
        position_buckets=12,
        position_distance=20,
        dropout=0.2,
        layer_drop=0.03,
        normalise_wave=not large,
    )
    encoder = SslEncoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    write_ssl(config, encoder.state_dict(), tmp_path / 'new')
    weights = read_ssl(tmp_path / 'new')
    assert weights.config == config
    assert all(torch.equal(weights.state[name], x) for name, x in encoder.state_dict().items())
    model, report = ORACLES[family][1].from_pretrained(
        tmp_path / 'new', local_files_only=True, output_loading_info=True
    )
    assert not any(report.values())
    assert_same_states(ssl_encoder(tmp_path / 'new', normalise_wave=False), model)


def test_weights_of_another_layout_can_be_written(tmp_path):
    model = oracle('wavlm')
    torch.save(import_huggingface_model(model).state_dict(), tmp_path / 'audio.pth')
    weights = read_ssl(tmp_path / 'audio.pth', position_distance=20)
    write_ssl(weights.config, weights.state, tmp_path / 'hub')
    assert_same_states(ssl_encoder(tmp_path / 'hub'), model)


def test_nothing_half_written_stays_and_nothing_is_overwritten(hub, tmp_path, monkeypatch):
    weights = read_ssl(hub.folder)
    with pytest.raises(UserError, match='is there already'):
        write_ssl(weights.config, weights.state, hub.folder)
    short = {name: x for name, x in weights.state.items() if 'k_proj.bias' not in name}
    with pytest.raises(UserError, match='3 missing'):
        write_ssl(weights.config, short, tmp_path / 'new')

    def full_disk(*values, **options):
        raise OSError('No space left on device')

    monkeypatch.setattr('shared.models.ssl_checkpoints.save_file', full_disk)
    with pytest.raises(UserError, match='No space left'):
        write_ssl(weights.config, weights.state, tmp_path / 'new')
    assert [path.name for path in tmp_path.iterdir()] == ['hub']


def test_structure_that_transformers_cannot_store_is_refused(tmp_path):
    config = SslConfig('wavlm', layers=1, projection_norm=False)
    with torch.device('meta'), pytest.raises(ValueError, match='only HuBERT'):
        write_ssl(config, SslEncoder(config).state_dict(), tmp_path / 'new')


# Spec nawsv 3.5, student of WavLM-Base+ with adapters: {} is a layer, * weight and bias.
BASE_PLUS = """
masked_spec_embed 768
feature_extractor.conv_layers.0.conv.weight 512,1,10
feature_extractor.conv_layers.0.layer_norm.* 512
feature_projection.layer_norm.* 512
feature_projection.projection.weight 768,512
feature_projection.projection.bias 768
encoder.pos_conv_embed.conv.bias 768
encoder.pos_conv_embed.conv.weight_g 1,1,128
encoder.pos_conv_embed.conv.weight_v 768,48,128
encoder.layer_norm.* 768
encoder.layers.0.attention.rel_attn_embed.weight 320,12
encoder.layers.{}.attention.gru_rel_pos_const 1,12,1,1
encoder.layers.{}.attention.gru_rel_pos_linear.weight 8,64
encoder.layers.{}.attention.gru_rel_pos_linear.bias 8
encoder.layers.{}.layer_norm.* 768
encoder.layers.{}.feed_forward.intermediate_dense.weight 3072,768
encoder.layers.{}.feed_forward.intermediate_dense.bias 3072
encoder.layers.{}.feed_forward.output_dense.weight 768,3072
encoder.layers.{}.feed_forward.output_dense.bias 768
encoder.layers.{}.final_layer_norm.* 768
encoder.layers.{}.adapter.down.weight 64,768
encoder.layers.{}.adapter.down.bias 64
encoder.layers.{}.adapter.up.weight 768,64
encoder.layers.{}.adapter.up.bias 768
"""


def base_plus_student():
    """{name: meta tensor} of that list, with the prefix of the published file."""
    lines = [line.rsplit(' ', 1) for line in BASE_PLUS.strip().splitlines()]
    lines += [(f'encoder.layers.{{}}.attention.{p}_proj.weight', '768,768') for p in 'qkv']
    lines += [(f'encoder.layers.{{}}.attention.{p}_proj.bias', '768') for p in 'qkv']
    lines += [('encoder.layers.{}.attention.out_proj.weight', '768,768')]
    lines += [('encoder.layers.{}.attention.out_proj.bias', '768')]
    lines += [(f'feature_extractor.conv_layers.{i}.conv.weight', '512,512,3') for i in (1, 2, 3, 4)]
    lines += [(f'feature_extractor.conv_layers.{i}.conv.weight', '512,512,2') for i in (5, 6)]
    state = {}
    for pattern, sizes in lines:
        shape = [int(size) for size in sizes.split(',')]
        for layer in range(12 if '{}' in pattern else 1):
            for part in ('weight', 'bias') if '*' in pattern else ('',):
                name = pattern.replace('{}', str(layer)).replace('*', part)
                state[f'module.wavlm.{name}'] = torch.empty(shape, device='meta')
    return state


@pytest.mark.parametrize('adapters, tensors', [(None, 248), (AdapterSettings(64), 296)])
def test_real_base_plus_names_and_shapes_load_strictly(adapters, tensors):
    with torch.device('meta'):
        encoder = SslEncoder(WAVLM_BASE, adapters=adapters)
    state = base_plus_student()
    if adapters is None:
        state = {name: x for name, x in state.items() if '.adapter.' not in name}
    assert len(state) == tensors == len(encoder.state_dict())
    load_encoder(encoder, hugging_face_names(state), 'the student')
    del state['module.wavlm.encoder.layers.11.final_layer_norm.bias']
    with pytest.raises(UserError, match=r'the student: .* 1 missing \(encoder\.layers\.11\.final_'):
        load_encoder(encoder, hugging_face_names(state), 'the student')
