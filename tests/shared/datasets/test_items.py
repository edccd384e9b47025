"""Columns of utterances, and the batch made of samples."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from shared.datasets.items import DataError, Sample, Utterances, collate, to_device

ROOT = Path('root')


def utterances():
    return Utterances(
        ROOT,
        np.array([b'a/v/1.wav', b'b/v/2.wav', 'c/é/3.wav'.encode()]),
        np.array([0, 1, 2]),
        ('a', 'b', 'c'),
        np.array([4.1, 8.064, 5.0]),
    )


def test_utterances_select_keeps_labels_and_speaker_ids():
    chosen = utterances().select([2, 0])
    assert len(chosen) == 2
    assert chosen.name(0) == 'c/é/3.wav'
    assert chosen.path(1) == ROOT / 'a/v/1.wav'
    assert chosen.speakers.tolist() == [2, 0]
    assert chosen.speaker_ids == ('a', 'b', 'c')
    assert chosen.seconds.tolist() == [5.0, 4.1]


def test_utterances_all_paths_is_a_sequence_of_full_paths():
    paths = utterances().all_paths()
    assert list(paths) == [ROOT / 'a/v/1.wav', ROOT / 'b/v/2.wav', ROOT / 'c/é/3.wav']
    assert list(paths[1:]) == list(paths)[1:]


def test_utterances_write_gives_the_train_list(tmp_path):
    utterances().write(tmp_path / 'new' / 'list.txt')
    lines = (tmp_path / 'new' / 'list.txt').read_text().splitlines()
    assert lines == ['a a/v/1.wav 4.1', 'b b/v/2.wav 8.064', 'c c/é/3.wav 5']


def test_data_error_from_a_loader_process_keeps_its_last_line():
    text = 'Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call'
    text += ' last):\n  File "x.py"\nshared.datasets.items.DataError: a.wav: Error: cut short\n'
    assert str(DataError(text)) == 'a.wav: Error: cut short'


def sample(index, noises=(), rirs=(), length=6):
    wave = np.arange(2 * length, dtype=np.float32).reshape(2, length) + 100 * index
    return Sample(wave, label=index + 5, index=index, noises=list(noises), rirs=list(rirs))


def test_collate_numbers_rows_by_utterance_and_view():
    one = np.ones(6, np.float32)
    rirs = [(1, np.array([1, 2, 3], np.float32)), (0, np.array([4], np.float32))]
    batch = collate(
        [
            sample(3, noises=[(1, one, 5.0)]),
            sample(7, noises=[(0, 2 * one, 1.5), (0, 3 * one, 2.5)], rirs=rirs),
        ]
    )
    assert batch['waves'].shape == (2, 2, 6)
    assert batch['waves'][1, 1].tolist() == [706, 707, 708, 709, 710, 711]
    assert batch['labels'].tolist() == [8, 12]
    assert batch['index'].tolist() == [3, 7]
    assert batch['noise_row'].tolist() == [1, 2, 2]
    assert batch['noise'][:, 0].tolist() == [1, 2, 3]
    assert batch['noise_snr'].tolist() == [5.0, 1.5, 2.5]
    assert batch['rir_row'].tolist() == [3, 2]
    assert batch['rir'].tolist() == [[1, 2, 3], [4, 0, 0]]


def test_collate_cuts_responses_at_the_length_of_a_crop():
    batch = collate([sample(0, rirs=[(0, np.arange(20, dtype=np.float32))])])
    assert batch['rir'].tolist() == [[0, 1, 2, 3, 4, 5]]


def test_collate_without_noise_and_responses_gives_empty_tensors():
    batch = collate([sample(0), sample(1)])
    assert batch['noise'].shape == (0, 6) and batch['noise'].dtype == torch.float32
    assert batch['noise_row'].shape == batch['rir_row'].shape == batch['noise_snr'].shape == (0,)
    assert batch['rir'].shape[0] == 0 and batch['noise_row'].dtype == torch.int64


def test_collate_gives_clips_and_gains_with_their_rows():
    ramp = np.arange(6, dtype=np.float32)
    first, second = sample(0), sample(1)
    first.gains = [(1, ramp)]
    second.clips, second.gains = [(1, 0.75), (0, 0.5)], [(0, 2 * ramp)]
    batch = collate([first, second])
    assert batch['clip_row'].tolist() == [3, 2]
    assert batch['clip_ratio'].tolist() == [0.75, 0.5]
    assert batch['gain_row'].tolist() == [1, 2]
    assert torch.equal(batch['gain'], torch.from_numpy(np.stack([ramp, 2 * ramp])))
    assert batch['clip_ratio'].dtype == batch['gain'].dtype == torch.float32


def test_collate_without_clips_and_gains_gives_empty_tensors():
    batch = collate([sample(0), sample(1)])
    assert batch['gain'].shape == (0, 6) and batch['gain'].dtype == torch.float32
    assert batch['clip_row'].shape == batch['gain_row'].shape == batch['clip_ratio'].shape == (0,)
    assert batch['clip_row'].dtype == batch['gain_row'].dtype == torch.int64


def test_collate_gathers_what_was_skipped_and_converted():
    first, second = sample(0), sample(1)
    first.skipped, second.skipped = ['a'], ['b', 'c']
    first.converted, second.converted = Counter(resampled=1), Counter(resampled=2, mixed=1)
    batch = collate([first, second])
    assert batch['skipped'] == ['a', 'b', 'c']
    assert batch['converted'] == {'resampled': 3, 'mixed': 1}


def test_counts_of_a_batch_survive_pinned_memory():
    """torch copies a mapping and updates the copy with its own items; a Counter adds them."""
    one = sample(0)
    one.converted = Counter(resampled=2)
    batch = collate([one])
    assert type(batch['converted']) is dict
    pinned = copy.copy(batch['converted'])  # as torch.utils.data._utils.pin_memory does
    pinned.update(batch['converted'])
    assert pinned == {'resampled': 2}


def test_collate_makes_a_batch_of_its_own_of_crops_of_another_length():
    """Rows count within that batch; what was skipped stands in the outer one alone."""
    short = np.ones(4, np.float32)
    inner = [sample(i, noises=[(i, (i + 1) * short, 9.0)], length=4) for i in range(2)]
    outer = [sample(i, noises=[(1, np.ones(6, np.float32), 5.0)]) for i in range(2)]
    for parent, child in zip(outer, inner):
        parent.more['locals'] = child
        parent.skipped = ['bad']
    batch = collate(outer)
    assert batch['waves'].shape == (2, 2, 6) and batch['locals']['waves'].shape == (2, 2, 4)
    assert batch['noise_row'].tolist() == [1, 3]
    assert batch['locals']['noise_row'].tolist() == [0, 3]
    assert torch.equal(batch['locals']['noise'], torch.stack([torch.ones(4), 2 * torch.ones(4)]))
    assert batch['skipped'] == ['bad', 'bad'] and 'skipped' not in batch['locals']
    assert set(batch) - set(batch['locals']) == {'locals', 'skipped', 'converted'}


def test_to_device_moves_every_tensor_also_of_a_batch_inside():
    parent = sample(0)
    parent.more['locals'] = sample(0, length=4)
    parent.converted = Counter(resampled=2)
    moved = to_device(collate([parent]), 'meta')
    assert moved['waves'].device.type == moved['locals']['waves'].device.type == 'meta'
    assert moved['locals']['noise_turns'] == [] and moved['converted'] == {'resampled': 2}
