"""Names of a WavLM's entries in Microsoft's files, where other programs keep a WavLM too.

`shared.models.ssl_names.hugging_face_names` knows the way back.
"""

import re

from shared.models.ssl_config import CONV_NORMS
from shared.published.layout import old_spelling

MICROSOFT = (  # ours -> theirs, by the first part that differs (specs enskd 3.7, wavlm_ssl 3.6)
    (r'^masked_spec_embed$', 'mask_emb'),
    (r'^(feature_extractor\.conv_layers\.\d+)\.conv\.', r'\1.0.'),
    (r'^feature_projection\.layer_norm\.', 'layer_norm.'),
    (r'^feature_projection\.projection\.', 'post_extract_proj.'),
    (r'^encoder\.pos_conv_embed\.conv\.', 'encoder.pos_conv.0.'),
    (r'^(encoder\.layers\.\d+)\.layer_norm\.', r'\1.self_attn_layer_norm.'),
    (r'\.attention\.gru_rel_pos_linear\.', '.self_attn.grep_linear.'),
    (r'\.attention\.gru_rel_pos_const$', '.self_attn.grep_a'),
    (r'\.attention\.rel_attn_embed\.', '.self_attn.relative_attention_bias.'),
    (r'\.attention\.', '.self_attn.'),
    (r'\.feed_forward\.intermediate_dense\.', '.fc1.'),
    (r'\.feed_forward\.output_dense\.', '.fc2.'),
)
NORM_OF_CONV = re.compile(r'^(feature_extractor\.conv_layers\.\d+)\.layer_norm\.')
NORM_PLACES = {'group': '2', 'layer': '2.1'}  # a layer norm stands between two transpositions


def microsoft_name(name: str, conv_norm: str) -> str:
    """Their name of an entry of `SslEncoder`, without any prefix.

    Args:
        name: such as 'encoder.layers.3.attention.k_proj.weight'.
        conv_norm: of the encoder's `SslConfig`.

    Raises:
        ValueError: no such `conv_norm`.
    """
    if conv_norm not in NORM_PLACES:
        raise ValueError(f'conv_norm {conv_norm!r}: not {CONV_NORMS}')
    name = NORM_OF_CONV.sub(rf'\1.{NORM_PLACES[conv_norm]}.', old_spelling(name))
    for pattern, replacement in MICROSOFT:
        name = re.sub(pattern, replacement, name, count=1)
    return name
