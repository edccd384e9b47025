"""MUSAN in every layout, crops, and the split into pieces."""

import numpy as np
import pytest
import soundfile

from shared.datasets.items import DataError
from shared.datasets.musan import CATEGORIES, Musan, NoiseRange, split_musan, windows
from shared.datasets.reading import AudioReader


def make(root, lengths=(3000, 1000), deeper=''):
    """Two files a category; every value of file i of a category is its own."""
    for category in CATEGORIES:
        for i, length in enumerate(lengths):
            path = root / category / 'free-sound' / deeper / f'{category}-{i:04d}.wav'
            path.parent.mkdir(parents=True, exist_ok=True)
            ramp = np.arange(length) % 30000
            soundfile.write(path, ramp.astype(np.int16), 16000, subtype='PCM_16')
    return root


@pytest.mark.parametrize('deeper', ['', 'stem'])
@pytest.mark.parametrize('above', ['', 'musan_split'])
def test_musan_finds_plain_and_split_layouts_here_or_one_folder_down(tmp_path, deeper, above):
    make(tmp_path / above, deeper=deeper)
    musan = Musan(tmp_path, AudioReader())
    assert {name: len(files) for name, files in musan.files.items()} == dict.fromkeys(CATEGORIES, 2)
    assert musan.files['noise'].dtype.kind == 'S'
    assert musan.crop('noise', 100, np.random.default_rng(0)).shape == (100,)


def test_musan_crop_reads_where_the_rng_says_and_reaches_both_ends(tmp_path):
    musan = Musan(make(tmp_path, lengths=(12,)), AudioReader())
    rng, starts = np.random.default_rng(0), set()
    for _ in range(100):
        crop = musan.crop('music', 10, rng) * 32768
        starts.add(int(crop[0]))
        assert crop.tolist() == list(range(int(crop[0]), int(crop[0]) + 10))
    assert starts == {0, 1, 2}


def test_musan_crop_repeats_a_short_file_from_its_start(tmp_path):
    musan = Musan(make(tmp_path, lengths=(4,)), AudioReader())
    crop = musan.crop('speech', 10, np.random.default_rng(0)) * 32768
    assert crop.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_musan_crop_takes_the_file_it_is_given(tmp_path):
    musan = Musan(make(tmp_path, lengths=(30, 5)), AudioReader())
    for seed in range(5):
        crop = musan.crop('noise', 6, np.random.default_rng(seed), file=1) * 32768
        assert crop.tolist() == [0, 1, 2, 3, 4, 0]


def test_musan_pick_gives_different_files_and_all_when_there_are_few(tmp_path):
    musan = Musan(make(tmp_path, lengths=(10,) * 6), AudioReader())
    rng = np.random.default_rng(0)
    assert all(len(set(musan.pick('speech', rng, 5))) == 5 for _ in range(20))
    assert sorted(musan.pick('speech', rng, 8)) == list(range(6))


def constants(root, files=8):
    """File i of a category holds the value i / 64 all over, plus 1/4 in speech, 1/2 in music."""
    for above, category in enumerate(CATEGORIES):
        (root / category).mkdir(parents=True)
        for i in range(files):
            wave = np.full(50, i / 64 + above / 4)
            soundfile.write(root / category / f'{i}.wav', wave, 16000, subtype='PCM_16')
    return Musan(root, AudioReader())


RANGES = {
    'noise': NoiseRange((0.0, 1.0)),
    'speech': NoiseRange((2.0, 3.0), files=(3, 5)),
    'music': NoiseRange((4.0, 5.0)),
}


def test_musan_noises_come_in_turn_with_the_snr_of_their_category(tmp_path):
    musan, rng, snrs = constants(tmp_path), np.random.default_rng(0), []
    for _ in range(200):
        (babble, first), (music, second) = musan.noises(('speech', 'music'), 20, rng, RANGES)
        assert babble.shape == music.shape == (20,) and babble.dtype == music.dtype == np.float32
        assert 1 / 4 <= babble[0] < 1 / 2 <= music[0]
        snrs.append((first, second))
    assert np.allclose(np.min(snrs, axis=0), (2, 4), atol=0.05)
    assert np.allclose(np.max(snrs, axis=0), (3, 5), atol=0.05)
    assert musan.noises((), 20, rng, RANGES) == []


def test_musan_noises_average_different_files(tmp_path):
    musan, sizes = constants(tmp_path), set()
    for seed in range(100):
        [(noise, snr)] = musan.noises(('speech',), 20, np.random.default_rng(seed), RANGES)
        rng = np.random.default_rng(seed)  # the same draws, written out
        count = int(rng.integers(3, 6))
        files = rng.choice(8, size=count, replace=False)
        total = 0.0
        for file in files:
            rng.integers(50 - 20 + 1)
            total += file / 64 + 1 / 4
        assert noise == pytest.approx(total / count, abs=1e-4) and snr == rng.uniform(2, 3)
        sizes.add(count)
        assert len(set(files)) == count
    assert sizes == {3, 4, 5}


