"""The demo's environmental sounds: layout, determinism, and that no two are alike."""

import hashlib

import numpy as np
import pytest
import soundfile

from shared.datasets import demo_nonspeech, demo_scenes
from shared.datasets.demo_nonspeech import KINDS, RATE, make_nonspeech
from shared.errors import UserError


def digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob('*.wav')
    }


@pytest.fixture(scope='module')
def sounds(tmp_path_factory):
    return make_nonspeech(tmp_path_factory.mktemp('sounds') / 'nonspeech', count=len(KINDS))


def test_make_nonspeech_writes_the_flat_layout_of_the_corpus(sounds):
    assert set(digests(sounds)) == {f'n{i}.wav' for i in range(1, len(KINDS) + 1)}
    for path in sounds.glob('*.wav'):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (20000, 1, 'PCM_16')
        assert 3 <= info.duration <= 8
        wave, _ = soundfile.read(path)
        assert 0.49 < np.abs(wave).max() <= 0.5


def test_make_nonspeech_gives_the_same_bytes_for_a_seed_and_others_for_another(sounds, tmp_path):
    assert digests(make_nonspeech(tmp_path / 'same', count=len(KINDS))) == digests(sounds)
    other = digests(make_nonspeech(tmp_path / 'other', seed=1, count=len(KINDS)))
    assert not set(other.values()) & set(digests(sounds).values())


def test_make_nonspeech_keeps_what_is_there_and_refuses_another_seed(sounds):
    before = {path: path.stat().st_mtime_ns for path in sounds.iterdir()}
    assert make_nonspeech(sounds, count=len(KINDS)) == sounds
    with pytest.raises(UserError, match='seed: 0 there, 1 wanted'):
        make_nonspeech(sounds, seed=1, count=len(KINDS))
    assert {path: path.stat().st_mtime_ns for path in sounds.iterdir()} == before


@pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.__name__)
def test_kinds_are_heard_after_resampling_and_are_no_two_times_alike(kind):
    waves = [kind(np.random.default_rng(seed), 3 * RATE) for seed in (0, 1)]
    for wave in waves:
        assert wave.shape == (3 * RATE,) and np.isfinite(wave).all()
        power = np.abs(np.fft.rfft(wave)) ** 2
        heard = power[np.fft.rfftfreq(3 * RATE, 1 / RATE) < 8000].sum()  # what 16 kHz can hold
        assert heard > 0.9 * power.sum() > 0
    assert abs(np.corrcoef(waves)[0, 1]) < 0.5


def test_kinds_are_not_those_of_the_demo_corpus():
    assert not {kind.__name__ for kind in KINDS} & set(demo_scenes.NOISES)
    assert demo_nonspeech.RATE != 16000  # readers must resample it, as they must the real one
