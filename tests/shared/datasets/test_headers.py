"""What headers say, against libsndfile."""

import numpy as np
import pytest
import soundfile

from shared.datasets.headers import HEADER, form, pcm16_layout


def head_of(path):
    content = path.read_bytes()
    return content[:HEADER], len(content)


@pytest.mark.parametrize('kind', ['wav', 'flac'])
@pytest.mark.parametrize('channels', [1, 2, 5])
@pytest.mark.parametrize('rate', [8000, 16000, 44100])
def test_form_is_what_libsndfile_finds(tmp_path, kind, channels, rate):
    wave = 0.1 * np.random.default_rng(0).standard_normal((1234, channels))
    soundfile.write(tmp_path / f'x.{kind}', wave, rate)
    assert form(*head_of(tmp_path / f'x.{kind}')) == (1234, rate, channels)


def test_form_is_not_told_where_the_header_is_not_enough(tmp_path):
    wave = 0.1 * np.random.default_rng(0).standard_normal(1234)
    soundfile.write(tmp_path / 'float.wav', wave, 16000, subtype='FLOAT')
    soundfile.write(tmp_path / 'a.wav', wave, 16000)
    soundfile.write(tmp_path / 'a.flac', wave, 16000)
    head, size = head_of(tmp_path / 'a.wav')
    flac, _ = head_of(tmp_path / 'a.flac')
    for told in (
        head_of(tmp_path / 'float.wav'),
        (head, size - 2),  # cut short
        (head[:40], size),
        (flac, HEADER),  # no room for audio
        (b'', 0),
        (b'ID3' + flac, 5000),
        (b'fLaC' + bytes(HEADER - 4), 5000),  # its number of samples is not known
    ):
        assert form(*told) == (0, 0, 0)
    assert pcm16_layout(head) == (16000, 1, 44, 2468)


def test_wav_from_a_pipe_is_as_long_as_its_file(tmp_path):
    soundfile.write(tmp_path / 'a.wav', np.zeros(1234), 16000)
    head, size = head_of(tmp_path / 'a.wav')
    piped = head[:40] + b'\xff' * 4 + head[44:]
    assert form(piped, size) == (1234, 16000, 1)
