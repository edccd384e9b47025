"""What the teacher of EnSKD costs: time and memory of a training step with and without it.

    python benchmarks/enskd.py            # a CPU: about five minutes and 6 GiB; every student
    python benchmarks/enskd.py --quick    # x-vector alone, fewer rounds, for CI

Networks of true size with random weights, through the paper's own framework: a student with its
5,994 classes, alone and beside WavLM-Large with its ECAPA-TDNN (325 M parameters), crops of 2 s.
The teacher is frozen: what is kept for the backward pass has to be the same but for the two rows of
logits. The ways take turns and the best round counts. CPU: one thread, processor time, batch 4. GPU:
batch 128, fp32 and the teacher in bf16.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import torch
from table import add_json, hand_over, row

from shared.models.campplus import CamPlusPlus
from shared.models.kaldi_fbank import KaldiFbank
from shared.models.resnet import ResNet34
from shared.models.speaker_encoder import SpeakerEncoder
from shared.models.ssl_backends import EcapaSmallBackEnd, SslSpeakerEncoder
from shared.models.ssl_config import WAVLM_LARGE
from shared.models.ssl_encoder import SslEncoder
from shared.models.tdnn import XVector

PAPER = Path(__file__).parents[1] / 'papers' / 'enskd'
SPEAKERS, CROP, SCALE = 5994, 32_240, 32.0
STUDENTS = {
    'x-vector': lambda: XVector(256),
    'CAM++': lambda: CamPlusPlus(512),
    'ResNet34': lambda: ResNet34(256),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true')
    add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    batch = 128 if device == 'cuda' else 4
    name = torch.cuda.get_device_name() if device == 'cuda' else 'CPU, 1 thread, fp32'
    print(f'torch {torch.__version__}, {name}, {batch} crops of {CROP / 16000:g} s')
    losses, models, framework = (
        paper('losses'),
        paper('models'),
        paper('framework'),
    )  # in this order
    torch.manual_seed(0)
    network = SslSpeakerEncoder(SslEncoder(WAVLM_LARGE), EcapaSmallBackEnd())
    head = models.ContinuousAam(SPEAKERS, 256, 0.2, SCALE)
    teacher = models.Teacher(network, head).to(device).eval().requires_grad_(False)
    more = 0
    for student, make in STUDENTS.items():
        if options.quick and student != 'x-vector':
            continue
        small = make()
        criterion = models.ContinuousAam(SPEAKERS, small.dim, 0.2, SCALE)
        alone = framework.Distillation(SpeakerEncoder(KaldiFbank(), small), criterion).to(device)
        both = framework.Distillation(alone.student, criterion, teacher, losses.enskd_loss)
        more = max(more, compare(student, alone, both, batch, device, options.quick))
    logits = 4 * batch * SPEAKERS  # bytes of one (B, C) in fp32
    print(f'\nkept for backward because of the teacher: {more / logits:.1f} times (B, C) at most')
    what = 'EnSKD, kept for the backward pass because of the teacher'
    rows = [
        row(what, more / logits, unit='arrays (B, C)', target='< 16 arrays (B, C)', device=name)
    ]
    hand_over(rows, options.json)
    return int(more > 16 * logits)


def compare(student: str, alone, both, batch: int, device: str, quick: bool) -> int:
    """Prints the step of a student with and without the teacher; returns the bytes kept more."""
    waves = 0.1 * torch.randn(batch, CROP, device=device)
    labels = torch.arange(batch, device=device)
    ways = {'student alone': lambda: step(alone, waves, labels)}
    ways |= {'student and teacher': lambda: step(both, waves, labels)}
    ways |= {'teacher alone': lambda: both.teacher.embed(waves)}
    if device == 'cuda':
        ways['student and teacher, bf16'] = lambda: in_bf16(both, waves, labels)
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(2 if quick else 4):
        for way, work in ways.items():
            start = clock(device)
            with torch.set_grad_enabled(way != 'teacher alone'):
                work()
            taken[way].append(clock(device) - start)
    best = {way: min(times[1:]) for way, times in taken.items()}
    kept = [kept_for_backward(one, waves, labels) for one in (alone, both)]
    print(f'\n{student}, step of {batch}')
    for way, seconds in best.items():
        print(f'  {way:<28}{1e3 * seconds:>9.0f} ms{seconds / best["student alone"]:>8.2f}x')
    print(
        f'  kept for backward: {kept[0] / 2**20:.1f} MiB alone, {kept[1] / 2**20:.1f} MiB with it'
    )
    return kept[1] - kept[0]


def step(framework, waves, labels) -> None:
    framework(waves, labels)['loss'].backward()
    framework.zero_grad(set_to_none=True)


def in_bf16(framework, waves, labels) -> None:
    framework.teacher.amp = True
    step(framework, waves, labels)
    framework.teacher.amp = False


def kept_for_backward(framework, waves, labels) -> int:
    """Bytes of the tensors that one forward pass keeps for its backward pass."""
    storages: dict[int, int] = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = framework(waves, labels)['loss']
    del loss
    return sum(storages.values())


def clock(device: str) -> float:
    if device == 'cpu':
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def paper(name: str):
    """A module of the paper, under the plain name by which its siblings import it."""
    spec = importlib.util.spec_from_file_location(name, PAPER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == '__main__':
    raise SystemExit(main())
