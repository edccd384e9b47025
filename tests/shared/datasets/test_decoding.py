"""Wavs that are not of the plainest kind: libsndfile is the oracle."""

import struct

import numpy as np
import pytest
import soundfile

from shared.datasets.decoding import AudioError, Pcm16Wav, SoundFile, open_file

VALUES = np.random.default_rng(0).integers(-32768, 32768, 300).astype('<i2')


def chunk(kind, content):
    return struct.pack('<4sI', kind, len(content)) + content + b'\0' * (len(content) % 2)


def riff(*chunks):
    return b'RIFF' + struct.pack('<I', 4 + sum(map(len, chunks))) + b'WAVE' + b''.join(chunks)


def form(tag=1, channels=1, rate=16000, bits=16, more=b''):
    block = channels * bits // 8
    return chunk(
        b'fmt ', struct.pack('<HHIIHH', tag, channels, rate, rate * block, block, bits) + more
    )


def opened(path, content):
    path.write_bytes(content)
    return open_file(path)


DATA = chunk(b'data', VALUES.tobytes())


@pytest.mark.parametrize(
    'content, kind',
    [
        (riff(form(), DATA), Pcm16Wav),
        (riff(chunk(b'LIST', b'odd'), form(), chunk(b'junk', b'12345'), DATA), Pcm16Wav),
        (riff(form(), DATA, chunk(b'LIST', b'behind')), Pcm16Wav),
        (riff(form(channels=2), DATA), Pcm16Wav),
        (riff(form(more=b'\0\0'), DATA), Pcm16Wav),
        (riff(form(), chunk(b'LIST', bytes(600)), DATA), SoundFile),  # data far behind
        (riff(form(bits=8), DATA), SoundFile),
        (riff(form(bits=32), DATA), SoundFile),
    ],
)
def test_open_file_reads_what_libsndfile_reads(tmp_path, content, kind):
    file = opened(tmp_path / 'a.wav', content)
    assert type(file) is kind
    values, rate = soundfile.read(tmp_path / 'a.wav', dtype='float32', always_2d=True)
    assert (file.frames, file.channels, file.samplerate) == (*values.shape, rate)
    read = file.read(10, 50, None)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, values[10:60].mean(axis=1), atol=1e-7)
    np.testing.assert_array_equal(file.read(0, file.frames, 0), values[:, 0])
    file.close()


def test_open_file_leaves_extensible_wavs_to_libsndfile(tmp_path):
    soundfile.write(tmp_path / 'a.wav', VALUES, 16000, subtype='PCM_16', format='WAVEX')
    file = open_file(tmp_path / 'a.wav')
    assert type(file) is SoundFile
    np.testing.assert_array_equal(file.read(0, 300, None), VALUES / np.float32(32768))


@pytest.mark.parametrize('subtype', ['FLOAT', 'PCM_24', 'PCM_16'])
def test_open_file_refuses_a_wav_without_its_end(tmp_path, subtype):
    path = tmp_path / 'a.wav'
    soundfile.write(path, VALUES / 32768, 16000, subtype=subtype)
    with pytest.raises(AudioError, match=r'cut short, \d+ of \d+ bytes'):
        opened(path, path.read_bytes()[:-100])


@pytest.mark.parametrize('subtype', ['FLOAT', 'PCM_16'])
def test_open_file_takes_a_wav_of_unknown_size_as_it_is(tmp_path, subtype):
    path = tmp_path / 'a.wav'
    soundfile.write(path, VALUES / 32768, 16000, subtype=subtype)
    content = path.read_bytes()
    at = content.index(b'data') + 4
    file = opened(path, content[:at] + b'\xff' * 4 + content[at + 4 :])
    assert file.frames == 300


def test_pcm16_wav_that_shrinks_while_open_is_refused(tmp_path):
    path = tmp_path / 'a.wav'
    file = opened(path, riff(form(), DATA))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(AudioError, match='became shorter'):
        file.read(0, 300, None)


def test_open_file_refuses_a_folder(tmp_path):
    with pytest.raises(AudioError, match='cannot be opened as audio'):
        open_file(tmp_path)
