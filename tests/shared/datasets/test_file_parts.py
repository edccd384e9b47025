"""Audio inside a shard is read as if it were alone, whatever lies before and behind it."""

import io
import os
import tarfile
import warnings

import numpy as np
import pytest
import soundfile

from shared.datasets import decoding
from shared.datasets.decoding import AudioError, open_file
from shared.datasets.file_parts import open_bytes
from shared.datasets.outer_files import FilePart
from shared.datasets.packed import index, packed_folder
from shared.datasets.reading import AudioReader

NAME = 'id/v/1.wav'


def packed(tmp_path, content, suffix='wav'):
    """The path of `content` in the middle of a shard of the packed folder `set`."""
    with tarfile.open(tmp_path / 'outer.tar', 'w') as tar:
        for name, value in (
            ('a.wav', b'before'),
            ('id/v/1', content),
            ('z.wav', b'behind' * 20000),
        ):
            info = tarfile.TarInfo(f'{name}.{suffix}' if name[-1] == '1' else name)
            info.size = len(value)
            tar.addfile(info, io.BytesIO(value))
    index([tmp_path / 'outer.tar'], tmp_path / 'set')
    return tmp_path / 'set' / f'id/v/1.{suffix}'


def audio(tmp_path, kind, subtype, samples=9000, rate=16000):
    path = tmp_path / f'alone.{kind}'
    wave = 0.1 * np.random.default_rng(0).standard_normal(samples)
    soundfile.write(path, wave, rate, subtype=subtype)
    return path


def test_part_is_a_file_of_its_own_bytes(tmp_path):
    with open_bytes(packed(tmp_path, b'0123456789')) as part:
        assert isinstance(part, FilePart) and part.readable() and part.seekable()
        assert part.read(4) == b'0123' and part.tell() == 4 and part.size == 10
        assert part.read(100) == b'456789' and part.read(1) == b''
        assert part.seek(-3, os.SEEK_END) == 7 and part.readall() == b'789'
        assert part.seek(2) == 2 and part.seek(3, os.SEEK_CUR) == 5 and part.read(1) == b'5'
        buffer = bytearray(b'........')
        assert part.readinto(buffer) == 4 and buffer == b'6789....'
        assert part.seek(50) == 50 and part.read(1) == b'' and part.readinto(buffer) == 0
        assert part.seek(-1) == 0 and part.read() == b'0123456789'


@pytest.mark.parametrize(
    'kind, subtype',
    [('wav', 'PCM_16'), ('wav', 'PCM_24'), ('wav', 'FLOAT'), ('flac', 'PCM_16')],
)
@pytest.mark.parametrize('rate', [16000, 8000])
@pytest.mark.parametrize('at_once', [0, 1 << 20])
def test_crops_of_a_part_are_those_of_the_file(tmp_path, monkeypatch, kind, subtype, rate, at_once):
    monkeypatch.setattr(decoding, 'AT_ONCE', at_once)
    path = audio(tmp_path, kind, subtype, rate=rate)
    part = packed(tmp_path, path.read_bytes(), kind)
    reader = AudioReader()
    for seed in range(20):
        length = 500 * seed + 1  # some longer than the file
        one, other = (reader.crop(p, length, np.random.default_rng(seed)) for p in (path, part))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('kind, subtype', [('wav', 'PCM_16'), ('wav', 'FLOAT'), ('flac', 'PCM_16')])
def test_part_that_ends_early_is_cut_short_though_other_bytes_follow(tmp_path, kind, subtype):
    content = audio(tmp_path, kind, subtype).read_bytes()
    part = packed(tmp_path, content[: len(content) * 2 // 3])
    with pytest.raises(AudioError, match=r'set/id/v/1\.wav: .*cut short') as caught:
        with AudioReader().open(part) as file:
            file.read(0, file.length)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize('content', [b'', b'no audio', b'RIFF1234WAVE', b'fLaC1234'])
def test_part_without_audio_is_refused_in_one_line(tmp_path, content):
    part = packed(tmp_path, content)
    with pytest.raises(AudioError) as caught:
        open_file(part)
    assert str(caught.value).startswith(f'{part}: cannot be opened as audio (')
    assert 'FilePart' not in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize('kind', ['wav', 'flac'])
def test_shard_is_opened_once_and_nothing_else_stays_open(tmp_path, kind):
    path = audio(tmp_path, kind, 'PCM_16', rate=8000)
    part = packed(tmp_path, path.read_bytes(), kind)
    packed_folder(tmp_path / 'set')
    before = len(os.listdir('/proc/self/fd'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for _ in range(3):
            with AudioReader().open(part) as file:
                file.read(0, 10)
            with pytest.raises(AudioError):
                AudioReader(convert=False).open(part)
            assert len(os.listdir('/proc/self/fd')) == before + 1


def test_ordinary_files_and_those_beside_an_index_open_as_ever(tmp_path):
    path = packed(tmp_path, b'content')
    (tmp_path / 'set' / 'new.wav').write_bytes(b'alone')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / 'x.wav').write_bytes(b'there')
    for place, content in (
        (path, b'content'),
        (tmp_path / 'set' / 'new.wav', b'alone'),
        (tmp_path / 'other' / 'x.wav', b'there'),
        (tmp_path / 'other' / '..' / 'set' / 'id' / 'v' / '.' / '1.wav', b'content'),
    ):
        with open_bytes(place) as file:
            assert file.read() == content, place


def test_relative_paths_lead_into_packed_folders_too(tmp_path, monkeypatch):
    packed(tmp_path, b'content')
    monkeypatch.chdir(tmp_path)
    with open_bytes(f'set/{NAME}') as file:
        assert file.read() == b'content'


@pytest.mark.parametrize('name', ['x.wav', 'id/v/1.wav/y.wav', 'id/v', 'id/v/1.wa', 'a' * 99, ''])
@pytest.mark.parametrize('known', [True, False])
def test_name_that_is_not_in_the_index_is_refused(tmp_path, monkeypatch, name, known):
    packed(tmp_path, b'1234')
    if not known:
        monkeypatch.setattr('shared.datasets.packed._loaded', {})
    with pytest.raises(
        AudioError, match=r'cannot be opened as audio \((not in|Is a dir)'
    ) as caught:
        open_file(tmp_path / 'set' / name)
    assert len(str(caught.value).splitlines()) == 1
