"""Back-ends on hidden states: sizes, padding, loops in float64.

Specs nawsv 3.3-3.4, oskdft 3.5, enskd 3.5 c.
"""

import pytest
import torch

from shared.models.adapters import AdapterSettings
from shared.models.ssl_backends import (
    EcapaBackEnd,
    EcapaSmallBackEnd,
    LinearBackEnd,
    SslSpeakerEncoder,
)
from shared.models.ssl_config import XLSR_53, SslConfig
from shared.models.ssl_encoder import SslEncoder

SMALL = SslConfig(
    'hubert',
    layers=2,
    width=8,
    heads=2,
    ffn_width=12,
    conv_channels=(6, 6, 6),
    conv_kernels=(10, 3, 2),
    conv_strides=(5, 3, 2),
    position_kernel=4,
    position_groups=2,
)
KINDS = ['linear', 'ecapa', 'small ecapa']


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_back_ends_have_the_published_numbers_of_parameters():
    with torch.device('meta'):
        counts = {
            295_501: LinearBackEnd(),
            295_491: LinearBackEnd(3),
            295_488: LinearBackEnd(None),
            8_739_469: EcapaBackEnd(),
            8_739_459: EcapaBackEnd(3),
            9_394_816: EcapaBackEnd(None, width=1024),
            8_410_841: EcapaSmallBackEnd(),
        }
    for count, module in counts.items():
        assert parameters(module) == count
    network = counts[8_739_469].network
    parts = {name: parameters(m) for name, m in network.named_children()}
    assert parts['stem'] == 1_966_592 + 1_024 and parts['blocks'] == 3 * 746_432
    assert parts['mfa'] == 2_360_832 and parts['pooling'] == 1_575_168
    assert parts['projection'] == 590_016


def test_whole_systems_have_the_published_numbers_of_parameters():
    # spec oskdft 3.5: -77.4 %
    adapters = AdapterSettings(64, 'relu', norm=True, scale=0.1, input='stream')
    with torch.device('meta'):
        student = SslEncoder(XLSR_53, layers=4, adapters=adapters)
        small = SslSpeakerEncoder(student, EcapaBackEnd(None, width=1024))
        large = SslSpeakerEncoder(SslEncoder(XLSR_53), EcapaBackEnd(None, width=1024))
    assert (parameters(small), parameters(large)) == (73_445_888, 324_833_536)


def tiny(kind, states=3, width=8):
    """A narrow module with every number random, batch statistics too, in eval mode."""
    if kind == 'linear':
        module = LinearBackEnd(states, width, 5)
    else:
        kinds = {'ecapa': EcapaBackEnd, 'small ecapa': EcapaSmallBackEnd}
        module = kinds[kind](states, width, 5, 16, 12, 6, 4)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise.abs() if name.endswith('running_var') else 0.4 * noise)
    return module.eval()


@pytest.mark.parametrize('kind', KINDS)
def test_padded_rows_get_the_embeddings_they_get_alone(kind):
    module, frames = tiny(kind), torch.tensor([9, 20, 2, 13])
    states = [torch.randn(4, 20, 8) for _ in range(3)]
    poisoned = [state.clone() for state in states]
    for state in poisoned:
        for row, count in zip(state, frames.tolist()):
            row[count:] = 1e4  # what an encoder leaves in padded frames does not matter
    with torch.no_grad():
        batched = module(poisoned, frames)
        for i, count in enumerate(frames.tolist()):
            alone = module([state[i : i + 1, :count] for state in states])[0]
            torch.testing.assert_close(batched[i], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            module(states, torch.full((4,), 20)), module(states), rtol=1e-5, atol=1e-5
        )


