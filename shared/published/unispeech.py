"""Reads and writes WavLM + ECAPA-TDNN in the layout of microsoft/UniSpeech (spec enskd 3.5, 3.7).

Theirs is {'model': state, 'best_valid_eer': percent}. The state of wavlm_large_finetune.pth has 711
tensors: the WavLM under Microsoft's names behind `feature_extract.model.` (488), the back-end, and
the classifier it was trained with. What it holds is told by names and shapes, so narrow models, and
those on a WavLM-Base, are read alike:

```
found = unispeech.read(path)
teacher = found.module()  # SslSpeakerEncoder, waves (B, L) to embeddings (B, D), in eval mode
found.sizes  # {'config': SslConfig, 'backend': {'states': 25, 'width': 1024, ...}}
classifier = found.beside.get('classifier')  # None: the file has none
classifier.state['weight']  # (C, D); classifier.sizes is {'classes': C, 'dim': D}
```
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from shared.errors import UserError
from shared.models.adapters import AdapterSettings
from shared.models.ssl_backends import EcapaSmallBackEnd, SslSpeakerEncoder
from shared.models.ssl_config import WAVLM_LARGE, SslConfig
from shared.models.ssl_encoder import SslEncoder
from shared.models.ssl_names import hugging_face_names
from shared.models.weights_only import read_torch_file
from shared.published.layout import Entries, Form, Published, axis, has, plain_entries
from shared.published.speaker_forms import classifier_form, student_form
from shared.published.wavlm_names import microsoft_name

WAVLM = 'feature_extract.model.'
CLASSIFIER = 'loss_calculator.projection.weight'
STEM, SQUEEZE = 'layer1.conv.weight', 'layer2.SE_Connect.linear1.weight'
LAYER_NORMS = tuple(f'{WAVLM}feature_extractor.conv_layers.{i}.2.1' for i in range(7))
MODULES = {  # of `EcapaSmall` -> theirs, outside the blocks
    'stem.conv': 'layer1.conv',
    'stem.norm': 'layer1.bn',
    'mfa': 'conv',
    'pooling.hidden': 'pooling.linear1',
    'pooling.score': 'pooling.linear2',
    'pooled_norm': 'bn',
    'projection': 'linear',
}
BLOCK_MODULES = {
    'expand.conv': 'Conv1dReluBn1.conv',
    'expand.norm': 'Conv1dReluBn1.bn',
    'merge.conv': 'Conv1dReluBn2.conv',
    'merge.norm': 'Conv1dReluBn2.bn',
    'excitation.squeeze.conv': 'SE_Connect.linear1',
    'excitation.excite': 'SE_Connect.linear2',
}
SHAPES = student_form(WAVLM_LARGE, '', {}, AdapterSettings(), marks=())  # what they tell of a WavLM
HEAD = classifier_form('classifier', 'a classifier', {'weight': CLASSIFIER}, (CLASSIFIER,))


def read(path: str | Path) -> Published:
    """Reads a file strictly; a classifier that it lacks is missing from `beside`, and no error.

    Raises:
        UserError: the file cannot be read, or its entries are not those of such a model.
    """
    return from_published(read_torch_file(path), path)


def from_published(content: Any, source: str | Path) -> Published:
    """The inverse of `to_published`, or of its state alone; `source` is named in errors.

    Raises:
        UserError: as `read`.
    """
    if isinstance(content, dict) and isinstance(content.get('model'), dict):
        content = content['model']
    plain = plain_entries(content, source)
    if not has(plain, WAVLM[:-1]):
        begin = ', '.join(sorted(plain)[:3])
        raise UserError(
            f'{source}: no speaker model on a WavLM (nothing begins with {WAVLM}); its '
            f'{len(plain)} entries begin with {begin}'
        )
    inside = {CLASSIFIER: plain.pop(CLASSIFIER)} if CLASSIFIER in plain else {}
    norm = 'layer' if has(plain, *LAYER_NORMS) else 'group'
    gate = axis(plain, SQUEEZE, 0, 128), axis(plain, STEM, 0, 512)
    found = _form(norm, *gate).read(plain, source)
    if inside:
        found.beside['classifier'] = classifier = HEAD.read(inside, source)
        widths = classifier.sizes['dim'], found.sizes['backend']['embed_size']
        if len(set(widths)) > 1:
            raise UserError(f'{source}: its classifier is of {widths[0]}, not {widths[1]} features')
    return found


def to_published(
    state: Mapping[str, Tensor], classifier: Tensor | None = None, valid_eer: float | None = None
) -> dict[str, Any]:
    """A model as the authors store it, for `shared.weight_files.write`.

    Args:
        state: of an `SslSpeakerEncoder` of WavLM and `EcapaSmallBackEnd`.
        classifier: (C, D), the weight of the AAM softmax it was trained with; None: none.
        valid_eer: percent, the best in validation; None: not known.
    """
    squeeze = state['backend.network.blocks.0.excitation.squeeze.conv.weight']
    layered = 'encoder.feature_extractor.conv_layers.1.layer_norm.weight' in state
    entries = _form('layer' if layered else 'group', *squeeze.shape[:2]).write(state)
    entries = {key.removeprefix('module.'): value for key, value in entries.items()}
    if classifier is not None:
        entries[CLASSIFIER] = classifier
    return {'model': entries, 'best_valid_eer': valid_eer}


def _form(conv_norm: str, se_width: int, channels: int) -> Form:
    """The layout on a WavLM whose convolutions have this norm, without the classifier.

    Its sizes are 'config' and 'backend', keyword arguments of the back-end.
    """
    shapes = {}  # the excitation is of linear layers, ours of convolutions with one tap
    for block in range(3):
        gate = f'backend.network.blocks.{block}.excitation'
        shapes[f'{gate}.squeeze.conv.weight'] = (se_width, channels)
        shapes[f'{gate}.excite.weight'] = (channels, se_width)

    def name(ours: str) -> str:
        part, _, inner = ours.partition('.')
        if part == 'encoder':
            return WAVLM + microsoft_name(inner, conv_norm)
        return _backend_name(inner)

    called = 'a WavLM with an ECAPA-TDNN'
    return Form('speaker', called, (WAVLM[:-1],), _sizes, _model, name, shapes)


def _model(config: SslConfig, backend: Mapping[str, int]) -> SslSpeakerEncoder:
    if backend['states'] != config.layers + 1:
        raise ValueError(f'{backend["states"]} states of an encoder with {config.layers} layers')
    return SslSpeakerEncoder(SslEncoder(config), EcapaSmallBackEnd(**backend))


def _sizes(entries: Entries) -> dict[str, Any]:
    wavlm = {k.removeprefix(WAVLM): x for k, x in entries.items() if k.startswith(WAVLM)}
    config = SHAPES.sizes(hugging_face_names(wavlm))['config']
    # no weight tells: all published models with layer norm in the convolutions normalise waves
    config = replace(config, normalise_wave=config.conv_norm == 'layer')
    return {
        'config': config,
        'backend': {
            'states': axis(entries, 'feature_weight', 0, config.layers + 1),
            'width': axis(entries, STEM, 1, config.width),
            'embed_size': axis(entries, 'linear.weight', 0, 256),
            'channels': axis(entries, STEM, 0, 512),
            'mfa_width': axis(entries, 'conv.weight', 0, 1536),
            'attention_width': axis(entries, 'pooling.linear1.weight', 0, 128),
            'se_width': axis(entries, SQUEEZE, 0, 128),
        },
    }


def _backend_name(ours: str) -> str:
    """Theirs of an entry of `EcapaSmallBackEnd`."""
    if ours == 'state_scores':
        return 'feature_weight'
    module, _, leaf = ours.removeprefix('network.').rpartition('.')
    if not module.startswith('blocks.'):
        return f'{MODULES[module]}.{leaf}'
    _, block, rest = module.split('.', 2)
    if rest.startswith('branches.'):
        _, branch, part = rest.split('.')
        theirs = f'Res2Conv1dReluBn.{"convs" if part == "conv" else "bns"}.{branch}'
    else:
        theirs = BLOCK_MODULES[rest]
    return f'layer{int(block) + 2}.{theirs}.{leaf}'
