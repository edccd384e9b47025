"""What a network costs to run: parameters, multiply-accumulates, time per second of audio."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

RATE = 16000  # samples a second
WARM_UP = 2  # forward passes before the first that is timed


@dataclass(frozen=True)
class Cost:
    """What `measure_cost` found; times hold for this device and number of threads only."""

    parameters: int
    macs: int  # for `seconds` of audio
    seconds: float  # of the audio
    seconds_per_second: float  # of computing for one of audio, median over `repeats`
    device: str  # 'cpu', or the name of the GPU
    threads: int  # that torch computes with on the CPU
    repeats: int


def measure_cost(
    module: nn.Module,
    *,
    seconds: float = 3.0,
    device: torch.device | str = 'cpu',
    repeats: int = 20,
) -> Cost:
    """Counts and times an embedding network on one utterance of noise, batch 1, uncompiled.

    In eval and inference mode and as precise as the weights are; mode and device are as before
    afterwards. Copying to the GPU is not in the time, waiting for it is.

    Args:
        module: (waves (1, L)) at 16 kHz -> anything.
        seconds: of audio.
        device: where it runs.
        repeats: timed passes, after two that are not.

    Raises:
        ValueError: less than one repeat, or no audio.
    """
    samples = round(seconds * RATE)
    if repeats < 1 or samples < 1:
        raise ValueError(f'{repeats} repeats of {seconds} s: nothing to measure')
    device = torch.device(device)
    waves = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
    with _ready(module, device):
        waves = waves.to(device)
        macs = count_macs(module, waves)
        for _ in range(WARM_UP):
            _timed(module, waves)
        times = sorted(_timed(module, waves) for _ in range(repeats))
    return Cost(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=macs,
        seconds=seconds,
        seconds_per_second=(times[(repeats - 1) // 2] + times[repeats // 2]) / 2 / seconds,
        device=torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type,
        threads=torch.get_num_threads(),
        repeats=repeats,
    )


def count_macs(module: nn.Module, waves: Tensor) -> int:
    """Multiply-accumulates of one pass: matrix products and convolutions, attention's among them.

    Sums, norms and activations are left out, as is usual. Half of what torch's counter of floating
    point operations finds. On the meta device nothing is computed, and the number is the same.

    Args:
        module: (waves (B, L)) -> anything, in eval mode.
        waves: (B, L), on its device.
    """
    with (
        torch.no_grad(),  # the counter fails on a weight norm in inference mode
        sdpa_kernel(SDPBackend.MATH),  # fused kernels of the CPU are not counted
        FlopCounterMode(display=False) as counter,
    ):
        module(waves)
    return counter.get_total_flops() // 2


@contextmanager
def _ready(module: nn.Module, device: torch.device) -> Iterator[None]:
    """The module in eval mode on the device, and afterwards as it was."""
    modes = {child: child.training for child in module.modules()}
    home = next((parameter.device for parameter in module.parameters()), device)
    module.to(device).eval()
    try:
        with torch.compiler.set_stance('force_eager'):  # a length seen once is not worth it
            yield
    finally:
        module.to(home)
        for child, mode in modes.items():
            child.training = mode


@torch.inference_mode()
def _timed(module: nn.Module, waves: Tensor) -> float:
    """Seconds of one pass, to the end of what it started on the device."""
    _wait(waves.device)
    start = time.perf_counter()
    module(waves)
    _wait(waves.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
