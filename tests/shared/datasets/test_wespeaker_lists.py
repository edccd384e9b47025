"""raw.list, shard.list and wav.scp: the same utterances, and lines that cannot be used."""

import json
import re

import fsspec
import numpy as np
import pytest
import soundfile
from fsspec.implementations.memory import MemoryFileSystem

from shared.datasets.items import DataError
from shared.datasets.packed import pack
from shared.datasets.reading import AudioReader
from shared.datasets.shards import write_shards
from shared.datasets.voxceleb import read_folder
from shared.datasets.wespeaker_lists import (
    read_list,
    read_raw_list,
    read_shard_list,
    read_wav_scp,
)

NAMES = ('b/v/1.wav', 'a/w/1.wav', 'a/v/2.flac')  # in the order of the lists


@pytest.fixture
def data(tmp_path):
    """Folder of a set: `wav/` with three utterances."""
    for number, name in enumerate(NAMES):
        path = tmp_path / 'wav' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.full(100, (number + 1) / 2**15), 16000)
    return tmp_path


def raw(data, *rows, name='raw.list'):
    path = data / name
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def row(name, **more):
    return {'key': name, 'spk': name.split('/')[0], 'wav': f'wav/{name}', **more}


def text(data, content, name='wav.scp'):
    (data / name).write_text(content)
    return data / name


def utt2spk(data, *more):
    lines = [f'{name} {name.split("/")[0]}\n' for name in (*NAMES, *more)]
    return text(data, ''.join(lines), 'utt2spk')


def check(found, order=NAMES, speakers=('a', 'b')):
    reader = AudioReader()
    assert found.speaker_ids == speakers and len(found) == len(order)
    for i, name in enumerate(order):
        assert found.name(i).endswith(name)
        assert found.speaker_ids[found.speakers[i]] == name.split('/')[0]
        with reader.open(found.path(i)) as audio:
            assert audio.read(0, 1)[0] * 2**15 == NAMES.index(name) + 1


def test_raw_list_keeps_its_order_and_sorts_speakers(data):
    found = read_raw_list(raw(data, *map(row, NAMES)))
    check(found)
    assert found.root == data / 'wav' and found.name(0) == NAMES[0] and found.seconds is None


@pytest.mark.parametrize('kind', ['absolute', 'below', 'beside'])
def test_paths_start_from_the_root_or_are_absolute(data, kind):
    start = {'absolute': f'{data}/wav/', 'below': '', 'beside': '../wav/./'}[kind]
    root = {'absolute': None, 'below': data / 'wav', 'beside': data / 'lists'}[kind]
    (data / 'lists').mkdir()
    rows = [row(name, wav=start + name) for name in NAMES]
    found = read_raw_list(raw(data, *rows, name='lists/raw.list'), root)
    check(found)
    assert found.name(2) == NAMES[2] and found.root.samefile(data / 'wav')


def test_names_start_below_the_folder_that_all_files_share(data):
    found = read_raw_list(raw(data, row(NAMES[1]), row(NAMES[2])))
    assert found.root == data / 'wav' / 'a' and found.name(0) == 'w/1.wav'
    order = NAMES[1], NAMES[0], NAMES[2]  # first and last share more than all do
    check(read_raw_list(raw(data, *map(row, order))), order)
    one = read_raw_list(raw(data, row(NAMES[0])))
    assert one.root == data / 'wav' / 'b' / 'v' and one.name(0) == '1.wav'


def test_wav_scp_takes_speakers_from_utt2spk(data):
    lines = ''.join(f'{name} wav/{name}\n' for name in NAMES)
    check(read_wav_scp(text(data, lines), utt2spk(data)))


def test_shard_list_gives_the_folder(data):
    listed = write_shards(read_folder(data / 'wav'), data / 'set', per_shard=2)
    found = read_shard_list(listed, data / 'kept')
    check(found, sorted(NAMES))
    moved = text(data, listed.read_text(), 'moved.list')
    again = read_shard_list(moved, data / 'kept', root=data / 'set')
    assert again.paths.tolist() == found.paths.tolist()
    absolute = ''.join(f'{data}/set/{line}\n' for line in listed.read_text().split())
    read_shard_list(text(data, absolute, 'absolute.list'), data / 'kept', root='/nowhere')


def test_shard_list_may_hold_urls(data, monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, 'store', {})
    listed = write_shards(read_folder(data / 'wav'), data / 'set')
    (line,) = listed.read_text().split()
    fsspec.filesystem('memory').pipe_file('/b/1.tar', (data / 'set' / line).read_bytes())
    for name in ('memory://b/1.tar', f'file://{data}/set/{line}'):
        found = read_shard_list(text(data, name, 'urls.list'), data / name[:3])
        check(found, sorted(NAMES))
        assert found.name(0) == 'a/v/2.flac' and found.root == data / name[:3]


@pytest.mark.parametrize('rows', [NAMES, NAMES[1:], NAMES[:1]], ids=['all', 'below a', 'one'])
def test_lists_may_name_files_of_a_packed_folder(data, rows):
    pack(data / 'wav', data / 'set', per_shard=2)
    listed = raw(data, *(row(name, wav=f'set/{name}') for name in rows))
    found = read_raw_list(listed)
    check(found, rows, tuple(sorted({name[0] for name in rows})))
    assert found.root == data / 'set' and [found.name(i) for i in range(len(rows))] == [*rows]
    lost = raw(data, row('a/v/2.flac', wav='set/a/v/3.flac'))
    with pytest.raises(DataError, match=r'1 listed files are not below .*/set: a/v/3\.flac;'):
        read_raw_list(lost)


