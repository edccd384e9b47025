"""Statistics pooling: loops in float64, order of the axes, padding, half precision."""

import math

import pytest
import torch

from shared.models.masks import frame_mask
from shared.models.pooling import statistics_pooling


def naive(row):
    """Of one utterance (C, T), one number after the other."""
    means = [sum(channel) / len(channel) for channel in row]
    deviations = [
        (sum((x - mean) ** 2 for x in channel) / (len(channel) - 1) + 1e-7) ** 0.5
        for channel, mean in zip(row, means)
    ]
    return torch.stack([*means, *deviations])


def drawn(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize('frames', [None, [6, 2, 5]], ids=['full', 'padded'])
def test_statistics_equal_the_naive_version_in_value_and_gradient(frames):
    x, share = drawn(3, 4, 6).requires_grad_(), drawn(3, 8)
    mask = None if frames is None else frame_mask(torch.tensor(frames), 6)
    found = statistics_pooling(x, mask)
    rows = [row[:, :count] for row, count in zip(x, frames or [6] * 3)]
    expected = torch.stack([naive(row) for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad((y * share).sum(), x)[0] for y in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_means_come_first_and_channels_go_before_bins():
    x = drawn(2, 3, 4, 5)  # (B, C, F, T)
    found = statistics_pooling(x).view(2, 2, 3, 4)
    torch.testing.assert_close(found[:, 0], x.mean(-1))
    torch.testing.assert_close(found[:, 1], (x.var(-1) + 1e-7).sqrt())
    mask = frame_mask(torch.tensor([5, 3]), 5)
    alone = statistics_pooling(x[1:, :, :, :3])
    torch.testing.assert_close(statistics_pooling(x, mask)[1:], alone)


def test_padding_may_hold_anything():
    x = drawn(2, 3, 5)
    expected = statistics_pooling(x[:1, :, :4])[0]
    x[0, :, 4:] = torch.nan
    found = statistics_pooling(x, frame_mask(torch.tensor([4, 5]), 5))[0]
    torch.testing.assert_close(found, expected)


def test_constant_frames_have_the_offset_as_variance_and_finite_gradients():
    x = torch.full((1, 2, 4), 3.0, requires_grad=True)
    found = statistics_pooling(x)
    assert found.tolist()[0] == pytest.approx([3, 3, math.sqrt(1e-7), math.sqrt(1e-7)])
    found.sum().backward()
    assert x.grad.isfinite().all()


def test_half_precision_is_pooled_in_fp32():
    x = (100 + drawn(1, 3, 4000)).bfloat16()
    for mask in (None, frame_mask(torch.tensor([4000]), 4000)):
        with torch.autocast('cpu', dtype=torch.bfloat16):
            found = statistics_pooling(x, mask)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, statistics_pooling(x.float()), rtol=1e-5, atol=1e-5)
