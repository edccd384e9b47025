"""CAM++: the reference's golden values, sums over taps and segments, padding, start values."""

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
from torch import nn

from shared.models import campplus
from shared.models.campplus import CamPlusPlus, segment_means
from shared.models.masks import frame_mask

TINY = {'dim': 5, 'n_mels': 8, 'growth': 2, 'blocks': (2, 1, 3), 'head_width': 3}


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('dim, count', [(512, 7_176_224), (256, 6_914_080)])
def test_network_has_the_published_number_of_parameters(dim, count):
    with torch.device('meta'):
        network = CamPlusPlus(dim)
    assert sum(p.numel() for p in network.parameters()) == count
    assert network.dim == dim


FIRST = [-0.303811, -0.107902, 0.121539, 0.359279]


@pytest.mark.parametrize(
    'dim, frames, first, norm, total',
    [
        (512, 200, FIRST, 5.769715, -0.313760),
        (256, 200, FIRST, 4.099975, -0.119226),
        (512, 530, [-0.303719, -0.107826, 0.121587, 0.359280], 5.768668, -0.313624),
    ],
    ids=['512', '256', '512 of 530 frames'],
)
def test_network_gives_the_golden_embedding_of_the_reference(dim, frames, first, norm, total):
    network = golden_fill(CamPlusPlus(dim).double())
    with torch.no_grad():
        embedding = network(golden_features(frames))[0]
    assert embedding[:4].tolist() == pytest.approx(first, abs=1e-6)
    assert embedding.norm().item() == pytest.approx(norm, abs=1e-6)
    assert embedding.sum().item() == pytest.approx(total, abs=1e-6)


class Naive(NaiveLayers):
    """Spec enskd 3.3, with segments of 4 frames."""

    segment = 4

    def head(self, x):
        x = self.norm('head.bn1', self.conv2d('head.conv1', x.unsqueeze(1))).relu()
        for number in (1, 2):
            for block in range(2):
                stride = (1, 1) if block else (2, 1)
                x = self.residual(f'head.layer{number}.{block}', x, stride)
        x = self.norm('head.bn2', self.conv2d('head.conv2', x, stride=(2, 1))).relu()
        rows = [x[:, c, f] for c in range(x.shape[1]) for f in range(x.shape[2])]
        return torch.stack(rows, dim=1)

    def nonlinear(self, name, x):
        return self.norm(f'{name}.batchnorm', x).relu()

    def masked(self, name, x, dilation):
        y = self.conv(f'{name}.linear_local', x, dilation=dilation, padding=dilation)
        mean, frames = x.mean(2), []
        for t in range(x.shape[2]):
            start = t - t % self.segment
            context = mean + x[:, :, start : start + self.segment].mean(2)
            m = self.conv(f'{name}.linear1', context.unsqueeze(2)).relu()
            m = self.conv(f'{name}.linear2', m).sigmoid().squeeze(2)
            frames.append(y[:, :, t] * m)
        return torch.stack(frames, dim=2)

    def __call__(self, x):
        x = self.conv('xvector.tdnn.linear', self.head(x), stride=2, padding=2)
        x = self.nonlinear('xvector.tdnn.nonlinear', x)
        for number, (layers, dilation) in enumerate(zip(TINY['blocks'], (1, 2, 2)), start=1):
            for i in range(1, layers + 1):
                name = f'xvector.block{number}.tdnnd{i}'
                y = self.conv(f'{name}.linear1', self.nonlinear(f'{name}.nonlinear1', x))
                y = self.nonlinear(f'{name}.nonlinear2', y)
                x = torch.cat([x, self.masked(f'{name}.cam_layer', y, dilation)], dim=1)
            x = self.nonlinear(f'xvector.transit{number}.nonlinear', x)
            x = self.conv(f'xvector.transit{number}.linear', x)
        x = self.pool(self.nonlinear('xvector.out_nonlinear', x))
        x = self.conv('xvector.dense.linear', x.unsqueeze(2)).squeeze(2)
        return self.norm('xvector.dense.nonlinear.batchnorm', x)


