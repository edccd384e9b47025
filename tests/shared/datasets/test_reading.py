"""Crops by seek against whole files, and every kind of broken file."""

import math
import os
import threading
import warnings
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from shared.datasets import reading
from shared.datasets.items import Paths
from shared.datasets.packed import pack
from shared.datasets.reading import AudioError, AudioReader, durations, file_forms, seconds_of


def wave(samples=8000, seed=0, channels=None):
    shape = samples if channels is None else (samples, channels)
    return 0.1 * np.random.default_rng(seed).standard_normal(shape)


def write(path, data, rate=16000, subtype='PCM_16'):
    soundfile.write(path, data, rate, subtype=subtype)
    return path


def read(path, start=0, length=None, **options):
    with AudioReader(**options).open(path) as audio:
        return audio.read(start, audio.length if length is None else length)


@pytest.mark.parametrize('name', ['a.wav', 'a.flac'])
def test_audio_crop_equals_slice_of_whole_file(tmp_path, name):
    path = write(tmp_path / name, wave())
    whole, _ = soundfile.read(path, dtype='float32')
    crop = read(path, 1234, 500)
    assert crop.dtype == np.float32
    np.testing.assert_array_equal(crop, whole[1234:1734])


@pytest.mark.parametrize('subtype', ['PCM_16', 'PCM_24', 'FLOAT'])
def test_audio_values_are_those_of_soundfile_float32(tmp_path, subtype):
    path = write(tmp_path / 'a.wav', wave(), subtype=subtype)
    np.testing.assert_array_equal(read(path), soundfile.read(path, dtype='float32')[0])


@pytest.mark.parametrize('start, length', [(0, 250), (90, 20), (99, 1), (30, 1000), (130, 100)])
def test_audio_short_file_is_repeated(tmp_path, start, length):
    path = write(tmp_path / 'a.wav', wave(100))
    whole, _ = soundfile.read(path, dtype='float32')
    expected = [whole[(start + i) % 100] for i in range(length)]
    np.testing.assert_array_equal(read(path, start, length), expected)


def test_crop_starts_anywhere_both_ends_included(tmp_path):
    path = write(tmp_path / 'a.wav', np.arange(12) / 2**15)
    rng, reader, starts = np.random.default_rng(0), AudioReader(), Counter()
    for _ in range(400):
        crop = reader.crop(path, 9, rng) * 2**15
        assert crop.tolist() == [crop[0] + i for i in range(9)]
        starts[int(crop[0])] += 1
    assert sorted(starts) == [0, 1, 2, 3]
    assert min(starts.values()) > 70  # 100 each; 30 is 3.5 deviations


def test_crop_of_a_shorter_file_repeats_it_from_its_first_sample(tmp_path):
    path = write(tmp_path / 'a.wav', np.arange(5) / 2**15)
    for seed in range(5):
        crop = AudioReader().crop(path, 12, np.random.default_rng(seed)) * 2**15
        assert crop.tolist() == [i % 5 for i in range(12)]


