import math

import numpy as np
import pytest
import torch

from shared.models.frontend import LogMel


def signal(samples):
    """The test signal of spec lgl 3, (1, L)."""
    n = torch.arange(samples, dtype=torch.float64)
    wave = 0.1 * torch.sin(2 * math.pi * 440 * n / 16000)
    wave += 0.05 * torch.cos(2 * math.pi * 1000 * n / 16000)
    wave += 0.02 * torch.sin(2 * math.pi * (200 + 0.05 * n) * n / 16000)
    return wave.float().unsqueeze(0)


def naive_log_mel(wave, emphasis=0.97, band=(20, 7600), window_mean=0.54):
    """Spec lgl 3 in float64 with loops over frames and filters, before the mean is removed."""
    x = np.asarray(wave, dtype=np.float64)
    emphasised = np.empty_like(x)
    emphasised[0] = x[0] - emphasis * x[1]
    for t in range(1, len(x)):
        emphasised[t] = x[t] - emphasis * x[t - 1]
    padded = np.concatenate([emphasised[256:0:-1], emphasised, emphasised[-2:-258:-1]])
    window = np.zeros(512)
    window[56:456] = window_mean - (1 - window_mean) * np.cos(2 * np.pi * np.arange(400) / 400)
    low, high = (2595 * np.log10(1 + f / 700) for f in band)
    edges = 700 * (10 ** (np.linspace(low, high, 82) / 2595) - 1)
    bins = np.linspace(0, 8000, 257)
    features = np.empty((80, 1 + len(x) // 160))
    for t in range(features.shape[1]):
        power = np.abs(np.fft.rfft(padded[160 * t : 160 * t + 512] * window)) ** 2
        for m in range(80):
            left, centre, right = edges[m : m + 3]
            up, down = (bins - left) / (centre - left), (right - bins) / (right - centre)
            features[m, t] = np.log(power @ np.clip(np.minimum(up, down), 0, None) + 1e-6)
    return features


def test_filters_have_the_published_sums():
    filters = LogMel().filters
    assert (filters > 0).sum() == 477
    assert filters.sum().item() == pytest.approx(238.258, abs=1e-3)
    assert (filters.sum(1) > 0).all()
    sums = filters.sum(1)[[0, 1, 2, 40, 79]].tolist()
    assert sums == pytest.approx([0.61111, 0.89881, 0.77172, 2.48935, 7.7772], abs=1e-4)


def test_features_have_the_golden_values_of_the_reference():
    frontend = LogMel()
    features, frames = frontend(signal(48240))
    assert features.shape == (1, 80, 302) and frames is None
    found = [features[0, b, t].item() for b, t in [(0, 0), (0, 10), (9, 90), (79, 301)]]
    assert found == pytest.approx([4.574614, -1.505170, -0.969737, 6.467384], abs=2e-3)
    features, _ = frontend(signal(29040))
    assert features.shape == (1, 80, 182)
    found = [features[0, 0, 0].item(), features[0, 79, 181].item()]
    assert found == pytest.approx([4.508831, 4.018800], abs=2e-3)


def test_log_mel_before_the_mean_has_the_golden_values_of_the_reference():
    frontend = LogMel()
    emphasised = frontend._emphasise(signal(48240))
    power = frontend._power(frontend._reflect(emphasised, None))
    log_mel = (frontend.filters @ power + frontend.floor).log()[0]
    places = [(0, 0), (0, 10), (9, 0), (9, 90), (39, 5), (79, 100)]
    golden = [-6.217967, -12.297751, -5.313796, -11.521246, -9.842141, -10.081130]
    assert [log_mel[b, t].item() for b, t in places] == pytest.approx(golden, abs=2e-3)
    assert log_mel.mean().item() == pytest.approx(-8.634988, abs=1e-4)


def test_features_equal_the_definition_written_with_loops():
    wave = torch.randn(1, 1700, generator=torch.Generator().manual_seed(0)) * 0.1
    expected = naive_log_mel(wave[0])
    expected -= expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(LogMel()(wave)[0][0], expected, atol=2e-3)


@pytest.mark.parametrize('window, mean', [('hann', 0.5), ('hamming', 0.54)])
def test_bands_of_unit_variance_equal_the_definition_written_with_loops(window, mean):
    """Spec wavlm_ssl 8.1."""
    wave = torch.randn(1, 1700, generator=torch.Generator().manual_seed(0)) * 0.1
    expected = naive_log_mel(wave[0], emphasis=0, band=(0, 8000), window_mean=mean)
    expected -= expected.mean(axis=1, keepdims=True)
    expected /= np.sqrt((expected**2).mean(axis=1, keepdims=True) + 1e-5)
    frontend = LogMel(pre_emphasis=0, f_min=0, f_max=8000, window=window, unit_variance=True)
    features, _ = frontend(wave)
    np.testing.assert_allclose(features[0], expected, atol=2e-3)


def test_padded_batch_of_unit_variance_gives_the_features_of_single_waves():
    frontend = LogMel(pre_emphasis=0, f_min=0, f_max=8000, window='hann', unit_variance=True)
    lengths = torch.tensor([400, 2239])
    waves = torch.randn(2, 2239, generator=torch.Generator().manual_seed(1)) * 0.1
    features, frames = frontend(waves, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, _ = frontend(waves[row : row + 1, :length])
        torch.testing.assert_close(features[row, :, : frames[row]], alone[0], rtol=1e-5, atol=1e-4)
        assert (features[row, :, frames[row] :] == 0).all()


def test_padded_batch_gives_the_features_of_single_waves_whatever_the_padding_holds():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([257, 1000, 2080, 2239])
    waves = torch.randn(4, 2239, generator=generator) * 0.1
    features, frames = LogMel()(waves, lengths)
    assert frames.tolist() == [2, 7, 14, 14]
    for row, length in enumerate(lengths.tolist()):
        alone, _ = LogMel()(waves[row : row + 1, :length])
        torch.testing.assert_close(features[row, :, : frames[row]], alone[0], rtol=1e-5, atol=1e-5)
        assert (features[row, :, frames[row] :] == 0).all()


def test_features_stay_fp32_and_without_gradient_under_autocast():
    wave = signal(4000).requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        features, _ = LogMel()(wave)
    assert features.dtype == torch.float32 and not features.requires_grad
    torch.testing.assert_close(features, LogMel()(wave)[0], rtol=0, atol=0)


def test_frontend_saves_nothing():
    assert not LogMel().state_dict()


@pytest.mark.parametrize(
    'shape, lengths, words',
    [
        ((2, 256), None, '256 samples is too short.*257'),
        ((2, 400), [256, 400], '256 samples is too short.*257'),
        ((2, 400), [300, 401], '401 samples exceeds the 400'),
        ((400,), None, r'\(B, L\)'),
    ],
)
def test_frontend_refuses_impossible_waves_in_one_line(shape, lengths, words):
    with pytest.raises(ValueError, match=words):
        LogMel()(torch.zeros(shape), None if lengths is None else torch.tensor(lengths))
