"""Training loaders over workers, ranks and bad files; whole files in batches."""

import pickle
import sys
import threading
import traceback
from itertools import zip_longest

import numpy as np
import pytest
import soundfile
import torch

from shared.datasets.items import DataError, Paths, Sample, Utterances
from shared.datasets.loading import (
    SkippedFiles,
    loader,
    train_loader,
    whole_files,
    whole_utterances,
    with_substitute,
)
from shared.datasets.reading import AudioError, AudioReader
from shared.datasets.samplers import ShuffledBatches, sample_rng

CROP = 64


class Crops(torch.utils.data.Dataset):
    """Random crops of real files, as a paper's training set reads them."""

    def __init__(self, paths):
        self.paths, self.reader = paths, AudioReader()

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, key):
        epoch, index = key
        return with_substitute(lambda i: self.sample(epoch, i), index, len(self))

    def sample(self, epoch, index):
        rng = sample_rng(0, epoch, index)
        with self.reader.open(self.paths[index]) as audio:
            wave = audio.read(int(rng.integers(audio.length - CROP + 1)), CROP)
        noises = [(0, rng.standard_normal(CROP), rng.uniform(0, 15))] * int(rng.integers(3))
        converted = self.reader.take_converted()
        return Sample(wave[None], index % 5, index, noises=noises, converted=converted)


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    names = [f'{i:02d}.wav' for i in range(24)]
    for i, name in enumerate(names):
        soundfile.write(tmp_path / name, 0.1 * rng.standard_normal(1000 + 10 * i), 16000)
    return Paths(tmp_path, names)


def batches(paths, workers=0, position=(0, 0), rank=0, world_size=1):
    sampler = ShuffledBatches(len(paths), 6, seed=0, rank=rank, world_size=world_size)
    sampler.set_position(*position)
    return list(train_loader(Crops(paths), sampler, workers))


def equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key]
        assert same, key


def test_train_loader_gives_the_same_samples_whatever_the_workers_and_the_start(paths):
    alone = batches(paths)
    assert len(alone) == 4
    for one, other in zip(alone, batches(paths, workers=2), strict=True):
        equal(one, other)
    for one, other in zip(alone[3:], batches(paths, position=(0, 3)), strict=True):
        equal(one, other)


def test_train_loader_of_two_ranks_gives_the_samples_of_one(paths):
    alone = batches(paths)
    ranks = [batches(paths, rank=rank, world_size=2) for rank in range(2)]
    for one, *parts in zip(alone, *ranks, strict=True):
        for key in ('waves', 'labels', 'index'):
            assert torch.equal(one[key], torch.cat([part[key] for part in parts])), key
        for key in ('noise', 'noise_snr'):
            turns = zip_longest(*(part[key].split(part['noise_turns']) for part in parts))
            pieces = [piece for turn in turns for piece in turn if piece is not None]
            assert torch.equal(one[key], torch.cat(pieces)), key


def test_train_loader_draws_another_crop_each_epoch(paths):
    def crops(epoch):
        found = batches(paths, position=(epoch, 0))
        return {int(i): w for b in found for i, w in zip(b['index'], b['waves'])}

    first, second = crops(0), crops(1)
    assert not any(torch.equal(first[i], second[i]) for i in first)


