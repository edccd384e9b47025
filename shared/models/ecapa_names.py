"""How published checkpoints call the parts of an ECAPA-TDNN (specs lgl 4.4, nawsv 3.5, oskdft 3.6)."""

MODULES = {  # ours -> theirs, outside the blocks
    'stem.conv': 'conv1',
    'stem.norm': 'bn1',
    'mfa': 'layer4',
    'pooling.context': 'attention.0',
    'pooling.norm': 'attention.2',
    'pooling.score': 'attention.4',
    'pooled_norm': 'bn5',
    'projection': 'fc6',
    'embedding_norm': 'bn6',
}
BLOCK_MODULES = {
    'expand.conv': 'conv1',
    'expand.norm': 'bn1',
    'merge.conv': 'conv3',
    'merge.norm': 'bn3',
    'excitation.squeeze.conv': 'se.se.1',
    'excitation.squeeze.norm': 'se.se.3',
}


def published_name(name: str, se_norm: bool = True) -> str:
    """Their name of an entry of the state of `EcapaTdnn`, without any prefix.

    Args:
        name: such as 'blocks.0.branches.6.norm.running_var'.
        se_norm: whether the squeeze-excitation has a batch norm, which moves its last layer.
    """
    module, _, leaf = name.rpartition('.')
    if not module.startswith('blocks.'):
        return f'{MODULES[module]}.{leaf}'
    _, block, rest = module.split('.', 2)
    if rest.startswith('branches.'):
        _, branch, part = rest.split('.')
        theirs = f'{"convs" if part == "conv" else "bns"}.{branch}'
    elif rest == 'excitation.excite':
        theirs = 'se.se.4' if se_norm else 'se.se.3'
    else:
        theirs = BLOCK_MODULES[rest]
    return f'layer{int(block) + 1}.{theirs}.{leaf}'
