"""Reads and writes pre-trained SSL encoders: WavLM, HuBERT, wav2vec 2.0, XLSR.

The public checkpoints, and the layouts in which they are found:

model        Hugging Face hub                 other files                             parameters
WavLM-Base   microsoft/wavlm-base             WavLM-Base.pt M, wavlm_base.pth T       94,381,936
WavLM-Base+  microsoft/wavlm-base-plus        WavLM-Base+.pt M, wavlm_base_plus.pth T 94,381,936
WavLM-Large  microsoft/wavlm-large            WavLM-Large.pt M, wavlm_large.pth T     315,453,120
HuBERT-Base  facebook/hubert-base-ls960       hubert_base_ls960.pt F,                 94,371,712
                                              hubert_fairseq_base_ls960.pth T
HuBERT-Large facebook/hubert-large-ll60k      hubert_large_ll60k.pt F,                315,438,720
                                              hubert_fairseq_large_ll60k.pth T
wav2vec 2.0  facebook/wav2vec2-base           wav2vec_small.pt F,                     94,371,712
  Base                                        wav2vec2_fairseq_base_ls960.pth T
wav2vec 2.0  facebook/wav2vec2-large-lv60     wav2vec_vox_new.pt F,                   315,438,720
  Large LV60                                  wav2vec2_fairseq_large_lv60k.pth T
XLSR-53      facebook/wav2vec2-large-xlsr-53  xlsr_53_56k.pt F,                       315,438,720
                                              wav2vec2_fairseq_large_xlsr53.pth T

From the hub, take config.json, preprocessor_config.json and model.safetensors or pytorch_model.bin.
M: Microsoft's UniSpeech and unilm repositories (WavLM); F: fairseq's examples/wav2vec and
examples/hubert; T: what torchaudio.pipelines downloads. Parameters: of the encoder without heads.

SHA-256: not known here for any of these. wavlm_large_finetune.pth of UniSpeech (WavLM-Large with a
speaker verification back-end; the encoder is below `feature_extract.model.`) has
51f07e3b94d9e0262a6a675ef5a087be3dd09e8c62e9d886827f44f82fe7f94b (spec enskd 3.8): give its tensors
below that prefix to `hugging_face_names` (`ssl_names`), then to `load_encoder`.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared.errors import UserError
from shared.files import replacing
from shared.models.adapters import AdapterSettings
from shared.models.span_masks import SpanMasks
from shared.models.ssl_config import SslConfig
from shared.models.ssl_config_files import (
    deduced_config,
    flat_settings,
    hugging_face_config,
    hugging_face_json,
)
from shared.models.ssl_encoder import SslEncoder
from shared.models.ssl_names import (
    ADAPTER,
    family_of,
    hugging_face_names,
    kept_layers,
    layer_of,
    layers_first,
    naming_of,
)
from shared.models.weights_only import check_is_weights, plain_settings, read_torch_file
from shared.weight_files import check_entries

HUB_FILES = ('model.safetensors', 'pytorch_model.bin')  # the first that is there
MASK = 'masked_spec_embed'  # absent from models that were never masked


@dataclass(frozen=True)
class SslWeights:
    """A pre-trained encoder as read from a file; adapters may be among its tensors."""

    config: SslConfig
    state: dict[str, Tensor]  # under the names of SslEncoder, float32, on the CPU
    layout: str  # 'hugging face', 'microsoft', 'fairseq' or 'torchaudio'


def ssl_encoder(
    path: str | Path,
    *,
    layers: int | Sequence[int] | None = None,
    adapters: AdapterSettings | None = None,
    masks: SpanMasks | None = None,
    checkpointing: bool = False,
    fresh: Sequence[str] = (),
    **changes: Any,
) -> SslEncoder:
    """An encoder with the weights of a file, which must fit exactly.

    Adapters that the file lacks, its mask vector (`masked_spec_embed`) if it lacks that, and
    whatever begins with a prefix in `fresh` stay as initialised. Weights of layers that were cut
    off are left out.

    Args:
        path: of a folder or file, see `read_ssl`.
        layers: keep only the first so many layers, or those of these numbers, from 0, in this
            order; None: all.
        adapters: as `SslEncoder`.
        masks: as `SslEncoder`.
        checkpointing: as `SslEncoder`.
        fresh: such as 'encoder.layers.2.', the third layer that is kept.
        changes: fields of `SslConfig` to replace, such as dropout=0.0; also those that the file
            does not tell, such as heads=4.

    Raises:
        UserError: as `read_ssl`; or layers that are not there, twice, none, or without the one
            that owns WavLM's table of positions in front.
        ValueError: a prefix in `fresh` that no weight begins with.
        TypeError: `changes` names no field of `SslConfig`.
    """
    weights = _read(Path(path), changes)
    config = replace(weights.config, **changes)
    kept = kept_layers(layers, config.layers, config.family, str(path))
    encoder = SslEncoder(
        config,
        layers=len(kept),
        adapters=adapters,
        masks=masks,
        checkpointing=checkpointing,
    )
    load_encoder(encoder, layers_first(weights.state, kept), str(path), fresh=fresh)
    return encoder


def read_ssl(path: str | Path, **given: Any) -> SslWeights:
    """Reads a pre-trained encoder, without its pre-training or recognition heads.

    `path` is one of
    - a folder with config.json and model.safetensors or pytorch_model.bin (transformers), or such
      a file with its config.json beside it; of the encoder alone or of a model with a head;
    - a Microsoft WavLM .pt, {'cfg', 'model'};
    - a fairseq HuBERT, wav2vec 2.0 or XLSR .pt, {'cfg' or 'args', 'model'}, with or without a
      recognition head; its foreign objects are never run (`weights_only`);
    - a torchaudio state dict, also that of its HuBERT pre-training model.
    Dropout rates that the file does not tell are those of `SslConfig`.

    Args:
        path: of the folder or file.
        given: fields of `SslConfig` that the file does not tell.

    Raises:
        UserError: not such a file; or tensors are missing, unexpected or of another shape.
    """
    weights = _read(Path(path), given)
    state = {name: x for name, x in weights.state.items() if not ADAPTER.match(name)}
    _check(state, _shapes(weights.config), str(path))
    return weights


def load_encoder(
    encoder: SslEncoder, state: Mapping[str, Tensor], source: str, *, fresh: Sequence[str] = ()
) -> None:
    """Loads tensors under the names of `SslEncoder` strictly, but for what `ssl_encoder` exempts.

    Raises:
        UserError: tensors are missing, unexpected or of another shape.
        ValueError: a prefix in `fresh` that no weight begins with.
    """
    own = encoder.state_dict()
    for prefix in fresh:
        if not any(name.startswith(prefix) for name in own):
            raise ValueError(f'fresh: no weight begins with {prefix!r}')
    kept = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(tuple(fresh)) and (layer_of(name) or 0) < encoder.layers
    }
    wanted = {name: tensor for name, tensor in own.items() if not name.startswith(tuple(fresh))}
    _check(kept, wanted, source)
    encoder.load_state_dict(kept, strict=False)


def write_ssl(config: SslConfig, state: Mapping[str, Tensor], folder: str | Path) -> None:
    """Writes config.json, preprocessor_config.json and model.safetensors, which transformers opens.

    Args:
        config: of the whole `state`: for a cut encoder its own `encoder.config`.
        state: of an `SslEncoder` without adapters.
        folder: to make; appears complete or not at all.

    Raises:
        UserError: the folder is there and not empty, or cannot be written; or the state does not
            fit the config.
        ValueError: a structure that transformers has no setting for.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f'{folder}: is there already; remove it or name another folder')
    _check(state, _shapes(config), f'the weights for {folder}')
    model, processor = hugging_face_json(config)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(folder) as temporary:
        temporary.mkdir()
        for name, item in (('config.json', model), ('preprocessor_config.json', processor)):
            (temporary / name).write_text(json.dumps(item, indent=2) + '\n', encoding='utf-8')
        weights = temporary / 'model.safetensors'
        save_file(tensors, weights, metadata={'format': 'pt'})
        weights.chmod((temporary / 'config.json').stat().st_mode)  # it is written for its owner