@pytest.mark.parametrize('rate', [8000, 22050, 44100, 48000])
def test_audio_crop_of_another_rate_equals_slice_of_resampled_file(tmp_path, rate):
    path = write(tmp_path / 'a.wav', wave(rate), rate)
    whole, _ = soundfile.read(path)
    common = np.gcd(rate, 16000)
    expected = resample_poly(whole, 16000 // common, rate // common)
    np.testing.assert_allclose(read(path), expected, atol=1e-6)
    assert len(expected) == 16000
    for start in (0, 1, 777, 8000, 15000):
        np.testing.assert_allclose(
            read(path, start, 1000), expected[start : start + 1000], atol=1e-6
        )


@pytest.mark.parametrize('speed', [Fraction(9, 10), Fraction(11, 10), Fraction(1, 2)], ids=str)
@pytest.mark.parametrize('rate', [16000, 8000, 44100])
def test_audio_at_another_speed_equals_the_whole_file_resampled(tmp_path, rate, speed):
    path = write(tmp_path / 'a.wav', wave(rate // 2), rate)
    whole, _ = soundfile.read(path)
    ratio = Fraction(16000, rate) / speed
    expected = resample_poly(whole, ratio.numerator, ratio.denominator)
    with AudioReader().open(path, speed=speed) as audio:
        assert audio.length == len(expected) == math.ceil(8000 / speed)
        np.testing.assert_allclose(audio.read(0, audio.length), expected, atol=1e-6)
        for start in (0, 1, 777, audio.length - 1000):
            crop = audio.read(start, 1000)
            np.testing.assert_allclose(crop, expected[start : start + 1000], atol=1e-6)
            assert crop.dtype == np.float32
        beyond = np.concatenate([expected[-300:], expected[:700]])
        np.testing.assert_allclose(audio.read(audio.length - 300, 1000), beyond, atol=1e-6)


@pytest.mark.parametrize('speed', [Fraction(9, 10), Fraction(11, 10)], ids=str)
def test_speed_moves_the_pitch_and_the_length(tmp_path, speed):
    path = write(tmp_path / 'a.wav', 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000))
    with AudioReader().open(path, speed=speed) as audio:
        heard = audio.read(0, audio.length)
    assert len(heard) == math.ceil(16000 / speed)
    hertz = np.abs(np.fft.rfft(heard[2000:10000] * np.hanning(8000))).argmax() * 2
    assert hertz == 1000 * speed
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.01)


def test_speed_is_no_conversion_of_the_file_and_one_changes_nothing(tmp_path):
    path, reader = write(tmp_path / 'a.wav', wave()), AudioReader()
    for speed in (Fraction(9, 10), Fraction(1)):
        with reader.open(path, speed=speed) as audio:
            crop = audio.read(3, 100)
    assert not reader.take_converted()
    np.testing.assert_array_equal(crop, read(path, 3, 100))
    other = write(tmp_path / 'b.wav', wave(), 8000)
    with reader.open(other, speed=Fraction(1, 2)) as audio:  # both in one step
        audio.read(0, 100)
    assert reader.take_converted() == {'resampled': 1}
    with AudioReader(convert=False).open(path, speed=Fraction(9, 10)) as audio:
        audio.read(0, 100)


def test_crop_at_another_speed_starts_anywhere_in_the_stretched_file(tmp_path):
    path, reader, rng = write(tmp_path / 'a.wav', wave(12)), AudioReader(), np.random.default_rng(0)
    with reader.open(path, speed=Fraction(9, 10)) as audio:
        whole = audio.read(0, audio.length)
    assert len(whole) == 14
    crops = {tuple(reader.crop(path, 12, rng, Fraction(9, 10))) for _ in range(100)}
    assert crops == {tuple(whole[start : start + 12]) for start in range(3)}


def test_audio_reads_in_any_order(tmp_path):
    path = write(tmp_path / 'a.wav', wave(100))
    whole, _ = soundfile.read(path, dtype='float32')
    with AudioReader().open(path) as audio:
        for start in (50, 0, 90, 0):
            np.testing.assert_array_equal(audio.read(start, 10), whole[start : start + 10])


def test_audio_of_several_channels_is_their_mean_or_the_one_asked_for(tmp_path):
    path = write(tmp_path / 'a.wav', wave(channels=3), subtype='FLOAT')
    whole, _ = soundfile.read(path, dtype='float32')
    np.testing.assert_allclose(read(path), whole.mean(axis=1), atol=1e-7)
    reader = AudioReader(convert=False)
    with reader.open(path, channel=1) as audio:
        np.testing.assert_array_equal(audio.read(5, 10), whole[5:15, 1])
    assert not reader.converted


def test_reader_counts_each_converted_file_once(tmp_path):
    paths = [write(tmp_path / 'a.wav', wave(channels=2), 8000), write(tmp_path / 'b.wav', wave())]
    reader = AudioReader()
    for path in paths:
        with reader.open(path) as audio:
            audio.read(0, 10)
            audio.read(20, 10)
    assert reader.take_converted() == {'resampled': 1, 'mixed to mono': 1}
    assert not reader.take_converted()


@pytest.mark.parametrize(
    'channels, rate, what', [(None, 8000, 'at 8000 Hz, not 16000'), (2, 16000, '2 channels')]
)
def test_reader_refuses_what_it_may_not_convert(tmp_path, channels, rate, what):
    path = write(tmp_path / 'a.wav', wave(channels=channels), rate)
    with pytest.raises(AudioError, match=what):
        read(path, convert=False)


def test_audio_wav_cut_short_is_refused_on_opening(tmp_path):
    path = write(tmp_path / 'a.wav', wave())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(AudioError, match=r'a\.wav: cut short, 4956 of 16000 bytes'):
        read(path, 0, 10)


def test_audio_wav_of_unknown_size_from_a_pipe_is_read(tmp_path):
    path = write(tmp_path / 'a.wav', wave())
    content = bytearray(path.read_bytes())
    content[40:44] = b'\xff\xff\xff\xff'
    path.write_bytes(content)
    assert len(read(path)) == 8000


def test_audio_flac_cut_short_is_refused_where_it_ends(tmp_path):
    path = write(tmp_path / 'a.flac', wave(64000))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert len(read(path, 100, 1000)) == 1000
    for start, length in ((0, 64000), (50000, 1000), (30000, 8000)):
        with pytest.raises(AudioError, match=r'a\.flac: .*cut short'):
            read(path, start, length)


@pytest.mark.parametrize('content', [b'', b'not audio at all'])
def test_audio_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / 'a.wav'
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r'a\.wav: cannot be opened as audio'):
        read(path)


