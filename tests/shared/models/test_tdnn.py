"""X-vector: the reference's golden values, sums over taps, padding, too few frames."""

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

from shared.models import tdnn
from shared.models.masks import frame_mask
from shared.models.tdnn import XVector

TINY = {'dim': 5, 'n_mels': 4, 'width': 6, 'last_width': 7}


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('dim, count', [(256, 3_645_404), (512, 4_610_524)])
def test_network_has_the_published_number_of_parameters(dim, count):
    with torch.device('meta'):
        network = XVector(dim)
    assert sum(p.numel() for p in network.parameters()) == count
    assert network.dim == dim


def test_network_gives_the_golden_embedding_of_the_reference():
    network = golden_fill(XVector(256).double())
    with torch.no_grad():
        embedding = network(golden_features())[0]
    first = [0.658785, -0.735933, 0.464744, -0.508766]
    assert embedding[:4].tolist() == pytest.approx(first, abs=1e-6)
    assert embedding.norm().item() == pytest.approx(9.906029, abs=1e-6)
    assert embedding.sum().item() == pytest.approx(0.365061, abs=1e-6)


class Naive(NaiveLayers):
    """Spec enskd 3.1."""

    def layer(self, name, x, dilation=1):
        return self.norm(f'{name}.bn', self.conv(f'{name}.conv_1d', x, dilation=dilation).relu())

    def __call__(self, x):
        x = self.layer('frame_1', x)
        x = self.layer('frame_2', x, dilation=2)
        x = self.layer('frame_3', x, dilation=3)
        x = self.layer('frame_5', self.layer('frame_4', x))
        x = self.norm('seg_bn_1', self.linear('seg_1', self.pool(x)).relu())
        return self.linear('seg_2', x)


@pytest.mark.parametrize('training', [False, True])
def test_network_equals_the_naive_version_in_value_and_gradient(training):
    network = random_fill(XVector(**TINY)).double().train(training)
    check_against_naive(network, Naive, drawn(3, 4, 20).double())


def test_padded_rows_get_what_they_would_get_alone():
    check_padded_rows(random_fill(XVector(**TINY)), drawn(4, 4, 40), [16, 17, 33, 40])


def test_padding_has_no_gradient_and_each_row_the_gradient_it_has_alone():
    check_padded_gradients(random_fill(XVector(**TINY)), drawn(2, 4, 20), [17, 20])


def test_fewer_than_16_frames_and_padding_in_training_are_refused():
    network = XVector(**TINY)
    assert network(drawn(2, 4, 16)).shape == (2, 5)
    with pytest.raises(ValueError, match='15 frames are too few: the network needs at least 16'):
        network(drawn(2, 4, 15))
    with pytest.raises(ValueError, match='padded batches are for evaluation'):
        network(drawn(2, 4, 20), torch.tensor([16, 20]))
    with pytest.raises(ValueError, match='15 frames are too few'):
        network.eval()(drawn(2, 4, 20), torch.tensor([15, 20]))


@pytest.mark.parametrize('short', [0, 1, 14, 15])
def test_row_too_short_that_was_not_read_back_is_nan_and_spares_the_others(monkeypatch, short):
    monkeypatch.setattr(tdnn, 'checked_mask', lambda x, n, *_: frame_mask(n, x.shape[-1]))
    network, x = random_fill(XVector(**TINY)).double().eval(), drawn(2, 4, 20).double()
    with torch.no_grad():
        found = network(x, torch.tensor([short, 20]))
        assert found[0].isnan().all()
        torch.testing.assert_close(found[1], network(x[1:], torch.tensor([20]))[0])


def test_embedding_is_close_under_autocast():
    network, x = random_fill(XVector(**TINY)).eval(), drawn(2, 4, 30)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        found = network(x)
    torch.testing.assert_close(found.float(), network(x), rtol=0.1, atol=0.1)