def test_full_width_ecapa_embeds_padded_rows_as_alone():
    torch.manual_seed(0)
    module, frames = EcapaBackEnd().eval(), [30, 49]
    states = [torch.randn(2, 49, 768) for _ in range(13)]
    with torch.no_grad():
        batched = module(states, torch.tensor(frames))
        alone = [module([s[i : i + 1, :n] for s in states]) for i, n in enumerate(frames)]
    torch.testing.assert_close(batched, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_every_state_and_every_parameter_gets_a_gradient(kind):
    module, states = tiny(kind).train(), [torch.randn(4, 9, 8) for _ in range(3)]
    states = [state.requires_grad_() for state in states]
    (module(states) * torch.randn(4, 5)).sum().backward()
    assert all(state.grad.abs().sum() > 0 for state in states)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize('kind', KINDS)
def test_embedding_does_not_change_with_the_level_the_instance_norm_removes(kind):
    module, states = tiny(kind), [torch.randn(2, 30, 8) for _ in range(3)]
    with torch.no_grad():
        plain, shifted = module(states), module([10 * state + 3 for state in states])
    same = torch.allclose(plain, shifted, rtol=1e-3, atol=1e-3)
    assert same == (kind != 'linear')


@pytest.mark.parametrize('kind', KINDS)
def test_another_number_of_states_is_refused(kind):
    with pytest.raises(ValueError, match='4 hidden states for 3 weights'):
        tiny(kind)([torch.randn(2, 9, 8)] * 4)


def test_small_ecapa_sees_a_softmax_mix_normalised_over_time():
    module = tiny('small ecapa').double()
    states = [torch.randn(2, 6, 8, dtype=torch.float64).requires_grad_() for _ in range(3)]
    scores = module.state_scores
    found = module.features(states)
    weights = [score.exp() / sum(other.exp() for other in scores) for score in scores]
    expected = torch.empty(2, 8, 6, dtype=torch.float64)
    for row in range(2):
        for channel in range(8):
            x = [sum(w * s[row, t, channel] for w, s in zip(weights, states)) for t in range(6)]
            x = [value + 1e-6 for value in x]  # of the reference; the mean takes it away
            mean = sum(x) / 6
            variance = sum((value - mean) ** 2 for value in x) / 6
            for t in range(6):
                expected[row, channel, t] = (x[t] - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(found, expected)
    assert torch.equal(module(states), module.network(found))
    cotangent, learnt = torch.randn(2, 8, 6, dtype=torch.float64), [*states, scores]
    ours, theirs = (torch.autograd.grad((y * cotangent).sum(), learnt) for y in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_small_ecapa_begins_with_the_mean_of_the_states():
    module, states = EcapaSmallBackEnd(3, 8, 5, 16, 12, 6, 4), [torch.randn(2, 9, 8)] * 3
    states = [(i + 1) * state for i, state in enumerate(states)]
    with torch.no_grad():
        torch.testing.assert_close(module.features(states), module.features([states[1]] * 3))


@pytest.mark.parametrize('states', [3, None])
def test_linear_back_end_equals_loops_over_frames_in_value_and_gradient(states):
    module = tiny('linear', states).double()
    inputs = [torch.randn(2, 6, 8, dtype=torch.float64).requires_grad_() for _ in range(3)]
    found = module(inputs)
    weights = [0, 0, 1] if states is None else module.weighted_sum.weight
    norm, rows = module.norm, []
    for row in range(2):
        x = [sum(w * s[row, frame] for w, s in zip(weights, inputs)) for frame in range(6)]
        mean = sum(x) / 6
        deviation = (sum((frame - mean) ** 2 for frame in x) / 5).sqrt()  # unbiased
        y = module.projection.weight @ torch.cat([mean, deviation]) + module.projection.bias
        y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        rows.append(norm.weight * y + norm.bias)
    expected = torch.stack(rows)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(2, 5, dtype=torch.float64)
    learnt = [inputs[2], *module.parameters()]
    ours, theirs = (torch.autograd.grad((y * cotangent).sum(), learnt) for y in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('kind', ['linear', 'ecapa'])
def test_without_a_weighted_sum_the_last_state_alone_counts(kind):
    last, summed = tiny(kind, states=None), tiny(kind, states=3)
    state = summed.state_dict()
    state['weighted_sum.weight'] = torch.tensor([0.0, 0.0, 1.0])
    summed.load_state_dict(state)
    del state['weighted_sum.weight']
    last.load_state_dict(state)  # strict: there is no other difference
    states, frames = [torch.randn(2, 9, 8) for _ in range(3)], torch.tensor([9, 5])
    with torch.no_grad():
        torch.testing.assert_close(last(states, frames), summed(states, frames))
        assert torch.equal(last(states), last(states[2:]))


@pytest.mark.parametrize('kind', KINDS)
def test_speaker_encoder_embeds_each_padded_row_as_alone(kind):
    torch.manual_seed(0)
    module = SslSpeakerEncoder(SslEncoder(SMALL), tiny(kind)).eval()
    x, lengths = torch.randn(3, 900), [900, 500, 731]
    with torch.no_grad():
        batched = module(x, torch.tensor(lengths))
        alone = [module(row[None, :length])[0] for row, length in zip(x, lengths)]
    assert batched.shape == (3, 5)
    torch.testing.assert_close(batched, torch.stack(alone), rtol=1e-4, atol=1e-4)
