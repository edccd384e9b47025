"""Shuffled and distinct batches over ranks and resumes, and batches by duration."""

from collections import Counter

import numpy as np
import pytest

from shared.datasets.items import DataError
from shared.datasets.samplers import (
    DistinctBatches,
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


# --- no class twice in a batch (spec wavlm_ssl 2.4 and 10.1-4; pairs: spec nawsv 2.7)

COUNTS = [45, 7, 2, 1] + [30] * 20 + [80] * 6  # utterances of each class
CLASSES = np.random.default_rng(0).permutation(np.repeat(np.arange(len(COUNTS)), COUNTS))


def distinct(rank=0, world_size=1, **changes):
    values = {'batch_size': 8, 'seed': 3, 'most': 50, **changes}
    classes = values.pop('classes', CLASSES)
    return DistinctBatches(classes, rank=rank, world_size=world_size, **values)


def epoch_of(sampler, epoch, batch=0):
    sampler.set_position(epoch, batch)
    return list(sampler)


@pytest.mark.parametrize('each', [1, 2])
def test_distinct_batches_hold_no_class_twice_and_items_of_one_class(each):
    for epoch in (1, 2):
        sampler = distinct(each=each)
        found = epoch_of(sampler, epoch)
        assert len(found) == len(sampler) > 20
        for batch in found:
            assert len(batch) == 8 and {key[0] for key in batch} == {epoch}
            items = np.array([key[1:] for key in batch])
            assert items.shape == (8, each) and (CLASSES[items] == CLASSES[items[:, :1]]).all()
            assert len(set(CLASSES[items[:, 0]])) == 8


@pytest.mark.parametrize('each', [1, 2])
def test_distinct_batches_hold_an_utterance_once_and_a_class_at_most_as_often_as_told(each):
    used = [i for batch in epoch_of(distinct(each=each), 1) for _, *item in batch for i in item]
    assert len(used) == len(set(used))
    often = Counter(CLASSES[used].tolist())
    assert 40 < max(often.values()) <= 50
    assert often[3] == (1 if each == 1 else 0)  # class 3 has one utterance, and no pair


@pytest.mark.parametrize('each', [1, 2])
def test_distinct_batches_equal_the_algorithm_written_out(each):
    rng = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(1,)))
    items = []
    for label in range(len(COUNTS)):
        rows = rng.permutation(np.flatnonzero(CLASSES == label)).tolist()
        rows = rows[: min(len(rows), 50) // each * each]
        items += [rows[i : i + each] for i in range(0, len(rows), each)]
    kept = []
    for item in rng.permutation(np.array(items)).tolist():
        block = kept[len(kept) // 8 * 8 :]
        if CLASSES[item[0]] not in [CLASSES[other[0]] for other in block]:
            kept.append(item)
    expected = [kept[i : i + 8] for i in range(0, len(kept) // 8 * 8, 8)]
    assert [[list(key[1:]) for key in b] for b in epoch_of(distinct(each=each), 1)] == expected


def test_distinct_batches_are_shared_by_ranks_that_have_no_utterance_in_common():
    whole = epoch_of(distinct(), 5)
    shares = [epoch_of(distinct(rank, 2), 5) for rank in (0, 1)]
    assert [a + b for a, b in zip(*shares)] == whole
    first, second = ({key for batch in share for key in batch} for share in shares)
    assert not first & second


def test_distinct_batches_depend_on_seed_and_epoch_and_go_on_where_the_position_was_set():
    whole = epoch_of(distinct(), 5)
    assert epoch_of(distinct(), 5, batch=3) == whole[3:]
    assert epoch_of(distinct(), 6) != whole and epoch_of(distinct(seed=4), 5) != whole
    resumed, saved = distinct(), distinct()
    saved.set_position(5, 3)
    resumed.load_state_dict(saved.state_dict())
    assert list(resumed) == whole[3:]


def test_distinct_batches_lose_about_what_chance_makes_collide():
    """k - 1 of C classes are taken when the k-th is sought: 1 / (1 - (k - 1) / C) draws for each."""
    sampler = distinct(classes=np.repeat(np.arange(200), 40), batch_size=30)
    draws = sum(200 / (200 - taken) for taken in range(30)) / 30
    assert len(epoch_of(sampler, 1)) == pytest.approx(200 * 40 / 30 / draws, rel=0.02)


def test_distinct_batches_refuse_too_few_classes_and_the_state_of_other_ones():
    few = np.repeat(np.arange(5), 20)
    with pytest.raises(DataError, match='batch of 6: 5 speakers or clusters do not fill it'):
        DistinctBatches(few, 6, seed=0, each=2)
    assert len(DistinctBatches(few, 5, seed=0)) > 10
    renamed = np.roll(CLASSES, 1)
    with pytest.raises(DataError, match='sampler state has classes_crc32'):
        distinct(classes=renamed).load_state_dict(distinct().state_dict())


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