def test_musan_noises_average_all_files_where_there_are_fewer(tmp_path):
    musan = constants(tmp_path, files=2)
    [(noise, _)] = musan.noises(('speech',), 20, np.random.default_rng(0), RANGES)
    assert noise == pytest.approx(1 / 4 + 1 / 128, abs=1e-4)


def test_musan_several_are_different_files_with_an_snr_each(tmp_path):
    musan, sizes = constants(tmp_path), set()
    for seed in range(100):
        found = musan.several('speech', 20, np.random.default_rng(seed), RANGES['speech'])
        rng = np.random.default_rng(seed)  # the same draws, written out
        files = rng.choice(8, size=int(rng.integers(3, 6)), replace=False)
        assert len(found) == len(files)
        for file, (noise, snr) in zip(files, found):
            rng.integers(50 - 20 + 1)
            assert noise.shape == (20,) and noise.dtype == np.float32
            assert noise == pytest.approx(file / 64 + 1 / 4, abs=1e-4)
            assert snr == rng.uniform(2, 3)
        sizes.add(len(found))
    assert sizes == {3, 4, 5}
    [(noise, snr)] = musan.several('noise', 20, np.random.default_rng(0), RANGES['noise'])
    assert noise.max() < 1 / 4 and 0 <= snr < 1


def test_musan_finds_the_three_layouts_of_its_files(tmp_path):
    """As distributed, 8 s pieces beside each other, 5 s pieces in a folder each (wavlm_ssl 2.3)."""
    layouts = {
        'raw': ['free-sound/noise-free-sound-0000.wav', 'sound-bible/noise-sound-bible-0001.wav'],
        'beside': [
            'free-sound/noise-free-sound-0000_0.wav',
            'sound-bible/x_8.wav',
            'us-gov/y_16.wav',
        ],
        'deeper': ['free-sound/noise-free-sound-0000/00000.wav', 'sound-bible/x/00003.wav'],
    }
    for layout, names in layouts.items():
        for category in CATEGORIES:
            for name in names:
                path = tmp_path / layout / category / name
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, np.zeros(10), 16000, subtype='PCM_16')
        files = Musan(tmp_path / layout, AudioReader()).files
        assert files['music'].tolist() == sorted(f'music/{name}'.encode() for name in names)


def test_musan_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match='path of the MUSAN folder is empty'):
        Musan('', AudioReader())
    (tmp_path / 'songs').mkdir()
    with pytest.raises(DataError, match='no folders noise, speech and music .* it holds songs'):
        Musan(tmp_path, AudioReader())
    for name in CATEGORIES:
        (tmp_path / name).mkdir()
    (tmp_path / 'noise' / 'README').touch()
    with pytest.raises(DataError, match=r'noise: no \.wav or \.flac in it.*it holds README'):
        Musan(tmp_path, AudioReader())


@pytest.mark.parametrize(
    'length, pieces', [(80001, 1), (128000, 1), (128001, 2), (480000, 9)]
)  # spec lgl 2.1 [V]
def test_windows_are_those_of_the_published_split(length, pieces):
    assert list(windows(length)) == [48000 * i for i in range(pieces)]


@pytest.mark.parametrize('length', [1, 79999, 80000])
def test_windows_of_five_seconds_or_less_are_the_whole_file(length):
    assert list(windows(length)) == [0]


def test_split_musan_writes_pieces_that_are_slices_of_the_files(tmp_path):
    source = make(tmp_path / 'musan', lengths=(130000, 700))
    rng = np.random.default_rng(0)
    loud = rng.integers(-32768, 32768, 130000).astype(np.int16)  # full scale: no value may move
    path = source / 'noise' / 'free-sound' / 'noise-0000.wav'
    soundfile.write(path, loud, 16000, subtype='PCM_16')
    assert split_musan(source, tmp_path / 'out') == 9
    folder = tmp_path / 'out' / 'noise' / 'free-sound'
    for start in (0, 48000):
        piece = folder / 'noise-0000' / f'{start // 16000:05d}.wav'
        values, rate = soundfile.read(piece, dtype='int16')
        assert rate == 16000
        np.testing.assert_array_equal(values, loud[start : start + 80000])
    assert soundfile.info(folder / 'noise-0001' / '00000.wav').frames == 700
    assert len(Musan(tmp_path / 'out', AudioReader()).files['noise']) == 3


def test_split_musan_leaves_pieces_that_are_there(tmp_path):
    source = make(tmp_path / 'musan')
    kept = tmp_path / 'out' / 'noise' / 'free-sound' / 'noise-0000' / '00000.wav'
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b'mine')
    assert split_musan(source, tmp_path / 'out') == 6
    assert kept.read_bytes() == b'mine'
    assert not list((tmp_path / 'out').rglob('*.tmp'))
