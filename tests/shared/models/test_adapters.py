import math

import pytest
import torch

from shared.models.adapters import AdapterSettings, ParallelAdapter


def adapter(**settings):
    torch.manual_seed(0)
    module = ParallelAdapter(6, AdapterSettings(**{'width': 4, **settings}))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


NAIVE = {
    'elu': lambda z: z if z > 0 else math.exp(z) - 1,
    'relu': lambda z: max(z, 0.0),
    'gelu': lambda z: z * 0.5 * (1 + math.erf(z / math.sqrt(2))),
}


@pytest.mark.parametrize('activation', NAIVE)
def test_adapter_is_down_activation_up(activation):
    module = adapter(activation=activation).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    y = module(x)
    for row in range(2):
        for frame in range(3):
            z = module.down.weight @ x[row, frame] + module.down.bias
            z = torch.tensor([NAIVE[activation](v.item()) for v in z], dtype=torch.float64)
            expected = module.up.weight @ z + module.up.bias
            torch.testing.assert_close(y[row, frame], expected)


def test_adapter_has_the_published_number_of_parameters_and_start():
    torch.manual_seed(0)
    module = ParallelAdapter(768, AdapterSettings())
    assert sum(p.numel() for p in module.parameters()) == 99_136  # spec nawsv 3.2
    for linear in (module.down, module.up):
        assert abs(linear.weight.std().item() / 0.02 - 1) < 0.02
        assert (linear.bias == 0).all()


def test_rows_that_are_not_adapted_get_zero_and_give_no_gradient():
    module = adapter(noise=(0.1, 0.5)).train()
    x = torch.randn(3, 5, 6, requires_grad=True)
    adapt = torch.tensor([False, True, False])
    y = module(x, adapt)
    assert (y[~adapt] == 0).all() and (y[adapt] != 0).all()
    y[~adapt].sum().backward(retain_graph=True)
    assert all((p.grad == 0).all() for p in module.parameters()) and (x.grad == 0).all()
    y.sum().backward()
    assert (x.grad[~adapt] == 0).all() and (x.grad[adapt] != 0).any()
    assert module.up.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('adapt', [None, torch.tensor([True, True, False])])
def test_noise_has_a_std_of_a_tenth_to_a_half_of_the_mean_size(adapt):
    # spec oskdft 3.2: one standard deviation a call, of the rows that are adapted
    module = adapter(noise=(0.1, 0.5))
    with torch.no_grad():
        module.up.weight.copy_(torch.eye(6)[:, :4])
        module.up.bias.zero_()
    x = torch.randn(3, 400, 6)
    x[2] *= 100
    adapted = slice(None) if adapt is None else adapt
    clean = module.eval()(x, adapt)[adapted][..., :4]
    module.train()
    stds = [
        ((module(x, adapt)[adapted][..., :4] - clean).std() / clean.abs().mean()).item()
        for _ in range(300)
    ]
    assert 0.09 < min(stds) < 0.12 and 0.48 < max(stds) < 0.53
    assert abs(sum(stds) / 300 - 0.3) < 0.03


def test_noise_passes_the_gradient_of_the_clean_adapter():
    module = adapter(noise=(0.2, 0.2), activation='relu')
    x = torch.randn(2, 5, 6)
    gradients = []
    for training in (True, False):
        module.zero_grad()
        module.train(training)(x).sum().backward()
        gradients.append(module.down.weight.grad.clone())
    torch.testing.assert_close(*gradients)  # `up` is linear: only its own weights see the noise


def test_there_is_no_noise_without_rows_or_training():
    module = adapter(noise=(0.1, 0.5))
    x = torch.randn(2, 5, 6)
    assert torch.equal(module.eval()(x), module(x))
    y = module.train()(x, torch.tensor([False, False]))
    assert (y == 0).all()


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'activation': 'tanh'}, "'tanh'"),
        ({'width': 0}, 'width 0'),
        ({'noise': (0.5, 0.1)}, 'noise'),
        ({'noise': (-0.5, 0.1)}, 'noise'),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdapterSettings(**settings)
