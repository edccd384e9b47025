"""Shuffled batches over ranks and resumes, and batches by duration."""

import numpy as np
import pytest

from shared.datasets.items import DataError
from shared.datasets.samplers import (
    ShuffledBatches,
    padded_batches,
    sample_rng,
    truncated_batches,
)


def test_sample_rng_depends_on_seed_epoch_index_and_more_alone():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0, 0), (0, 0, 0, 1), (2**32, 0, 0)]
    draws = [tuple(sample_rng(*key).integers(2**62, size=2)) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws == [tuple(sample_rng(*key).integers(2**62, size=2)) for key in keys]


def test_batches_hold_every_index_at_most_once_an_epoch():
    batches = list(ShuffledBatches(103, 10, seed=1))
    indices = [index for batch in batches for _, index in batch]
    assert len(batches) == len(ShuffledBatches(103, 10, seed=1)) == 10
    assert len(set(indices)) == 100 and max(indices) < 103
    assert indices != sorted(indices)


def test_batches_differ_between_epochs_and_seeds():
    def epoch(seed, number):
        sampler = ShuffledBatches(50, 10, seed)
        sampler.set_position(number)
        return [[index for _, index in batch] for batch in sampler]

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)


def test_batches_carry_the_epoch():
    sampler = ShuffledBatches(20, 10, seed=0)
    sampler.set_position(4)
    assert {epoch for batch in sampler for epoch, _ in batch} == {4}


@pytest.mark.parametrize('world_size', [2, 3, 6])
def test_batches_of_all_ranks_together_are_those_of_one(world_size):
    alone = list(ShuffledBatches(100, 12, seed=3))
    ranks = [list(ShuffledBatches(100, 12, 3, rank, world_size)) for rank in range(world_size)]
    assert [sum(parts, []) for parts in zip(*ranks)] == alone


def test_batches_go_on_where_the_position_was_set():
    sampler = ShuffledBatches(100, 10, seed=3)
    sampler.set_position(2)
    whole = list(sampler)
    sampler.set_position(2, 4)
    saved = sampler.state_dict()
    resumed = ShuffledBatches(100, 10, seed=3)
    resumed.load_state_dict(saved)
    assert list(resumed) == whole[4:]
    assert list(resumed) == whole[4:]  # iterating does not move the position


@pytest.mark.parametrize('other', [(90, 10, 3), (100, 20, 3), (100, 10, 4)])
def test_batches_refuse_the_state_of_other_data(other):
    with pytest.raises(DataError, match='sampler state has'):
        ShuffledBatches(*other).load_state_dict(ShuffledBatches(100, 10, 3).state_dict())


def test_batches_refuse_what_does_not_divide_or_fill():
    with pytest.raises(DataError, match='batch_size 10 does not divide by 3 processes'):
        ShuffledBatches(100, 10, 0, 0, 3)
    with pytest.raises(DataError, match='9 utterances do not fill one batch of 10'):
        ShuffledBatches(9, 10, 0)


def test_truncated_batches_have_the_sizes_of_the_published_sweep():
    seconds = np.repeat(np.arange(4.0, 23.7, 0.4), 18)  # spec lgl 2.6, example [V]
    np.random.default_rng(0).shuffle(seconds)
    batches = truncated_batches(seconds, 1600)
    assert [len(rows) for rows in batches] == [400, 124, 102, 90, 81, 74, 29]
    shortest = [float(seconds[rows[0]].round(1)) for rows in batches]
    assert shortest == [4.0, 12.8, 15.6, 17.6, 19.6, 21.6, 23.2]


def test_truncated_batches_of_files_longer_than_the_budget_are_single():
    assert [rows.tolist() for rows in truncated_batches(np.array([30.0, 20.0]), 10)] == [[1], [0]]


def test_padded_batches_hold_every_row_once_within_the_budget():
    seconds = np.random.default_rng(0).uniform(1, 20, 300)
    seconds[7] = 90.0
    batches = padded_batches(seconds, 60)
    assert sorted(np.concatenate(batches).tolist()) == list(range(300))
    for rows, following in zip(batches, [*batches[1:], None]):
        padded = len(rows) * seconds[rows].max()
        assert padded <= 60 or len(rows) == 1
        if following is not None:  # one more row would not have fitted
            assert (len(rows) + 1) * seconds[following[0]] > 60


@pytest.mark.parametrize('plan', [padded_batches, truncated_batches])
def test_batches_by_duration_put_unknown_durations_apart_and_last(plan):
    batches = plan(np.array([np.nan, 2.0, np.nan, 1.0]), 100)
    assert [rows.tolist() for rows in batches] == [[3, 1], [0, 2]]
