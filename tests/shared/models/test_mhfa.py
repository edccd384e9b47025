"""MHFA: the reference's vector, sizes, padding, loops in float64 (spec wavlm_ssl 3.3, 3.7)."""

import math

import pytest
import torch
from torch import nn

from shared.models.mhfa import Mhfa


def test_mhfa_has_the_parameters_of_the_spec():
    with torch.device('meta'):
        module = Mhfa()
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes == {
        'weights_k': (13,),
        'weights_v': (13,),
        'cmp_linear_k.weight': (128, 768),
        'cmp_linear_k.bias': (128,),
        'cmp_linear_v.weight': (128, 768),
        'cmp_linear_v.bias': (128,),
        'att_head.weight': (64, 128),
        'att_head.bias': (64,),
        'pooling_fc.weight': (256, 8192),
        'pooling_fc.bias': (256,),
    }
    assert sum(math.prod(shape) for shape in shapes.values()) == 2_302_554


def test_mhfa_starts_from_equal_weights_of_the_states_and_default_linear_layers():
    torch.manual_seed(0)
    module = Mhfa(5, 40, 4, 6, 3)
    assert module.weights_k.tolist() == module.weights_v.tolist() == [1] * 5
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 4
    for linear in linears:
        bound = 1 / math.sqrt(linear.in_features)
        assert 0.7 * bound < linear.weight.abs().max() <= bound
        assert linear.bias.abs().max() <= bound


def test_mhfa_has_the_golden_values_of_the_reference():
    module = Mhfa(states=13, width=3, heads=2, compression=2, dim=2)
    for parameter in module.parameters():
        n = torch.arange(parameter.numel(), dtype=torch.float32)
        parameter.data = torch.sin(0.1 * (n + 1)).view_as(parameter)
    x = torch.cos(0.05 * torch.arange(3 * 4 * 13.0)).view(1, 3, 4, 13)
    states = [x[..., layer].mT for layer in range(13)]  # (1, 4 frames, 3)
    assert module(states).flatten().tolist() == pytest.approx([0.4425001, 1.0046983], abs=2e-7)


def drawn(seed=0, states=4, width=5):
    """A module of random numbers, and states (3, 7, width)."""
    torch.manual_seed(seed)
    module = Mhfa(states, width, heads=3, compression=2, dim=4).double()
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter)
    return module, [torch.randn(3, 7, width, dtype=torch.float64) for _ in range(states)]


def naive(module, states, row, frames):
    """One row's embedding, one number after the other."""

    def mixed(weights, linear, t):
        share = weights.exp() / weights.exp().sum()
        x = sum(w * state[row, t] for w, state in zip(share, states))
        return linear.weight @ x + linear.bias

    keys = [mixed(module.weights_k, module.cmp_linear_k, t) for t in range(frames)]
    values = [mixed(module.weights_v, module.cmp_linear_v, t) for t in range(frames)]
    vectors = []
    for weight, bias in zip(module.att_head.weight, module.att_head.bias):
        looks = [(weight @ key + bias).exp() for key in keys]
        vectors.append(sum(a * v for a, v in zip(looks, values)) / sum(looks))
    return module.pooling_fc.weight @ torch.cat(vectors) + module.pooling_fc.bias


@pytest.mark.parametrize('lengths', [None, [7, 3, 1]])
def test_mhfa_equals_the_naive_version_in_value_and_gradient(lengths):
    module, states = drawn()
    for state in states:
        state.requires_grad_()
    found = module(states, None if lengths is None else torch.tensor(lengths))
    expected = torch.stack([naive(module, states, i, n) for i, n in enumerate(lengths or [7] * 3)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    inputs = [*module.parameters(), *states]
    share = torch.randn_like(found)
    ours = torch.autograd.grad((found * share).sum(), inputs)
    theirs = torch.autograd.grad((expected * share).sum(), inputs)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_padded_rows_get_what_they_would_get_alone_whatever_the_padding_holds():
    module, states = drawn()
    padded = [state.clone() for state in states]
    for state in padded:
        state[1, 4:] = torch.nan
    found = module(padded, torch.tensor([7, 4, 7]))
    alone = module([state[1:2, :4] for state in states])
    torch.testing.assert_close(found[1:2], alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0], module(states)[0], rtol=1e-12, atol=1e-12)


def test_other_than_the_number_of_states_is_an_error():
    module, states = drawn()
    with pytest.raises(ValueError, match='3 hidden states for 4 weights'):
        module(states[:3])


def test_attention_and_average_are_fp32_under_autocast():
    module, states = drawn()
    module, parts = module.float(), {}
    for name in ('att_head', 'cmp_linear_v'):
        module.get_submodule(name).register_forward_hook(
            lambda part, inputs, output, name=name: parts.__setitem__(name, output)
        )
    module.pooling_fc.register_forward_pre_hook(
        lambda part, inputs: parts.__setitem__('heads', inputs[0])
    )
    with torch.autocast('cpu', dtype=torch.bfloat16):
        module([state.bfloat16() for state in states])
    assert parts['att_head'].dtype == torch.bfloat16 and parts['heads'].dtype == torch.float32
    expected = parts['att_head'].double().softmax(1).mT @ parts['cmp_linear_v'].double()
    torch.testing.assert_close(parts['heads'].double(), expected.flatten(1), rtol=1e-5, atol=1e-6)


def test_bfloat16_states_are_pooled_closely_under_autocast():
    module, states = drawn()
    module = module.float()
    exact = module([state.float() for state in states])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = module([state.bfloat16() for state in states], torch.tensor([7, 7, 7]))
    assert found.isfinite().all()
    torch.testing.assert_close(found.float(), exact, rtol=0.1, atol=0.1 * exact.abs().max().item())
