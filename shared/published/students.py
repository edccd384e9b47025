"""Files of small speaker networks on mel features: x-vector, ResNet34, CAM++ (spec enskd 3.7, 3.8).

Such a file is a flat state, the classifier of its training beside it as `projection.weight`. Our
modules have the published names, so entries are checked, not renamed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from shared import weight_files
from shared.errors import UserError
from shared.models.campplus import CamPlusPlus
from shared.models.resnet import ResNet34
from shared.models.tdnn import XVector
from shared.published.layout import Entries, Form, Layout, Published, axis, plain_entries
from shared.published.speaker_forms import classifier_form

WRAPPERS = ('model', 'state_dict')  # keys below which some programs put the state
PROJECTION = 'projection.'
COUNTER = 'num_batches_tracked'
STRIDE = 8  # of ResNet34 and CAM++, in bins


def read(path: str | Path) -> Published:
    """Reads a file strictly, with or without `module.`, below 'model' or 'state_dict' or not.

    Its kind is 'xvector', 'resnet34' or 'campplus', its sizes those of the module; the classifier
    is `beside['classifier']`, state 'weight' (C, D), where the file has one. The counters of batch
    norms, fractional in averaged files, are int64.

    Raises:
        UserError: the file cannot be read, or its entries are not those of one of the networks.
    """
    return from_published(weight_files.read(path), path)


def from_published(entries: Any, source: str | Path) -> Published:
    """The inverse of `to_published`, as `read`; `source` is named in errors."""
    for wrapper in WRAPPERS:
        if isinstance(entries, dict) and isinstance(entries.get(wrapper), dict):
            entries = entries[wrapper]
    plain = plain_entries(entries, source)
    form = LAYOUT.form_of(plain, source)
    projection = {key: plain.pop(key) for key in list(plain) if key.startswith(PROJECTION)}
    found = form.read(plain, source)
    for key, value in found.state.items():
        if key.endswith(COUNTER):
            found.state[key] = value.round().long()
    if projection:
        found.beside['classifier'] = classifier = CLASSIFIER.read(projection, source)
        sizes = classifier.sizes['dim'], found.sizes['dim']
        if len(set(sizes)) > 1:
            raise UserError(f'{source}: its classifier is of {sizes[0]}, not {sizes[1]} features')
    return found


def to_published(state: Mapping[str, Tensor], classifier: Tensor | None = None) -> Entries:
    """The state of one of the networks as the authors store it, without `module.`.

    Args:
        state: of `XVector`, `ResNet34` or `CamPlusPlus`.
        classifier: (C, D) weight of the classifier; None: a file without.

    Raises:
        UserError: the state of another module.
    """
    entries = dict(state)
    if classifier is not None:
        entries[f'{PROJECTION}weight'] = classifier
    from_published(entries, 'the state to be written')
    return entries


def _xvector_sizes(entries: Entries) -> dict[str, Any]:
    return {
        'dim': axis(entries, 'seg_2.weight', 0, 512),
        'n_mels': axis(entries, 'frame_1.conv_1d.weight', 1, 80),
        'width': axis(entries, 'frame_1.conv_1d.weight', 0, 512),
        'last_width': axis(entries, 'frame_5.conv_1d.weight', 0, 1500),
    }


def _resnet34_sizes(entries: Entries) -> dict[str, Any]:
    width = axis(entries, 'conv1.weight', 0, 32)
    pooled = axis(entries, 'seg_1.weight', 1, 5120)  # mean and deviation of 8 * width channels
    return {
        'dim': axis(entries, 'seg_1.weight', 0, 256),
        'n_mels': max(pooled // (2 * 8 * width), 1) * STRIDE,
        'width': width,
        'blocks': _counts(entries, r'layer{}\.(\d+)\.', (3, 4, 6, 3)),
    }


def _campplus_sizes(entries: Entries) -> dict[str, Any]:
    width = axis(entries, 'head.conv1.weight', 0, 32)
    local = 'xvector.block1.tdnnd1.cam_layer.linear_local.weight'
    rows = axis(entries, 'xvector.tdnn.linear.weight', 1, 320) // width  # of the head's output
    return {
        'dim': axis(entries, 'xvector.dense.linear.weight', 0, 512),
        'n_mels': max(rows, 1) * STRIDE,
        'growth': axis(entries, local, 0, 32),
        'blocks': _counts(entries, r'xvector\.block{}\.tdnnd(\d+)\.', (12, 24, 16)),
        'head_width': width,
    }


def _counts(entries: Entries, pattern: str, published: tuple[int, ...]) -> tuple[int, ...]:
    """Blocks of each stage; the published number where a stage is missing, which is said later."""
    counts = []
    for stage, usual in enumerate(published, start=1):
        own = re.compile(pattern.format(stage))
        counts.append(len({match[1] for key in entries if (match := own.match(key))}) or usual)
    return tuple(counts)


# our modules have the published names: `str` leaves them as they are
LAYOUT = Layout(
    (
        Form('campplus', 'a CAM++', ('xvector', 'head'), _campplus_sizes, CamPlusPlus, str),
        Form(
            'resnet34',
            'a ResNet34',
            ('conv1', 'bn1', *(f'layer{number}.0' for number in range(1, 5))),
            _resnet34_sizes,
            ResNet34,
            str,
        ),
        Form(
            'xvector',
            'an x-vector network',
            tuple(f'frame_{number}' for number in range(1, 6)),
            _xvector_sizes,
            XVector,
            str,
        ),
    ),
    hint='an x-vector has frame_1, a ResNet34 layer1.0, a CAM++ head and xvector',
)
CLASSIFIER = classifier_form(
    'classifier', 'the classifier', {'weight': f'{PROJECTION}weight'}, ('projection',)
)
