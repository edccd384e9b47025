"""Folders, train lists and trial lists, good and bad."""

import hashlib

import numpy as np
import pytest

from shared.datasets import voxceleb
from shared.datasets.items import DataError
from shared.datasets.voxceleb import draw_trials, read_folder, read_list, read_trials, write_trials

TRIALS = '1 b/v/1.wav b/w/2.wav\n0 a/v/1.wav b/v/1.wav\n'


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / 'wav'
    for name in ('b/v/1.wav', 'b/w/2.wav', 'a/v/1.wav', 'a/v/2.flac', 'a/v/notes.txt'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(tmp_path, text):
    path = tmp_path / 'list.txt'
    path.write_text(text)
    return path


def test_read_folder_sorts_speakers_and_paths(corpus):
    found = read_folder(corpus)
    names = [found.name(i) for i in range(len(found))]
    assert names == ['a/v/1.wav', 'a/v/2.flac', 'b/v/1.wav', 'b/w/2.wav']
    assert found.speaker_ids == ('a', 'b')
    assert found.speakers.tolist() == [0, 0, 1, 1]
    assert found.paths.dtype.kind == 'S' and found.seconds is None


def test_read_folder_takes_speaker_folders_without_videos(tmp_path):
    (tmp_path / 's').mkdir()
    (tmp_path / 's' / '1.wav').touch()
    assert read_folder(tmp_path).name(0) == 's/1.wav'


def test_read_folder_says_what_is_wrong(corpus, tmp_path):
    with pytest.raises(DataError, match=r'found wav/a/v/1\.wav, expected speaker/video/utterance'):
        read_folder(corpus.parent)
    with pytest.raises(DataError, match=r'found 1\.wav, expected'):
        read_folder(corpus / 'b' / 'v')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='it holds nothing'):
        read_folder(tmp_path / 'empty')
    with pytest.raises(DataError, match='no such folder'):
        read_folder(tmp_path / 'nowhere')
    with pytest.raises(DataError, match='path of the VoxCeleb folder is empty'):
        read_folder('')


@pytest.mark.parametrize(
    'name, what',
    [
        ('a/my video/1.wav', r"the name of 'a/my video/1\.wav' has a space in it"),
        ('a/v/1\u3000.wav', r"'a/v/1\\u3000\.wav' has a space in it, where a list would end it"),
        ('a/v/1\n.wav', r"'a/v/1\\n\.wav' has a space in it"),
        ('a/v/\udcff.wav', r"'a/v/\\udcff\.wav' is not UTF-8, as lists are: rename it"),
    ],
    ids=['space', 'wide space', 'line end', 'bytes'],
)
def test_read_folder_refuses_names_that_no_list_can_hold(corpus, name, what):
    (corpus / name).parent.mkdir(exist_ok=True)
    (corpus / name).touch()
    with pytest.raises(DataError, match=what):
        read_folder(corpus)


def test_read_folder_takes_names_in_any_script_and_a_list_gives_them_back(corpus, tmp_path):
    (corpus / 'a' / 'v' / 'ü音.wav').touch()
    found = read_folder(corpus)
    found.write(tmp_path / 'list.txt')
    assert found.name(2) == 'a/v/ü音.wav'
    assert read_list(tmp_path / 'list.txt', corpus).paths.tolist() == found.paths.tolist()


def test_read_list_keeps_order_sorts_speakers_and_takes_the_last_column(corpus, tmp_path):
    path = listed(tmp_path, 'b b/v/1.wav x 8.064\n\na a/v/1.wav y 4.1\nb b/w/2.wav z 5\n')
    found = read_list(path, corpus)
    assert [found.name(i) for i in range(3)] == ['b/v/1.wav', 'a/v/1.wav', 'b/w/2.wav']
    assert found.speaker_ids == ('a', 'b')
    assert found.speakers.tolist() == [1, 0, 1]
    assert found.seconds.tolist() == [8.064, 4.1, 5.0]


def test_read_list_of_two_columns_has_no_seconds(corpus, tmp_path):
    assert read_list(listed(tmp_path, 'a a/v/1.wav\n'), corpus).seconds is None