def test_audio_missing_or_without_samples_is_refused(tmp_path):
    with pytest.raises(AudioError, match=r'b\.wav: cannot be opened'):
        read(tmp_path / 'b.wav')
    with pytest.raises(AudioError, match='holds no samples'):
        read(write(tmp_path / 'a.wav', wave(0)))


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_audio_with_bad_numbers_is_refused_in_the_crop_that_meets_them(tmp_path, value):
    data = wave()
    data[4000] = value
    path = write(tmp_path / 'a.wav', data, subtype='FLOAT')
    assert len(read(path, 0, 4000)) == 4000
    with pytest.raises(AudioError, match='NaN or infinite'):
        read(path, 3990, 20)


def test_audio_error_is_one_line(tmp_path):
    for content in (b'', b'RIFF1234WAVE'):
        path = tmp_path / 'a.wav'
        path.write_bytes(content)
        with pytest.raises(AudioError) as caught:
            read(path)
        assert len(str(caught.value).splitlines()) == 1


def test_audio_file_is_closed_when_refused(tmp_path):
    path = write(tmp_path / 'a.wav', wave(), 8000)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(AudioError):
            AudioReader(convert=False).open(path)


def test_durations_come_from_headers_and_are_nan_for_bad_files(tmp_path):
    write(tmp_path / 'a.wav', wave(8000))
    write(tmp_path / 'b.flac', wave(11025), 22050)
    (tmp_path / 'c.wav').write_bytes(b'')
    reader = AudioReader()
    found = durations(Paths(tmp_path, [b'b.flac', b'c.wav', b'a.wav']), reader, workers=2)
    np.testing.assert_allclose(found, [0.5, np.nan, 0.5])
    assert not reader.converted


