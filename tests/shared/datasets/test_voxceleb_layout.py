"""VoxCeleb1's parts in one folder."""

import os
import shutil

import pytest

from shared.datasets.items import DataError
from shared.datasets.voxceleb import read_folder
from shared.datasets.voxceleb_layout import merge
from shared.errors import UserError


def speakers(root, **files):
    """A folder of speakers: speaker -> content of its one utterance."""
    for speaker, text in files.items():
        path = root / speaker / 'video' / '00001.wav'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def parts(tmp_path):
    dev = speakers(tmp_path / 'vox' / 'dev' / 'wav', id1='a', id2='b')
    return dev, speakers(tmp_path / 'vox' / 'test' / 'wav', id3='c')


@pytest.mark.parametrize('copy', [False, True])
def test_merge_shows_the_speakers_of_both_and_does_nothing_again(parts, tmp_path, copy):
    out = tmp_path / 'vox' / 'wav'
    made = merge(parts, out, copy)
    assert (made.speakers, made.new) == (3, 3)
    read = read_folder(out)
    assert read.speaker_ids == ('id1', 'id2', 'id3') and len(read) == 3
    assert [read.path(i).read_text() for i in range(3)] == ['a', 'b', 'c']
    assert (out / 'id1').is_symlink() is not copy
    before = {path: path.lstat().st_mtime_ns for path in out.rglob('*')}
    assert merge(parts, out, copy).new == 0
    assert {path: path.lstat().st_mtime_ns for path in out.rglob('*')} == before


def test_merge_links_survive_a_move_of_the_whole(parts, tmp_path):
    merge(parts, tmp_path / 'vox' / 'wav')
    shutil.move(tmp_path / 'vox', tmp_path / 'moved')
    assert len(read_folder(tmp_path / 'moved' / 'wav')) == 3


def test_merge_adds_speakers_that_came_later(parts, tmp_path):
    merge(parts, tmp_path / 'out')
    speakers(parts[0], id4='d')
    assert merge(parts, tmp_path / 'out').new == 1


def test_merge_goes_on_with_copies_that_are_missing(parts, tmp_path):
    merge(parts, tmp_path / 'out', copy=True)
    os.unlink(tmp_path / 'out' / 'id2' / 'video' / '00001.wav')
    assert merge(parts, tmp_path / 'out', copy=True).new == 1
    assert (tmp_path / 'out' / 'id2' / 'video' / '00001.wav').read_text() == 'b'


def test_merge_takes_a_speaker_of_both_once_and_refuses_one_with_other_files(parts, tmp_path):
    speakers(parts[1], id1='a')
    assert merge(parts, tmp_path / 'out').speakers == 3
    speakers(parts[1], id1='x')
    with pytest.raises(DataError, match='test/wav/id1: and .*dev/wav/id1 hold different files'):
        merge(parts, tmp_path / 'new')
    (parts[1] / 'id1' / 'video' / '00001.wav').rename(parts[1] / 'id1' / 'video' / '00002.wav')
    with pytest.raises(DataError, match='id1 hold different files under one speaker'):
        merge(parts, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


def test_merge_refuses_a_target_that_is_not_its_own(parts, tmp_path):
    speakers(tmp_path / 'out', id1='mine')
    with pytest.raises(DataError, match='out/id1: is there, and is no link to'):
        merge(parts, tmp_path / 'out')
    assert (tmp_path / 'out' / 'id1' / 'video' / '00001.wav').read_text() == 'mine'
    merge(parts, tmp_path / 'links')
    with pytest.raises(DataError, match='links/id1: is a link: name a new folder'):
        merge(parts, tmp_path / 'links', copy=True)
    for out in (parts[0], parts[0] / 'id1', parts[0].parent):
        with pytest.raises(UserError, match='hold one another: name a folder beside it'):
            merge(parts, out)


def test_merge_refuses_a_folder_without_speakers(parts, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='empty: no speaker/video/utterance.wav'):
        merge([parts[0], tmp_path / 'empty'], tmp_path / 'out')
