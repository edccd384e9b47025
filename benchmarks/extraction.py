"""Embedding whole files of mixed lengths: batches of similar length against one file at a time.

    python benchmarks/extraction.py            # about five minutes on one core
    python benchmarks/extraction.py --quick    # the small encoder alone, fewer files

Files of 4 to 20 s, log-normal with a mean of 8.2 s as in VoxCeleb1, PCM-16 wavs with a warm page cache.
Ours: `whole_files` (sorted by length, padded and masked) and `extract`, no loader processes. Other:
every file decoded whole in float64 and embedded alone, as the released codes do. The ways take turns;
embeddings have to agree. CPU: processor time of one thread, best round, and batches of ECONOMIC
seconds, which stay in its caches; batching saves only what a layer costs to start, so little is
expected of a large network. GPU: wall time, batches of 600 s, and both ways read before.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import table
import torch
from torch import nn

from shared.datasets.loading import whole_files
from shared.datasets.reading import AudioReader
from shared.evaluation.extraction import extract
from shared.models.ecapa_tdnn import EcapaTdnn
from shared.models.frontend import LogMel
from shared.models.mhfa import Mhfa
from shared.models.speaker_encoder import SpeakerEncoder
from shared.models.ssl_backends import SslSpeakerEncoder
from shared.models.ssl_config import WAVLM_BASE
from shared.models.ssl_encoder import SslEncoder

RATE = 16_000
SHORTEST, LONGEST, MEAN, SPREAD = 4.0, 20.0, 8.2, 0.4  # seconds; SPREAD of the logarithm
ECONOMIC, GPU_SECONDS = 40.0, 600.0  # of audio in a batch
TARGET = 3.0  # times as fast as one by one (issue 7), on a GPU, where launches dominate


@dataclass
class System:
    name: str
    network: nn.Module
    files: int  # on a CPU


def systems(quick: bool) -> list[System]:
    """Networks with random weights, and how many files each embeds on a CPU."""
    torch.manual_seed(0)
    small = EcapaTdnn(width=64, mfa_width=192, attention_width=64, se_width=32, dim=64)
    found = [System('ECAPA-TDNN of the demo, C = 64', SpeakerEncoder(LogMel(), small), 120)]
    if not quick:
        wavlm = SslEncoder(WAVLM_BASE)
        mhfa = Mhfa(wavlm.states, wavlm.width, 64, 128, 256)
        found += [
            System('ECAPA-TDNN, C = 512', SpeakerEncoder(LogMel(), EcapaTdnn()), 60),
            System('WavLM-Base+ with MHFA', SslSpeakerEncoder(wavlm, mhfa), 16),
        ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true')
    table.add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for system in systems(options.quick and device == 'cpu'):
            count = 500 if device == 'cuda' else system.files // (2 if options.quick else 1)
            paths, seconds = make_files(Path(folder), count)
            rows.append(compare(system, paths, seconds, device, rounds=2 if options.quick else 3))
            print(table.markdown(rows[-1:]).splitlines()[-1], flush=True)
    if device == 'cpu':
        what = 'extraction, each network, 500 files of 4 to 20 s; other: one by one'
        rows.append(table.row(what, None, unit='files/s', target=f'>= {TARGET:g}x', device='GPU'))
    table.hand_over(rows, options.json)
    return int(any(table.met(one) is False for one in rows))


def make_files(folder: Path, count: int) -> tuple[list[Path], np.ndarray]:
    """Paths and seconds of noise in the lengths of VoxCeleb1; what is there already is kept."""
    rng = np.random.default_rng(0)
    centre = np.log(MEAN) - SPREAD**2 / 2
    seconds = rng.lognormal(centre, SPREAD, size=count).clip(SHORTEST, LONGEST)
    paths = [folder / f'{i:05d}.wav' for i in range(count)]
    for path, length in zip(paths, seconds):
        if not path.exists():
            wave = 0.05 * rng.standard_normal(int(length * RATE))
            soundfile.write(path, wave.clip(-1, 1), RATE, subtype='PCM_16')
    return paths, seconds


def compare(system: System, paths, seconds, device: str, rounds: int) -> dict:
    """The row of a network."""
    network = system.network.to(device).eval()
    budget = GPU_SECONDS if device == 'cuda' else ECONOMIC

    def batched():
        how = {'budget_seconds': budget, 'workers': 0}
        return extract(
            network, whole_files(paths, seconds, AudioReader(), **how), len(paths), device
        )

    taken, found = {batched: [], one_by_one: []}, {}
    for _ in range(rounds):
        for way in taken:
            start = clock(device)
            found[way] = batched() if way is batched else one_by_one(network, paths, device)
            taken[way].append(clock(device) - start)
    torch.testing.assert_close(found[batched], found[one_by_one], rtol=1e-3, atol=1e-3)
    ours, other = (len(paths) / min(taken[way]) for way in (batched, one_by_one))
    where = torch.cuda.get_device_name() if device == 'cuda' else 'CPU, 1 thread'
    return table.row(
        f'extraction, {system.name}, {len(paths)} files of 4 to 20 s; other: one by one',
        ours,
        other,
        unit='files/s',
        target=f'>= {TARGET:g}x' if device == 'cuda' else None,
        device=where,
    )


@torch.inference_mode()
def one_by_one(network: nn.Module, paths, device: str) -> torch.Tensor:
    """The straightforward way."""
    rows = []
    for path in paths:
        wave, _ = soundfile.read(path)
        waves = torch.from_numpy(wave).float()[None].to(device)
        rows.append(network(waves)[0].float().cpu())
    return torch.stack(rows)


def clock(device: str) -> float:
    if device == 'cpu':
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == '__main__':
    sys.exit(main())
