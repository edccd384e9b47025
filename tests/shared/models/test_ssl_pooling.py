import pytest
import torch

from shared.models.masks import frame_mask
from shared.models.ssl_pooling import WeightedSum, instance_norm, mean_and_deviation


def states_of(count, *shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [state.to(dtype).requires_grad_() for state in drawn]


def test_weighted_sum_equals_a_loop_in_value_and_gradient():
    module = WeightedSum(3).double()
    module.weight.data = torch.tensor([0.5, -0.2, 1.3], dtype=torch.float64)
    states, share = states_of(3, 2, 4, 5), torch.randn(2, 4, 5, dtype=torch.float64)
    found = module(states)
    expected = sum(weight * state for weight, state in zip(module.weight, states))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    inputs = [module.weight, *states]
    ours = torch.autograd.grad((found * share).sum(), inputs)
    theirs = torch.autograd.grad((expected * share).sum(), inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_weighted_sum_of_bf16_states_is_summed_in_fp32():
    module, states = WeightedSum(13), states_of(13, 2, 4, 5, dtype=torch.bfloat16)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = module(states)
    assert found.dtype == torch.float32
    expected = sum(weight * state.float() for weight, state in zip(module.weight, states))
    torch.testing.assert_close(found, expected)


def test_weighted_sum_starts_uniform_in_zero_to_one_and_is_not_normalised():
    torch.manual_seed(0)
    weight = WeightedSum(4000).weight.data
    assert 0 <= weight.min() and weight.max() < 1
    assert weight.mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize('count', [12, 14])
def test_weighted_sum_refuses_another_number_of_states(count):
    with pytest.raises(ValueError, match=f'{count} hidden states for 13 weights'):
        WeightedSum(13)([torch.zeros(1, 2, 3)] * count)


def naive_norm(row):
    """One utterance (D, T), a loop over channels."""
    channels = []
    for channel in row:
        mean = sum(channel) / len(channel)
        variance = sum((x - mean) ** 2 for x in channel) / len(channel)
        channels.append((channel - mean) / (variance + 1e-5) ** 0.5)
    return torch.stack(channels)


def naive_statistics(row):
    means = [sum(channel) / len(channel) for channel in row]
    squares = [sum((x - mean) ** 2 for x in channel) for channel, mean in zip(row, means)]
    return torch.stack([*means, *((square / (row.shape[1] - 1)) ** 0.5 for square in squares)])


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(
    'function, naive', [(instance_norm, naive_norm), (mean_and_deviation, naive_statistics)]
)
def test_statistics_equal_loops_in_value_and_gradient_padded_or_not(function, naive, masked):
    (x,) = states_of(1, 3, 4, 7)
    frames = torch.tensor([5, 7, 2]) if masked else torch.tensor([7, 7, 7])
    found = function(x, frame_mask(frames, 7) if masked else None)
    expected = [naive(row[:, :count]) for row, count in zip(x, frames.tolist())]
    total_found = total_expected = torch.zeros((), dtype=torch.float64)
    for row, values in zip(found, expected):
        if row.ndim == 2:  # frames past the end are zero
            assert (row[:, values.shape[1] :] == 0).all()
            row = row[:, : values.shape[1]]
        torch.testing.assert_close(row, values, rtol=1e-10, atol=1e-12)
        share = torch.cos(torch.arange(values.numel(), dtype=torch.float64)).view_as(values)
        total_found = total_found + (row * share).sum()
        total_expected = total_expected + (values * share).sum()
    ours, theirs = (torch.autograd.grad(total, x)[0] for total in (total_found, total_expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize('function', [instance_norm, mean_and_deviation])
def test_statistics_are_fp32_under_autocast(function):
    x = 300 + torch.randn(1, 3, 50)  # bf16 would round 300 + noise to even numbers
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = function(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, function(x), rtol=0, atol=0)


@pytest.mark.parametrize('function', [instance_norm, mean_and_deviation])
def test_what_lies_past_the_end_never_matters(function):
    mask = frame_mask(torch.tensor([3]), 6)
    x = torch.randn(1, 2, 6)
    poisoned = x.clone()
    poisoned[..., 3:] = torch.nan
    torch.testing.assert_close(function(poisoned, mask), function(x, mask), rtol=0, atol=0)


def test_constant_frames_give_a_finite_gradient():
    x = torch.ones(1, 2, 5, requires_grad=True)
    mean_and_deviation(x).sum().backward()
    assert x.grad.isfinite().all()