def test_list_of_any_kind_is_known_by_its_first_line(data):
    listed = write_shards(read_folder(data / 'wav'), data / 'set')
    scp = text(data, '\n' + ''.join(f'{name} wav/{name}\n' for name in NAMES))
    kept, pairs = data / 'kept', utt2spk(data, 'c/v/1.wav')
    check(read_list(raw(data, *map(row, NAMES)), kept))
    check(read_list(listed, kept), sorted(NAMES))
    for path in (raw(data, *map(row, NAMES)), scp):
        check(read_list(path, kept, utt2spk=pairs), speakers=('a', 'b', 'c'))
    check(read_list(listed, kept, utt2spk=pairs), sorted(NAMES), ('a', 'b', 'c'))
    with pytest.raises(DataError, match=r'line 2 is of a wav\.scp, which needs its utt2spk'):
        read_list(scp, kept)
    with pytest.raises(DataError, match='is empty; give a raw'):
        read_list(text(data, '\n'), kept)


def test_classes_are_those_of_utt2spk_also_for_a_part_of_the_set(data):
    pairs = text(data, 'x z\ny a\nw B\nv b\n', 'utt2spk')
    found = read_raw_list(raw(data, row(NAMES[0])), utt2spk=pairs)
    assert found.speaker_ids == ('B', 'a', 'b', 'z') and found.speakers.tolist() == [2]
    with pytest.raises(DataError, match=r'speaker c is not in .*utt2spk \(2 are not\)'):
        rows = [row(NAMES[0], spk=speaker, key=speaker) for speaker in 'cdz']
        read_raw_list(raw(data, *rows), utt2spk=pairs)


@pytest.mark.parametrize(
    'line, what',
    [
        ('{"key": "k", "spk": "s", "feat": "a.ark:5"}', 'line 2 holds features, no waveform'),
        ('{"key": "k", "spk": "s"}', 'line 2 must have key, spk and wav alone, see wav'),
        (json.dumps(row('k', vad='0 1')), 'line 2 must have key, spk and wav alone, see vad'),
        (json.dumps(row(NAMES[0])), 'line 2 repeats a key'),
        (json.dumps(row('k', spk='a b', wav=NAMES[0])), 'line 2 needs a key and a speaker'),
        (json.dumps(row('k', spk='', wav=NAMES[0])), 'line 2 needs a key and a speaker'),
        (json.dumps(row('', spk='s', wav=NAMES[0])), 'line 2 needs a key and a speaker'),
        (json.dumps(row('k', wav='k.m4a')), 'line 2 must name a file that is decoded here'),
        (json.dumps(row('k', wav=5)), 'line 2 must be JSON such as'),
        ('["key", "spk"]', 'line 2 must be JSON such as'),
        ('{"key": "k', 'line 2 must be JSON such as'),
        ('k s', 'line 2 must be JSON such as'),
        (json.dumps(row('k/v/9.wav')), r'1 listed files are not below .*: k/v/9\.wav;'),
    ],
)
def test_raw_list_names_what_is_wrong(data, line, what):
    path = raw(data, row(NAMES[0]))
    path.write_text(path.read_text() + line + '\n')
    with pytest.raises(DataError, match=rf'raw\.list: {what}') as caught:
        read_raw_list(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    'lines, pairs, what',
    [
        ('x sox a.wav |', 'x s', r'wav\.scp: line 1 must be `key path`: commands are not run'),
        ('x', 'x s', r'wav\.scp: line 1 must be `key path`'),
        ('x a.wav\ny b.wav', 'x s', r'wav\.scp: line 2 has no speaker in .*utt2spk'),
        ('x a.ark:5', 'x s', r'wav\.scp: line 1 must name a file that is decoded here'),
        ('x wav/b/v/1.wav\nx wav/b/v/1.wav', 'x s', r'wav\.scp: line 2 repeats a key'),
        ('x a.wav', 'x s t', r'utt2spk: line 1 must be `key speaker`'),
        ('x a.wav', 'x s\nx t', r'utt2spk: line 2 repeats a key'),
        ('x a.wav', '\n', r'utt2spk: is empty'),
        ('\n', 'x s', r'wav\.scp: is empty'),
        ('x a.wav', 'x s', r'wav\.scp: 1 listed files are not below'),
    ],
)
def test_wav_scp_and_utt2spk_name_what_is_wrong(data, lines, pairs, what):
    with pytest.raises(DataError, match=what):
        read_wav_scp(text(data, lines), text(data, pairs, 'utt2spk'))


@pytest.mark.parametrize(
    'lines, what',
    [
        ('', 'is empty; lines must be paths of tars'),
        ('a b.tar', 'line 1 must be the path of a tar'),
        (json.dumps(row('k')), 'line 1 must be the path of a tar'),
        ('x.tar\ny.tar', '2 shards are missing, first DATA/x.tar; correct the list'),
    ],
)
def test_shard_list_names_what_is_wrong(data, lines, what):
    path = text(data, lines, 'shard.list')
    with pytest.raises(DataError, match=re.escape(f'{path}: {what.replace("DATA", str(data))}')):
        read_shard_list(path, data / 'kept')
    assert not (data / 'kept').exists()


def test_lists_that_are_missing_are_said(data):
    for read in (read_raw_list, lambda path: read_list(path, data / 'kept')):
        with pytest.raises(DataError, match=r'nowhere: cannot be read \(No such file'):
            read(data / 'nowhere')
    with pytest.raises(DataError, match=r'nowhere: cannot be read'):
        read_raw_list(raw(data, row(NAMES[0])), utt2spk=data / 'nowhere')
