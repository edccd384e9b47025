"""What the doctor finds in lists of trials, and in who speaks where."""

import hashlib

import pytest
from audio_trees import told, tree

from shared.doctor.plan import Corpora
from shared.doctor.trials import overlaps, trials_and_files, validation

NAMES = ('a/v/1.wav', 'a/v/2.wav', 'b/v/1.wav', 'b/w/2.wav')
LIST = '1 a/v/1.wav a/v/2.wav\n0 a/v/1.wav b/v/1.wav\n'


@pytest.fixture
def root(tmp_path):
    return tree(tmp_path / 'wav', *NAMES)


def listed(tmp_path, text=LIST, name='trials.txt'):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def look(root, *lists):
    corpora = Corpora({}, tests=lists, test_root=root, published=False)
    return told(trials_and_files(corpora, full=False))


def test_a_list_is_shown_with_counts_and_digest(root, tmp_path):
    path = listed(tmp_path)
    odd, fine, (lists, size) = look(root, path)
    digest = hashlib.sha256(LIST.encode()).hexdigest()
    assert odd == [] and fine[0] == (
        f'ok      test: {path}: 2 trials, 1 target, of 3 files; by its count no published list; '
        f'SHA-256 {digest}'
    )
    assert lists[str(path)][1] == {'a', 'b'}
    assert size == sum((root / name).stat().st_size for name in NAMES[:3])


def test_a_published_count_has_its_name(root, tmp_path):
    rows = [f'{i % 2} a/v/1.wav b/v/1.wav\n' for i in range(37611)]
    _, fine, _ = look(root, listed(tmp_path, ''.join(rows)))
    assert 'Vox1-O cleaned; SHA-256' in fine[0]


def test_files_of_a_list_that_are_missing_or_empty_are_errors(root, tmp_path):
    (root / 'b/v/1.wav').unlink()
    (root / 'a/v/2.wav').write_bytes(b'')
    odd, _, _ = look(root, listed(tmp_path))
    assert '1 files are not below' in odd[0] and 'b/v/1.wav; give the folder' in odd[0]
    assert 'prepare merge DEV TEST' in odd[0]
    assert '1 of 2 files hold no audio: a/v/2.wav' in odd[1]
    assert all(line.startswith('error') for line in odd)


def test_an_unreadable_list_does_not_hide_the_next(root, tmp_path):
    bad, good = listed(tmp_path, 'nonsense\n', 'bad.txt'), listed(tmp_path)
    (line,), fine, (lists, _) = look(root, bad, good)
    assert line.startswith(f'error   test: {bad}: line 1 must be') and list(lists) == [str(good)]
    assert any(str(good) in one for one in fine)


def test_a_list_of_one_kind_is_an_error(root, tmp_path):
    (line,), *_ = look(root, listed(tmp_path, '1 a/v/1.wav a/v/2.wav\n'))
    assert 'an error rate needs both kinds' in line


def test_the_whole_test_folder_is_counted(tmp_path):
    root = tree(tmp_path, *(f'id1027{i}/v/{j}.wav' for i in range(2) for j in range(2)))
    text = '1 id10270/v/0.wav id10270/v/1.wav\n0 id10270/v/0.wav id10271/v/1.wav\n'
    corpora = Corpora({}, tests=[listed(tmp_path, text)], test_root=root)
    odd, *_ = told(trials_and_files(corpora, full=False))
    assert len(odd) == 1 and 'VoxCeleb1 test has 4,874 of 40' in odd[0]


def test_validation_speakers_come_from_the_list_or_the_folder(root, tmp_path):
    path = listed(tmp_path, '1 a/v/1.wav a/v/2.wav\n0 a/v/1.wav a/v/2.wav\n')
    given = Corpora({}, valid_root=root, valid_list=path, published=False)
    assert told(validation(given, {}, full=False))[2] == {'a'}
    drawn = Corpora({}, valid_root=root, published=False)
    assert told(validation(drawn, {}, full=False))[2] == {'a', 'b'}
    assert told(validation(Corpora({}), {}, full=False))[2] == set()


def test_trials_cannot_be_drawn_from_one_speaker(tmp_path):
    corpora = Corpora({}, valid_root=tree(tmp_path, 'a/v/1.wav'), published=False)
    (line,), *_ = told(validation(corpora, {}, full=False))
    assert '1 speaker; trials cannot be drawn; give a folder of several' in line


def test_speakers_of_training_in_a_test_list_are_an_error():
    lists = {'O.txt': (None, {'x', 'y'}), 'E.txt': (None, {'a', 'b', 'c', 'd', 'x'})}
    (line,), fine, _ = told(overlaps({'a', 'b', 'c', 'd', 'e'}, lists, set()))
    assert line.startswith(
        'error   speakers: 4 of 5 speakers of E.txt are in the training set too: a, b, c, ...; '
    )
    assert 'prepare list --exclude' in line and fine == []


def test_speakers_of_validation_elsewhere_are_warnings():
    lists = {'O.txt': (None, {'x', 'y'}), 'E.txt': (None, {'v'})}
    odd, fine, _ = told(overlaps({'a', 'v'}, {}, {'v', 'w'}))
    assert len(odd) == 1 and odd[0].startswith(
        'warning speakers: 1 speakers of validation are in the training set too: v'
    )
    odd, *_ = told(overlaps({'a'}, lists, {'x', 'v'}))  # E and H hold them as published
    assert len(odd) == 1 and '1 speakers of validation are in O.txt too: x' in odd[0]


def test_sets_of_different_speakers_are_fine():
    odd, fine, _ = told(overlaps({'a', 'b'}, {'O.txt': (None, {'x'})}, {'v'}))
    assert odd == [] and fine == [
        'ok      speakers: none of 2 training speakers is in the test lists'
    ]
