"""What OS-KDFT saves: the convolutions once for both branches, and the student at inference.

    python benchmarks/oskdft.py            # both systems on a CPU, about four minutes
    python benchmarks/oskdft.py --quick    # system B alone, fewer rounds, for CI

Networks of true size with random weights. Training step: forward of teacher and student, both
losses, backward, of crops that both branches hear alike, through the paper's own framework; with two
passes the student's convolutions see the crops twice, as in the released code (spec oskdft 9.2-11).
The teacher's part is in both and is also given alone. Inference: one utterance of 3 s. The ways take
turns and the best round counts. CPU: one thread, processor time. GPU: batches of 48 and 128.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import torch
from table import add_json, hand_over, row

from shared.evaluation.cost import measure_cost
from shared.models.adapters import AdapterSettings
from shared.models.span_masks import SpanMasks
from shared.models.ssl_backends import EcapaBackEnd, LinearBackEnd, SslSpeakerEncoder
from shared.models.ssl_config import HUBERT_BASE, XLSR_53
from shared.models.ssl_encoder import SslEncoder

PAPER = Path(__file__).parents[1] / 'papers' / 'oskdft'
SPEAKERS = 1211
LEAST = 1.1  # two passes over shared: system B has 36 % of its student's work in the convolutions


def paper(name: str):
    """A module of the paper that imports nothing of its siblings."""
    spec = importlib.util.spec_from_file_location(f'oskdft_{name}', PAPER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true')
    add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    systems = {'B, HuBERT': system_b}
    if not options.quick:
        systems['A, XLSR-53'] = system_a
    print(f'torch {torch.__version__}, {where(device)}')
    rows = [training(name, make, device, options.quick) for name, make in systems.items()]
    missed = device == 'cpu' and rows[0]['ratio'] < LEAST
    rows += [inference(name, make, device, options.quick) for name, make in systems.items()]
    hand_over(rows, options.json)
    print(f'\nshared convolutions at least {LEAST} times as fast (B): {"NO" if missed else "yes"}')
    return int(missed and not options.quick)


def where(device: str) -> str:
    return torch.cuda.get_device_name() if device == 'cuda' else 'CPU, 1 thread, fp32'


def system_b():
    """Framework, crop in samples, batch on a GPU."""
    losses = paper('losses')
    torch.manual_seed(0)
    settings = AdapterSettings(activation='relu', noise=(0.1, 0.5), input='stream')
    student = SslEncoder(HUBERT_BASE, layers=2, adapters=settings, masks=SpanMasks(0.05))
    framework = paper('framework').OneStep(
        student,
        SslEncoder(HUBERT_BASE),
        losses.DistilHubertLoss(768, 768),
        LinearBackEnd(3),
        losses.LinearSoftmax(SPEAKERS, 192),
        torch.ones(SPEAKERS),
    )
    return framework, 48_000, 48


def system_a():
    """Framework, crop in samples, batch on a GPU."""
    losses = paper('losses')
    torch.manual_seed(0)
    settings = AdapterSettings(activation='relu', norm=True, scale=0.1, input='stream')
    student = SslEncoder(XLSR_53, layers=4, adapters=settings, masks=SpanMasks(0.05))
    framework = paper('framework').OneStep(
        student,
        SslEncoder(XLSR_53),
        losses.LastStateLoss(),
        EcapaBackEnd(None, 1024),
        losses.LinearSoftmax(SPEAKERS, 192),
        torch.ones(SPEAKERS),
    )
    return framework, 32_000, 128


def training(name: str, make: Callable, device: str, quick: bool) -> dict:
    """Prints seconds of a step; the row that says how many times as long two passes take."""
    framework, crop, batch = make()
    batch = batch if device == 'cuda' else 2
    framework.to(device).train()
    waves = 0.1 * torch.randn(batch, crop, device=device)
    labels = torch.arange(batch, device=device)
    ways = {
        'shared convolutions': lambda: step(framework, waves, labels, None),
        'two passes': lambda: step(framework, waves, labels, waves.clone()),
        'teacher alone': lambda: hear(framework.teacher, waves),
    }
    best = rounds_of(ways, device, 2 if quick else 3)
    shared = best['shared convolutions']
    print(f'\ntraining step, {name}, {batch} crops of {crop / 16000:g} s')
    for way, taken in best.items():
        print(f'  {way:<22}{1e3 * taken:>10.0f} ms{taken / shared:>8.2f}x')
    own = [best[way] - best['teacher alone'] for way in ('two passes', 'shared convolutions')]
    print(f'  without the teacher{own[0] / own[1]:>25.2f}x')
    what = f'OS-KDFT, step of system {name}, {batch} crops; other: two passes of the convolutions'
    target = f'>= {LEAST:g}x' if device == 'cpu' and name.startswith('B') else None
    return row(what, shared, best['two passes'], unit='s', target=target, device=where(device))


def step(framework, waves, labels, kd_waves) -> None:
    framework(waves, labels, waves, kd_waves)['loss'].backward()
    framework.zero_grad(set_to_none=True)


@torch.no_grad()
def hear(teacher, waves) -> None:
    teacher(waves)


def rounds_of(ways: dict[str, Callable], device: str, rounds: int) -> dict[str, float]:
    """Seconds of each way, which take turns; best of the rounds after the first."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, work in ways.items():
            start = clock(device)
            work()
            taken[way].append(clock(device) - start)
    return {way: min(times[1:]) for way, times in taken.items()}


def clock(device: str) -> float:
    if device == 'cpu':
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def inference(name: str, make: Callable, device: str, quick: bool) -> dict:
    """Prints parameters, work and time of teacher and student, each with a back-end; the row."""
    framework, *_ = make()
    systems = {
        'teacher': SslSpeakerEncoder(framework.teacher, backend_like(framework, name)),
        'student': SslSpeakerEncoder(framework.student, framework.backend),
    }
    print(f'\ninference, {name}, one utterance of 3 s')
    found = {}
    for _ in range(1 if quick else 3):  # in turns; the best counts
        for who, system in systems.items():
            cost = measure_cost(system, device=device, repeats=2 if quick else 5)
            best = found.get(who)
            if best is None or cost.seconds_per_second < best.seconds_per_second:
                found[who] = cost
    for who, cost in found.items():
        share = cost.seconds_per_second / found['teacher'].seconds_per_second
        print(
            f'  {who:<10}{cost.parameters / 1e6:>8.1f} M parameters{cost.macs / 1e9:>8.1f} GMAC'
            f'{1e3 * cost.seconds_per_second:>9.1f} ms a second of audio{100 * share:>7.1f} %'
        )
    ours, other = (1e3 * found[who].seconds_per_second for who in ('student', 'teacher'))
    what = f'OS-KDFT, system {name}, a second of speech embedded; other: the teacher'
    return row(what, ours, other, unit='ms', device=where(device))


def backend_like(framework, name: str):
    """The back-end of the fine-tuned teacher, of the same kind as the student's."""
    if name.startswith('A'):
        return EcapaBackEnd(None, framework.teacher.width)
    return LinearBackEnd(framework.teacher.layers + 1, framework.teacher.width)


if __name__ == '__main__':
    raise SystemExit(main())
