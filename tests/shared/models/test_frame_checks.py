"""Too few frames and padded batches in training are refused; else the mask of the batch."""

import pytest
import torch

from shared.models.frame_checks import checked_mask

FEATURES = torch.zeros(3, 4, 9)


def test_mask_marks_the_frames_of_each_row():
    mask = checked_mask(FEATURES, torch.tensor([9, 3, 5]), shortest=3, training=False)
    assert mask.shape == (3, 1, 9) and mask.sum(-1).flatten().tolist() == [9, 3, 5]
    for training in (False, True):
        assert checked_mask(FEATURES, None, shortest=9, training=training) is None


def test_too_few_frames_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match='^9 frames are too few: the network needs at least 10$'):
        checked_mask(FEATURES, None, shortest=10, training=True)
    with pytest.raises(ValueError, match='^2 frames are too few: the network needs at least 3$'):
        checked_mask(FEATURES, torch.tensor([9, 2, 5]), shortest=3, training=False)


def test_padded_batches_are_refused_in_training():
    with pytest.raises(ValueError, match='padded batches are for evaluation'):
        checked_mask(FEATURES, torch.tensor([9, 3, 5]), shortest=3, training=True)


def test_frames_on_another_device_are_not_read_back():
    frames = torch.empty(3, dtype=torch.long, device='meta')  # reading it would be an error
    mask = checked_mask(FEATURES, frames, shortest=3, training=False)
    assert mask.device.type == 'meta' and mask.shape == (3, 1, 9)
