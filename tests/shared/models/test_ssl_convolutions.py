import pytest
import torch
import torch.nn.functional as F

from shared.models.ssl_config import SslConfig, frame_counts
from shared.models.ssl_convolutions import FeatureExtractor

STACKS = {  # kernels, strides
    'published': ((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)),
    'distilled, 9 layers': ((10, 1, 3, 3, 3, 3, 1, 2, 2), (5, 1, 2, 2, 2, 2, 1, 2, 2)),
    'one layer': ((10,), (5,)),
    'long kernels': ((8, 7, 4), (3, 2, 1)),
    'gaps between frames': ((2, 3), (5, 4)),
}


def extractor(stack, norm, bias=False):
    kernels, strides = STACKS[stack]
    config = SslConfig(
        'hubert',
        conv_channels=tuple(3 + i for i in range(len(kernels))),
        conv_kernels=kernels,
        conv_strides=strides,
        conv_norm=norm,
        conv_bias=bias,
    )
    torch.manual_seed(0)
    network = FeatureExtractor(config).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return config, network


def by_convolutions(network, norm, wave):
    """Frames (T, C) of one wave (L,), layer by layer with torch's own operations."""
    x = wave[None, None]
    for i, layer in enumerate(network.conv_layers):
        x = F.conv1d(x, layer.conv.weight, layer.conv.bias, stride=layer.conv.stride)
        if norm == 'group' and i == 0:
            gain, bias = layer.layer_norm.weight, layer.layer_norm.bias
            x = F.group_norm(x, len(gain), gain, bias)
        elif norm == 'layer':
            x = layer.layer_norm(x.transpose(1, 2)).transpose(1, 2)
        x = F.gelu(x)
    return x[0].T


@pytest.mark.parametrize('norm, bias', [('group', False), ('layer', False), ('layer', True)])
@pytest.mark.parametrize('stack', STACKS)
def test_matrix_products_equal_convolutions(stack, norm, bias):
    config, network = extractor(stack, norm, bias)
    for samples in (700, 721, 963):
        x = torch.randn(3, samples, dtype=torch.float64, requires_grad=True)
        own = network(x)
        expected = torch.stack([by_convolutions(network, norm, wave) for wave in x])
        assert own.shape == (3, frame_counts(samples, config), config.conv_channels[-1])
        torch.testing.assert_close(own, expected)
        of = [x, *network.parameters()]
        weights = torch.randn_like(own)
        mine = torch.autograd.grad((own * weights).sum(), of)
        theirs = torch.autograd.grad((expected * weights).sum(), of)
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize('norm', ['group', 'layer'])
@pytest.mark.parametrize('stack', STACKS)
def test_padding_changes_nothing(stack, norm):
    config, network = extractor(stack, norm)
    lengths = [963, 500, 740]
    x = torch.randn(3, 963, dtype=torch.float64)
    frames = network(x, torch.tensor(lengths))
    for row, wave, length in zip(frames, x, lengths):
        alone = network(wave[None, :length])[0]
        torch.testing.assert_close(row[: len(alone)], alone)


def test_group_norm_is_exact_for_channels_that_suppress_a_loud_rumble():
    _, network = extractor('published', 'group')
    first = network.conv_layers[0]
    with torch.no_grad():  # second differences: they pass the hiss, and the rumble at -90 dB
        first.conv.weight.zero_()
        first.conv.weight[:, 0, :3] = torch.tensor([1.0, -2.0, 1.0])
    seconds = torch.arange(8000, dtype=torch.float64) / 16000
    wave = 0.2 + 0.7 * (6.28 * 30 * seconds).sin() + 1e-3 * torch.randn(8000).double()
    exact = first(wave[None], torch.tensor([8000]), 8000)[:1599]
    single = first.float()(wave[None].float(), torch.tensor([8000]), 8000)[:1599]
    assert (single - exact).abs().max() < 1e-3 * exact.abs().max()


def test_too_short_waves_are_refused():
    _, network = extractor('published', 'group')
    assert network(torch.randn(1, 400).double()).shape[1] == 1
    with pytest.raises(ValueError, match='399 samples are too short'):
        network(torch.randn(1, 399).double())
