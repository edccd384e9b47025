"""Layouts of what speaker systems on SSL encoders are made of: student, back-ends, classifier."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from shared.models.adapters import AdapterSettings
from shared.models.ecapa_names import published_name
from shared.models.ssl_backends import EcapaBackEnd, LinearBackEnd
from shared.models.ssl_config import SslConfig
from shared.models.ssl_config_files import deduced_config
from shared.models.ssl_encoder import SslEncoder
from shared.models.ssl_names import LAYER
from shared.published.layout import NEW_NORM, Entries, Form, axis, old_spelling

CONV = re.compile(r'feature_extractor\.conv_layers\.(\d+)\.')
ADAPTER_PART = re.compile(r'(?<=\d\.)adapter\.(norm|down|up)(?=\.)')
HEAD_WIDTH = 64  # features of an attention head in every published model
UNSHAPED = (  # fields of a configuration that leave no trace in the weights
    'position_distance',
    'dropout',
    'attention_dropout',
    'activation_dropout',
    'projection_dropout',
    'layer_drop',
    'norm_eps',
)
STATE_WEIGHTS = 'weighted_sum.weight'
LINEAR_PARTS = {STATE_WEIGHTS: 'w', 'projection': 'fc1', 'norm': 'bn1'}


def student_form(
    base: SslConfig,
    prefix: str,
    adapter: Mapping[str, str],
    settings: AdapterSettings,
    *,
    marks: tuple[str, ...],
    own: str = '',
) -> Form:
    """Layout of a student of HuBERT, WavLM or wav2vec 2.0 (specs nawsv 3.5, oskdft 3.6).

    Its sizes are 'config' and 'adapters', the latter None without adapters. Waves are taken as
    they are, whatever the recipe of `base` says.

    Args:
        base: the published model whose family and rates are the student's.
        prefix: before each of Hugging Face's names, such as 'wavlm.'.
        adapter: 'norm', 'down', 'up' -> what their adapter in a layer calls them.
        settings: of the adapters, as far as no shape tells them.
        marks: as in `Form`.
        own: as in `Form`.
    """

    def name(ours: str) -> str:
        return prefix + old_spelling(ADAPTER_PART.sub(lambda found: adapter[found[1]], ours))

    def sizes(entries: Entries) -> dict[str, Any]:
        inner = {key.removeprefix(prefix): value for key, value in entries.items()}
        return {
            'config': _student_config(inner, base),
            'adapters': _adapters(inner, adapter, settings),
        }

    return Form('student', "a student's weights", marks, sizes, SslEncoder, name, own=own)


def linear_form(kind: str, called: str, *, last_state: bool = False) -> Form:
    """Layout of a `LinearBackEnd` (specs nawsv 3.5, oskdft 3.6).

    Args:
        kind: as in `Form`.
        called: as in `Form`.
        last_state: whether a file without weights of the states takes the last one.
    """

    def name(ours: str) -> str:
        module, _, leaf = ours.rpartition('.')
        return LINEAR_PARTS.get(ours) or f'{LINEAR_PARTS[module]}.{leaf}'

    def sizes(entries: Entries) -> dict[str, Any]:
        return {
            'states': _states(entries, 0, last_state),
            'width': axis(entries, 'fc1.weight', 1, 1536) // 2,
            'embed_size': axis(entries, 'fc1.weight', 0, 192),
        }

    shapes = {STATE_WEIGHTS: (-1, 1, 1)}
    return Form(kind, called, ('fc1',), sizes, LinearBackEnd, name, shapes, own='projection.')


def ecapa_form(kind: str, called: str, *, last_state: bool = False) -> Form:
    """Layout of an `EcapaBackEnd` (specs nawsv 3.5, oskdft 3.6); arguments as `linear_form`."""

    def name(ours: str) -> str:
        inner = ours.removeprefix('network.')
        return 'w' if ours == STATE_WEIGHTS else published_name(inner, se_norm=False)

    def sizes(entries: Entries) -> dict[str, Any]:
        return {
            'states': _states(entries, 1, last_state),
            'width': axis(entries, 'conv1.weight', 1, 768),
            'embed_size': axis(entries, 'fc6.weight', 0, 192),
            'channels': axis(entries, 'conv1.weight', 0, 512),
            'mfa_width': axis(entries, 'layer4.weight', 0, 1536),
            'attention_width': axis(entries, 'attention.0.weight', 0, 256),
            'se_width': axis(entries, 'layer1.se.se.1.weight', 0, 128),
        }

    marks = ('conv1', 'layer1', 'layer4', 'attention', 'fc6', 'bn6')
    shapes = {STATE_WEIGHTS: (1, -1, 1, 1)}
    return Form(kind, called, marks, sizes, EcapaBackEnd, name, shapes, own='network.')


def classifier_form(
    kind: str, called: str, names: Mapping[str, str], marks: tuple[str, ...], *, own: str = ''
) -> Form:
    """Layout of a classifier as named tensors: 'weight' (C, D), 'class_weights' (C,), 'bias' (C,).

    Its sizes are 'classes', C, and 'dim', D.

    Args:
        kind: as in `Form`.
        called: as in `Form`.
        names: ours -> theirs, for those of the three that it has.
        marks: as in `Form`.
        own: as in `Form`.
    """

    def make(classes: int, dim: int) -> nn.ParameterDict:
        shapes = {name: (classes, dim) if name == 'weight' else (classes,) for name in names}
        return nn.ParameterDict({name: torch.empty(shape) for name, shape in shapes.items()})

    def sizes(entries: Entries) -> dict[str, Any]:
        weight = names['weight']
        return {'classes': axis(entries, weight, 0, 1211), 'dim': axis(entries, weight, 1, 192)}

    return Form(kind, called, marks, sizes, make, names.__getitem__, own=own)


def _states(entries: Entries, number: int, last_state: bool) -> int | None:
    return None if last_state and 'w' not in entries else axis(entries, 'w', number, 13)


def _student_config(inner: Entries, base: SslConfig) -> SslConfig:
    """What the shapes tell, and the rest from `base`; of entries that are missing, its shapes."""
    told = {
        re.sub('weight_([gv])$', lambda m: f'{NEW_NORM[1:]}{"gv".index(m[1])}', key): value
        for key, value in inner.items()
    }
    found = [(int(match[1]), key[match.end() :]) for key in told if (match := CONV.match(key))]
    convs = max((number + 1 for number, _ in found), default=0)
    parts = {part for number, part in found if number}  # that all convolutions should have
    layers = len({match[1] for key in told if (match := LAYER.match(key))})
    with torch.device('meta'):
        published = SslEncoder(base, layers=1).state_dict()
    for name, value in published.items():
        own, conv = told.get(name), CONV.match(name)
        if own is not None and own.ndim == value.ndim and own.numel() > 0:
            continue
        if conv is None or (int(conv[1]) < convs and name[conv.end() :] in parts):
            told[name] = value
    width = told['feature_projection.projection.weight'].shape[0]
    kernel = told[f'encoder.pos_conv_embed.conv{NEW_NORM}1']
    given = {name: getattr(base, name) for name in UNSHAPED} | {
        'layers': layers,
        'conv_strides': (base.conv_strides + (2,) * len(told))[:convs],
        'position_groups': max(width // kernel.shape[1], 1),
        'normalise_wave': False,
    }
    if base.family != 'wavlm':
        given['heads'] = max(width // HEAD_WIDTH, 1)
    return deduced_config(told, base.family, {}, given, 'the weights')


def _adapters(
    inner: Entries, names: Mapping[str, str], settings: AdapterSettings
) -> AdapterSettings | None:
    def has_part(part: str) -> bool:
        return any(re.match(rf'{LAYER.pattern}{re.escape(names[part])}\.', key) for key in inner)

    parts = {part for part in names if has_part(part)}
    if not parts:
        return None
    width = axis(inner, f'encoder.layers.0.{names["down"]}.weight', 0, settings.width)
    return replace(settings, width=width, norm='norm' in parts)
