import pytest
import torch
import torch.nn.functional as F

from shared.models.ecapa_chained import ChainedEcapa
from shared.models.frontend import LogMel
from shared.models.speaker_encoder import SpeakerEncoder

TINY = {'width': 16, 'mfa_width': 12, 'attention_width': 6, 'se_width': 5, 'dim': 7, 'n_mels': 4}


def tiny(seed=0, **sizes):
    """A narrow network whose every number, batch statistics included, is random."""
    network = ChainedEcapa(**{**TINY, **sizes})
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise.abs() if name.endswith('running_var') else 0.3 * noise)
    return network


def test_encoder_has_the_published_number_of_parameters_and_tensors():
    with torch.device('meta'):
        network = ChainedEcapa()
    assert sum(p.numel() for p in network.parameters()) == 22_733_952
    assert len(network.state_dict()) == 231
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert shapes['stem.conv.weight'] == (1024, 80, 5)
    assert shapes['projection.weight'] == (512, 6144)


class Naive:
    """Spec wavlm_ssl 8.1 from a state; ends reflected by index, statistics by their formulas."""

    def __init__(self, state, training):
        self.state, self.training = state, training

    def conv(self, name, x, dilation=1):
        weight, bias = self.state[f'{name}.weight'], self.state[f'{name}.bias']
        taps, count = weight.shape[2], x.shape[2]
        frames = []
        for t in range(count):
            frame = bias.expand(len(x), -1)
            for k in range(taps):
                at = abs(t + dilation * (k - taps // 2))
                at = at if at < count else 2 * (count - 1) - at
                frame = frame + x[:, :, at] @ weight[:, :, k].T
            frames.append(frame)
        return torch.stack(frames, dim=2)

    def norm(self, name, x):
        state, dims = self.state, (0, 2) if x.ndim == 3 else (0,)
        shape = (1, -1, 1) if x.ndim == 3 else (1, -1)
        if self.training:
            mean = x.mean(dims).view(shape)
            variance = ((x - mean) ** 2).mean(dims).view(shape)
        else:
            mean = state[f'{name}.running_mean'].view(shape)
            variance = state[f'{name}.running_var'].view(shape)
        x = (x - mean) / (variance + 1e-5).sqrt()
        return x * state[f'{name}.weight'].view(shape) + state[f'{name}.bias'].view(shape)

    def layer(self, name, x, dilation=1):
        return self.norm(f'{name}.norm', self.conv(f'{name}.conv', x, dilation).relu())

    def block(self, name, x, dilation):
        parts = self.layer(f'{name}.expand', x).split(x.shape[1] // 8, dim=1)
        outputs = [parts[0], self.layer(f'{name}.branches.0', parts[1], dilation)]
        for i in range(2, 8):
            part = parts[i] + outputs[i - 1]
            outputs.append(self.layer(f'{name}.branches.{i - 1}', part, dilation))
        y = self.layer(f'{name}.merge', torch.cat(outputs, dim=1))
        gate = self.conv(f'{name}.excitation.squeeze.conv', y.mean(2, keepdim=True)).relu()
        return x + y * self.conv(f'{name}.excitation.excite', gate).sigmoid()

    def statistics(self, h, weight):
        mean = (weight * h).sum(2, keepdim=True)
        variance = (weight * (h - mean) ** 2).sum(2, keepdim=True)
        return mean, variance.clamp(min=1e-12).sqrt()

    def __call__(self, features):
        x0 = self.layer('stem', features)
        x1 = self.block('blocks.0', x0, 2)
        x2 = self.block('blocks.1', x1, 3)
        x3 = self.block('blocks.2', x2, 4)
        h = self.layer('mfa', torch.cat([x1, x2, x3], dim=1))
        mean, deviation = self.statistics(h, torch.ones_like(h) / h.shape[2])
        x = torch.cat([h, mean.expand_as(h), deviation.expand_as(h)], dim=1)
        x = self.norm('pooling.norm', self.conv('pooling.context', x).relu()).tanh()
        weight = F.softmax(self.conv('pooling.score', x), dim=2)
        pooled = torch.cat(self.statistics(h, weight), dim=1).squeeze(2)
        pooled = self.norm('pooled_norm', pooled)
        return pooled @ self.state['projection.weight'].T + self.state['projection.bias']


@pytest.mark.parametrize('training', [False, True])
def test_network_equals_the_naive_version_in_value_and_gradient(training):
    network = tiny().double().train(training)
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(3, 4, 11, dtype=torch.float64, generator=generator).requires_grad_()
    weights = torch.randn(3, 7, dtype=torch.float64, generator=generator)
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
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
    frontend = LogMel(pre_emphasis=0, f_min=0, f_max=8000, window='hann', unit_variance=True)
    encoder = SpeakerEncoder(frontend, ChainedEcapa(**{**TINY, 'n_mels': 80})).eval()
    lengths = torch.tensor([400, 700, 2719, 5000])  # 3 frames are reflected to and fro
    waves = 0.1 * torch.randn(4, 5000, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        batched = encoder(waves, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = encoder(waves[row : row + 1, :length])[0]
            torch.testing.assert_close(batched[row], alone, rtol=1e-5, atol=1e-5)


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


def test_training_refuses_padded_batches_and_widths_that_do_not_divide():
    with pytest.raises(ValueError, match='padded batches are for evaluation'):
        tiny().train()(torch.zeros(2, 4, 9), torch.tensor([5, 9]))
    with pytest.raises(ValueError, match='width 20 must be a multiple of 8'):
        ChainedEcapa(width=20)
