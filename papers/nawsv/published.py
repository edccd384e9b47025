"""Reads and writes the files of the authors' layout, in which a run exports its own too.

A file is the bare state of one module, each key behind `module.` (spec nawsv 3.5). What it holds is
told by its keys, and how large it is by its shapes, so narrow models of a trial run are read alike.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from losses import EApn
from models import BackEnd, LinearHead
from shared import checkpoint
from shared.errors import UserError
from shared.models.adapters import AdapterSettings
from shared.models.ecapa_names import published_name
from shared.models.ssl_config import HUBERT_BASE, WAVLM_BASE, SslConfig
from shared.models.ssl_encoder import SslEncoder

CONTENTS = {  # kind: what it is called in messages
    'student': "a student's weights",
    'head': 'a linear head',
    'backend': 'a back-end',
    'criterion': 'an AAM criterion',
    'e_apn': 'the scale and bias of E-APN',
}
MODULES = {'student': SslEncoder, 'head': LinearHead, 'backend': BackEnd, 'e_apn': EApn}
FAMILIES = {'wavlm': WAVLM_BASE, 'hubert': HUBERT_BASE}
NEW_NORM = '.parametrizations.weight.original'  # 0 and 1 of today's weight norm: the old g and v
PARTS = {'weighted_sum.weight': 'w', 'projection': 'fc1', 'norm': 'bn1'}  # of the head


@dataclass(frozen=True)
class Published:
    """What a file holds, under the names of our modules."""

    kind: str  # a key of CONTENTS
    sizes: dict[str, Any]  # keyword arguments of the module that takes the state
    state: dict[str, Tensor]  # the criterion's: 'weight' (C, D) and 'class_weights' (C,)

    def module(self, config: SslConfig | None = None) -> nn.Module:
        """The module with these weights, in eval mode.

        What has no weights, such as strides, a student takes from `config`, that of the encoder it
        was made from; None: from the Base models, as the authors' files are.

        Raises:
            UserError: a student that does not fit `config`, or needs one.
        """
        own = self.sizes.get('config')
        if own and not config and own.conv_kernels != FAMILIES[own.family].conv_kernels:
            raise UserError('a student without the convolutions of a Base model needs its config')
        module = MODULES[self.kind](**self.sizes | ({'config': config} if own and config else {}))
        checkpoint.load_weights(module, self.state, CONTENTS[self.kind])
        return module.eval()


def read(path: str | Path) -> Published:
    """Reads a file strictly, with or without `module.`, in either spelling of the weight norm.

    Raises:
        UserError: the file cannot be read, or its entries are not those of spec nawsv 3.5.
    """
    return from_published(checkpoint.read(path), path)


def to_published(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of our module, of the criterion with 'class_weights', as the authors store it."""
    family = 'wavlm' if any('rel_attn_embed' in name for name in state) else 'hubert'
    name_of = _names(kind, family)
    return {f'module.{name_of(name)}': _shaped(kind, name, x) for name, x in state.items()}


def from_published(entries: dict[str, Tensor], source: str | Path) -> Published:
    """The inverse of `to_published`; `source` is named in errors.

    Raises:
        UserError: entries are missing, unexpected, of another shape or not finite.
    """
    plain = {_plain(key): value for key, value in _tensors(entries, source).items()}
    if len(plain) < len(entries):
        raise UserError(f'{source}: holds entries twice, in two spellings')
    kind, family = _kind(plain, source), next((f for f in FAMILIES if _has(plain, f)), 'wavlm')
    complaint = f'{source}: not {CONTENTS[kind]} as published'
    try:
        sizes = _student_sizes(plain, family) if kind == 'student' else SIZES[kind](plain)
        expected = {name: tuple(x.shape) for name, x in _template(kind, sizes).items()}
    except (ArithmeticError, RuntimeError, ValueError) as error:  # sizes that do not go together
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise UserError(f'{complaint} ({reason})') from None
    name_of = _names(kind, family)
    keys = {name: name_of(name) for name in expected}
    shapes = {
        keys[name]: tuple(_shaped(kind, name, torch.empty(shape, device='meta')).shape)
        for name, shape in expected.items()
    }
    broken = sorted(key for key, value in plain.items() if not value.isfinite().all())
    checkpoint.check_entries(plain, shapes, complaint, not_finite=broken)
    state = {name: plain[key].reshape(expected[name]) for name, key in keys.items()}
    return Published(kind, sizes, state)


def _tensors(entries: Any, source: str | Path) -> dict[str, Tensor]:
    named = isinstance(entries, dict) and all(isinstance(key, str) for key in entries)
    if not named or not entries or not all(isinstance(v, Tensor) for v in entries.values()):
        raise UserError(f'{source}: holds no bare state of named tensors')
    return entries


def _plain(key: str) -> str:
    """A key without `module.`, in the old spelling of the weight norm."""
    key = key.removeprefix('module.')
    return key.replace(f'{NEW_NORM}0', '.weight_g').replace(f'{NEW_NORM}1', '.weight_v')


def _has(entries: dict[str, Tensor], *parts: str) -> bool:
    """Whether a key is, or begins with, one of the dotted names."""
    return any(f'{key}.'.startswith(f'{part}.') for key in entries for part in parts)


