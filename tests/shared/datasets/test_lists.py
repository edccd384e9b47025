"""Walks through folders and looks for files, against the plain way of doing so."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shared.datasets import lists
from shared.datasets.items import DataError
from shared.datasets.lists import audio_files, require_files, sizes_below
from shared.datasets.packed import pack

NAMES = (
    'b/v/2.wav',
    'b/v/1.flac',
    'b/v/notes.txt',
    'a/1.wav',
    'a/v/1.wav',
    'a-x/v/1.wav',  # by letters before a/
    'a/v-x/1.wav',
    'a/v/deep/er/1.wav',
    'a/v/empty.d/notes.txt',
    'a/ü.wav',
    'top.wav',
    'c.wav/v/1.wav',  # a folder
)


@pytest.fixture
def root(tmp_path):
    for size, name in enumerate(NAMES):
        path = tmp_path / 'wav' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    return tmp_path / 'wav'


def walked(root):
    """(folder, sorted audio files) as os.walk finds them."""
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders.sort()
        names = sorted(name for name in files if name.endswith(('.wav', '.flac')))
        inside = os.path.relpath(folder, root)
        if names:
            found.append(('' if inside == '.' else inside, names))
    return found


def test_audio_files_are_those_of_a_walk_in_its_order(root):
    found = list(audio_files(root))
    assert found == walked(root) and len(found) == 8
    assert found[0] == ('', ['top.wav']) and found[1] == ('a', ['1.wav', 'ü.wav'])
    assert list(audio_files(str(root))) == found


def test_sizes_below_are_in_the_order_of_audio_files(root, monkeypatch):
    names, sizes = sizes_below(root)
    expected = [os.path.join(folder, name) for folder, group in walked(root) for name in group]
    assert [os.fsdecode(name) for name in names.tolist()] == expected
    assert sizes.dtype == np.int64 and sizes.tolist() == [
        os.path.getsize(root / name) for name in expected
    ]
    monkeypatch.setattr(lists, 'ROWS_AT_ONCE', 2)  # in chunks of names of different lengths
    again = sizes_below(root)
    assert again[0].tolist() == names.tolist() and again[1].tolist() == sizes.tolist()


def test_sizes_below_an_empty_folder_are_none(tmp_path):
    names, sizes = sizes_below(tmp_path)
    assert names.dtype.kind == 'S' and names.shape == sizes.shape == (0,)


def test_links_are_followed_unless_they_lead_back_up(root, tmp_path):
    (tmp_path / 'elsewhere' / 'v').mkdir(parents=True)
    (tmp_path / 'elsewhere' / 'v' / '1.wav').write_bytes(b'four')
    (root / 'linked').symlink_to(tmp_path / 'elsewhere')
    (root / 'link.wav').symlink_to(root / 'b/v/2.wav')
    (root / 'a/v/lost.wav').symlink_to(tmp_path / 'nowhere.wav')
    expected = walked(root)
    (root / 'b/v/up').symlink_to(root / 'b')
    (root / 'b/v/top').symlink_to('../..')
    (tmp_path / 'elsewhere' / 'self').symlink_to('.')
    assert list(audio_files(root)) == expected
    sizes = dict(zip(*[column.tolist() for column in sizes_below(root)]))
    assert sizes[b'linked/v/1.wav'] == 4 and sizes[b'link.wav'] == 0
    assert sizes[b'a/v/lost.wav'] == -1


def test_a_folder_that_cannot_be_listed_is_an_error(root, monkeypatch):
    def scandir(path):
        if os.path.basename(path) == 'v-x':
            raise PermissionError(13, 'Permission denied')
        return whole(path)

    whole = os.scandir
    monkeypatch.setattr(os, 'scandir', scandir)
    for look in (sizes_below, lambda root: list(audio_files(root))):
        with pytest.raises(DataError, match=r'wav/a/v-x: cannot be listed \(Permission denied\)'):
            look(root)


def test_a_packed_folder_lists_and_misses_what_the_folder_does(tmp_path):
    for i, name in enumerate(('b/v/1.wav', 'a/v/1.wav', 'a/v/2.wav', 'a-x/v/1.wav')):
        (tmp_path / 'wav' / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / 'wav' / name, np.zeros(100 + i), 16000)
    pack(tmp_path / 'wav', tmp_path / 'packed')
    for look in (lambda root: list(audio_files(root)), lambda root: list(zip(*sizes_below(root)))):
        assert look(tmp_path / 'packed') == look(tmp_path / 'wav') != []
    for root in (tmp_path / 'wav', tmp_path / 'packed'):
        require_files('list', root, [])
        require_files('list', root, ('b/v/1.wav', 'a-x/v/1.wav'))
        with pytest.raises(
            DataError, match=r'list: 2 .* below .*: a/v/3\.wav, z/v/1\.wav; correct'
        ):
            require_files('list', root, ['z/v/1.wav', 'a/v/1.wav', 'a/v/3.wav'])


@pytest.mark.parametrize('at_once', [1, 3, 4096])
def test_require_files_finds_every_missing_one_wherever_the_list_is_cut(root, monkeypatch, at_once):
    monkeypatch.setattr(lists, 'ABSENT_AT_ONCE', at_once)
    there = [name for name in NAMES if name.endswith('.wav')]
    require_files('list', root, there)
    require_files('list', root, np.array(list(map(os.fsencode, there * 2))))
    require_files('list', root, [])
    absent = ['a/v/9.wav', 'b/w/1.wav', 'é.wav', 'a/v/9.wav', 'c.wav/v/1.wav/1.wav']
    with pytest.raises(DataError) as caught:
        require_files('list', root, absent + there)
    said = '5 listed files are not below .*: a/v/9.wav, a/v/9.wav, b/w/1.wav, ...; correct'
    assert caught.match(said.replace('.', r'\.').replace(r'\.*', '.*'))


def test_require_files_takes_full_paths(root, tmp_path):
    require_files('list', Path(tmp_path / 'other'), [str(root / 'top.wav')])