def test_read_list_returns_what_write_wrote(corpus, tmp_path):
    first = read_list(listed(tmp_path, 'b b/v/1.wav 8.064\na a/v/1.wav nan\n'), corpus)
    first.write(tmp_path / 'again.txt')
    again = read_list(tmp_path / 'again.txt', corpus)
    assert again.paths.tolist() == first.paths.tolist()
    np.testing.assert_array_equal(again.seconds, first.seconds)


def test_seconds_are_read_as_they_were_to_the_last_bit(corpus, tmp_path):
    first = read_list(listed(tmp_path, 'b b/v/1.wav 1\na a/v/1.wav 2\n'), corpus)
    first.seconds[:] = [16000001 / 16000, 1 / 3]
    first.write(tmp_path / 'again.txt')
    assert read_list(tmp_path / 'again.txt', corpus).seconds.tolist() == first.seconds.tolist()


def test_read_list_in_many_chunks_equals_one(corpus, tmp_path, monkeypatch):
    text = 'b b/v/1.wav 1\na a/v/2.flac 2\nb b/w/2.wav 3\na a/v/1.wav 4\na a/v/1.wav 5\n'
    whole = read_list(listed(tmp_path, text), corpus)
    monkeypatch.setattr('shared.datasets.lists.ROWS_AT_ONCE', 2)
    parts = read_list(listed(tmp_path, text), corpus)
    assert parts.paths.tolist() == whole.paths.tolist()
    assert parts.speakers.tolist() == whole.speakers.tolist()


@pytest.mark.parametrize(
    'line, what',
    [
        ('a', "line 2 has 1 columns, 3 in the first line: 'a'"),
        ('a a/v/1.wav', 'line 2 has 2 columns, 3 in the first line'),
        ('a a/v/1.wav long', "line 2 the last column must be a duration in seconds, not 'long'"),
        ('a a/v/1.wav -3', 'line 2 the last column must be a duration'),
        ('a 4.2 a/v/1.wav', r"line 2 column 2 must be a \.wav or \.flac path: 'a 4.2 a/v/1.wav'"),
    ],
)
def test_read_list_names_the_bad_line(corpus, tmp_path, line, what):
    path = listed(tmp_path, f'b b/v/1.wav 8\n{line}\n')
    with pytest.raises(DataError, match=what):
        read_list(path, corpus)


def test_read_list_of_one_column_or_no_line_is_refused(corpus, tmp_path):
    with pytest.raises(DataError, match='line 1 has one column'):
        read_list(listed(tmp_path, 'a/v/1.wav\n'), corpus)
    with pytest.raises(DataError, match='is empty'):
        read_list(listed(tmp_path, '\n'), corpus)
    with pytest.raises(DataError, match='cannot be read'):
        read_list(tmp_path / 'nowhere.txt', corpus)
    (tmp_path / 'binary').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(DataError, match='not a text file'):
        read_list(tmp_path / 'binary', corpus)


def test_read_list_names_three_missing_files_and_their_count(corpus, tmp_path):
    text = ''.join(f'a a/v/{i}.wav 4\n' for i in (9, 1, 8, 7)) + 'c c/v/6.wav 4\n'
    path = listed(tmp_path, text)
    with pytest.raises(
        DataError, match=r'4 listed .*: a/v/7\.wav, a/v/8\.wav, a/v/9\.wav, \.\.\.;'
    ):
        read_list(path, corpus)
    assert len(read_list(path, corpus, check_files=False)) == 5


@pytest.mark.parametrize(
    'text',
    [
        TRIALS,
        'b/v/1.wav b/w/2.wav target\na/v/1.wav b/v/1.wav nontarget\n',
        'target b/v/1.wav b/w/2.wav\nnontarget a/v/1.wav b/v/1.wav\n',
    ],
)
def test_read_trials_finds_either_layout(corpus, tmp_path, text):
    trials = read_trials(listed(tmp_path, text), corpus)
    assert trials.files == ('a/v/1.wav', 'b/v/1.wav', 'b/w/2.wav')
    assert trials.enrol.tolist() == [1, 0] and trials.test.tolist() == [2, 1]
    assert trials.labels.tolist() == [True, False] and len(trials) == 2
    assert trials.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert trials.name == 'list'