def _kind(entries: dict[str, Tensor], source: str | Path) -> str:
    for kind, parts in {
        'student': tuple(FAMILIES),
        'backend': ('conv1', 'layer1', 'layer4', 'attention', 'fc6', 'bn6'),
        'head': ('fc1',),
        'criterion': ('fc', 'ce'),
        'e_apn': ('b',),
    }.items():
        if _has(entries, *parts):
            return kind
    raise UserError(
        f'{source}: no file of this paper (students begin with {" or ".join(FAMILIES)}); its '
        f'{len(entries)} entries begin with {", ".join(sorted(entries)[:3])}'
    )


def _names(kind: str, family: str) -> Callable[[str], str]:
    """The function from our name of an entry to theirs, without `module.`."""

    def part(name: str) -> str:
        module, _, leaf = name.rpartition('.')
        return PARTS.get(name) or f'{PARTS[module]}.{leaf}'

    def back_end(name: str) -> str:
        inner = name.removeprefix('network.')
        return part(name) if inner == name else published_name(inner, se_norm=False)

    return {
        'student': lambda name: f'{family}.{_plain(name)}',
        'head': part,
        'backend': back_end,
        'criterion': {'weight': 'fc', 'class_weights': 'ce.weight'}.__getitem__,
        'e_apn': lambda name: name,
    }[kind]


def _shaped(kind: str, name: str, value: Tensor) -> Tensor:
    """An entry in their shape: their weights of the states have more axes than ours (N,)."""
    if name != 'weighted_sum.weight':
        return value
    return value.reshape(-1, 1, 1) if kind == 'head' else value.reshape(1, -1, 1, 1)


def _axis(entries: dict[str, Tensor], key: str, axis: int, published: int) -> int:
    """Size of an axis; the published one where the entry is missing, which is said later."""
    value = entries.get(key)
    return value.shape[axis] if value is not None and value.ndim > axis else published


SIZES: dict[str, Callable[[dict[str, Tensor]], dict[str, int]]] = {
    'head': lambda entries: {
        'states': _axis(entries, 'w', 0, 13),
        'width': _axis(entries, 'fc1.weight', 1, 1536) // 2,
        'embed_size': _axis(entries, 'fc1.weight', 0, 192),
    },
    'backend': lambda entries: {
        'states': _axis(entries, 'w', 1, 13),
        'width': _axis(entries, 'conv1.weight', 1, 768),
        'embed_size': _axis(entries, 'fc6.weight', 0, 192),
        'channels': _axis(entries, 'conv1.weight', 0, 512),
        'mfa_width': _axis(entries, 'layer4.weight', 0, 1536),
        'attention_width': _axis(entries, 'attention.0.weight', 0, 256),
        'se_width': _axis(entries, 'layer1.se.se.1.weight', 0, 128),
    },
    'criterion': lambda entries: {
        'classes': _axis(entries, 'fc', 0, 1211),
        'dim': _axis(entries, 'fc', 1, 192),
    },
    'e_apn': lambda entries: {},
}


def _student_sizes(entries: dict[str, Tensor], family: str) -> dict[str, Any]:
    """Configuration and adapters of a student, as far as they have shapes."""
    inner = {key.removeprefix(f'{family}.'): value for key, value in entries.items()}
    conv, layer = 'feature_extractor.conv_layers', 'encoder.layers'

    def count(part: str) -> int:
        return len({m[1] for key in inner if (m := re.match(rf'{part}\.(\d+)\.', key))})

    width = _axis(inner, 'masked_spec_embed', 0, 768)
    base, convs = FAMILIES[family], range(count(conv))
    kernels = base.conv_kernels + (2,) * len(convs)
    config = replace(
        base,
        layers=count(layer),
        width=width,
        # 64 a head in every public HuBERT
        heads=_axis(inner, f'{layer}.0.attention.gru_rel_pos_const', 1, max(width // 64, 1)),
        ffn_width=_axis(inner, f'{layer}.0.feed_forward.intermediate_dense.weight', 0, 3072),
        conv_channels=tuple(_axis(inner, f'{conv}.{i}.conv.weight', 0, 512) for i in convs),
        conv_kernels=tuple(_axis(inner, f'{conv}.{i}.conv.weight', 2, kernels[i]) for i in convs),
        conv_strides=(base.conv_strides + (2,) * len(convs))[: len(convs)],
        position_kernel=_axis(inner, 'encoder.pos_conv_embed.conv.weight_v', 2, 128),
        position_groups=max(
            width // _axis(inner, 'encoder.pos_conv_embed.conv.weight_v', 1, 48), 1
        ),
        position_buckets=_axis(inner, f'{layer}.0.attention.rel_attn_embed.weight', 0, 320),
    )
    if not any('.adapter.' in key for key in inner):
        return {'config': config, 'adapters': None}
    hidden = _axis(inner, f'{layer}.0.adapter.down.weight', 0, 64)
    return {'config': config, 'adapters': AdapterSettings(width=hidden)}


def _template(kind: str, sizes: dict[str, Any]) -> dict[str, Tensor]:
    """Our state of these sizes, without memory."""
    with torch.device('meta'):
        if kind == 'criterion':
            weight = torch.empty(sizes['classes'], sizes['dim'])
            return {'weight': weight, 'class_weights': weight[:, 0]}
        return MODULES[kind](**sizes).state_dict()
