"""The linear probe: what it pools, what it learns from, that it sees speakers where they are."""

import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
from torch import nn

from shared.demo_ssl import probe as demo_ssl_probe
from shared.demo_ssl.probe import discriminant, probe, spread, statistics
from shared.models.ssl_encoder import SslOutput

RATE = 16000


class Powers(nn.Module):
    """Two states: 20 ms frames of the wave's samples as they are, and squared."""

    def forward(self, waves):
        frames = waves.unflatten(1, (-1, 320))[..., :4]
        return SslOutput((frames, frames.square()), None)


def test_spread_takes_each_speakers_utterances_evenly():
    speakers = np.array([1] * 9 + [0] * 2 + [1] * 2)
    assert spread(speakers, 3).tolist() == [0, 5, 9, 10, 12]
    assert spread(speakers, 1).tolist() == [0, 9]


def test_statistics_are_mean_and_deviation_of_each_state_over_time(tmp_path):
    samples = int(demo_ssl_probe.SECONDS * RATE)
    waves = np.random.default_rng(0).uniform(-0.5, 0.5, (3, samples))
    for row, wave in enumerate(waves):
        soundfile.write(tmp_path / f'{row}.wav', wave, RATE, subtype='FLOAT')
    encoder = Powers().train()
    found = statistics(encoder, [tmp_path / f'{row}.wav' for row in range(3)], 'cpu')
    assert found.shape == (3, 2, 8) and encoder.training
    for row, wave in enumerate(waves.reshape(3, -1, 320)[..., :4]):
        for state, values in enumerate((wave, wave**2)):
            mean = [np.mean(values[:, k]) for k in range(4)]
            deviation = [np.std(values[:, k], ddof=1) for k in range(4)]
            np.testing.assert_allclose(found[row, state], mean + deviation, atol=1e-5)


def test_discriminant_finds_the_dimension_of_the_speakers():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 6)
    speakers = rng.normal(size=10)
    rows = rng.normal(size=(60, 5))
    rows[:, 3] = 100 * (speakers[labels] + 0.05 * rows[:, 3])  # scale alone is no merit
    space = discriminant(rows, labels, rows)
    assert space.dtype == np.float32 and space.shape == (60, 5)
    np.testing.assert_allclose(space.mean(axis=0), 0, atol=1e-5)
    assert abs(np.corrcoef(space[:, 0], rows[:, 3])[0, 1]) > 0.99


@pytest.mark.parametrize('informed, low, high', [(True, 0, 5), (False, 25, 75)])
def test_probe_sees_speakers_where_the_states_tell_them(monkeypatch, informed, low, high):
    # file 2 of speaker 12 is 'id12/2'; its statistics lie about the speaker's own, or about 0
    rng = np.random.default_rng(0)
    names = [f'id{speaker}/{file}' for speaker in range(60) for file in range(8)]
    own = rng.normal(size=(60, 2, 6))

    def fake_statistics(encoder, paths, device):
        speakers = [int(str(path).split('id')[1].split('/')[0]) for path in paths]
        noise = rng.normal(size=(len(paths), 2, 6))
        return own[speakers] * informed + 0.1 * noise

    train = types.SimpleNamespace(speakers=np.repeat(np.arange(40), 8), path=lambda row: names[row])
    files = names[320:]  # of speakers 40..59
    pairs = np.array([(a, b) for a in range(0, 160, 3) for b in range(a + 1, 160, 5)])
    trials = types.SimpleNamespace(
        files=files,
        enrol=pairs[:, 0],
        test=pairs[:, 1],
        labels=pairs[:, 0] // 8 == pairs[:, 1] // 8,
    )
    monkeypatch.setattr(demo_ssl_probe, 'statistics', fake_statistics)
    monkeypatch.setattr(demo_ssl_probe, 'read_list', lambda *paths: train)
    monkeypatch.setattr(demo_ssl_probe, 'read_trials', lambda *paths: trials)
    corpus = types.SimpleNamespace(
        train=None, train_list=None, vox1=Path('vox1'), trials={'O': None}
    )
    found = probe(None, corpus)
    assert len(found['eer_by_state']) == 2
    assert all(low <= eer <= high for eer in [found['eer'], *found['eer_by_state']])
