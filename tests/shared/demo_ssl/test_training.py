"""The demo pre-training's targets, crops and losses against formulas written naively."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from shared.datasets import demo
from shared.datasets.reading import AudioReader
from shared.datasets.voxceleb import read_list
from shared.demo_ssl import training as demo_ssl_training
from shared.demo_ssl.model import SMALL
from shared.demo_ssl.training import Crops, PreTraining, Recipe, mfcc, targets
from shared.models.ssl_config import frame_counts
from shared.models.ssl_encoder import SslEncoder

CORPUS = {
    'train_speakers': 3,
    'valid_speakers': 2,
    'test_speakers': 2,
    'videos': 2,
    'utterances_per_video': 2,
    'seconds': (0.6, 0.9),
    'trials': 8,
    'musan_files': (2, 1, 1),
    'rooms': 1,
}
CONFIG = dataclasses.replace(
    SMALL, layers=1, width=16, ffn_width=16, conv_channels=(8,) * 7, position_kernel=8
)
RECIPE = Recipe(batch_size=6, seconds=0.5, clusters=6, code_width=8, mix_prob=0.0)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return demo.make(tmp_path_factory.mktemp('demo'), **CORPUS, processes=1)


@pytest.fixture(scope='module')
def learnt(corpus):
    return targets(corpus, clusters=6, seed=0, workers=0)


def naive_mfcc(wave):
    """Kaldi's MFCC of one frame of 400 samples in float64: 23 filters, 13 coefficients, lifted."""
    frame = np.asarray(wave, dtype=np.float64) * 32768
    frame = frame - frame.mean()
    frame = frame - 0.97 * np.concatenate((frame[:1], frame[:-1]))
    n = np.arange(400)
    frame = frame * (0.5 - 0.5 * np.cos(2 * np.pi * n / 399)) ** 0.85
    power = np.abs(np.fft.rfft(frame, 512)) ** 2
    mel = lambda hz: 1127 * math.log(1 + hz / 700)  # noqa: E731
    edges = np.linspace(mel(20), mel(8000), 25)
    energies = []
    for low, centre, high in zip(edges, edges[1:], edges[2:]):
        energy = 0.0
        for k in range(256):
            m = mel(k * 16000 / 512)
            energy += power[k] * max(
                0, min((m - low) / (centre - low), (high - m) / (high - centre))
            )
        energies.append(math.log(max(energy, 2**-23)))
    found = []
    for c in range(13):
        basis = [math.cos(math.pi * c * (j + 0.5) / 23) for j in range(23)]
        scale = math.sqrt((1 if c == 0 else 2) / 23) * (1 + 11 * math.sin(math.pi * c / 22))
        found.append(scale * sum(e * b for e, b in zip(energies, basis)))
    return np.array(found)