def _read(path: Path, given: Mapping[str, Any]) -> SslWeights:
    source = str(path)
    if not path.exists():
        raise UserError(f'{path}: no such file or folder')
    if path.is_dir() or path.suffix in ('.safetensors', '.bin'):
        file, config = _hub_file(path)
        state = hugging_face_names(_tensors(file), source)
        return SslWeights(config, _floats(state), 'hugging face')
    content = read_torch_file(path)
    if not isinstance(content, dict):
        raise UserError(f'{path}: not a set of weights (named tensors)')
    settings = flat_settings(plain_settings(content.get('cfg') or content.get('args')))
    stored = content.get('model', content)
    if not isinstance(stored, dict):
        raise UserError(f'{path}: not a set of weights (named tensors)')
    state = _floats(hugging_face_names(stored, source))
    model_name = f'{settings.get("_name", "")} {settings.get("arch", "")}'
    family = family_of(stored, model_name)
    config = deduced_config(state, family, settings, given, source)
    naming = naming_of(stored)
    microsoft = naming == 'fairseq' and family == 'wavlm'
    return SslWeights(config, state, 'microsoft' if microsoft else naming)


def _hub_file(path: Path) -> tuple[Path, SslConfig]:
    """The weights of a Hugging Face folder, or a file of one, and what config.json says."""
    folder = path if path.is_dir() else path.parent
    if not (folder / 'config.json').exists():
        raise UserError(
            f'{path}: config.json is missing {"in" if path.is_dir() else "beside"} it; download '
            'all files of the model'
        )
    if not path.is_dir():
        return path, hugging_face_config(folder)
    for name in HUB_FILES:
        if (folder / name).exists():
            return folder / name, hugging_face_config(folder)
        if (folder / f'{name}.index.json').exists():
            raise UserError(f'{folder}: weights in several files cannot be read; save them as one')
    raise UserError(f'{folder}: neither {" nor ".join(HUB_FILES)} in it; download all files')


def _tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != '.safetensors':
        content = read_torch_file(path)
        if not isinstance(content, dict):
            raise UserError(f'{path}: not a set of weights (named tensors)')
        return content
    check_is_weights(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f'{path}: not a readable weight file ({error})') from None


def _floats(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Half precision, as some files store it, as float32."""
    return {name: x.float() if x.is_floating_point() else x for name, x in state.items()}


@functools.cache
def _shapes(config: SslConfig) -> dict[str, Tensor]:
    """The state of an encoder of this structure, without memory for it; not to be changed."""
    with torch.device('meta'):
        return SslEncoder(config).state_dict()


def _check(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """One error that names whatever is missing, unexpected or of another shape.

    The mask vector may be missing, and the adapters if all of them are.
    """
    optional = {MASK}
    if not any(ADAPTER.match(name) for name in state):
        optional |= {name for name in wanted if ADAPTER.match(name)}
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in wanted.items()
        if name in state or name not in optional
    }
    check_entries(state, shapes, f'{source}: weights of another model, or incomplete')
