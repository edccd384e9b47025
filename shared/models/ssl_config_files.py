"""The structure of an SSL encoder, as checkpoint files tell it: config.json, settings, shapes."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from shared.errors import UserError
from shared.models.ssl_config import FAMILIES, SslConfig
from shared.models.ssl_names import LAYER

# Field of SslConfig -> (name in config.json, what transformers takes when it is absent).
HUGGING_FACE = {
    'layers': ('num_hidden_layers', 12),
    'width': ('hidden_size', 768),
    'heads': ('num_attention_heads', 12),
    'ffn_width': ('intermediate_size', 3072),
    'conv_channels': ('conv_dim', [512] * 7),
    'conv_kernels': ('conv_kernel', [10, 3, 3, 3, 3, 2, 2]),
    'conv_strides': ('conv_stride', [5, 2, 2, 2, 2, 2, 2]),
    'conv_bias': ('conv_bias', False),
    'conv_norm': ('feat_extract_norm', 'group'),
    'projection_norm': ('feat_proj_layer_norm', True),  # HuBERT's alone can be switched off
    'pre_norm': ('do_stable_layer_norm', False),
    'position_kernel': ('num_conv_pos_embeddings', 128),
    'position_groups': ('num_conv_pos_embedding_groups', 16),
    'position_buckets': ('num_buckets', 320),
    'position_distance': ('max_bucket_distance', 800),
    'dropout': ('hidden_dropout', 0.1),
    'attention_dropout': ('attention_dropout', 0.1),
    'activation_dropout': ('activation_dropout', 0.1),
    'projection_dropout': ('feat_proj_dropout', 0.0),
    'layer_drop': ('layerdrop', 0.1),
    'norm_eps': ('layer_norm_eps', 1e-5),
}
ARCHITECTURES = {'wavlm': 'WavLMModel', 'hubert': 'HubertModel', 'wav2vec2': 'Wav2Vec2Model'}
HUGGING_FACE_FIXED = {  # what SslEncoder is built for
    'hidden_act': 'gelu',
    'feat_extract_activation': 'gelu',
    'conv_pos_batch_norm': False,
    'add_adapter': False,
    'adapter_attn_dim': None,
}
# Field of SslConfig -> name in the settings of fairseq and of Microsoft's WavLM.
FAIRSEQ_RATES = {
    'dropout': 'dropout',
    'attention_dropout': 'attention_dropout',
    'activation_dropout': 'activation_dropout',
    'projection_dropout': 'dropout_input',
    'layer_drop': 'encoder_layerdrop',
}
HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16}  # of the published models, by width
PUBLISHED_CONVS = ((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))  # kernels, strides


def hugging_face_config(folder: Path) -> SslConfig:
    """From config.json and, where it is there, preprocessor_config.json.

    Without the latter, models with layer norm in the convolutions normalise their waves.

    Raises:
        UserError: unreadable, or of another kind of model.
    """
    path = folder / 'config.json'
    stored = _json(path)
    family = stored.get('model_type')
    if family not in FAMILIES:
        raise UserError(f'{path}: model_type {family!r} is none of {", ".join(FAMILIES)}')
    for name, value in HUGGING_FACE_FIXED.items():
        if stored.get(name, value) != value:
            raise UserError(f'{path}: {name} {stored[name]!r} is not supported, only {value!r}')
    values = {field: stored.get(name, default) for field, (name, default) in HUGGING_FACE.items()}
    for field, value in values.items():
        if isinstance(value, list):
            values[field] = tuple(value)
    if family != 'hubert':
        values['projection_norm'] = True
    processor = folder / 'preprocessor_config.json'
    normalise = _json(processor).get('do_normalize') if processor.exists() else None
    if normalise is None:
        normalise = values['conv_norm'] == 'layer'
    try:
        return SslConfig(family=family, normalise_wave=bool(normalise), **values)
    except (ValueError, TypeError) as error:
        raise UserError(f'{path}: {error}') from None


def hugging_face_json(config: SslConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json and preprocessor_config.json of a model.

    Raises:
        ValueError: a structure that transformers has no setting for.
    """
    if not config.projection_norm and config.family != 'hubert':
        raise ValueError(f'{config.family} without projection_norm: only HuBERT can be stored so')
    model: dict[str, Any] = {
        'architectures': [ARCHITECTURES[config.family]],
        'model_type': config.family,
    }
    model |= {name: getattr(config, field) for field, (name, _) in HUGGING_FACE.items()}
    model |= {'hidden_act': 'gelu', 'feat_extract_activation': 'gelu', 'dtype': 'float32'}
    model['num_feat_extract_layers'] = len(config.conv_channels)
    processor = {
        'feature_extractor_type': 'Wav2Vec2FeatureExtractor',
        'do_normalize': config.normalise_wave,
        'feature_size': 1,
        'padding_side': 'right',
        'padding_value': 0,
        'return_attention_mask': config.conv_norm == 'layer',
        'sampling_rate': 16000,
    }
    return model, processor


