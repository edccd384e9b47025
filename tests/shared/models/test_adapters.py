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
    'elu': lambda z: z if z > 0 else z.exp() - 1,
    'relu': lambda z: z if z > 0 else 0 * z,
    'gelu': lambda z: z * 0.5 * (1 + (z / math.sqrt(2)).erf()),
}


def naive(module, x):
    """The adapter of one frame x (D,), feature by feature (spec oskdft 3.3)."""
    settings, h = module.settings, x
    if settings.norm:
        mean = sum(x) / len(x)
        variance = sum((v - mean) ** 2 for v in x) / len(x)
        h = (x - mean) / (variance + 1e-5) ** 0.5 * module.norm.weight + module.norm.bias
    z = [NAIVE[settings.activation](v) for v in module.down.weight @ h + module.down.bias]
    y = settings.scale * (module.up.weight @ torch.stack(z) + module.up.bias)
    return x + y if settings.residual else y


SHAPES = [
    *[{'activation': name} for name in NAIVE],
    {'norm': True},
    {'scale': 0.1},
    {'residual': True},
    {'activation': 'relu', 'norm': True, 'scale': 0.1, 'residual': True},  # generation A
]


@pytest.mark.parametrize('settings', SHAPES, ids=str)
@pytest.mark.parametrize('adapt', [None, (True, False)])
def test_adapter_equals_loops_in_value_and_gradient(settings, adapt):
    module = adapter(**settings).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    found = module(x, None if adapt is None else torch.tensor(adapt))
    expected = torch.stack(
        [
            torch.stack([naive(module, frame) * (adapt is None or adapt[i]) for frame in row])
            for i, row in enumerate(x)
        ]
    )
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(2, 3, 6, dtype=torch.float64)
    learnt = [x, *module.parameters()]
    ours, theirs = (torch.autograd.grad((y * cotangent).sum(), learnt) for y in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_adapter_has_the_published_number_of_parameters_and_start():
    torch.manual_seed(0)
    module = ParallelAdapter(768, AdapterSettings())
    assert sum(p.numel() for p in module.parameters()) == 99_136  # spec nawsv 3.2
    for linear in (module.down, module.up):
        assert abs(linear.weight.std().item() / 0.02 - 1) < 0.02
        assert (linear.bias == 0).all()


def test_adapter_with_a_norm_has_the_published_number_of_parameters_and_names():
    module = ParallelAdapter(1024, AdapterSettings(64, norm=True))
    assert sum(p.numel() for p in module.parameters()) == 134_208  # spec oskdft 3.3
    assert {name.split('.')[0] for name in module.state_dict()} == {'norm', 'down', 'up'}


def test_muted_adapter_starts_as_nothing_but_its_residual_and_learns():
    x = torch.randn(2, 5, 6)
    module = ParallelAdapter(6, AdapterSettings(4, zero_up=True))
    assert (module(x) == 0).all() and (module.down.weight != 0).all()
    (module(x) * torch.randn(2, 5, 6)).sum().backward()
    assert module.up.weight.grad.abs().sum() > 0
    kept = ParallelAdapter(6, AdapterSettings(4, zero_up=True, residual=True))
    assert torch.equal(kept(x), x)


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
        ({'input': 'sum'}, "'sum'"),
        ({'width': 0}, 'width 0'),
        ({'noise': (0.5, 0.1)}, 'noise'),
        ({'noise': (-0.5, 0.1)}, 'noise'),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdapterSettings(**settings)