def test_mfcc_equals_kaldis_formula_of_each_frame_less_the_mean():
    wave = 0.1 * torch.randn(320 * 6 + 400, generator=torch.Generator().manual_seed(0))
    wanted = np.stack([naive_mfcc(wave[320 * t : 320 * t + 400]) for t in range(7)])
    np.testing.assert_allclose(mfcc(wave), wanted - wanted.mean(axis=0), atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize('samples', [400, 719, 720, 16000, 24080, 31999])
def test_targets_are_as_many_as_the_encoders_frames(samples):
    assert len(mfcc(torch.rand(samples))) == frame_counts(samples, SMALL)


def test_frame_of_the_encoder_sees_the_samples_of_its_target():
    config = dataclasses.replace(CONFIG, conv_norm='layer', normalise_wave=False)
    wave = torch.randn(1, 320 * 9 + 400, requires_grad=True)
    features, _ = SslEncoder(config).features(wave)
    features[0, 4].square().sum().backward()
    seen = wave.grad[0].nonzero().flatten()
    assert features.shape[1] == 10
    assert (int(seen.min()), int(seen.max())) == (320 * 4, 320 * 4 + 399)


def test_clusters_are_the_nearest_means_and_features_have_unit_variance(corpus, learnt):
    features, units = learnt
    utterances = read_list(corpus.train_list, corpus.train)
    table, labels = torch.cat(features).double().numpy(), torch.cat(units).numpy()
    assert len(features) == len(units) == len(utterances)
    np.testing.assert_allclose(table.std(axis=0, ddof=1), 1, atol=1e-3)
    means = np.stack([table[labels == unit].mean(axis=0) for unit in range(6)])
    distances = ((table[:, None] - means) ** 2).sum(axis=-1)
    assert (distances.argmin(axis=1) == labels).mean() > 0.9  # the passes may end a little early
    with AudioReader().open(utterances.path(2)) as audio:
        own = mfcc(torch.from_numpy(audio.read(0, audio.length)))
    scale = own.std(dim=0) / features[2].std(dim=0)
    torch.testing.assert_close(features[2] * scale, own, atol=1e-3, rtol=1e-3)


def test_targets_belong_to_the_samples_of_their_crop(corpus, learnt):
    features, units = learnt
    crops = Crops(corpus, features, units, RECIPE, seed=0)
    table = torch.cat(features)
    scale = None
    for _ in range(4):
        waves, wanted, numbers = crops.draw()
        assert waves.shape == (6, (25 - 1) * 320 + 400) and wanted.shape == (6, 25, 13)
        for wave, rows, unit in zip(waves, wanted, numbers):
            own = mfcc(wave)  # less the crop's mean instead of the utterance's
            rows_centred = rows - rows.mean(dim=0)
            ratio = own.std(dim=0) / rows_centred.std(dim=0)
            scale = ratio if scale is None else scale
            torch.testing.assert_close(ratio, scale, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(rows_centred * scale, own, atol=1e-2, rtol=1e-3)
            place = (table == rows[7]).all(dim=1).nonzero()[0]
            assert torch.cat(units)[place] == unit[7]


def test_each_utterance_comes_once_before_any_comes_again(corpus, learnt):
    crops = Crops(corpus, *learnt, RECIPE, seed=0)
    rows = []
    original = crops.reader.open
    crops.reader.open = lambda path: (rows.append(str(path)), original(path))[1]
    crops.draw(), crops.draw()
    assert len(rows) == len(set(rows)) == 12


def test_mixing_adds_a_short_piece_at_the_ratio_and_leaves_the_targets(corpus, learnt):
    snrs = {'speech_snr': (-4.0, -4.0), 'noise_snr': (12.0, 12.0)}
    for share, wanted in ((0.0, -4.0), (1.0, 12.0)):
        recipe = dataclasses.replace(RECIPE, mix_prob=1.0, noise_share=share, **snrs)
        clean = Crops(corpus, *learnt, RECIPE, seed=3).draw()
        mixed = Crops(corpus, *learnt, recipe, seed=3).draw()
        assert torch.equal(clean[1], mixed[1]) and torch.equal(clean[2], mixed[2])
        for before, after in zip(clean[0], mixed[0]):
            added = (after - before).double()
            places = (added.abs() > 1e-7).nonzero().flatten()
            size = int(places.max() - places.min()) + 1
            assert 0 < size <= len(before) // 2
            power = added[places.min() : places.max() + 1].square().mean()
            snr = 10 * math.log10(before.double().square().mean() / power)
            assert snr == pytest.approx(wanted, abs=0.5)


@pytest.mark.parametrize('unmasked, weight', [(0.0, 0.0), (0.5, 0.0), (0.25, 3.0)])
def test_loss_equals_its_formula_frame_by_frame(monkeypatch, unmasked, weight):
    torch.manual_seed(0)
    recipe = dataclasses.replace(RECIPE, unmasked_weight=unmasked, mfcc_weight=weight)
    model = PreTraining(CONFIG, recipe).double()
    waves, frames = torch.randn(2, 320 * 11 + 400).double(), 12
    features, units = torch.randn(2, frames, 13).double(), torch.randint(6, (2, frames))
    hidden = torch.rand(2, frames) < 0.4
    monkeypatch.setattr(demo_ssl_training, 'draw_spans', lambda *sizes, **rates: hidden)
    loss, (masked, accuracy, mfcc_loss) = model(waves, features, units)

    encoder = model.encoder
    x = encoder.feature_projection(encoder.features(waves)[0])
    seen = x.clone()
    seen[hidden] = encoder.masked_spec_embed
    last = encoder.encoder(seen, None, None)[-1]
    sums, counts, hits = [0.0, 0.0], [0, 0], 0
    for b in range(2):
        for t in range(frames):
            z = model.project(last[b, t]).detach()
            scores = [
                float(z @ c / (z.norm() * c.norm())) / recipe.temperature
                for c in model.codes.detach()
            ]
            group = int(not hidden[b, t])
            counts[group] += 1
            sums[group] += math.log(sum(map(math.exp, scores))) - scores[units[b, t]]
            hits += group == 0 and int(np.argmax(scores)) == int(units[b, t])
    errors = (model.reconstruct(x) - features).abs().flatten().tolist()
    huber = sum(e**2 / 2 if e < 1 else e - 0.5 for e in errors) / len(errors)
    means = [total / count for total, count in zip(sums, counts)]
    assert float(masked) == pytest.approx(means[0])
    assert float(accuracy) == pytest.approx(hits / counts[0])
    assert float(mfcc_loss) == pytest.approx(huber)
    assert float(loss.detach()) == pytest.approx(means[0] + unmasked * means[1] + weight * huber)
    loss.backward()
    assert encoder.masked_spec_embed.grad.abs().sum() > 0
