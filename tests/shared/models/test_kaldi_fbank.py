"""Kaldi's log-mel features against loops in float64, torchaudio and golden values (spec enskd 2.5)."""

import numpy as np
import pytest
import torch
from torchaudio.compliance import kaldi

from shared.models.kaldi_fbank import KaldiFbank

BINS = [0, 10, 20, 40, 60, 79]


def signal():
    """The test signal of spec enskd 2.5, (1, 16000) float64."""
    seconds = torch.arange(16000, dtype=torch.float64) / 16000
    low, high = (torch.sin(2 * torch.pi * hertz * seconds) for hertz in (440, 3000))
    return (0.1 * low + 0.01 * high).unsqueeze(0)


def noise(rows, samples, seed=0):
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))


def naive_fbank(wave, f_min=20.0, emphasis=0.97):
    """Spec enskd 2.5 in float64, one frame and one filter at a time, (80, T)."""
    x = np.asarray(wave, dtype=np.float64) * 32768
    low, high = (1127 * np.log(1 + f / 700) for f in (f_min, 8000))
    edges = np.linspace(low, high, 82)
    mel = 1127 * np.log(1 + np.arange(256) * 31.25 / 700)
    features = []
    for begin in range(0, len(x) - 399, 160):
        frame = x[begin : begin + 400] - x[begin : begin + 400].mean()
        windowed = np.zeros(512)
        for j in range(400):
            before = frame[j - 1] if j else frame[0]
            hamming = 0.54 - 0.46 * np.cos(2 * np.pi * j / 399)
            windowed[j] = (frame[j] - emphasis * before) * hamming
        power = np.abs(np.fft.rfft(windowed)[:256]) ** 2
        column = []
        for left, centre, right in zip(edges, edges[1:], edges[2:]):
            rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
            energy = power @ np.clip(np.minimum(rising, falling), 0, None)
            column.append(np.log(max(energy, 1.1920929e-7)))
        features.append(column)
    return np.array(features).T


def reference(wave, mean=True, **options):
    """torchaudio's features of one wave (L,), (80, T)."""
    options = {'window_type': 'hamming', 'num_mel_bins': 80, 'dither': 0.0} | options
    return kaldi.fbank(wave.unsqueeze(0) * 32768, subtract_mean=mean, **options).T


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_features_have_the_golden_values_of_the_specification(dtype):
    wave, dtype = signal(), getattr(torch, dtype)
    plain, frames = KaldiFbank(subtract_mean=False).to(dtype)(wave)
    assert plain.shape == (1, 80, 98) and plain.dtype == dtype and frames is None
    golden = [9.0442, 9.1391, 11.9405, 9.3643, 10.5971, 9.8765]
    assert plain[0, BINS, 0].tolist() == pytest.approx(golden, abs=1e-4)
    assert plain.mean().item() == pytest.approx(10.8706, abs=1e-4)
    centred = KaldiFbank().to(dtype)(wave)[0][0, [0, 20, 60], 0]
    assert centred.tolist() == pytest.approx([-1.2617, 0.2210, 1.0669], abs=1e-4)


def test_features_equal_the_definition_written_with_loops():
    wave = noise(1, 1700) + 0.3  # an offset, which every frame loses
    expected = naive_fbank(wave[0])
    np.testing.assert_allclose(KaldiFbank(subtract_mean=False)(wave)[0][0], expected, atol=2e-4)
    expected -= expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(KaldiFbank()(wave)[0][0], expected, atol=2e-4)


@pytest.mark.parametrize('samples', [400, 559, 560, 4321, 32240])
@pytest.mark.parametrize('level', [1e-4, 0.1, 1.0])
def test_features_equal_those_of_torchaudio(samples, level):
    wave = noise(1, samples, seed=samples) * (10 * level)
    for mean in (False, True):
        own = KaldiFbank(subtract_mean=mean).double()(wave)[0][0]
        torch.testing.assert_close(own, reference(wave[0].double(), mean), rtol=0, atol=1e-4)
        single, expected = KaldiFbank(subtract_mean=mean)(wave)[0][0], reference(wave[0], mean)
        assert (single - expected).abs().mean() < 1e-5
        # rarely a bin is what is left of cancelling numbers: torchaudio errs by 1e-4 there itself
        torch.testing.assert_close(single, expected, rtol=0, atol=3e-4)


def test_features_equal_those_of_torchaudio_with_other_settings():
    wave = noise(1, 3000)
    frontend = KaldiFbank(
        n_mels=24,
        rate=8000,
        frame_ms=32,
        shift_ms=12.5,
        window='povey',
        f_min=50,
        pre_emphasis=0.9,
        subtract_mean=False,
    )
    expected = reference(
        wave[0],
        mean=False,
        num_mel_bins=24,
        sample_frequency=8000,
        frame_length=32,
        frame_shift=12.5,
        window_type='povey',
        low_freq=50,
        preemphasis_coefficient=0.9,
    )
    torch.testing.assert_close(frontend(wave)[0][0], expected, rtol=0, atol=3e-4)


