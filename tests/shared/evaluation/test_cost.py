"""Costs: counted against the formulas and the spec's figures, timed with a clock of our own."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from shared.evaluation import cost
from shared.evaluation.cost import count_macs, measure_cost
from shared.models.ssl_config import HUBERT_BASE, WAVLM_BASE, XLSR_53
from shared.models.ssl_encoder import SslEncoder


class Small(nn.Module):
    """Frames of 160 samples, a convolution over them, attention."""

    def __init__(self):
        super().__init__()
        self.frames = nn.Linear(160, 8)
        self.same = self.frames  # shared: counted once
        self.conv = nn.Conv1d(8, 4, 3, groups=2)

    def forward(self, waves):
        assert not self.training and not torch.is_grad_enabled()
        x = self.frames(waves.unflatten(1, (-1, 160)))  # (B, T, 8)
        x = self.conv(x.mT).mT.unsqueeze(1).contiguous()  # (B, 1, T - 2, 4)
        return scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    'config, layers, giga',
    [
        (HUBERT_BASE, None, 21.2),
        (HUBERT_BASE, 2, 10.3),
        (WAVLM_BASE, 2, 10.3),
        (XLSR_53, None, 54.8),
        (XLSR_53, 4, 16.4),
    ],
)
def test_macs_of_three_seconds_are_those_of_the_spec(config, layers, giga):
    """Spec oskdft 3.2, at true width; nothing is computed."""
    with torch.device('meta'):
        encoder, waves = SslEncoder(config, layers=layers).eval(), torch.empty(1, 48000)
    assert count_macs(encoder, waves) / 1e9 == pytest.approx(giga, rel=0.02)
    found = count_macs(encoder.feature_extractor, waves) / 1e9
    assert found == pytest.approx(7.36, rel=0.02)


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_macs_are_those_of_products_convolutions_and_attention(device):
    module, waves = Small().to(device).eval(), torch.empty(1, 1600, device=device)
    # 10 frames; 8 places of the convolution, half of the channels each; 8 x 8 twice
    assert count_macs(module, waves) == 10 * 160 * 8 + 8 * 4 * 4 * 3 + 2 * 8 * 8 * 4


def test_cost_has_parameters_once_the_median_time_and_how_it_was_measured(monkeypatch):
    # two readings a pass: two passes to warm up, then 0.3, 0.1, 0.5, 0.2 s
    clock = iter([0, 90, 0, 90, 0, 0.3, 0, 0.1, 0, 0.5, 0, 0.2])
    monkeypatch.setattr(cost.time, 'perf_counter', lambda: next(clock))
    found = measure_cost(Small(), seconds=0.5, repeats=4)
    assert found.parameters == 160 * 8 + 8 + 4 * 4 * 3 + 4
    assert found.macs == 50 * 160 * 8 + 48 * 4 * 4 * 3 + 2 * 48 * 48 * 4
    assert found.seconds_per_second == pytest.approx(0.25 / 0.5)
    assert (found.seconds, found.repeats, found.device) == (0.5, 4, 'cpu')
    assert found.threads == torch.get_num_threads()


def test_cost_leaves_the_modes_of_the_network_as_they_were():
    module = Small().train()
    module.conv.eval()
    measure_cost(module, seconds=0.1, repeats=1)
    assert module.training and module.frames.training and not module.conv.training

    class Broken(Small):
        def forward(self, waves):
            raise RuntimeError('broken')

    module = Broken()
    with pytest.raises(RuntimeError, match='broken'):
        measure_cost(module, seconds=0.1, repeats=1)
    assert module.training


def test_cost_compiles_nothing(monkeypatch):
    def backend(*_):
        raise AssertionError('compiled')

    monkeypatch.setattr(cost, 'count_macs', lambda *_: 0)  # torch compiles nothing in its counter
    module = Small()
    module.forward = torch.compile(module.forward, backend=backend)
    assert measure_cost(module, seconds=0.1, repeats=1).seconds_per_second > 0


@pytest.mark.parametrize('changes', [{'repeats': 0}, {'seconds': 0.0}])
def test_nothing_to_measure_is_refused(changes):
    with pytest.raises(ValueError, match='nothing to measure'):
        measure_cost(Small(), **changes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cost_on_the_gpu_has_the_same_macs_and_the_network_comes_back():
    encoder = SslEncoder(HUBERT_BASE, layers=1)
    on_cpu = measure_cost(encoder, seconds=1, repeats=1)
    on_gpu = measure_cost(encoder, seconds=1, device='cuda', repeats=3)
    assert on_gpu.macs == on_cpu.macs
    assert on_gpu.device == torch.cuda.get_device_name()
    assert next(encoder.parameters()).device.type == 'cpu'
