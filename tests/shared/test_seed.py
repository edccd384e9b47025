import random

import numpy as np
import pytest
import torch

from shared.seed import set_seed


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_same_seed_gives_the_same_numbers_everywhere():
    set_seed(5)
    first = draw()
    set_seed(5)
    assert draw() == first


def test_another_seed_changes_every_generator():
    set_seed(5)
    first = draw()
    set_seed(6)
    assert not set(draw()) & set(first)


@pytest.mark.parametrize('seed', [-1, 2**40])
def test_seeds_beyond_32_bits_or_below_zero_are_taken(seed):
    set_seed(seed)
    first = draw()
    set_seed(seed)
    assert draw() == first


def test_deterministic_switch_is_off_unless_asked_for(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    try:
        set_seed(0)
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.benchmark
        set_seed(0, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
