import math

import pytest
import torch
from torch import nn

from shared.models import ecapa_tdnn, frontend
from shared.models.ecapa_tdnn import EcapaTdnn
from shared.models.frontend import LogMel
from shared.models.masks import frame_mask
from shared.models.speaker_encoder import SpeakerEncoder

TINY = {
    'width': 16,
    'mfa_width': 12,
    'attention_width': 6,
    'se_width': 5,
    'dim': 7,
    'n_mels': 4,
}


def tiny(seed=0, **sizes):
    """A narrow network whose every number, batch statistics included, is random."""
    network = EcapaTdnn(**{**TINY, **sizes})
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise.abs() if name.endswith('running_var') else 0.4 * noise)
    return network


def golden_fill(network):
    """The fill of spec lgl 4.4; the flat index starts from 0 in each tensor."""
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Linear):
            weight, bias = module.weight.data, module.bias.data
            flat = torch.arange(1, weight.numel() + 1, dtype=torch.float64)
            fan_in = weight.numel() / weight.shape[0]
            weight.copy_(((0.7 * flat).sin() / math.sqrt(fan_in)).view_as(weight))
            bias.copy_(0.01 * (0.3 * torch.arange(1, len(bias) + 1, dtype=torch.float64)).cos())
    return network


def golden_wave():
    """The signal of spec lgl 3, (1, 48240)."""
    n = torch.arange(48240, dtype=torch.float64)
    wave = 0.1 * torch.sin(2 * math.pi * 440 * n / 16000)
    wave += 0.05 * torch.cos(2 * math.pi * 1000 * n / 16000)
    wave += 0.02 * torch.sin(2 * math.pi * (200 + 0.05 * n) * n / 16000)
    return wave.float().unsqueeze(0)


@pytest.mark.parametrize(
    'width, first, norm, total',
    [
        (512, [0.009938, 0.010283, 0.005913, 0.001582, 0.000928, -0.000221], 0.100307, 0.027792),
        (1024, [0.010855, 0.008495, 0.004924, 0.003330, 0.001988, -0.001927], 0.099107, 0.027900),
    ],
)
def test_encoder_gives_the_golden_embedding_of_the_reference(width, first, norm, total):
    encoder = SpeakerEncoder(LogMel(), golden_fill(EcapaTdnn(width=width))).eval()
    with torch.no_grad():
        embedding = encoder(golden_wave())[0]
    assert embedding[:6].tolist() == pytest.approx(first, abs=2e-6)
    assert embedding.norm().item() == pytest.approx(norm, abs=2e-6)
    assert embedding.sum().item() == pytest.approx(total, abs=5e-6)


@pytest.mark.parametrize('width, count', [(512, 6_978_944), (1024, 15_445_312)])
def test_encoder_has_the_published_number_of_parameters(width, count):
    with torch.device('meta'):
        network = EcapaTdnn(width=width)
    parts = {name: sum(p.numel() for p in m.parameters()) for name, m in network.named_children()}
    assert sum(parts.values()) == count
    if width == 512:
        assert parts == {
            'stem': 205_312 + 1_024,
            'blocks': 3 * 746_688,
            'mfa': 2_360_832,
            'pooling': 1_575_168,
            'pooled_norm': 6_144,
            'projection': 590_016,
            'embedding_norm': 384,
        }


class Naive:
    """Spec lgl 4.1 from a state, with loops over utterances, frames and taps."""

    def __init__(self, state, training):
        self.state, self.training = state, training

    def conv(self, name, x, dilation=1):
        weight, bias = self.state[f'{name}.weight'], self.state[f'{name}.bias']
        taps, count = weight.shape[2], x.shape[2]
        frames = []
        for t in range(count):
            frame = bias.expand(len(x), -1)
            for k in range(taps):
                at = t + dilation * (k - taps // 2)
                if 0 <= at < count:
                    frame = frame + x[:, :, at] @ weight[:, :, k].T
            frames.append(frame)
        return torch.stack(frames, dim=2)

    def norm(self, name, x):
        state = self.state
        if self.training:
            values = x.transpose(0, 1).flatten(1) if x.ndim == 3 else x.T
            mean, var = values.mean(1), values.var(1, correction=0)
        else:
            mean, var = state[f'{name}.running_mean'], state[f'{name}.running_var']
        gain = state[f'{name}.weight'] / (var + 1e-5).sqrt()
        shape = (1, -1, 1) if x.ndim == 3 else (1, -1)
        return (x - mean.view(shape)) * gain.view(shape) + state[f'{name}.bias'].view(shape)

    def layer(self, name, x, dilation=1):
        return self.norm(f'{name}.norm', self.conv(f'{name}.conv', x, dilation).relu())

    def block(self, name, x, dilation):
        hidden = self.layer(f'{name}.expand', x)
        w = hidden.shape[1] // 8
        outputs = []
        for i in range(7):
            part = hidden[:, i * w : (i + 1) * w]
            part = part if i == 0 else part + outputs[-1]
            outputs.append(self.layer(f'{name}.branches.{i}', part, dilation))
        outputs.append(hidden[:, 7 * w :])
        y = self.layer(f'{name}.merge', torch.cat(outputs, dim=1))
        squeeze = f'{name}.excitation.squeeze'
        if f'{squeeze}.norm.weight' in self.state:
            gate = self.layer(squeeze, y.mean(2, keepdim=True))
        else:
            gate = self.conv(f'{squeeze}.conv', y.mean(2, keepdim=True)).relu()
        return x + y * self.conv(f'{name}.excitation.excite', gate).sigmoid()

    def pool(self, h):
        count = h.shape[2]
        mean = h.sum(2, keepdim=True) / count
        var = ((h - mean) ** 2).sum(2, keepdim=True) / (count - 1)
        std = var.clamp(min=1e-4).sqrt()
        x = torch.cat([h, mean.expand_as(h), std.expand_as(h)], dim=1)
        x = self.norm('pooling.norm', self.conv('pooling.context', x).relu()).tanh()
        weight = self.conv('pooling.score', x).exp()
        weight = weight / weight.sum(2, keepdim=True)
        mean = (weight * h).sum(2)
        return torch.cat([mean, ((weight * h * h).sum(2) - mean**2).clamp(min=1e-4).sqrt()], dim=1)

    def __call__(self, features):
        x0 = self.layer('stem', features)
        x1 = self.block('blocks.0', x0, 2)
        x2 = self.block('blocks.1', x0 + x1, 3)
        x3 = self.block('blocks.2', x0 + x1 + x2, 4)
        h = self.conv('mfa', torch.cat([x1, x2, x3], dim=1)).relu()
        pooled = self.norm('pooled_norm', self.pool(h))
        embedding = pooled @ self.state['projection.weight'].T + self.state['projection.bias']
        return self.norm('embedding_norm', embedding)


@pytest.mark.parametrize('training, se_norm', [(False, True), (True, True), (True, False)])
def test_network_equals_the_naive_version_in_value_and_gradient(training, se_norm):
    network = tiny(se_norm=se_norm).double().train(training)
    assert any('squeeze.norm' in name for name in network.state_dict()) == se_norm
    features = torch.randn(3, 4, 11, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 7, dtype=torch.float64)
    state = {k: v.detach().clone() for k, v in network.state_dict().items()}
    parameters = dict(network.named_parameters())
    for name in parameters:
        state[name].requires_grad_()

    expected = Naive(state, training)(features)
    inputs = [features, *(state[name] for name in parameters)]
    expected_gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    found = network(features)
    gradients = torch.autograd.grad((found * weights).sum(), [features, *parameters.values()])

    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for name, ours, theirs in zip(['features', *parameters], gradients, expected_gradients):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-7, atol=1e-8, msg=lambda text, name=name: f'{name}: {text}'
        )


