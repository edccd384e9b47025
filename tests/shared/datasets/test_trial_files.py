"""Lists with their files: made once, the same for all, and what reading changes is counted."""

import os
import time

import numpy as np
import pytest
import soundfile

from shared import ddp
from shared.datasets import trial_files, voxceleb
from shared.datasets.decoding import AudioError
from shared.datasets.items import DataError
from shared.datasets.packed import pack
from shared.datasets.trial_files import (
    TrialFiles,
    drawn_trials,
    training_list,
    trial_lists,
    validation_files,
)
from shared.datasets.voxceleb import read_trials


@pytest.fixture
def root(tmp_path):
    """Two speakers with two videos of two files each; file i has 1000 (i + 1) samples of value i."""
    for i in range(8):
        path = tmp_path / 'wav' / f'id{i // 4}' / f'v{i // 2 % 2}' / f'{i}.wav'
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full(1000 * (i + 1), i / 16), 16000, subtype='FLOAT')
    return tmp_path / 'wav'


@pytest.fixture
def trials(root, tmp_path):
    lines = (
        '1 id0/v0/0.wav id0/v1/3.wav\n0 id0/v0/0.wav id1/v0/5.wav\n1 id1/v1/7.wav id1/v0/5.wav\n'
    )
    (tmp_path / 'O.txt').write_text(lines)
    return read_trials(tmp_path / 'O.txt', root)


def test_loader_gives_every_file_of_the_trials_once_and_whole(root, trials):
    files = TrialFiles(trials, root, budget_seconds=0.4, workers=0)
    assert files.trials is trials and files.root == root
    assert files.paths == [root / name for name in trials.files]
    seen = {}
    for batch in files.loader():
        for index, wave, length in zip(batch['index'], batch['waves'], batch['lengths']):
            seen[int(index)] = wave[:length].numpy()
    numbers = [int(name.split('/')[-1][0]) for name in trials.files]  # 0, 3, 5, 7
    assert sorted(seen) == [0, 1, 2, 3]
    for row, number in enumerate(numbers):
        np.testing.assert_array_equal(seen[row], np.full(1000 * (number + 1), number / 16))


def test_budget_is_seconds_of_audio_in_a_batch(root, trials):
    def sizes(budget):
        loader = TrialFiles(trials, root, budget_seconds=budget, workers=0).loader()
        return [len(batch['index']) for batch in loader]

    assert sizes(0.1) == [1, 1, 1, 1] and sizes(100) == [4]


