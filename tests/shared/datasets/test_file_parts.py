"""Audio inside another file is read as if it were alone, whatever lies before and behind it."""

import os
import warnings

import numpy as np
import pytest
import soundfile

from shared.datasets.decoding import AudioError, open_file
from shared.datasets.file_parts import FilePart, open_bytes, part_name
from shared.datasets.reading import AudioReader

BEFORE, BEHIND = b'before', b'behind' * 20000


def packed(tmp_path, content, name='id/v/1.wav'):
    """The path of `content` in the middle of a larger file."""
    outer = tmp_path / 'outer.tar'
    outer.write_bytes(BEFORE + content + BEHIND)
    return tmp_path / part_name('outer.tar', len(BEFORE), len(content), name)


def audio(tmp_path, kind, subtype, samples=9000, rate=16000):
    path = tmp_path / f'alone.{kind}'
    wave = 0.1 * np.random.default_rng(0).standard_normal(samples)
    soundfile.write(path, wave, rate, subtype=subtype)
    return path


def test_part_is_a_file_of_its_own_bytes(tmp_path):
    with open_bytes(packed(tmp_path, b'0123456789')) as part:
        assert isinstance(part, FilePart) and part.readable() and part.seekable()
        assert part.read(4) == b'0123' and part.tell() == 4
        assert part.read(100) == b'456789' and part.read(1) == b''
        assert part.seek(-3, os.SEEK_END) == 7 and part.readall() == b'789'
        assert part.seek(2) == 2 and part.seek(3, os.SEEK_CUR) == 5 and part.read(1) == b'5'
        assert part.seek(50) == 50 and part.read(1) == b''
        assert part.seek(-1) == 0 and part.read(1) == b'0'


@pytest.mark.parametrize(
    'kind, subtype',
    [('wav', 'PCM_16'), ('wav', 'PCM_24'), ('wav', 'FLOAT'), ('flac', 'PCM_16')],
)
@pytest.mark.parametrize('rate', [16000, 8000])
def test_crops_of_a_part_are_those_of_the_file(tmp_path, kind, subtype, rate):
    path = audio(tmp_path, kind, subtype, rate=rate)
    part = packed(tmp_path, path.read_bytes())
    reader = AudioReader()
    for seed in range(20):
        length = 500 * seed + 1  # some longer than the file
        one, other = (reader.crop(p, length, np.random.default_rng(seed)) for p in (path, part))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('kind, subtype', [('wav', 'PCM_16'), ('wav', 'FLOAT'), ('flac', 'PCM_16')])
def test_part_that_ends_early_is_cut_short_though_other_bytes_follow(tmp_path, kind, subtype):
    content = audio(tmp_path, kind, subtype).read_bytes()
    part = packed(tmp_path, content[: len(content) * 2 // 3])
    with pytest.raises(AudioError, match=r'outer\.tar/6\+\d+/id/v/1\.wav: .*cut short') as caught:
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
def test_outer_file_is_closed_again(tmp_path, kind):
    path = audio(tmp_path, kind, 'PCM_16', rate=8000)
    part = packed(tmp_path, path.read_bytes())
    before = len(os.listdir('/proc/self/fd'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with AudioReader().open(part) as file:
            file.read(0, 10)
            assert len(os.listdir('/proc/self/fd')) == before + 1
        with pytest.raises(AudioError):
            AudioReader(convert=False).open(part)
        assert len(os.listdir('/proc/self/fd')) == before


def test_folder_that_looks_like_a_place_does_not_mislead(tmp_path):
    folder = tmp_path / '1+2' / '3+4'
    folder.mkdir(parents=True)
    with open_bytes(packed(folder, b'content', name='5+6/x.wav')) as part:
        assert part.readall() == b'content'


@pytest.mark.parametrize('path', ['outer.tar/x.wav', 'outer.tar/6+x/y.wav', 'none.tar/6+4/y.wav'])
def test_path_that_is_neither_file_nor_part_is_refused(tmp_path, path):
    packed(tmp_path, b'1234')
    with pytest.raises(AudioError, match='cannot be opened as audio'):
        open_file(tmp_path / path)
