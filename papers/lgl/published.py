"""Reads the authors' published Stage I and Stage II checkpoint files into our modules.

The layout is in spec lgl 4.4: the bare state of their whole trainer, 265 entries after Stage I and
250 after Stage II, encoder width and number of clusters implied by the shapes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared import weight_files
from shared.errors import UserError
from shared.models.ecapa_names import published_name
from shared.models.ecapa_tdnn import EcapaTdnn
from shared.models.frontend import LogMel

NORM_LEAVES = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
# (our module, their module, shape of the weight, whether it is a batch norm)
DISCRIMINATOR_MODULES = (
    ('input_norm', '0.0', (384,), True),
    ('hidden', '0.2', (512, 384), False),
    ('hidden_norm', '1.0', (512,), True),
    ('output', '1.2', (2, 512), False),
)
FRONTEND_TOLERANCE = 1e-3  # their filters come from another version of torchaudio


@dataclass(frozen=True)
class Published:
    """What a published file holds; what its stage does not have is None."""

    kind: str  # 'stage1' or 'stage2'
    width: int  # channels of the encoder
    encoder: dict[str, Tensor]  # state of EcapaTdnn(width)
    discriminator: dict[str, Tensor] | None  # stage 1: state of AugmentationDiscriminator
    scale: float | None  # stage 1: w of the contrastive loss
    bias: float | None  # stage 1: b of the contrastive loss
    classifier: Tensor | None  # stage 2: (clusters, 192), weight of AamSoftmax


def read(path: str | Path) -> Published:
    """Reads a file strictly, with or without the prefix `module.`.

    Raises:
        UserError: the file cannot be read, or its entries are not those of spec lgl 4.4.
    """
    state = _load(path)
    stem = state.get('Network.conv1.weight')
    if stem is None or stem.ndim != 3 or stem.shape[0] % 8:
        raise UserError(
            f'{path}: not a published LGL checkpoint, as Network.conv1.weight is missing or no '
            f'convolution of 8n channels; its {len(state)} entries begin with {sorted(state)[:3]}'
        )
    width = stem.shape[0]
    with torch.device('meta'):
        shapes = {name: tuple(t.shape) for name, t in EcapaTdnn(width=width).state_dict().items()}
    encoder = {name: f'Network.{published_name(name)}' for name in shapes}  # ours -> theirs
    expected = {theirs: shapes[ours] for ours, theirs in encoder.items()}
    frontend = _frontend_entries()
    expected |= {key: tuple(value.shape) for key, value in frontend.items()}

    discriminator: dict[str, str] = {}
    if 'Loss.weight' in state:
        expected['Loss.weight'] = (
            state['Loss.weight'].shape[0],
            shapes['embedding_norm.weight'][0],
        )
    else:
        names = _discriminator_entries()
        discriminator = {ours: theirs for ours, (theirs, _) in names.items()}
        expected |= dict(names.values()) | {'Loss.w': (), 'Loss.b': ()}
    weight_files.check_entries(
        state,
        expected,
        f'{path}: not a published LGL checkpoint',
        not_finite=sorted(key for key, value in state.items() if not value.isfinite().all()),
        of_another_front_end=_other_frontend(state, frontend),
    )

    first = bool(discriminator)
    return Published(
        kind='stage1' if first else 'stage2',
        width=width,
        encoder={ours: state[theirs] for ours, theirs in encoder.items()},
        discriminator={o: state[t] for o, t in discriminator.items()} if first else None,
        scale=float(state['Loss.w']) if first else None,
        bias=float(state['Loss.b']) if first else None,
        classifier=None if first else state['Loss.weight'],
    )


def weights_of(path):
    """Weights of the ECAPA-TDNN in any file of a run, or in one the authors published."""
    state = weight_files.read(path)
    if any('Network.' in name for name in state):
        return read(path).encoder
    prefix = 'encoder.network.'  # a framework's state; encoder.pt has no prefix
    inner = {name[len(prefix) :]: x for name, x in state.items() if name.startswith(prefix)}
    weights = inner or state
    if 'stem.conv.weight' not in weights:
        raise UserError(
            f'{path}: holds no encoder of this paper; it begins with {sorted(state)[:3]}'
        )
    return weights


def _load(path: str | Path) -> dict[str, Tensor]:
    state = weight_files.read(path)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f'{path}: holds no bare state of named tensors')
    return {key.removeprefix('module.'): value for key, value in state.items()}


def _discriminator_entries() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Our name -> (their name, shape) of the 14 entries of the discriminator."""
    entries = {}
    for ours, theirs, shape, is_norm in DISCRIMINATOR_MODULES:
        for leaf in NORM_LEAVES if is_norm else ('weight', 'bias'):
            size = {'weight': shape, 'num_batches_tracked': ()}.get(leaf, shape[:1])
            entries[f'{ours}.{leaf}'] = (f'AATNet.matcher.{theirs}.{leaf}', size)
    return entries


def _frontend_entries() -> dict[str, Tensor]:
    """The constants of the front-end they store."""
    frontend = LogMel()
    return {
        'Network.torchfbank.0.flipped_filter': torch.tensor([[[-frontend.pre_emphasis, 1.0]]]),
        'Network.torchfbank.1.spectrogram.window': frontend.window,
        'Network.torchfbank.1.mel_scale.fb': frontend.filters.T,
    }


def _other_frontend(state: dict[str, Tensor], frontend: dict[str, Tensor]) -> list[str]:
    """The constants of another front-end than ours."""
    return [
        key
        for key, value in frontend.items()
        if key in state
        and state[key].shape == value.shape
        and not torch.allclose(state[key].float(), value, rtol=0, atol=FRONTEND_TOLERANCE)
    ]
