"""RIRS_NOISES: which files count as responses, and how one is read."""

import numpy as np
import pytest
import soundfile

from shared.datasets.items import DataError
from shared.datasets.reading import AudioError, AudioReader
from shared.datasets.rirs import Rirs

SIMULATED = 'simulated_rirs/smallroom/Room001/Room001-00001.wav'
REAL = 'real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_far.wav'
NOISE = 'real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom1_1.wav'
POINT = 'pointsource_noises/noise-free-sound-0000.wav'


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.array(values, np.float32), 16000, subtype='FLOAT')


@pytest.fixture
def root(tmp_path):
    for name in (SIMULATED, REAL, NOISE, POINT):
        write(tmp_path / 'RIRS_NOISES' / name, [[0, 9], [1, 9], [0.5, 9], [0, 9], [0, 0]])
    return tmp_path / 'RIRS_NOISES'


@pytest.mark.parametrize(
    'below, names',
    [
        ('', [SIMULATED, REAL]),
        ('simulated_rirs', ['smallroom/Room001/Room001-00001.wav']),
        ('simulated_rirs/smallroom', ['Room001/Room001-00001.wav']),
        ('real_rirs_isotropic_noises', ['RVB2014_type1_rir_largeroom1_far.wav']),
    ],
)
def test_rirs_takes_simulated_and_real_responses_and_no_noise(root, below, names):
    found = Rirs(root / below, AudioReader())
    assert [name.decode().removeprefix('./') for name in found.files] == names


def test_rirs_draw_gives_the_first_channel(root):
    reader = AudioReader(convert=False)
    rir = Rirs(root, reader).draw(np.random.default_rng(0))
    assert rir.tolist() == [0, 1, 0.5, 0, 0] and rir.dtype == np.float32
    assert not reader.converted


def test_rirs_draw_reaches_every_response_and_is_seeded(tmp_path):
    for i in range(4):
        write(tmp_path / f'{i}.wav', [0, i + 1])
    rirs = Rirs(tmp_path, AudioReader())
    draws = [rirs.draw(np.random.default_rng(seed))[1] for seed in range(40)]
    assert set(draws) == {1, 2, 3, 4}
    assert draws == [rirs.draw(np.random.default_rng(seed))[1] for seed in range(40)]


def test_rirs_silent_response_is_refused(tmp_path):
    write(tmp_path / 'a.wav', [0, 0, 0])
    with pytest.raises(AudioError, match=r'a\.wav: the response is silent'):
        Rirs(tmp_path, AudioReader()).draw(np.random.default_rng(0))


def test_rirs_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match='path of the RIR folder is empty'):
        Rirs('', AudioReader())
    (tmp_path / 'rir.npy').touch()
    with pytest.raises(DataError, match=r'no \.wav or \.flac response below it.*holds rir\.npy'):
        Rirs(tmp_path, AudioReader())