@pytest.fixture
def zoo(tmp_path):
    """Paths of files of every kind, good and bad, below one folder."""
    root = tmp_path / 'zoo'
    root.mkdir()
    for suffix in ('wav', 'flac'):
        write(root / f'mono.{suffix}', wave(8000))
        write(root / f'8k_stereo.{suffix}', wave(4001, channels=2), 8000)
        write(root / f'44k.{suffix}', wave(44103), 44100)
        write(root / f'one_sample.{suffix}', wave(1))
        write(root / f'24_bit.{suffix}', wave(999), subtype='PCM_24')
        whole = (root / f'mono.{suffix}').read_bytes()
        for size in (0, 3, 43, 44, 45, 80, 511, 512, 513, len(whole) // 2, len(whole) - 1):
            (root / f'cut_{size}.{suffix}').write_bytes(whole[:size])
        (root / f'noise.{suffix}').write_bytes(os.urandom(700))
    write(root / 'float.wav', wave(777), subtype='FLOAT')
    whole = (root / 'mono.wav').read_bytes()
    (root / 'pipe.wav').write_bytes(whole[:40] + b'\xff' * 4 + whole[44:])
    (root / 'pipe_empty.wav').write_bytes(whole[:40] + b'\xff' * 4)
    (root / 'no_samples.wav').write_bytes(whole[:40] + bytes(4))
    comment = b'LIST' + (600).to_bytes(4, 'little') + bytes(600)  # the audio is behind the look
    (root / 'late.wav').write_bytes(whole[:36] + comment + whole[36:])
    (root / 'folder.wav').mkdir()
    return Paths(root, sorted(os.listdir(root)) + ['missing.wav', 'no/folder.wav'])


def opened(path, convert):
    try:
        with AudioReader(convert=convert).open(path) as audio:
            return audio.length / 16000
    except AudioError:
        return math.nan


@pytest.mark.parametrize('convert', [True, False])
@pytest.mark.parametrize('chunk, workers', [(256, 64), (3, 4), (1, 0)])
def test_durations_are_those_of_files_that_are_opened(zoo, convert, chunk, workers, monkeypatch):
    expected = [opened(path, convert) for path in zoo]
    assert 15 < np.isnan(expected).sum() < len(expected) - 10
    monkeypatch.setattr(reading, 'CHUNK', chunk)
    reader = AudioReader(convert=convert)
    np.testing.assert_array_equal(durations(zoo, reader, workers), expected)
    np.testing.assert_array_equal(durations(list(zoo), reader, workers), expected)
    assert not reader.converted


@pytest.mark.parametrize('limit', [0.0, float('inf')], ids=['slow disk', 'quick disk'])
def test_headers_are_the_same_with_and_without_threads(zoo, limit, monkeypatch):
    expected, threads = file_forms(zoo), []

    def noted(paths):
        threads.append(threading.current_thread() is not threading.main_thread())
        return forms(paths)

    forms = reading._forms
    monkeypatch.setattr(reading, '_forms', noted)
    monkeypatch.setattr(reading, 'CHUNK', 1)
    monkeypatch.setattr(reading, 'BLOCK', 3)
    monkeypatch.setattr(reading, 'AT_ONCE_SECONDS', limit)
    np.testing.assert_array_equal(file_forms(zoo), expected)
    assert len(threads) == len(zoo) > 3
    assert any(threads) == (limit == 0) and not all(threads)


def test_file_forms_are_frames_rate_and_channels(zoo):
    forms = file_forms(zoo)
    found = dict(zip((path.name for path in zoo), map(tuple, forms.tolist())))
    for name, form in {
        'mono.wav': (8000, 16000, 1),
        '8k_stereo.wav': (4001, 8000, 2),
        '44k.wav': (44103, 44100, 1),
        'float.wav': (777, 16000, 1),
        '24_bit.wav': (999, 16000, 1),
        'late.wav': (8000, 16000, 1),
        'pipe.wav': (8000, 16000, 1),
    }.items():
        assert found[name] == form
        assert found.get(name.replace('.wav', '.flac'), form) == form
    assert found['missing.wav'] == found['noise.wav'] == (0, 0, 0)
    rows = np.array([[8000, 8000, 1], [8000, 16000, 2], [0, 16000, 1], [0, 0, 0]])
    expected = [1.0, 0.5, math.nan, math.nan]
    np.testing.assert_array_equal(seconds_of(rows, AudioReader()), expected)
    assert np.isnan(seconds_of(rows, AudioReader(convert=False))).all()


def test_no_files_have_no_durations(tmp_path):
    for paths in ([], Paths(tmp_path, [])):
        assert durations(paths, AudioReader()).shape == (0,)


def test_durations_of_a_packed_folder_come_from_its_index(tmp_path, monkeypatch):
    names = ['b/v/1.wav', 'a/v/2.flac', 'a/v/1.wav', 'a/v/float.wav']
    for i, name in enumerate(names):
        (tmp_path / 'wav' / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {'subtype': 'FLOAT'} if 'float' in name else {}
        write(tmp_path / 'wav' / name, wave(4000 + i), 8000, **kind)
    packed = pack(tmp_path / 'wav', tmp_path / 'packed')
    looked = []

    def forms(paths, workers):
        looked.extend(path.name for path in paths)
        return file_forms(paths, workers)

    monkeypatch.setattr(reading, 'file_forms', forms)
    wanted = [*names, 'a/v/missing.wav']
    found = durations(Paths(packed.root, wanted), AudioReader())
    np.testing.assert_array_equal(found, [0.5, 0.500125, 0.50025, 0.500375, math.nan])
    assert looked == ['float.wav', 'missing.wav']  # what the index does not tell
    strict = durations(Paths(packed.root, wanted), AudioReader(convert=False))
    assert np.isnan(strict).all()
