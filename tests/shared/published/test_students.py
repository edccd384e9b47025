"""Files of x-vector, ResNet34 and CAM++: names and shapes of spec enskd 3.7, strictness, averages."""

import math
import re

import pytest
import torch
from student_references import golden_features, golden_fill, random_fill

from shared.errors import UserError
from shared.models.campplus import CamPlusPlus
from shared.models.resnet import ResNet34
from shared.models.tdnn import XVector
from shared.published import students

XVECTOR = """
frame_1.conv_1d.weight : 512,80,5
frame_{i=2..3}.conv_1d.weight : 512,512,3
frame_4.conv_1d.weight : 512,512,1
frame_5.conv_1d.weight : 1500,512,1
frame_{i=1..4}.conv_1d.bias : 512
frame_5.conv_1d.bias : 1500
frame_{i=1..4}.bn BN0 512
frame_5.bn BN0 1500
seg_1.weight : D,3000
seg_1.bias : D
seg_bn_1 BN0 D
seg_2.weight : D,D
seg_2.bias : D
"""
RESNET34 = """
conv1.weight : 32,1,3,3
bn1 BN 32
layer1.{i=0..2}.conv{j=1..2}.weight : 32,32,3,3
layer1.{i=0..2}.bn{j=1..2} BN 32
layer2.0.conv1.weight : 64,32,3,3
layer2.{i=1..3}.conv1.weight : 64,64,3,3
layer2.{i=0..3}.conv2.weight : 64,64,3,3
layer2.{i=0..3}.bn{j=1..2} BN 64
layer2.0.shortcut.0.weight : 64,32,1,1
layer2.0.shortcut.1 BN 64
layer3.0.conv1.weight : 128,64,3,3
layer3.{i=1..5}.conv1.weight : 128,128,3,3
layer3.{i=0..5}.conv2.weight : 128,128,3,3
layer3.{i=0..5}.bn{j=1..2} BN 128
layer3.0.shortcut.0.weight : 128,64,1,1
layer3.0.shortcut.1 BN 128
layer4.0.conv1.weight : 256,128,3,3
layer4.{i=1..2}.conv1.weight : 256,256,3,3
layer4.{i=0..2}.conv2.weight : 256,256,3,3
layer4.{i=0..2}.bn{j=1..2} BN 256
layer4.0.shortcut.0.weight : 256,128,1,1
layer4.0.shortcut.1 BN 256
seg_1.weight : D,5120
seg_1.bias : D
"""
CAMPPLUS_BLOCK = """
xvector.block{n}.tdnnd{i=1..LAST}.nonlinear1.batchnorm BN FROM+32*i
xvector.block{n}.tdnnd{i=1..LAST}.linear1.weight : 128,FROM+32*i,1
xvector.block{n}.tdnnd{i=1..LAST}.nonlinear2.batchnorm BN 128
xvector.block{n}.tdnnd{i=1..LAST}.cam_layer.linear_local.weight : 32,128,3
xvector.block{n}.tdnnd{i=1..LAST}.cam_layer.linear1.weight : 64,128,1
xvector.block{n}.tdnnd{i=1..LAST}.cam_layer.linear1.bias : 64
xvector.block{n}.tdnnd{i=1..LAST}.cam_layer.linear2.weight : 32,64,1
xvector.block{n}.tdnnd{i=1..LAST}.cam_layer.linear2.bias : 32
xvector.transit{n}.nonlinear.batchnorm BN OUT
xvector.transit{n}.linear.weight : HALF,OUT,1
"""
CAMPPLUS = """
head.conv1.weight : 32,1,3,3
head.bn1 BN 32
head.layer{l=1..2}.{i=0..1}.conv{j=1..2}.weight : 32,32,3,3
head.layer{l=1..2}.{i=0..1}.bn{j=1..2} BN 32
head.layer{l=1..2}.0.shortcut.0.weight : 32,32,1,1
head.layer{l=1..2}.0.shortcut.1 BN 32
head.conv2.weight : 32,32,3,3
head.bn2 BN 32
xvector.tdnn.linear.weight : 128,320,5
xvector.tdnn.nonlinear.batchnorm BN 128
xvector.out_nonlinear.batchnorm BN 512
xvector.dense.linear.weight : D,1024,1
xvector.dense.nonlinear.batchnorm BN0 D
"""
for number, last, start, out in ((1, 12, 96, 512), (2, 24, 224, 1024), (3, 16, 480, 1024)):
    block = CAMPPLUS_BLOCK.replace('{n}', str(number)).replace('LAST', str(last))
    CAMPPLUS += block.replace('FROM', str(start)).replace('OUT', str(out))
    CAMPPLUS = CAMPPLUS.replace('HALF', str(out // 2))

LEAVES = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
PUBLISHED = {  # kind: lines, tensors, module, embedding of the released files
    'xvector': (XVECTOR, 32, XVector, (256, 512)),
    'resnet34': (RESNET34, 218, ResNet34, (256,)),
    'campplus': (CAMPPLUS, 937, CamPlusPlus, (256, 512)),
}
TINY = {
    'xvector': {'dim': 5, 'n_mels': 4, 'width': 6, 'last_width': 7},
    'resnet34': {'dim': 5, 'n_mels': 16, 'width': 2, 'blocks': (2, 1, 3, 1)},
    'campplus': {'dim': 5, 'n_mels': 16, 'growth': 2, 'blocks': (2, 1, 3), 'head_width': 3},
}


def expanded(line):
    """The lines of one with ranges such as {i=1..4}, which its numbers may mention."""
    found = re.search(r'\{(\w)=(\d+)\.\.(\d+)\}', line)
    if found is None:
        return [line]
    name, first, last = found[1], int(found[2]), int(found[3])
    lines = []
    for value in range(first, last + 1):
        key, numbers = re.split(r' (?=:|BN)', line.replace(found[0], str(value), 1), maxsplit=1)
        lines += expanded(f'{key} {re.sub(rf"(?<![A-Z]){name}", str(value), numbers)}')
    return lines


def number(text, dim):
    terms = text.replace('D', str(dim)).split('+')
    return sum(math.prod(int(factor) for factor in term.split('*')) for term in terms)


def keys_of(kind, dim):
    """Names and shapes of spec enskd 3.7."""
    keys = {}
    for line in (x for text in PUBLISHED[kind][0].split('\n') if text for x in expanded(text)):
        key, what, numbers = line.split()
        shape = tuple(number(text, dim) for text in numbers.split(','))
        if what == ':':
            keys[key] = shape
        else:
            leaves = LEAVES if what == 'BN' else LEAVES[2:]
            keys |= {f'{key}.{leaf}': () if leaf == LEAVES[-1] else shape for leaf in leaves}
    return keys


def tiny(kind):
    return random_fill(PUBLISHED[kind][2](**TINY[kind])).eval()


def published_entries(kind, classes=9):
    """The state of a narrow network and a classifier, as a file has them."""
    torch.manual_seed(0)
    return {**tiny(kind).state_dict(), 'projection.weight': torch.randn(classes, 5)}


@pytest.mark.parametrize(
    'kind, dim', [(kind, dim) for kind, (*_, dims) in PUBLISHED.items() for dim in dims]
)
def test_released_files_have_the_names_and_shapes_of_the_spec(kind, dim):
    keys, (_, count, module, _) = keys_of(kind, dim), PUBLISHED[kind]
    assert len(keys) == count
    with torch.device('meta'):
        entries = {key: torch.empty(shape) for key, shape in keys.items()}
        form = students.LAYOUT.form_of(entries, 'x')
        sizes = form.sizes(entries)
        states = module(dim).state_dict(), form.make(**sizes).state_dict()
    assert (form.kind, form.make, sizes['dim'], sizes['n_mels']) == (kind, module, dim, 80)
    for state in states:
        assert {key: tuple(value.shape) for key, value in state.items()} == keys


@pytest.mark.parametrize('kind', PUBLISHED)
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('wrapper', [None, 'model', 'state_dict'])
def test_file_is_read_as_the_network_it_holds(tmp_path, kind, prefix, wrapper):
    entries = {prefix + key: value for key, value in published_entries(kind).items()}
    torch.save({wrapper: entries, 'epoch': 3} if wrapper else entries, tmp_path / 'x.pt')
    found = students.read(tmp_path / 'x.pt')
    assert (found.kind, found.sizes) == (kind, TINY[kind])
    classifier = found.beside['classifier']
    assert (classifier.kind, classifier.sizes) == ('classifier', {'classes': 9, 'dim': 5})
    assert torch.equal(classifier.state['weight'], entries[f'{prefix}projection.weight'])

    module, network = found.module(), tiny(kind)
    features = torch.randn(2, TINY[kind]['n_mels'], 40)
    with torch.no_grad():
        assert torch.equal(module(features), network(features))
    assert not module.training


@pytest.mark.parametrize('kind', PUBLISHED)
def test_state_is_written_as_it_was_read_with_and_without_classifier(kind):
    entries = published_entries(kind)
    found = students.from_published(entries, 'x.pt')
    written = students.to_published(found.state, found.beside['classifier'].state['weight'])
    assert written.keys() == entries.keys()
    assert all(torch.equal(written[key], value) for key, value in entries.items())

    del entries['projection.weight']
    found = students.from_published(entries, 'x.pt')
    assert found.beside == {}
    assert students.to_published(found.state).keys() == entries.keys()


@pytest.mark.parametrize('kind', PUBLISHED)
def test_fractional_counters_of_averaged_files_become_whole(kind):
    entries = published_entries(kind)
    counters = [key for key in entries if key.endswith('num_batches_tracked')]
    assert counters
    entries |= {key: torch.tensor(7.0 + 0.9) for key in counters}
    state = students.from_published(entries, 'x.pt').state
    assert all(state[key].dtype == torch.int64 and state[key] == 8 for key in counters)
    floats = [value for key, value in state.items() if key not in counters]
    assert all(value.dtype == torch.float32 for value in floats)


def test_file_of_released_size_gives_the_golden_embedding(tmp_path):
    torch.save(golden_fill(XVector(256)).state_dict(), tmp_path / 'x.pt')
    with torch.no_grad():
        embedding = students.read(tmp_path / 'x.pt').module().double()(golden_features())[0]
    first = [0.658785, -0.735933, 0.464744, -0.508766]
    assert embedding[:4].tolist() == pytest.approx(first, abs=1e-5)


BROKEN = {  # how a file is broken, and what is said
    'missing': 'x.pt: not .* as published: 1 missing \\(KEY\\)$',
    'unexpected': r'x.pt: not .* as published: 1 unexpected \(more.weight\)$',
    'of another shape': r'x.pt: not .* as published: 1 of another shape \(KEY .* instead of .*\)$',
    'not finite': r'x.pt: not .* as published: 1 not finite \(KEY\)$',
    'of other features': 'x.pt: its classifier is of 6, not 5 features$',
    'with a bias': r'x.pt: not the classifier as published: 1 unexpected \(projection.bias\)$',
}
VICTIMS = {
    'xvector': 'frame_2.bn.running_mean',
    'resnet34': 'layer3.2.bn2.bias',
    'campplus': 'xvector.block3.tdnnd2.cam_layer.linear2.bias',
}


@pytest.mark.parametrize('fault', BROKEN)
@pytest.mark.parametrize('kind', PUBLISHED)
def test_broken_file_is_refused_in_one_line(kind, fault):
    entries, key = published_entries(kind), VICTIMS[kind]
    if fault == 'missing':
        del entries[key]
    elif fault == 'unexpected':
        entries['more.weight'] = torch.ones(1)
    elif fault == 'of another shape':
        entries[key] = entries[key][:1]
    elif fault == 'not finite':
        entries[key] = entries[key] * torch.nan
    elif fault == 'of other features':
        entries['projection.weight'] = torch.ones(9, 6)
    else:
        entries['projection.bias'] = torch.ones(9)
    with pytest.raises(UserError, match=BROKEN[fault].replace('KEY', re.escape(key))):
        students.from_published(entries, 'x.pt')


@pytest.mark.parametrize('stage', ['layer3', 'xvector.block2', 'head.layer1', 'seg_1', 'conv1'])
def test_whole_stages_that_are_missing_are_named(stage):
    kind = 'campplus' if stage.startswith(('xvector', 'head')) else 'resnet34'
    entries = {k: x for k, x in published_entries(kind).items() if not k.startswith(f'{stage}.')}
    with pytest.raises(UserError, match=rf'x.pt: not .* \d+ missing \({re.escape(stage)}'):
        students.from_published(entries, 'x.pt')


@pytest.mark.parametrize(
    'entries',
    [
        {'projection.weight': torch.ones(9, 5)},
        {'layer1.conv.weight': torch.ones(1), 'feature_weight': torch.ones(25)},  # a teacher
    ],
    ids=['classifier alone', 'another model'],
)
def test_files_without_such_a_network_are_refused_with_a_hint(entries):
    with pytest.raises(UserError, match=r'x.pt: no file of this paper \(an x-vector has frame_1'):
        students.from_published(entries, 'x.pt')


def test_network_with_two_embedding_layers_is_no_resnet34_of_ours():
    entries = published_entries('resnet34')
    entries['seg_2.weight'] = torch.ones(5, 5)
    with pytest.raises(UserError, match=r'not a ResNet34 as published: 1 unexpected \(seg_2'):
        students.from_published(entries, 'x.pt')


@pytest.mark.parametrize(
    'key, shape',
    [
        ('conv1.weight', (0, 1, 3, 3)),
        ('conv1.weight', ()),
        ('seg_1.weight', (5, 3)),
        ('layer1.999999999.conv1.weight', (1,)),
    ],
    ids=['no channels', 'no axes', 'too few features', 'absurd number'],
)
def test_sizes_that_no_network_has_are_refused(key, shape):
    entries = published_entries('resnet34') | {key: torch.zeros(shape)}
    with pytest.raises(UserError, match='x.pt: not a ResNet34 as published'):
        students.from_published(entries, 'x.pt')


def test_state_of_another_module_is_not_written():
    with pytest.raises(UserError, match='the state to be written: no file of this paper'):
        students.to_published(torch.nn.Linear(2, 3).state_dict())