@pytest.mark.parametrize('frames', [19, 16, 6])  # 10, 8 and 3 after the stride
@pytest.mark.parametrize('training', [False, True])
def test_network_equals_the_naive_version_in_value_and_gradient(monkeypatch, training, frames):
    monkeypatch.setattr(campplus, 'SEGMENT', Naive.segment)
    sizes = {**TINY, 'n_mels': 16}
    network = random_fill(CamPlusPlus(**sizes), seed=2).double().train(training)
    check_against_naive(network, Naive, drawn(3, 16, frames).double())


@pytest.mark.parametrize('count', [1, 99, 100, 101, 250])
def test_means_of_segments_equal_a_loop(count):
    x = drawn(2, 3, count).double()
    expected = [x[:, :, start : start + 100].mean(2) for start in range(0, count, 100)]
    torch.testing.assert_close(segment_means(x), torch.stack(expected, dim=2))


def test_means_of_segments_of_padded_rows_are_of_their_own_frames():
    x, frames = drawn(4, 3, 250).double(), [250, 200, 130, 40]
    mask = frame_mask(torch.tensor(frames), 250)
    found = segment_means(x.masked_fill(~mask, 0), mask)
    for row, count in enumerate(frames):
        own = segment_means(x[row : row + 1, :, :count])[0]
        torch.testing.assert_close(found[row, :, : own.shape[1]], own)
        assert (found[row, :, own.shape[1] :] == 0).all()


def test_padded_rows_get_what_they_would_get_alone():
    network, frames = random_fill(CamPlusPlus(**TINY)), [3, 199, 200, 201, 402, 530]
    check_padded_rows(network, drawn(6, 8, 530), frames)


def test_padding_has_no_gradient_and_each_row_the_gradient_it_has_alone(monkeypatch):
    monkeypatch.setattr(campplus, 'SEGMENT', 4)
    check_padded_gradients(random_fill(CamPlusPlus(**TINY)), drawn(2, 8, 20), [11, 20])


def test_fewer_than_3_frames_and_padding_in_training_are_refused():
    network = CamPlusPlus(**TINY)
    assert network(drawn(2, 8, 3)).shape == (2, 5)
    with pytest.raises(ValueError, match='2 frames are too few: the network needs at least 3'):
        network(drawn(2, 8, 2))
    with pytest.raises(ValueError, match='padded batches are for evaluation'):
        network(drawn(2, 8, 20), torch.tensor([16, 20]))
    with pytest.raises(ValueError, match='2 frames are too few'):
        network.eval()(drawn(2, 8, 20), torch.tensor([2, 20]))


@pytest.mark.parametrize('short', [0, 1, 2])
def test_row_too_short_that_was_not_read_back_is_nan_and_spares_the_others(monkeypatch, short):
    monkeypatch.setattr(campplus, 'checked_mask', lambda x, n, *_: frame_mask(n, x.shape[-1]))
    network, x = random_fill(CamPlusPlus(**TINY)).double().eval(), drawn(2, 8, 20).double()
    with torch.no_grad():
        found = network(x, torch.tensor([short, 20]))
        assert found[0].isnan().all()
        torch.testing.assert_close(found[1], network(x[1:], torch.tensor([20]))[0])


@pytest.mark.parametrize('bins', [0, 81, 84])
def test_bins_that_are_no_multiple_of_8_are_refused(bins):
    with pytest.raises(ValueError, match=f'{bins} bins must be a multiple of 8'):
        CamPlusPlus(n_mels=bins)


def test_convolutions_over_time_start_from_kaiming_normal_and_no_bias():
    torch.manual_seed(0)
    for module in CamPlusPlus().modules():
        if isinstance(module, nn.Conv1d):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
            assert module.bias is None or (module.bias == 0).all()
        elif isinstance(module, nn.Conv2d):  # of torch: uniform within the root of 1 / fan_in
            bound = module.weight[0].numel() ** -0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound


def test_embedding_is_close_under_autocast():
    network, x = CamPlusPlus(**TINY).eval(), drawn(2, 8, 30)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        found = network(x)
    torch.testing.assert_close(found.float(), network(x), rtol=0.1, atol=0.1)