def test_train_loader_leaves_the_global_generator_alone(paths):
    before = torch.get_rng_state()
    batches(paths)
    batches(paths, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


class Threads(torch.utils.data.Dataset):
    def __getitem__(self, key):
        return Sample(np.zeros((1, 2), np.float32), label=torch.get_num_threads(), index=key[1])


def test_train_loader_workers_use_one_thread():
    loader = train_loader(Threads(), ShuffledBatches(2, 2, 0), workers=1)
    assert next(iter(loader))['labels'].tolist() == [1, 1]


class InMemory(torch.utils.data.Dataset):
    """Cannot be pickled, as what is mapped cannot."""

    def __init__(self):
        self.numbers, self.lock = torch.arange(4), threading.Lock()

    def __len__(self):
        return 4

    def __getitem__(self, number):
        return {'number': self.numbers[number], 'threads': torch.get_num_threads()}


@pytest.mark.skipif(sys.platform != 'linux', reason='workers are forked on Linux alone')
def test_loader_forks_its_workers_whatever_python_would_do():
    found = loader(InMemory(), workers=2)
    assert found.multiprocessing_context.get_start_method() == 'fork'
    with pytest.raises(TypeError, match='pickle'):
        pickle.dumps(found.dataset)
    assert [int(item['number']) for item in found] == [0, 1, 2, 3]
    assert {item['threads'] for item in found} == {1}
    assert loader(InMemory(), workers=0).multiprocessing_context is None


def test_with_substitute_takes_the_next_readable_utterance():
    def make(index):
        if index in (9, 0):
            raise AudioError(f'{index}.wav: bad')
        return Sample(np.zeros((1, 2), np.float32), label=index, index=index)

    sample = with_substitute(make, 9, 10)
    assert sample.index == 1 and sample.skipped == ['9.wav: bad', '0.wav: bad']
    assert with_substitute(make, 5, 10).skipped == []


def test_with_substitute_gives_up_when_all_are_bad():
    def make(index):
        raise AudioError(f'{index}.wav: bad')

    with pytest.raises(DataError, match=r'3 utterances in a row cannot be read; the first: 1\.wav'):
        with_substitute(make, 1, 3)
    with pytest.raises(DataError, match='10 utterances in a row'):
        with_substitute(make, 1, 100)


@pytest.mark.parametrize('workers', [0, 2])
def test_skipped_files_are_replaced_counted_and_listed_once(paths, tmp_path, workers):
    paths[3].write_bytes(paths[3].read_bytes()[:100])
    paths[11].write_bytes(b'')
    soundfile.write(paths[5], np.zeros((1000, 2)), 8000)
    skipped = SkippedFiles(tmp_path / 'run' / 'skipped.txt', max_share=0.2)
    sampler = ShuffledBatches(24, 6, seed=0)
    loader = train_loader(Crops(paths), sampler, workers)
    for epoch in range(2):
        sampler.set_position(epoch)
        for batch in skipped.watch(loader):
            assert 'skipped' not in batch and 'converted' not in batch
            assert not {3, 11} & set(batch['index'].tolist())
    lines = (tmp_path / 'run' / 'skipped.txt').read_text().splitlines()
    assert len(lines) == 2
    assert any('03.wav: cut short' in x for x in lines) and any('11.wav' in x for x in lines)
    assert skipped.summary() == (
        '48 samples, 4 replaced (2 bad files), 2 mixed to mono, 2 resampled'
    )


def with_bad_files(bad):
    """300 samples in batches of ten, of which the first `bad` had to be replaced."""
    for start in range(0, 300, 10):
        messages = [f'{i}.wav: bad' for i in range(start, min(start + 10, bad))]
        yield {'index': torch.zeros(10), 'skipped': messages, 'converted': {}}


def test_skipped_files_stop_a_run_with_too_many(tmp_path):
    path, seen = tmp_path / 'skipped.txt', 0
    assert len(list(SkippedFiles(path, max_share=0.2).watch(with_bad_files(20)))) == 30
    with pytest.raises(DataError, match=r'21 of 100 samples had to be replaced, more than 20 %'):
        for _ in SkippedFiles(path, max_share=0.2).watch(with_bad_files(21)):
            seen += 1
    assert seen == 9  # nothing is said before the 100th sample


def test_ten_skipped_files_stop_no_run_however_small_the_share(tmp_path):
    skipped = SkippedFiles(tmp_path / 'skipped.txt', max_share=0.001)
    assert len(list(skipped.watch(with_bad_files(10)))) == 30 and skipped.replaced == 10
    with pytest.raises(DataError, match='11 of 100 samples'):
        list(SkippedFiles(tmp_path / 'skipped.txt', 0.001).watch(with_bad_files(11)))


@pytest.mark.parametrize('workers', [0, 1])
def test_skipped_files_of_a_wholly_bad_corpus_stop_in_one_line(paths, tmp_path, workers):
    for path in paths:
        path.write_bytes(b'')
    loader = train_loader(Crops(paths), ShuffledBatches(24, 6, seed=0), workers)
    with pytest.raises(DataError) as caught:
        list(SkippedFiles(tmp_path / 'skipped.txt', 0.5).watch(loader))
    traceback.clear_frames(caught.tb)  # else torch's worker is collected late and waits 5 s
    del loader
    assert str(caught.value).startswith('10 utterances in a row cannot be read; the first:')
    assert len(str(caught.value).splitlines()) == 1


def files(paths, seconds=None, **options):
    given = {'budget_seconds': 0.25, 'workers': 0} | options
    return list(whole_files(paths, seconds, AudioReader(), **given))


@pytest.mark.parametrize('workers, world_size', [(0, 1), (1, 1), (0, 3)])
def test_whole_files_come_once_padded_with_zeros_over_all_ranks(paths, workers, world_size):
    found = []
    for rank in range(world_size):
        found += files(paths, workers=workers, rank=rank, world_size=world_size)
    rows = {}
    for batch in found:
        assert batch['waves'].shape == (len(batch['index']), batch['lengths'].max())
        assert batch['waves'].numel() <= 0.25 * 16000
        for index, wave, length in zip(batch['index'], batch['waves'], batch['lengths']):
            assert int(index) not in rows
            rows[int(index)] = wave[:length]
            assert not wave[length:].any()
    assert sorted(rows) == list(range(24))
    for i, path in enumerate(paths):
        np.testing.assert_array_equal(rows[i], soundfile.read(path, dtype='float32')[0])


def test_whole_files_come_longest_first(paths):
    longest = [int(batch['lengths'].max()) for batch in files(paths)]
    assert len(longest) > 5 and longest == sorted(longest, reverse=True)


def test_whole_files_truncated_are_cut_to_the_shortest_of_their_batch(paths):
    seconds = np.array([(1000 + 10 * i) / 16000 for i in range(24)])
    for batch in files(paths, seconds, truncate=True):
        shortest = seconds[batch['index']].min()
        assert len(batch['index']) <= max(1, int(0.25 / shortest))
        assert batch['lengths'].tolist() == [int(shortest * 16000)] * len(batch['index'])
        for index, wave in zip(batch['index'], batch['waves']):
            whole, _ = soundfile.read(paths[int(index)], dtype='float32')
            np.testing.assert_array_equal(wave, whole[: len(wave)])


def test_whole_files_shorter_than_listed_are_wrapped_around_when_truncated(paths):
    (batch,) = files(paths[:1], np.array([0.1]), truncate=True)
    whole, _ = soundfile.read(paths[0], dtype='float32')
    np.testing.assert_array_equal(batch['waves'][0], np.resize(whole, 1600))


@pytest.mark.parametrize('workers', [0, 1])
def test_whole_files_name_the_bad_file_in_one_line(paths, workers):
    paths[4].write_bytes(b'')
    with pytest.raises(AudioError, match=r'04\.wav: cannot be opened') as caught:
        files(paths, workers=workers)
    traceback.clear_frames(caught.tb)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize('truncate', [False, True])
@pytest.mark.parametrize('listed', [False, True])
def test_whole_files_skip_bad_files_and_say_so(paths, truncate, listed):
    seconds = np.array([(1000 + 10 * i) / 16000 for i in range(24)]) if listed else None
    paths[4].write_bytes(b'')
    found = files(paths, seconds, truncate=truncate, on_error='skip')
    indices = sorted(int(i) for batch in found for i in batch['index'])
    assert indices == [i for i in range(24) if i != 4]
    (message,) = [message for batch in found for message in batch['skipped']]
    assert '04.wav: cannot be opened' in message
    for batch in found:
        assert batch['waves'].dim() == 2 and len(batch['waves']) == len(batch['index'])


def test_whole_utterances_are_whole_files_sorted_by_the_list(paths):
    names = np.array([path.name for path in paths], 'S')
    seconds = np.array([(1000 + 10 * i) / 16000 for i in range(24)])
    listed = Utterances(paths[0].parent, names, np.arange(24), tuple(map(str, range(24))), seconds)
    for options in ({}, {'truncate': True}, {'on_error': 'skip'}):
        found = list(whole_utterances(listed, budget_seconds=0.25, workers=0, **options))
        for one, other in zip(found, files(paths, seconds, **options), strict=True):
            equal(one, other)


def share_of_rank(folder, names):
    listed = Utterances(folder, np.array(names, 'S'), np.arange(len(names)), tuple(names))
    batches = whole_utterances(listed, budget_seconds=0.25, workers=0)
    return [i for batch in batches for i in batch['index'].tolist()]


def test_whole_utterances_are_shared_by_the_ranks(paths, run_ranks):
    first, second = run_ranks(share_of_rank, paths[0].parent, [path.name for path in paths])
    assert first and second and sorted(first + second) == list(range(24))