def test_silence_and_a_constant_give_the_floor():
    waves = torch.tensor([[0.0], [0.5]]).expand(2, 800)
    features, _ = KaldiFbank(subtract_mean=False)(waves)
    assert features.allclose(torch.tensor(1.1920929e-7).log())


@pytest.mark.parametrize('subtract_mean', [True, False])
def test_padded_batch_gives_the_features_of_single_waves_whatever_the_padding_holds(subtract_mean):
    lengths = torch.tensor([400, 559, 560, 1999, 2000, 2239])
    waves = noise(6, 2300)
    waves[0, 400:] = torch.nan
    frontend = KaldiFbank(subtract_mean=subtract_mean)
    features, frames = frontend(waves, lengths)
    assert features.shape == (6, 80, 12) and frames.tolist() == [1, 1, 2, 10, 11, 12]
    for row, length in enumerate(lengths.tolist()):
        alone, _ = frontend(waves[row : row + 1, :length])
        torch.testing.assert_close(features[row, :, : frames[row]], alone[0], rtol=1e-5, atol=1e-5)
        expected = reference(waves[row, :length], subtract_mean)
        torch.testing.assert_close(alone[0], expected, rtol=0, atol=3e-4)
        assert (features[row, :, frames[row] :] == 0).all()


def test_dither_is_drawn_in_training_mode_only():
    wave, frontend = noise(2, 4000), KaldiFbank(dither=1.0)
    clean = KaldiFbank()(wave)[0]
    torch.manual_seed(0)
    first, second = frontend(wave)[0], frontend(wave)[0]
    assert not torch.equal(first, second) and not torch.equal(first, clean)
    torch.manual_seed(0)
    assert torch.equal(frontend(wave)[0], first)
    state = torch.get_rng_state()
    assert torch.equal(frontend.eval()(wave)[0], clean)
    assert torch.equal(torch.get_rng_state(), state)


def test_dither_is_normal_noise_of_its_own_in_every_frame_sample():
    frontend = KaldiFbank(dither=2.0, pre_emphasis=0.0)
    torch.manual_seed(0)
    frames = frontend._frames(torch.zeros(4, 32240)) / frontend.window  # (B, T, win)
    assert abs(frames.std().item() - 2) < 0.01 and frames.mean().abs() < 1e-3
    # 240 samples are shared by neighbouring frames, their noise is not
    assert (frames[:, 1:, :240] * frames[:, :-1, 160:]).mean().abs() < 0.02
    torch.manual_seed(0)
    expected = reference(torch.zeros(32240), mean=False, dither=1.0).mean()
    own = KaldiFbank(dither=1.0, subtract_mean=False)(torch.zeros(4, 32240))[0].mean()
    assert abs(own - expected) < 0.02


def test_features_stay_fp32_and_without_gradient_under_autocast():
    wave = noise(1, 4000).requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        features, _ = KaldiFbank()(wave)
    assert features.dtype == torch.float32 and not features.requires_grad
    torch.testing.assert_close(features, KaldiFbank()(wave)[0], rtol=0, atol=0)


def test_frontend_saves_nothing_and_leaves_the_waves_alone():
    wave, frontend = noise(1, 800), KaldiFbank(dither=1.0)
    before = wave.clone()
    frontend(wave)
    assert torch.equal(wave, before) and not frontend.state_dict()


@pytest.mark.parametrize(
    'shape, lengths, words',
    [
        ((2, 399), None, '399 samples is too short.*400'),
        ((2, 400), [399, 400], '399 samples is too short.*400'),
        ((2, 450), [420, 451], '451 samples exceeds the 450'),
        ((400,), None, r'\(B, L\)'),
    ],
)
def test_frontend_refuses_impossible_waves_in_one_line(shape, lengths, words):
    assert KaldiFbank().shortest == 400
    with pytest.raises(ValueError, match=words):
        KaldiFbank()(torch.zeros(shape), None if lengths is None else torch.tensor(lengths))


@pytest.mark.parametrize(
    'settings, words',
    [({'f_min': 8000.0}, 'f_min 8000.0 Hz'), ({'window': 'boxcar'}, "'boxcar' is unknown")],
    ids=['f_min', 'window'],
)
def test_frontend_refuses_impossible_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        KaldiFbank(**settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_features_on_a_gpu_are_those_of_the_cpu():
    waves, lengths = noise(8, 32240), torch.tensor([32240, 400, 5000, 399] * 2)
    features, frames = KaldiFbank().cuda()(waves.cuda(), lengths.cuda())
    assert frames.tolist() == [200, 1, 29, 0] * 2
    expected, _ = KaldiFbank()(waves, lengths.clamp(min=400))
    kept = [0, 1, 2, 4, 5, 6]
    torch.testing.assert_close(features[kept].cpu(), expected[kept], rtol=0, atol=5e-4)
