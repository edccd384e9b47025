"""Weight files in the layouts that authors of speaker systems released, for tests of the readers.

Names, shapes and a naive forward pass, written down from the specs (nawsv 3.5, oskdft 3.6), without
any module of ours.
"""

import importlib
import sys
import types
from pathlib import Path

import torch
import torch.nn.functional as F

PAPERS = Path(__file__).parents[2] / 'papers'
NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')


def modules_of(paper, names, monkeypatch):
    """Yields some files of a paper as modules, without all that its main.py imports."""
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(PAPERS / paper)
    yield types.SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        del sys.modules[name]


def norm(name, size):
    return {f'{name}.{leaf}': () if leaf == NORM[-1] else (size,) for leaf in NORM}


def linear(name, *shape):
    return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def head_keys(states=13, width=768, dim=192):
    own = {} if states is None else {'w': (states, 1, 1)}
    return own | linear('fc1', dim, 2 * width) | norm('bn1', dim)


def backend_keys(states=13, width=768, dim=192, c=512, mfa=1536, attention=256, se=128):
    keys = {} if states is None else {'w': (1, states, 1, 1)}
    keys |= linear('conv1', c, width, 5) | norm('bn1', c)
    for block in ('layer1', 'layer2', 'layer3'):
        keys |= linear(f'{block}.conv1', c, c, 1) | norm(f'{block}.bn1', c)
        for i in range(7):
            keys |= linear(f'{block}.convs.{i}', c // 8, c // 8, 3)
            keys |= norm(f'{block}.bns.{i}', c // 8)
        keys |= linear(f'{block}.conv3', c, c, 1) | norm(f'{block}.bn3', c)
        keys |= linear(f'{block}.se.se.1', se, c, 1) | linear(f'{block}.se.se.3', c, se, 1)
    keys |= linear('layer4', mfa, 3 * c, 1)
    keys |= linear('attention.0', attention, 3 * mfa, 1) | norm('attention.2', attention)
    keys |= linear('attention.4', mfa, attention, 1) | norm('bn5', 2 * mfa)
    return keys | linear('fc6', dim, 2 * mfa) | norm('bn6', dim)


def student_keys(
    prefix, adapter, layers=12, width=768, ffn=3072, heads=12, gated=False, conv_norms=False
):
    """Names and shapes of a student.

    `adapter`: shape of what each layer has besides, by name. `gated`: WavLM. `conv_norms`: norm and
    bias in every convolution, as XLSR-53.
    """
    keys = {'masked_spec_embed': (width,), 'encoder.pos_conv_embed.conv.bias': (width,)}
    for i, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        conv = f'feature_extractor.conv_layers.{i}'
        keys[f'{conv}.conv.weight'] = (512, 512 if i else 1, kernel)
        if conv_norms:
            keys[f'{conv}.conv.bias'] = (512,)
        if conv_norms or i == 0:
            keys |= linear(f'{conv}.layer_norm', 512)
    keys |= linear('feature_projection.layer_norm', 512)
    keys |= linear('feature_projection.projection', width, 512)
    keys['encoder.pos_conv_embed.conv.weight_g'] = (1, 1, 128)
    keys['encoder.pos_conv_embed.conv.weight_v'] = (width, width // 16, 128)
    keys |= linear('encoder.layer_norm', width)
    for i in range(layers):
        layer = f'encoder.layers.{i}'
        for part in 'qkv':
            keys |= linear(f'{layer}.attention.{part}_proj', width, width)
        keys |= linear(f'{layer}.attention.out_proj', width, width)
        if gated:
            keys[f'{layer}.attention.gru_rel_pos_const'] = (1, heads, 1, 1)
            keys |= linear(f'{layer}.attention.gru_rel_pos_linear', 8, width // heads)
        keys |= linear(f'{layer}.layer_norm', width) | linear(f'{layer}.final_layer_norm', width)
        keys |= linear(f'{layer}.feed_forward.intermediate_dense', ffn, width)
        keys |= linear(f'{layer}.feed_forward.output_dense', width, ffn)
        for part, shape in adapter.items():
            keys |= linear(f'{layer}.{part}', *shape)
    if gated:
        keys['encoder.layers.0.attention.rel_attn_embed.weight'] = (320, heads)
    return {prefix + name: shape for name, shape in keys.items()}


def drawn(keys, seed=0):
    """Random entries of these names and shapes, batch statistics plausible."""
    generator, entries = torch.Generator().manual_seed(seed), {}
    for name, shape in keys.items():
        noise = torch.randn(shape, generator=generator)
        entries[name] = 0.5 + noise.abs() if name.endswith('running_var') else 0.3 * noise
        if name.endswith(NORM[-1]):
            entries[name] = torch.tensor(7)
    return entries


def save(path, entries, prefix='module.'):
    torch.save({prefix + key: value for key, value in entries.items()}, path)
    return path


# --- naive back-ends on the authors' names, e: name -> tensor


def batch_norm(e, name, x):
    statistics = e[f'{name}.running_mean'], e[f'{name}.running_var']
    return F.batch_norm(x, *statistics, e[f'{name}.weight'], e[f'{name}.bias'])


def conv(e, name, x, **options):
    return F.conv1d(x, e[f'{name}.weight'], e[f'{name}.bias'], **options)


def one_state(e, states):
    """(B, T, width): the weighted sum, or the last state where there are no weights."""
    return (e['w'] * torch.stack(states, dim=1)).sum(1) if 'w' in e else states[-1]


def their_head(e, states):
    x = one_state(e, states)
    x = torch.cat([x.mean(1), x.std(1)], dim=1)
    return batch_norm(e, 'bn1', F.linear(x, e['fc1.weight'], e['fc1.bias']))


def their_block(e, name, x, dilation):
    y = batch_norm(e, f'{name}.bn1', conv(e, f'{name}.conv1', x).relu())
    chunks, outputs = y.chunk(8, dim=1), []
    for i in range(7):
        u = chunks[i] + outputs[-1] if i else chunks[i]
        u = conv(e, f'{name}.convs.{i}', u, dilation=dilation, padding=dilation)
        outputs.append(batch_norm(e, f'{name}.bns.{i}', u.relu()))
    y = conv(e, f'{name}.conv3', torch.cat([*outputs, chunks[7]], dim=1)).relu()
    y = batch_norm(e, f'{name}.bn3', y)
    gate = conv(e, f'{name}.se.se.1', y.mean(2, keepdim=True)).relu()
    return x + y * conv(e, f'{name}.se.se.3', gate).sigmoid()


def their_backend(e, states):
    x = one_state(e, states).transpose(1, 2)  # (B, width, T)
    x = F.instance_norm(x, eps=1e-5)
    x = batch_norm(e, 'bn1', conv(e, 'conv1', x, padding=2).relu())
    x1 = their_block(e, 'layer1', x, 2)
    x2 = their_block(e, 'layer2', x + x1, 3)
    x3 = their_block(e, 'layer3', x + x1 + x2, 4)
    x = conv(e, 'layer4', torch.cat([x1, x2, x3], dim=1)).relu()
    context = [x.mean(2, keepdim=True), x.var(2, keepdim=True).clamp(min=1e-4).sqrt()]
    attention = torch.cat([x, *(part.expand_as(x) for part in context)], dim=1)
    attention = batch_norm(e, 'attention.2', conv(e, 'attention.0', attention).relu()).tanh()
    weight = conv(e, 'attention.4', attention).softmax(2)
    mean = (weight * x).sum(2)
    deviation = ((weight * x * x).sum(2) - mean**2).clamp(min=1e-4).sqrt()
    x = batch_norm(e, 'bn5', torch.cat([mean, deviation], dim=1))
    return batch_norm(e, 'bn6', F.linear(x, e['fc6.weight'], e['fc6.bias']))