def deduced_config(
    state: Mapping[str, Tensor],
    family: str,
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
    source: str,
) -> SslConfig:
    """From the shapes of the tensors, and from settings where shapes do not tell.

    `given` goes first. Else heads: WavLM's tensors, settings, the published models of this width;
    strides: settings, the published models with these kernels; pre-norm and normalised waves:
    settings, else when the convolutions have layer norm, as in every published model.

    Args:
        state: under Hugging Face's names.
        family: 'wavlm', 'hubert' or 'wav2vec2'.
        settings: of fairseq or Microsoft, flat (`flat_settings`); empty: none in the file.
        given: fields of SslConfig that the caller knows better.
        source: its name in an error.

    Raises:
        UserError: a tensor is missing, or neither shapes nor settings tell a field.
    """
    values = _told_by_shapes(state, family, source)
    layer_norm = values['conv_norm'] == 'layer'
    kernels, strides = PUBLISHED_CONVS
    guesses = {
        'heads': settings.get('encoder_attention_heads', HEADS.get(values['width'])),
        'conv_strides': _strides(settings)
        or (strides if values['conv_kernels'] == kernels else None),
        'pre_norm': _flag(settings, 'layer_norm_first', layer_norm),
        'normalise_wave': _flag(settings, 'normalize', layer_norm),
        'position_distance': settings.get('max_distance', 800),
    }
    rates = {field: settings.get(key) for field, key in FAIRSEQ_RATES.items()}
    values = guesses | values
    values |= {field: rate for field, rate in rates.items() if isinstance(rate, int | float)}
    values |= {field.name: given[field.name] for field in fields(SslConfig) if field.name in given}
    untold = [field for field in ('heads', 'conv_strides') if values[field] is None]
    if untold:
        raise UserError(f'{source}: the weights do not tell {untold[0]}; give it as an argument')
    try:
        return SslConfig(**{'family': family, **values})
    except (ValueError, TypeError) as error:
        raise UserError(f'{source}: {error}') from None


def _told_by_shapes(state: Mapping[str, Tensor], family: str, source: str) -> dict[str, Any]:
    """The fields of SslConfig that names and shapes of the tensors tell."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in state:
            raise UserError(f'{source}: incomplete weights: missing {name}')
        if state[name].dim() != axes or state[name].numel() == 0:
            wrong = tuple(state[name].shape)
            raise UserError(f'{source}: weights of another model: {name} of shape {wrong}')
        return tuple(state[name].shape)

    convs = [shape(f'feature_extractor.conv_layers.{i}.conv.weight', 3) for i in _convs(state)]
    layers = [int(match[1]) for name in state if (match := LAYER.match(name))]
    first = 'encoder.layers.0.'
    position = 'encoder.pos_conv_embed.conv.parametrizations.weight.original'
    width = shape('feature_projection.projection.weight', 2)[0]
    layer_norm = 'feature_extractor.conv_layers.1.layer_norm.weight' in state
    values = {
        'layers': max(layers, default=0) + 1,
        'width': width,
        'ffn_width': shape(f'{first}feed_forward.intermediate_dense.weight', 2)[0],
        'conv_channels': tuple(conv[0] for conv in convs),
        'conv_kernels': tuple(conv[2] for conv in convs),
        'conv_bias': 'feature_extractor.conv_layers.0.conv.bias' in state,
        'conv_norm': 'layer' if layer_norm else 'group',
        'projection_norm': 'feature_projection.layer_norm.weight' in state,
        'position_kernel': shape(f'{position}0', 3)[2],
        'position_groups': width // shape(f'{position}1', 3)[1],
    }
    if family == 'wavlm':
        values['heads'] = shape(f'{first}attention.gru_rel_pos_const', 4)[1]
        values['position_buckets'] = shape(f'{first}attention.rel_attn_embed.weight', 2)[0]
    return values


def flat_settings(settings: Any) -> dict[str, Any]:
    """fairseq's settings as one level; those of the pre-trained model win (`w2v_args`)."""
    if not isinstance(settings, dict):
        return {}
    flat = {key: value for key, value in settings.items() if not isinstance(value, dict)}
    for section in ('task', 'model', 'w2v_args'):
        flat |= flat_settings(settings.get(section))
    return {key: value for key, value in flat.items() if value is not None}


def _json(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read ({error})') from None
    if not isinstance(stored, dict):
        raise UserError(f'{path}: not the settings of a model')
    return stored


def _convs(state: Mapping[str, Tensor]) -> range:
    pattern = re.compile(r'feature_extractor\.conv_layers\.(\d+)\.')
    return range(max(int(match[1]) for name in state if (match := pattern.match(name))) + 1)


def _flag(settings: Mapping[str, Any], key: str, default: bool) -> bool:
    """A switch; fairseq may store a reference to another setting ('${task.normalize}') instead."""
    value = settings.get(key)
    return value if isinstance(value, bool) else default


def _strides(settings: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Of a text such as '[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2'."""
    text = settings.get('conv_feature_layers')
    if not isinstance(text, str):
        return None
    strides: list[int] = []
    for group, times in re.findall(r'\[([^\]]*)\](?:\s*\*\s*(\d+))?', text):
        found = re.findall(r'\(\s*\d+\s*,\s*\d+\s*,\s*(\d+)\s*\)', group)
        strides += [int(stride) for stride in found] * int(times or 1)
    return tuple(strides) or None