def test_ranks_share_the_files(root, trials, monkeypatch):
    seen = []
    monkeypatch.setattr(ddp, 'world_size', lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(ddp, 'rank', lambda rank=rank: rank)
        files = TrialFiles(trials, root, budget_seconds=0.1, workers=0)
        seen.append([int(i) for batch in files.loader() for i in batch['index']])
    assert all(len(share) == 2 for share in seen) and sorted(sum(seen, [])) == [0, 1, 2, 3]


def test_headers_are_read_once_for_any_number_of_passes(root, trials, monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(1)
        return file_forms(*arguments)

    file_forms = trial_files.file_forms
    monkeypatch.setattr(trial_files, 'file_forms', counted)
    files = TrialFiles(trials, root, budget_seconds=10, workers=0)
    assert not calls  # none before they are needed
    for _ in range(2):
        assert len(list(files.loader())) == 1 and files.converted == {}
    assert len(calls) == 1


@pytest.mark.parametrize('workers', [0, 2])
def test_files_of_another_rate_or_stereo_are_counted_once_however_often_read(root, trials, workers):
    for i, (channels, rate) in {0: (1, 8000), 5: (2, 8000), 6: (2, 16000), 7: (2, 16000)}.items():
        path = next(root.rglob(f'{i}.wav'))
        soundfile.write(path, np.full((2000, channels), 0.5), rate)
    files = TrialFiles(trials, root, budget_seconds=0.3, workers=workers)
    for _ in range(2):
        batches = list(files.loader())
    assert files.converted == {'resampled': 2, 'mixed to mono': 2}  # 6.wav is in no trial
    lengths = {int(i): int(n) for b in batches for i, n in zip(b['index'], b['lengths'])}
    assert lengths == {0: 4000, 1: 4000, 2: 4000, 3: 2000}


def test_files_that_do_not_open_are_not_counted_as_converted(root, trials):
    (root / 'id0/v0/0.wav').write_bytes(b'')
    assert TrialFiles(trials, root, budget_seconds=1, workers=0).converted == {}


def test_a_broken_test_file_is_an_error_when_it_is_read(root, trials):
    (root / 'id0/v0/0.wav').write_bytes(b'RIFF but no wave file')
    files = TrialFiles(trials, root, budget_seconds=10, workers=0)
    with pytest.raises(AudioError, match='id0/v0/0.wav'):
        list(files.loader())


def test_training_list_takes_a_list_with_seconds_as_it_is(root, tmp_path):
    given = tmp_path / 'train.txt'
    given.write_text('spk id1/v0/4.wav 9.5\nspk id0/v0/0.wav 7.5\n')
    found = training_list(root, given, tmp_path / 'kept.txt')
    assert found.seconds.tolist() == [9.5, 7.5] and not (tmp_path / 'kept.txt').exists()


@pytest.mark.parametrize('listed', [True, False])
def test_training_list_reads_seconds_once_where_none_are_listed(listed, root, tmp_path):
    given = tmp_path / 'given.txt'
    given.write_text('spk id1/v0/4.wav\nspk id0/v0/0.wav\n')
    kept = tmp_path / 'lists' / 'train.txt'
    found = training_list(root, given if listed else None, kept)
    numbers = [4, 0] if listed else range(8)
    assert [found.name(i)[-5] for i in range(len(found))] == list(map(str, numbers))
    assert found.seconds.tolist() == [(i + 1) / 16 for i in numbers]
    assert found.speaker_ids == (('spk',) if listed else ('id0', 'id1'))

    soundfile.write(root / 'id0/v0/0.wav', np.zeros(99), 16000)  # not looked at again
    (root / 'id0/v0/new.wav').write_bytes((root / 'id0/v0/0.wav').read_bytes())
    again = training_list(root, given if listed else None, kept)
    assert again.seconds.tolist() == found.seconds.tolist()


def test_training_list_of_files_none_of_which_can_be_read_says_so_of_the_first(root, tmp_path):
    for path in root.rglob('*.wav'):
        path.write_bytes(b'')
    with pytest.raises(AudioError, match='id0/v0/0.wav: cannot be opened as audio'):
        training_list(root, None, tmp_path / 'kept.txt')
    assert not (tmp_path / 'kept.txt').exists()


def test_training_list_is_not_read_back_by_the_rank_that_wrote_it(root, tmp_path, monkeypatch):
    read, kept = voxceleb.read_list, tmp_path / 'train.txt'
    monkeypatch.setattr(voxceleb, 'read_list', None)
    made = training_list(root, None, kept)
    monkeypatch.setattr(voxceleb, 'read_list', read)
    again = training_list(root, None, kept)
    for name in ('root', 'speaker_ids'):
        assert getattr(made, name) == getattr(again, name)
    for name in ('paths', 'speakers', 'seconds'):
        np.testing.assert_array_equal(getattr(made, name), getattr(again, name))


def test_one_rank_of_each_machine_looks_for_the_files_of_a_list(root, tmp_path, monkeypatch):
    given, kept = tmp_path / 'given.txt', tmp_path / 'trials.txt'
    given.write_text('s id0/v0/0.wav 1\ns id0/v0/gone.wav 1\n')
    drawn_trials(root, kept, 5, seed=0)
    os.rename(root / 'id1', root / 'id9')
    monkeypatch.setattr(ddp, 'local_rank', lambda: 1)
    assert len(training_list(root, given, tmp_path / 'train.txt')) == 2
    assert len(drawn_trials(root, kept, 5, seed=0)) == 10
    monkeypatch.setattr(ddp, 'local_rank', lambda: 0)
    with pytest.raises(DataError, match='1 listed files are not below .*: id0/v0/gone.wav'):
        training_list(root, given, tmp_path / 'train.txt')
    with pytest.raises(DataError, match='listed files are not below .*: id1/'):
        drawn_trials(root, kept, 5, seed=0)


def test_lists_of_a_packed_folder_are_those_of_the_folder(root, tmp_path):
    pack(root, tmp_path / 'packed')
    kept = [tmp_path / 'one.txt', tmp_path / 'other.txt']
    for folder, path in zip((root, tmp_path / 'packed'), kept):
        training_list(folder, None, path)
        assert drawn_trials(folder, f'{path}.trials', 6, seed=1).labels.sum() == 6
    assert kept[0].read_bytes() == kept[1].read_bytes() and kept[0].read_text().count('\n') == 8
    first, second = (path.with_name(f'{path.name}.trials').read_bytes() for path in kept)
    assert first == second


def test_drawn_trials_are_drawn_once_and_reproducible(root, tmp_path):
    kept = tmp_path / 'lists' / 'valid.txt'
    first = drawn_trials(root, kept, 6, seed=3)
    assert len(first) == 12 and first.labels.sum() == 6
    bytes_of = kept.read_bytes()
    assert drawn_trials(root, kept, 2, seed=9).sha256 == first.sha256  # kept: nothing is drawn
    assert kept.read_bytes() == bytes_of
    assert drawn_trials(root, tmp_path / 'b.txt', 6, seed=3).sha256 == first.sha256
    assert drawn_trials(root, tmp_path / 'c.txt', 6, seed=4).sha256 != first.sha256


def test_a_kept_list_of_files_that_are_gone_is_refused(root, tmp_path):
    kept = tmp_path / 'valid.txt'
    drawn_trials(root, kept, 50, seed=3)
    os.rename(root / 'id1', root / 'id9')
    with pytest.raises(DataError, match=r'valid.txt: .*id1/'):
        drawn_trials(root, kept, 50, seed=3)


def made_by_rank_zero(root, folder):
    """Lists of this rank; rank 0 comes late, so that one that did not wait has another or none."""
    time.sleep(0.3 * ddp.is_main())
    train = training_list(root, None, f'{folder}/train.txt')
    time.sleep(0.3 * ddp.is_main())
    trials = drawn_trials(root, f'{folder}/valid.txt', 6, seed=10 + ddp.rank())
    return train.seconds.tolist(), trials.sha256


@pytest.mark.slow
def test_rank_zero_makes_the_lists_and_the_others_read_them(root, tmp_path, run_ranks):
    first, second = run_ranks(made_by_rank_zero, str(root), str(tmp_path / 'lists'))
    assert first == second and len(first[0]) == 8
    assert first[1] == drawn_trials(root, tmp_path / 'alone.txt', 6, seed=10).sha256


# --- lists as the arguments name them


def test_trial_lists_are_read_in_their_order_below_one_folder(root, trials, tmp_path):
    lines = '0 id0/v0/1.wav id1/v0/4.wav\n1 id0/v0/1.wav id0/v0/0.wav\n'
    (tmp_path / 'E.txt').write_text(lines)
    how = {'budget_seconds': 0.1, 'workers': 0}
    found = trial_lists([tmp_path / 'E.txt', tmp_path / 'O.txt'], root, **how)
    assert [files.trials.name for files in found] == ['E', 'O']
    assert [len(files.trials) for files in found] == [2, 3]
    assert all(files.root == root for files in found)
    assert [len(batch['index']) for batch in found[0].loader()] == [1, 1, 1]


def test_validation_files_are_the_given_list_or_one_drawn_once(root, trials, tmp_path):
    kept, how = tmp_path / 'lists' / 'valid.txt', {'budget_seconds': 10, 'workers': 0}
    given = validation_files(root, tmp_path / 'O.txt', kept, seed=0, **how)
    assert given.trials.sha256 == trials.sha256 and not kept.exists()
    drawn = validation_files(root, None, kept, seed=0, **how)
    assert len(drawn.trials) and kept.exists()
    again = validation_files(root, None, kept, seed=1, **how)
    assert again.trials.sha256 == drawn.trials.sha256