def test_padded_batch_gives_the_embeddings_of_single_utterances():
    encoder = SpeakerEncoder(LogMel(), tiny(n_mels=80)).eval()
    lengths = torch.tensor([400, 1600, 2719, 5000])
    waves = 0.1 * torch.randn(4, 5000, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        batched = encoder(waves, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = encoder(waves[row : row + 1, :length])[0]
            torch.testing.assert_close(batched[row], alone, rtol=1e-5, atol=1e-5)


def test_row_too_short_whose_length_was_not_read_back_gives_nan_and_spares_the_others(monkeypatch):
    encoder = SpeakerEncoder(LogMel(), tiny(n_mels=80)).eval()
    waves = 0.1 * torch.randn(2, 2000, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(frontend, 'check_waves', lambda *_: None)  # as on a GPU, and so the next
    monkeypatch.setattr(
        ecapa_tdnn,
        'checked_mask',
        lambda x, n, *_: None if n is None else frame_mask(n, x.shape[-1]),
    )
    with torch.no_grad():
        embeddings = encoder(waves, torch.tensor([100, 2000]))
        assert embeddings[0].isnan().all()
        torch.testing.assert_close(embeddings[1], encoder(waves[1:])[0], rtol=1e-5, atol=1e-5)


def test_full_width_padded_batch_equals_single_utterances():
    torch.manual_seed(3)
    encoder = SpeakerEncoder(LogMel(), EcapaTdnn()).eval()
    lengths = torch.tensor([8000, 12345])
    waves = 0.1 * torch.randn(2, 12345)
    with torch.no_grad():
        batched = encoder(waves, lengths)
        alone = torch.cat([encoder(wave[None, :n]) for wave, n in zip(waves, lengths.tolist())])
    torch.testing.assert_close(batched, alone, rtol=1e-5, atol=1e-5)


def test_padding_has_no_gradient_and_each_utterance_the_gradient_it_has_alone():
    network = tiny().double().eval()
    features = torch.randn(2, 4, 12, dtype=torch.float64, requires_grad=True)
    frames = torch.tensor([7, 12])
    batched = torch.autograd.grad(network(features, frames).sum(), features)[0]
    assert (batched[0, :, 7:] == 0).all()
    for row, count in enumerate(frames.tolist()):
        alone = network(features[row : row + 1, :, :count]).sum()
        expected = torch.autograd.grad(alone, features)[0]
        torch.testing.assert_close(
            batched[row, :, :count], expected[row, :, :count], rtol=1e-8, atol=1e-10
        )


def test_constant_frames_give_finite_gradients():
    network = tiny().eval()
    network(torch.zeros(1, 4, 9)).sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_pooling_statistics_stay_fp32_under_autocast():
    pooling = tiny().pooling.eval()
    frames = 300 + torch.randn(1, 12, 50)  # bf16 would round 300 + noise to even numbers
    with torch.autocast('cpu', dtype=torch.bfloat16):
        pooled = pooling(frames)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooling._context(frames, None)[:, :12], frames.mean(-1))
    assert (pooled[:, :12] - 300).abs().max() < 3


def test_training_refuses_padded_batches():
    with pytest.raises(ValueError, match='padded batches are for evaluation'):
        tiny().train()(torch.zeros(2, 4, 9), torch.tensor([5, 9]))


def test_width_must_be_a_multiple_of_eight():
    with pytest.raises(ValueError, match='width 20 must be a multiple of 8'):
        EcapaTdnn(width=20)
