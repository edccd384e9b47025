"""What the doctor finds in a training set: counts, and list against disk."""

import numpy as np
import pytest
from audio_trees import told, tree, wav

from shared.datasets.items import Utterances
from shared.datasets.lists import sizes_below
from shared.datasets.packed import pack
from shared.doctor import training as doctor_training
from shared.doctor.plan import Corpora
from shared.doctor.training import KNOWN, known_count, training

NAMES = ('a/v/1.wav', 'a/v/2.wav', 'b/v/1.wav', 'b/w/2.wav')


@pytest.fixture
def root(tmp_path):
    return tree(tmp_path / 'wav', *NAMES)


def listed(tmp_path, names=NAMES, seconds=0.5, name='train.txt'):
    lines = [f'{one[0]} {one} {seconds}\n' for one in names]
    (tmp_path / name).write_text(''.join(lines))
    return tmp_path / name


def look(root, **more):
    return told(training(Corpora({}, root, **more), full=False))


def test_a_good_folder_is_counted(root):
    odd, fine, result = look(root, published=False)
    assert odd == [] and result == (4, 2, {'a', 'b'})
    assert fine[0] == f'ok      training: {root}: 4 utterances of 2 speakers'


def test_a_good_list_is_counted_with_its_own_names_of_speakers(root, tmp_path):
    path = tmp_path / 'train.txt'
    path.write_text(''.join(f'dummy{i} {name} 0.5\n' for i, name in enumerate(NAMES[:3])))
    odd, fine, (utterances, speakers, names) = look(root, train_list=path)
    assert odd == [] and (utterances, speakers) == (3, 3)
    assert names == {'a', 'b', 'dummy0', 'dummy1', 'dummy2'}
    assert any('1 files on the disk are not in it' in line and 'b/w/2.wav' in line for line in fine)
    assert any('all 3 files are on the disk' in line for line in fine)


def test_listed_files_that_are_not_on_the_disk_are_an_error(root, tmp_path):
    path = listed(tmp_path, (*NAMES, 'c/v/1.wav', 'c/v/2.wav', 'c/v/3.wav', 'c/v/4.wav'))
    (line,), _, result = look(root, train_list=path)
    assert line == (
        f'error   training list: {path}: 4 of 8 files are not below {root}: '
        'c/v/1.wav, c/v/2.wav, c/v/3.wav, ...; correct the folder or the list'
    )
    assert result[0] == 4


def test_the_list_of_an_earlier_start_is_looked_at_when_there_is_none_other(root, tmp_path):
    kept = listed(tmp_path, NAMES[:3], name='kept.txt')
    (line,), _, result = look(root, kept_list=kept)
    assert line.startswith('warning training list: 1 files on the disk are not in it')
    assert f'if they are new, remove {kept}' in line and result[0] == 3
    given = listed(tmp_path)
    assert look(root, train_list=given, kept_list=kept)[0] == []
    assert look(root, kept_list=tmp_path / 'none.txt')[2][0] == 4


def test_files_that_occur_twice_are_a_warning(root, tmp_path):
    (line,), *_ = look(root, train_list=listed(tmp_path, (*NAMES, *NAMES[:2])))
    assert line.endswith('2 files occur twice; keep one line of each')


def test_sizes_that_do_not_fit_the_seconds_are_a_warning(root, tmp_path):
    path = listed(tmp_path)
    wav(root / 'b/v/1.wav', seconds=0.2)
    (line,), *_ = look(root, train_list=path)
    assert '1 wavs have another size than their seconds say, such as b/v/1.wav' in line
    assert '(0.50 s listed, 0.20 s as 16 kHz mono)' in line and 'make the list again' in line


def test_flac_has_no_size_to_compare_with(tmp_path):
    root = tree(tmp_path / 'wav', 'a/v/1.flac', 'b/v/1.flac', seconds=2)
    assert look(root, train_list=listed(tmp_path, ('a/v/1.flac', 'b/v/1.flac'), 2))[0] == []


@pytest.mark.parametrize('tolerated, level', [(0.0, 'error'), (1.0, 'warning')])
def test_unknown_seconds_are_told(root, tmp_path, tolerated, level):
    lines = look(root, train_list=listed(tmp_path, seconds='nan'), tolerated=tolerated)[0]
    assert lines[0].startswith(level) and '4 files could not be opened when it was made' in lines[0]


def test_a_wrong_depth_is_an_error_unless_a_list_names_the_speakers(tmp_path):
    root = tree(tmp_path / 'dev', *(f'wav/{name}' for name in NAMES))
    (line,), *_ = look(root)
    assert '4 files such as wav/a/v/1.wav are not speaker/video/utterance.wav' in line
    path = tmp_path / 'train.txt'
    path.write_text(''.join(f'{name[0]} wav/{name}\n' for name in NAMES))
    assert look(root, train_list=path)[0] == []


def test_a_list_that_names_its_files_itself_is_read_by_its_own_reader(root):
    names, _ = sizes_below(root)
    utterances = Utterances(root, names, np.array([0, 0, 1, 1]), ('a', 'b'))
    odd, fine, result = told(training(Corpora({}, read_train=lambda: utterances), full=False))
    assert odd == [] and result == (4, 2, {'a', 'b'})


@pytest.mark.parametrize('known', KNOWN, ids=lambda known: known.name)
def test_published_counts_are_recognised(known):
    folders = {f'id{number:05d}' for number in known.ids[: known.speakers]}

    def line(utterances, names):
        ((finding,),) = [list(known_count('training', '/data', utterances, names))]
        return finding.line()

    whole = line(known.utterances, folders)
    assert whole.startswith('ok') and whole.endswith(f'{known.name}, whole')
    part = line(known.utterances - 1009, folders)
    assert part.startswith('warning') and f'{known.name} has {known.utterances:,} of' in part
    assert 'unpacking or conversion that did not end: repeat it' in part
    assert 'twice' in line(known.utterances + 9, folders)


def test_other_speakers_are_compared_with_nothing():
    for folders, said in (
        ({'alice', 'bob'}, 'no published set by their names'),
        ({'id00012', 'alice'}, 'no published set by their names'),
        ({'id00012', 'id10001'}, 'VoxCeleb1 and 2 together'),
    ):
        (finding,) = known_count('training', '/data', 7, folders)
        assert finding.level == 'ok' and finding.what.endswith(said)


def test_sources_of_the_counts_agree():
    counts = {known.name: known for known in doctor_training.KNOWN}
    for field in ('speakers', 'utterances'):
        parts = (getattr(counts[f'VoxCeleb1 {part}'], field) for part in ('dev', 'test'))
        assert sum(parts) == getattr(counts['VoxCeleb1'], field)


def test_a_packed_folder_is_looked_at_like_the_folder(root, tmp_path):
    packed = pack(root, tmp_path / 'packed', per_shard=3).root
    path = listed(tmp_path)
    odd, fine, result = look(packed, train_list=path, published=False)
    expected = look(root, train_list=path, published=False)
    assert odd == [] and result == expected[2]
    assert [line.replace(str(packed), str(root)) for line in fine] == expected[1]
