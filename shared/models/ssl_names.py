"""How published SSL checkpoints call their tensors, and those names as Hugging Face's.

Sources: key lists of specs wavlm_ssl 3.6, enskd 3.7, nawsv 3.5, oskdft 3.6; fairseq's and
torchaudio's models. `shared.models.ssl_encoder` uses the Hugging Face names of today.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from shared.errors import UserError

# Parts of pre-training, recognition and classification models that are no part of the encoder.
HEADS = (
    'quantizer.',  # wav2vec 2.0 pre-training
    'project_q.',
    'project_hid.',
    'target_glu.',
    'final_proj.',  # HuBERT and wav2vec 2.0 pre-training in fairseq
    'label_embs_concat',  # HuBERT pre-training in fairseq
    'logit_generator.',  # HuBERT pre-training in torchaudio
    'aux.',  # recognition in torchaudio
    'lm_head.',  # recognition in transformers
    'w2v_encoder.proj.',  # recognition in fairseq
    'projector.',  # classification and speaker verification in transformers
    'classifier.',
    'layer_weights',
    'tdnn.',
    'objective.',
)
XVECTOR_HEAD = ('feature_extractor.weight', 'feature_extractor.bias')  # beside the encoder's
FIRST_CONV = re.compile(r'((?:.*\.)?)feature_extractor\.conv_layers\.0\.(?:conv|0)\.weight')
LAYER = re.compile(r'encoder\.layers\.(\d+)\.')
ADAPTER = re.compile(r'encoder\.layers\.\d+\.adapter\.')

FAIRSEQ = (
    (r'mask_emb$', 'masked_spec_embed'),
    (r'feature_extractor\.conv_layers\.(\d+)\.0\.', r'feature_extractor.conv_layers.\1.conv.'),
    (  # GroupNorm is .2, LayerNorm .2.1
        r'feature_extractor\.conv_layers\.(\d+)\.2\.(?:1\.)?',
        r'feature_extractor.conv_layers.\1.layer_norm.',
    ),
    (r'layer_norm\.', 'feature_projection.layer_norm.'),
    (r'post_extract_proj\.', 'feature_projection.projection.'),
    (r'encoder\.pos_conv\.0\.', 'encoder.pos_conv_embed.conv.'),
    (r'(encoder\.layers\.\d+)\.self_attn\.grep_linear\.', r'\1.attention.gru_rel_pos_linear.'),
    (r'(encoder\.layers\.\d+)\.self_attn\.grep_a$', r'\1.attention.gru_rel_pos_const'),
    (
        r'(encoder\.layers\.\d+)\.self_attn\.relative_attention_bias\.',
        r'\1.attention.rel_attn_embed.',
    ),
    (r'(encoder\.layers\.\d+)\.self_attn\.', r'\1.attention.'),
    (r'(encoder\.layers\.\d+)\.self_attn_layer_norm\.', r'\1.layer_norm.'),
    (r'(encoder\.layers\.\d+)\.fc1\.', r'\1.feed_forward.intermediate_dense.'),
    (r'(encoder\.layers\.\d+)\.fc2\.', r'\1.feed_forward.output_dense.'),
)
TORCHAUDIO = (
    (r'mask_generator\.mask_embedding$', 'masked_spec_embed'),
    (r'encoder\.feature_projection\.', 'feature_projection.'),
    (
        r'encoder\.transformer\.layers\.(\d+)\.attention\.attention\.',
        r'encoder.layers.\1.attention.',
    ),
    (r'encoder\.transformer\.', 'encoder.'),
)
WEIGHT_NORM = (  # of the positional convolution: torch's old spelling
    (
        r'encoder\.pos_conv_embed\.conv\.weight_g$',
        'encoder.pos_conv_embed.conv.parametrizations.weight.original0',
    ),
    (
        r'encoder\.pos_conv_embed\.conv\.weight_v$',
        'encoder.pos_conv_embed.conv.parametrizations.weight.original1',
    ),
)
TABLES = {'hugging face': (), 'fairseq': FAIRSEQ, 'torchaudio': TORCHAUDIO}


def naming_of(names: Iterable[str]) -> str:
    """Whose names these are, a key of `TABLES`; Microsoft's WavLM files use fairseq's."""
    names = list(names)
    if any('.conv_layers.0.0.' in name for name in names):
        return 'fairseq'
    if any('encoder.transformer.' in name for name in names):
        return 'torchaudio'
    return 'hugging face'


def family_of(names: Iterable[str], model_name: str = '') -> str:
    """'wavlm', 'hubert' or 'wav2vec2', by tensors that only one of them has.

    A HuBERT whose pre-training head was removed looks like a wav2vec 2.0, and works like one.

    Args:
        names: of the tensors, in any naming.
        model_name: what the file calls its model, such as fairseq's 'hubert' or 'hubert_ctc'.
    """
    names = list(names)
    if any('.gru_rel_pos_const' in name or '.grep_a' in name for name in names):
        return 'wavlm'
    heads = ('label_embs_concat', 'logit_generator.')
    if 'hubert' in model_name or any(head in name for name in names for head in heads):
        return 'hubert'
    return 'hubert' if any('hubert.' in name for name in names) else 'wav2vec2'


def hugging_face_names(
    state: Mapping[str, Tensor], source: str = 'the weights'
) -> dict[str, Tensor]:
    """Tensors of an encoder under the names of `SslEncoder`, whatever they were called.

    Takes the names of Hugging Face, Microsoft, fairseq and torchaudio, with any prefix before the
    encoder's names ('module.', 'wavlm.', ...), and both spellings of weight norm. `HEADS` are left
    out; other tensors outside the encoder keep their name, so that a strict load names them.
    torchaudio's fused query, key and value of WavLM are taken apart.

    Args:
        state: as stored in the file.
        source: what to call it in an error.

    Raises:
        UserError: no encoder in it, more than one, or something that is not a tensor.
    """
    wrong = [
        name
        for name, item in state.items()
        if not (isinstance(item, Tensor) and isinstance(name, str))
    ]
    if wrong:
        raise UserError(f'{source}: not a set of weights ({wrong[0]!r} is no tensor)')
    prefix = _prefix(state, source)
    table = TABLES[naming_of(state)] + WEIGHT_NORM
    named = {}
    for name, tensor in state.items():
        inside = name.startswith(prefix)
        name = name.removeprefix(prefix) if inside else name.removeprefix('module.')
        if name.startswith(HEADS) or (prefix and not inside and name in XVECTOR_HEAD):
            continue
        if inside or name.startswith('mask_generator.'):
            name = _renamed(name, table)
        if fused := re.search(r'attention\.in_proj_(weight|bias)$', name):
            layer = name[: fused.start()]
            for part, piece in zip('qkv', tensor.chunk(3)):
                named[f'{layer}attention.{part}_proj.{fused[1]}'] = piece
        else:
            named[name] = tensor
    return named


def layer_of(name: str) -> int | None:
    """Number of the Transformer layer, from 0, to which a tensor of `SslEncoder` belongs."""
    match = LAYER.match(name)
    return None if match is None else int(match[1])


def kept_layers(
    layers: int | Sequence[int] | None, count: int, family: str, source: str
) -> list[int]:
    """Numbers of the layers to keep of `count`, from 0, in order.

    Args:
        layers: the first so many, or those of these numbers; None: all.
        count: layers there are.
        family: as in `SslConfig`.
        source: what to call the encoder in an error.

    Raises:
        UserError: a number that is not there, twice, none at all, or a WavLM's without 0 in front.
    """
    numbers = range(count) if layers is None else layers
    numbers = list(range(numbers) if isinstance(numbers, int) else numbers)
    problem = '' if numbers else 'name at least one'
    if len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(count)):
        problem = f'it has {count}; number them from 0, none twice'
    elif numbers and family == 'wavlm' and numbers[0] != 0:
        problem = "a WavLM's first must be 0, which holds the table of positions for all"
    if problem:
        raise UserError(f'{source}: layers {layers}: {problem}')
    return numbers


def layers_first(state: Mapping[str, Tensor], numbers: Sequence[int]) -> dict[str, Tensor]:
    """The same tensors with some layers renumbered 0, 1, ... and all others behind them.

    Args:
        state: under the names of `SslEncoder`.
        numbers: of different layers, from 0, in the order wanted.
    """
    others = {layer for layer in map(layer_of, state) if layer is not None} - set(numbers)
    place = {str(number): i for i, number in enumerate([*numbers, *sorted(others)])}
    renamed = {}
    for name, tensor in state.items():
        if match := LAYER.match(name):
            name = f'encoder.layers.{place[match[1]]}.{name[match.end() :]}'
        renamed[name] = tensor
    return renamed


def _prefix(state: Mapping[str, Tensor], source: str) -> str:
    """What stands before every name of the encoder."""
    found = {match[1] for name in state if (match := FIRST_CONV.fullmatch(name))}
    if len(found) == 1:
        return found.pop()
    if found:
        raise UserError(f'{source}: more than one encoder in it, below {sorted(found)}')
    names = ', '.join(sorted(state)[:3]) or 'nothing'
    raise UserError(
        f'{source}: no speech encoder in it (no feature_extractor.conv_layers.0), but {names}'
        f'{", ..." if len(state) > 3 else ""}'
    )


def _renamed(name: str, table: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        if re.match(pattern, name):
            name = re.sub(f'^{pattern}', replacement, name)
    return name
