"""What tests of x-vector, ResNet34 and CAM++ compare with: fills, golden inputs, naive layers."""

import math

import torch


def golden_fill(module):
    """The module with the numbers of spec enskd 3.6 by the names of its entries, in eval mode."""
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        n = torch.arange(tensor.numel(), dtype=torch.float64)
        s = torch.sin(0.7 * n + len(name)).view(tensor.shape)
        if name.endswith('running_var'):
            tensor.copy_(1 + 0.5 * s**2)
        elif name.endswith(('running_mean', 'bias')):
            tensor.copy_(0.1 * s)
        elif tensor.ndim >= 2:
            tensor.copy_(s * math.sqrt(tensor.shape[0] / tensor.numel()))
        else:
            tensor.copy_(1 + 0.1 * s)
    return module.eval()


def golden_features(frames=200):
    """The features of spec enskd 3.6, (1, 80, T) float64."""
    t, f = torch.meshgrid(torch.arange(frames), torch.arange(80), indexing='ij')
    x = torch.sin(0.01 * t.double() * (f + 1)) + 0.1 * torch.cos(0.3 * f.double())
    return x.T.unsqueeze(0)


def random_fill(module, seed=0):
    """The module with random numbers in every entry, most ReLUs open."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 1 and name.endswith(('weight', 'running_var')):  # of a norm
                noise = 0.5 + noise.abs()
            elif name.endswith('bias'):
                noise = 0.4 * noise.abs()
            else:
                noise = 0.4 * noise
            tensor.copy_(noise)
    return module


class NaiveLayers:
    """Layers from a state by name: convolutions as sums over taps, norms by their formula."""

    def __init__(self, state, training):
        self.state, self.training = state, training

    def conv(self, name, x, stride=1, dilation=1, padding=0):
        """Of x (B, C, T); zero outside."""
        weight, bias = self.state[f'{name}.weight'], self.state.get(f'{name}.bias')
        taps, frames = weight.shape[2], []
        for start in range(-padding, x.shape[2] + padding - dilation * (taps - 1), stride):
            frame = 0 if bias is None else bias.expand(len(x), -1)
            for k in range(taps):
                at = start + dilation * k
                if 0 <= at < x.shape[2]:
                    frame = frame + x[:, :, at] @ weight[:, :, k].T
            frames.append(frame)
        return torch.stack(frames, dim=2)

    def conv2d(self, name, x, stride=(1, 1)):
        """Of x (B, C, F, T) with a square kernel, without bias; zero outside."""
        weight = self.state[f'{name}.weight']
        size = weight.shape[2]
        half, total = size // 2, 0
        edge = x.new_zeros(*x.shape[:2], x.shape[2] + 2 * half, x.shape[3] + 2 * half)
        edge[:, :, half : half + x.shape[2], half : half + x.shape[3]] = x
        for i in range(size):
            for j in range(size):
                part = edge[:, :, i : i + x.shape[2] : stride[0], j : j + x.shape[3] : stride[1]]
                total = total + torch.einsum('oc,bcft->boft', weight[:, :, i, j], part)
        return total

    def linear(self, name, x):
        return x @ self.state[f'{name}.weight'].T + self.state[f'{name}.bias']

    def norm(self, name, x):
        """Of x (B, C) or (B, C, ...)."""
        values = x.transpose(0, 1).flatten(1)
        if self.training:
            mean = values.sum(1) / values.shape[1]
            variance = ((values - mean[:, None]) ** 2).sum(1) / values.shape[1]
        else:
            mean = self.state[f'{name}.running_mean']
            variance = self.state[f'{name}.running_var']
        shape = (1, -1) + (1,) * (x.ndim - 2)
        x = (x - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
        if f'{name}.weight' not in self.state:
            return x
        weight, bias = self.state[f'{name}.weight'], self.state[f'{name}.bias']
        return x * weight.view(shape) + bias.view(shape)

    def residual(self, name, x, stride):
        """A residual block of x (B, C, F, T)."""
        y = self.norm(f'{name}.bn1', self.conv2d(f'{name}.conv1', x, stride)).relu()
        y = self.norm(f'{name}.bn2', self.conv2d(f'{name}.conv2', y))
        if f'{name}.shortcut.0.weight' in self.state:
            x = self.norm(f'{name}.shortcut.1', self.conv2d(f'{name}.shortcut.0', x, stride))
        return (y + x).relu()

    @staticmethod
    def pool(x):
        """Mean and deviation of x (B, C, T), the variance unbiased."""
        mean = sum(x[..., t] for t in range(x.shape[-1])) / x.shape[-1]
        squares = sum((x[..., t] - mean) ** 2 for t in range(x.shape[-1]))
        return torch.cat([mean, (squares / (x.shape[-1] - 1) + 1e-7).sqrt()], dim=1)


def check_against_naive(network, naive, features, seed=5):
    """Values and gradients of a float64 network in its mode, against `naive(state, training)`."""
    generator = torch.Generator().manual_seed(seed)
    features = features.clone().requires_grad_()
    share = torch.randn(len(features), network.dim, dtype=torch.float64, generator=generator)
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    parameters = dict(network.named_parameters())
    for name in parameters:
        state[name].requires_grad_()

    expected = naive(state, network.training)(features)
    inputs = [features, *(state[name] for name in parameters)]
    expected_gradients = torch.autograd.grad((expected * share).sum(), inputs)
    found = network(features)
    gradients = torch.autograd.grad((found * share).sum(), [features, *parameters.values()])

    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for name, ours, theirs in zip(['features', *parameters], gradients, expected_gradients):
        assert ours.abs().max() > 0, name  # or nothing is compared
        torch.testing.assert_close(
            ours, theirs, rtol=1e-7, atol=1e-8, msg=lambda text, name=name: f'{name}: {text}'
        )


def check_padded_rows(network, features, frames):
    """Each row of a batch gets what it gets alone, whatever lies past its end, and alike twice."""
    network.eval()
    frames = torch.tensor(frames)
    padded = features.clone()
    for row, count in enumerate(frames.tolist()):
        padded[row, :, count:] = torch.nan if row % 2 else 1e3
    with torch.no_grad():
        batched = network(padded, frames)
        for row, count in enumerate(frames.tolist()):
            alone = network(features[row : row + 1, :, :count])[0]
            torch.testing.assert_close(batched[row], alone, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            network(features, torch.full_like(frames, features.shape[-1])),
            network(features),
            rtol=1e-4,
            atol=1e-4,
        )


def check_padded_gradients(network, features, frames):
    """Padding has no gradient, each row that which it has alone; float64."""
    network.double().eval()
    features = features.double().requires_grad_()
    batched = torch.autograd.grad(network(features, torch.tensor(frames)).sum(), features)[0]
    for row, count in enumerate(frames):
        alone = network(features[row : row + 1, :, :count]).sum()
        expected = torch.autograd.grad(alone, features)[0]
        assert (batched[row, :, count:] == 0).all()
        torch.testing.assert_close(batched[row], expected[row], rtol=1e-8, atol=1e-10)
