"""The ECAPA-TDNN of spec enskd 3.5 d against loops, its padding, its numbers of parameters."""

import pytest
import torch

from shared.models.ecapa_small import EcapaSmall, FrameAttentivePooling

TINY = {
    'inputs': 4,
    'channels': 16,
    'mfa_width': 12,
    'attention_width': 6,
    'se_width': 5,
    'dim': 7,
}


def tiny(seed=0):
    """A narrow network whose every number, batch statistics included, is random."""
    network = EcapaSmall(**TINY)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise.abs() if name.endswith('running_var') else 0.3 * noise)
    return network


def test_network_has_the_published_number_of_parameters():
    with torch.device('meta'):
        network = EcapaSmall()
    assert sum(p.numel() for p in network.parameters()) == 8_410_816
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert len(shapes) == 711 - 488 - 2  # but for the weights of the states and the classifier
    assert shapes['stem.conv.weight'] == (512, 1024, 5)
    assert shapes['pooling.hidden.weight'] == (128, 1536, 1)
    assert shapes['projection.weight'] == (256, 3072)


class Naive:
    """Spec enskd 3.5 d from a state, frame by frame and tap by tap; zeros around the frames."""

    def __init__(self, state, training):
        self.state, self.training = state, training

    def conv(self, name, x, dilation=1):
        weight, bias = self.state[f'{name}.weight'], self.state[f'{name}.bias']
        taps, frames = weight.shape[2], []
        for t in range(x.shape[2]):
            frame = bias.expand(len(x), -1)
            for k in range(taps):
                at = t + dilation * (k - taps // 2)
                if 0 <= at < x.shape[2]:
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
        outputs = [self.layer(f'{name}.branches.0', parts[0], dilation)]
        for i in range(1, 7):
            part = parts[i] + outputs[i - 1]
            outputs.append(self.layer(f'{name}.branches.{i}', part, dilation))
        y = self.layer(f'{name}.merge', torch.cat([*outputs, parts[7]], dim=1))
        gate = self.conv(f'{name}.excitation.squeeze.conv', y.mean(2, keepdim=True)).relu()
        return x + y * self.conv(f'{name}.excitation.excite', gate).sigmoid()

    def pool(self, x):
        scores = self.conv('pooling.score', self.conv('pooling.hidden', x).tanh()).exp()
        weight = scores / scores.sum(2, keepdim=True)
        mean = (weight * x).sum(2)
        variance = (weight * x**2).sum(2) - mean**2
        return torch.cat([mean, variance.clamp(min=1e-9).sqrt()], dim=1)

    def __call__(self, features):
        x1 = self.layer('stem', features)
        x2 = self.block('blocks.0', x1, 2)
        x3 = self.block('blocks.1', x2, 3)
        x4 = self.block('blocks.2', x3, 4)
        x = self.conv('mfa', torch.cat([x2, x3, x4], dim=1)).relu()
        x = self.norm('pooled_norm', self.pool(x))
        return x @ self.state['projection.weight'].T + self.state['projection.bias']


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


def test_constant_frames_have_the_floor_as_deviation_and_a_finite_gradient():
    pooling = FrameAttentivePooling(3, 2)
    x = torch.tensor([100.0, -7.0, 0.0])[None, :, None].repeat(1, 1, 50).requires_grad_()
    pooled = pooling(x)
    torch.testing.assert_close(pooled[0, :3], x[0, :, 0], rtol=1e-6, atol=0)
    # Spec: the root of 1e-9. Its difference of squares would leave about 1e-3 here in fp32.
    torch.testing.assert_close(pooled[0, 3:], torch.full((3,), 1e-9**0.5), rtol=0, atol=1e-5)
    pooled.sum().backward()
    assert x.grad.isfinite().all()


def test_padded_batch_gives_the_embeddings_of_single_utterances_whatever_the_padding_holds():
    network, frames = tiny().eval(), torch.tensor([1, 2, 9, 14])
    features = torch.randn(4, 4, 14, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        alone = [network(x[None, :, :count])[0] for x, count in zip(features, frames)]
        for row, count in zip(features, frames):
            row[:, count:] = 1e4
        batched = network(features, frames)
    torch.testing.assert_close(batched, torch.stack(alone), rtol=1e-5, atol=1e-5)


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


def test_pooling_of_half_precision_frames_is_in_full_precision():
    pooling, x = FrameAttentivePooling(6, 4), 200 + torch.randn(2, 6, 30)
    with torch.no_grad(), torch.autocast('cpu', dtype=torch.bfloat16):
        pooled = pooling(x.bfloat16())
    assert pooled.dtype == torch.float32
    with torch.no_grad():
        expected = pooling(x.bfloat16().float())
    torch.testing.assert_close(pooled, expected, rtol=0.05, atol=0.1)


def test_training_refuses_padded_batches_and_widths_that_do_not_divide():
    with pytest.raises(ValueError, match='padded batches are for evaluation'):
        tiny().train()(torch.zeros(2, 4, 9), torch.tensor([5, 9]))
    with pytest.raises(ValueError, match='channels 20 must be a multiple of 8'):
        EcapaSmall(channels=20)
