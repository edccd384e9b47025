import re

import pytest
import torch
from modules import load

from shared.errors import UserError
from shared.losses.aam_softmax import AamSoftmax
from shared.models.ecapa_tdnn import EcapaTdnn
from shared.models.frontend import LogMel

published = load('lgl', 'published')
AugmentationDiscriminator = load('lgl', 'models').AugmentationDiscriminator

# spec lgl 4.4, our name -> theirs, independent of the reader's tables
RENAMES = [
    (r'^blocks\.(\d)\.', lambda m: f'layer{int(m[1]) + 1}.'),
    (r'branches\.(\d)\.conv', r'convs.\1'),
    (r'branches\.(\d)\.norm', r'bns.\1'),
    (r'expand\.conv', 'conv1'),
    (r'expand\.norm', 'bn1'),
    (r'merge\.conv', 'conv3'),
    (r'merge\.norm', 'bn3'),
    (r'excitation\.squeeze\.conv', 'se.se.1'),
    (r'excitation\.squeeze\.norm', 'se.se.3'),
    (r'excitation\.excite', 'se.se.4'),
    (r'^stem\.conv', 'conv1'),
    (r'^stem\.norm', 'bn1'),
    (r'^mfa', 'layer4'),
    (r'^pooling\.context', 'attention.0'),
    (r'^pooling\.norm', 'attention.2'),
    (r'^pooling\.score', 'attention.4'),
    (r'^pooled_norm', 'bn5'),
    (r'^projection', 'fc6'),
    (r'^embedding_norm', 'bn6'),
]
AAT = {'input_norm': '0.0', 'hidden': '0.2', 'hidden_norm': '1.0', 'output': '1.2'}


def randomised(module, seed=0):
    """The module with every number random, its batch statistics too, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise.abs() if name.endswith('running_var') else 0.05 * noise)
    return module.eval()


def encoder_entries(network):
    entries = {}
    for name, tensor in network.state_dict().items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        entries[f'Network.{name}'] = tensor
    frontend = LogMel()
    entries['Network.torchfbank.0.flipped_filter'] = torch.tensor([[[-0.97, 1.0]]])
    entries['Network.torchfbank.1.spectrogram.window'] = frontend.window
    entries['Network.torchfbank.1.mel_scale.fb'] = frontend.filters.T.contiguous()
    return entries


def stage1_entries(network, discriminator):
    entries = encoder_entries(network) | {
        'Loss.w': torch.tensor(11.0),
        'Loss.b': torch.tensor(-4.0),
    }
    for name, tensor in discriminator.state_dict().items():
        module, leaf = name.split('.')
        entries[f'AATNet.matcher.{AAT[module]}.{leaf}'] = tensor
    return entries


def stage2_entries(network, classifier):
    return encoder_entries(network) | {'Loss.weight': classifier}


@pytest.fixture(scope='module')
def network():
    return randomised(EcapaTdnn(width=64))


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_stage_one_file_reproduces_the_modules_it_came_from(tmp_path, network, prefix):
    discriminator = randomised(AugmentationDiscriminator(), seed=1)
    entries = stage1_entries(network, discriminator)
    assert len(entries) == 265
    path = tmp_path / 'model000000043.model'
    torch.save({prefix + key: value for key, value in entries.items()}, path)

    found = published.read(path)
    assert (found.kind, found.width, found.scale, found.bias) == ('stage1', 64, 11.0, -4.0)
    assert found.classifier is None
    ours = EcapaTdnn(width=64).eval()
    ours.load_state_dict(found.encoder)
    features = torch.randn(2, 80, 30)
    torch.testing.assert_close(ours(features), network(features), rtol=0, atol=0)
    theirs = AugmentationDiscriminator().eval()
    theirs.load_state_dict(found.discriminator)
    pairs = torch.randn(3, 384)
    torch.testing.assert_close(theirs(pairs), discriminator(pairs), rtol=0, atol=0)


@pytest.mark.parametrize('width', [64, 512])
def test_stage_two_file_gives_encoder_and_classifier(tmp_path, width):
    network = randomised(EcapaTdnn(width=width), seed=2)
    entries = stage2_entries(network, torch.randn(40, 192))
    assert len(entries) == 250
    torch.save(entries, tmp_path / 'model0031.model')

    found = published.read(tmp_path / 'model0031.model')
    assert (found.kind, found.width) == ('stage2', width)
    assert found.discriminator is None and found.scale is None and found.bias is None
    ours = EcapaTdnn(width=width).eval()
    ours.load_state_dict(found.encoder)
    features = torch.randn(1, 80, 20)
    torch.testing.assert_close(ours(features), network(features), rtol=0, atol=0)
    criterion = AamSoftmax(40, 192)
    criterion.load_state_dict({'weight': found.classifier})


def test_sizes_of_both_stages_are_the_published_ones():
    assert sum(p.numel() for p in AugmentationDiscriminator().parameters()) == 199_938
    with torch.device('meta'):
        encoder = sum(p.numel() for p in EcapaTdnn().parameters())
        classifier = sum(p.numel() for p in AamSoftmax(6000, 192).parameters())
        discriminator = sum(p.numel() for p in AugmentationDiscriminator().parameters())
    assert encoder + discriminator + 2 == 7_178_884
    assert encoder + classifier == 8_130_944


def test_one_error_names_everything_wrong_with_the_entries(tmp_path, network):
    entries = stage2_entries(network, torch.randn(40, 192))
    del entries['Network.fc6.bias']
    entries['Network.extra'] = torch.zeros(1)
    entries['Network.bn6.weight'] = torch.ones(191)
    entries['Network.bn6.bias'] = torch.full((192,), torch.nan)
    entries['Network.torchfbank.1.spectrogram.window'] = torch.hann_window(400)
    torch.save(entries, tmp_path / 'bad.model')
    with pytest.raises(UserError) as caught:
        published.read(tmp_path / 'bad.model')
    message = str(caught.value)
    assert '\n' not in message
    for part in (
        'bad.model',
        '1 missing (Network.fc6.bias)',
        '1 unexpected (Network.extra)',
        '1 of another shape (Network.bn6.weight (191,) instead of (192,))',
        '1 not finite (Network.bn6.bias)',
        '1 of another front end (Network.torchfbank.1.spectrogram.window)',
    ):
        assert part in message


def test_classifier_of_another_dimension_is_refused(tmp_path, network):
    torch.save(stage2_entries(network, torch.randn(40, 100)), tmp_path / 'bad.model')
    with pytest.raises(UserError, match=r'Loss.weight \(40, 100\) instead of \(40, 192\)'):
        published.read(tmp_path / 'bad.model')


@pytest.mark.parametrize(
    'content, words',
    [
        (None, 'no such checkpoint file'),
        (b'not a checkpoint', 'not a readable checkpoint'),
        ({'epoch': 3}, 'no bare state'),
        (
            {'speaker_encoder.conv1.weight': torch.zeros(8, 80, 5)},
            'Network.conv1.weight is missing',
        ),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / 'other.model'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=words) as caught:
        published.read(path)
    assert '\n' not in str(caught.value)
