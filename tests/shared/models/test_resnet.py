"""ResNet34: the reference's golden values, sums over taps, padding, too few frames."""

import pytest
import torch
from student_references import (
    NaiveLayers,
    check_against_naive,
    check_padded_gradients,
    check_padded_rows,
    golden_features,
    golden_fill,
    random_fill,
)

from shared.models import resnet
from shared.models.masks import frame_mask
from shared.models.resnet import ResNet34

TINY = {'dim': 5, 'n_mels': 8, 'width': 2, 'blocks': (2, 1, 2, 1)}


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_network_has_the_published_number_of_parameters():
    with torch.device('meta'):
        network = ResNet34()
    assert sum(p.numel() for p in network.parameters()) == 6_634_336
    assert network.dim == 256


def test_network_gives_the_golden_embedding_of_the_reference():
    network = golden_fill(ResNet34().double())
    with torch.no_grad():
        embedding = network(golden_features())[0]
    first = [-13027739.075161, 8684493.319444, -1713836.483337, -5775325.682487]
    assert embedding[:4].tolist() == pytest.approx(first, abs=1e-5)
    assert embedding.norm().item() == pytest.approx(155990364.505157, abs=1e-5)
    assert embedding.sum().item() == pytest.approx(-8870496.585988, abs=1e-4)


class Naive(NaiveLayers):
    """Spec enskd 3.2."""

    def __call__(self, x):
        x = self.norm('bn1', self.conv2d('conv1', x.unsqueeze(1))).relu()
        for number, blocks in enumerate(TINY['blocks'], start=1):
            for block in range(blocks):
                stride = (2, 2) if number > 1 and block == 0 else (1, 1)
                x = self.residual(f'layer{number}.{block}', x, stride)
        channels = [x[:, c, f] for c in range(x.shape[1]) for f in range(x.shape[2])]
        return self.linear('seg_1', self.pool(torch.stack(channels, dim=1)))


@pytest.mark.parametrize('training', [False, True])
def test_network_equals_the_naive_version_in_value_and_gradient(training):
    sizes = {**TINY, 'n_mels': 16}
    network = random_fill(ResNet34(**sizes)).double().train(training)
    check_against_naive(network, Naive, drawn(3, 16, 21).double())


def test_padded_rows_get_what_they_would_get_alone():
    network, frames = random_fill(ResNet34(**TINY)), [9, 16, 17, 23, 40]
    check_padded_rows(network, drawn(5, 8, 40), frames)


def test_padding_has_no_gradient_and_each_row_the_gradient_it_has_alone():
    check_padded_gradients(random_fill(ResNet34(**TINY)), drawn(2, 8, 20), [11, 20])


def test_fewer_than_9_frames_and_padding_in_training_are_refused():
    network = ResNet34(**TINY)
    assert network(drawn(2, 8, 9)).shape == (2, 5)
    with pytest.raises(ValueError, match='8 frames are too few: the network needs at least 9'):
        network(drawn(2, 8, 8))
    with pytest.raises(ValueError, match='padded batches are for evaluation'):
        network(drawn(2, 8, 20), torch.tensor([16, 20]))
    with pytest.raises(ValueError, match='8 frames are too few'):
        network.eval()(drawn(2, 8, 20), torch.tensor([8, 20]))


@pytest.mark.parametrize('short', [0, 1, 8])
def test_row_too_short_that_was_not_read_back_is_nan_and_spares_the_others(monkeypatch, short):
    monkeypatch.setattr(resnet, 'checked_mask', lambda x, n, *_: frame_mask(n, x.shape[-1]))
    network, x = random_fill(ResNet34(**TINY)).double().eval(), drawn(2, 8, 20).double()
    with torch.no_grad():
        found = network(x, torch.tensor([short, 20]))
        assert found[0].isnan().all()
        torch.testing.assert_close(found[1], network(x[1:], torch.tensor([20]))[0])


@pytest.mark.parametrize('bins', [0, 81, 84])
def test_bins_that_are_no_multiple_of_8_are_refused(bins):
    with pytest.raises(ValueError, match=f'{bins} bins must be a multiple of 8'):
        ResNet34(n_mels=bins)


def test_embedding_is_close_under_autocast():
    network, x = ResNet34(**TINY).eval(), drawn(2, 8, 30)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        found = network(x)
    torch.testing.assert_close(found.float(), network(x), rtol=0.1, atol=0.1)
