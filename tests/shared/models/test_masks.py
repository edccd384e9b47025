import numpy as np
import pytest
import torch

from shared.models.masks import frame_mask, reflect_padding


@pytest.mark.parametrize('count', [1, 2, 4, 7])
def test_reflection_equals_that_of_numpy_even_for_short_utterances(count):
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    found = reflect_padding(x, count)
    assert found.shape == (2, 3, 5 + 2 * count)
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), (count, count)], mode='reflect')
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('count', [1, 4])
def test_each_utterance_is_reflected_at_its_own_end(count):
    x = torch.randn(4, 3, 9, generator=torch.Generator().manual_seed(1))
    frames = torch.tensor([1, 3, 6, 9])
    found = reflect_padding(x, count, frame_mask(frames, 9))
    for row, length in enumerate(frames.tolist()):
        expected = np.pad(x[row, :, :length].numpy(), [(0, 0), (count, count)], mode='reflect')
        np.testing.assert_array_equal(found[row, :, : length + 2 * count], expected)


def test_gradient_of_reflected_frames_returns_to_their_origin():
    for mask in (None, torch.ones(1, 1, 5, dtype=torch.bool)):
        x = torch.zeros(1, 1, 5, requires_grad=True)
        reflect_padding(x, 2, mask).sum().backward()
        assert x.grad[0, 0].tolist() == [1, 2, 3, 2, 1]


def test_row_without_frames_spares_the_others():
    x = torch.randn(2, 1, 6)
    found = reflect_padding(x, 2, frame_mask(torch.tensor([0, 6]), 6))
    torch.testing.assert_close(found[1:], reflect_padding(x[1:], 2))