@pytest.mark.parametrize('line', ['2 a/v/1.wav b/v/1.wav', '1 a/v/1.wav', 'a/v/1.wav b/v/1.wav 1'])
def test_read_trials_names_the_bad_line(tmp_path, line):
    path = listed(tmp_path, f'{TRIALS}{line}\n')
    with pytest.raises(DataError, match=f'line 3 must be `label file file` .*{line}'):
        read_trials(path)


def test_read_trials_refuses_unknown_files_and_lists_of_one_kind(corpus, tmp_path):
    with pytest.raises(DataError, match=r'1 listed files are not below .*: a/v/5\.wav;'):
        read_trials(listed(tmp_path, TRIALS + '0 a/v/5.wav b/v/1.wav\n'), corpus)
    with pytest.raises(DataError, match='1 trials of which 1 are target'):
        read_trials(listed(tmp_path, '1 a/v/1.wav b/v/1.wav\n'))
    with pytest.raises(DataError, match='line 1 must be `label file file` or'):
        read_trials(listed(tmp_path, 'a/v/1.wav b/v/1.wav\n'))


@pytest.mark.parametrize('count, name', [(37720, 'Vox1-O original'), (579818, 'Vox1-E cleaned')])
def test_known_name_recognises_published_counts(count, name):
    assert voxceleb.known_name(count) == name
    assert voxceleb.known_name(count + 1) is None


def many(tmp_path, speakers=4, videos=3, files=3):
    names = [(s, v, u) for s in range(speakers) for v in range(videos) for u in range(files)]
    for s, v, u in names:
        path = tmp_path / 'many' / f's{s}' / f'v{v}' / f'{u}.wav'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return read_folder(tmp_path / 'many')


def test_draw_trials_pairs_videos_of_a_speaker_and_different_speakers(tmp_path):
    trials = draw_trials(many(tmp_path), 60, 70, seed=0)
    assert trials.labels.sum() == 60 and len(trials) == 130
    pairs = [(trials.files[a], trials.files[b]) for a, b in zip(trials.enrol, trials.test)]
    assert len({frozenset(pair) for pair in pairs}) == 130
    for label, (first, second) in zip(trials.labels, pairs):
        (s1, v1, _), (s2, v2, _) = first.split('/'), second.split('/')
        assert (s1 == s2 and v1 != v2) if label else s1 != s2


def test_draw_trials_is_seeded_and_read_back_as_written(tmp_path):
    utterances = many(tmp_path)
    trials = draw_trials(utterances, 20, 20, seed=1)
    assert trials.sha256 == draw_trials(utterances, 20, 20, seed=1).sha256
    assert trials.sha256 != draw_trials(utterances, 20, 20, seed=2).sha256
    write_trials(trials, tmp_path / 'trials.txt')
    again = read_trials(tmp_path / 'trials.txt', utterances.root)
    assert again.sha256 == trials.sha256 and again.files == trials.files
    np.testing.assert_array_equal(again.enrol, trials.enrol)


def test_draw_trials_of_one_video_uses_it_and_gives_what_there_is(tmp_path):
    trials = draw_trials(many(tmp_path, speakers=2, videos=1, files=2), 50, 50, seed=0)
    assert trials.labels.sum() == 2 and len(trials) == 6


@pytest.mark.parametrize(
    'speakers, videos, files, targets, nontargets',
    [(2, 2, 2, 8, 16), (3, 1, 3, 9, 27), (2, 3, 1, 6, 9)],
)
def test_draw_trials_stops_when_it_has_all_pairs(
    tmp_path, monkeypatch, speakers, videos, files, targets, nontargets
):
    known, distinct = [], voxceleb._distinct

    def noted(draw, count, possible):
        known.append(possible)
        return distinct(draw, count, possible)

    monkeypatch.setattr(voxceleb, '_distinct', noted)
    trials = draw_trials(many(tmp_path, speakers, videos, files), 10**9, 10**9, seed=0)
    assert known == [targets, nontargets]  # 20 billion draws, were they not known
    assert trials.labels.sum() == targets and len(trials) == targets + nontargets


def test_draw_trials_refuses_a_corpus_without_pairs(tmp_path):
    with pytest.raises(DataError, match='2 utterances of 2 speakers'):
        draw_trials(many(tmp_path, speakers=2, videos=1, files=1), 5, 5, seed=0)
