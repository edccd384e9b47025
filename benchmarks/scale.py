"""Seconds and memory of everything before training, on a corpus as large as VoxCeleb2.

    python benchmarks/scale.py                  # 1,100,000 files: ten minutes and more, 5 GB of disk
    python benchmarks/scale.py --files 20000    # for a look

The tree has the shape of VoxCeleb2 (6,000 speakers, 145,000 videos) and PCM-16 wavs of 4 to 14 s
whose samples are holes: a header on the disk, zeros when read. It is made first, untimed, in a
temporary folder that is removed at the end. Each step is a process of its own, timed from outside,
its start and imports included. Caches are as writing the tree left them: warm on an idle machine
with 8 GB to spare; else the first step reads all headers from the disk. Peak memory is that of the
largest process of a step.
"""

import argparse
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from table import add_json, hand_over, row

from shared.datasets import trial_files, voxceleb
from shared.datasets.crops import CropSet, shuffled_loader
from shared.datasets.items import Sample, Trials
from shared.datasets.samplers import sample_rng
from shared.doctor.examination import examine
from shared.doctor.plan import Corpora, Load

FILES, SPEAKERS, VIDEOS = 1_100_000, 6_000, 145_000
DISK = 5000  # bytes a file takes, folders included
RATE, CROP, BATCH, WORKERS = 16000, 32000, 128, 2
TRIALS, TRIAL_FILES = 580_000, 145_160  # as in Vox1-E
MEMORY = 2048  # MiB, of every step
STEPS = {  # what, seconds allowed (issue 7, Done 1)
    'folder': ('train list from the folder', 60),
    'prepare': ('prepare list', 60),
    'doctor': ('doctor', 60),
    'start': ('start of training, to the first batch', 30),
    'draw': ('validation trials drawn from it', None),
    'trials': (f'{TRIALS:,} trials read', None),
}


class Crops(CropSet):
    """The least a recipe reads: one crop an utterance."""

    def sample(self, epoch, index):
        rng = sample_rng(self.seed, epoch, index)
        label = int(self.utterances.speakers[index])
        return Sample(self.crop(index, CROP, rng)[None], label=label, index=index)


def make_tree(root, files):
    """Writes the tree of so many wavs; speakers and videos in proportion."""
    videos, speakers = max(files * VIDEOS // FILES, 4), max(files * SPEAKERS // FILES, 2)
    made = 0
    for video in range(videos):
        folder = root / f'id{video * speakers // videos:05d}' / f'video{video:06d}'
        folder.mkdir(parents=True)
        for number in range((video + 1) * files // videos - made):
            samples = 4 * RATE + made * 7919 % (10 * RATE)
            with open(folder / f'{number:05d}.wav', 'wb') as file:
                file.write(header(samples))
                file.truncate(44 + 2 * samples)
            made += 1


def header(samples):
    """The first 44 bytes of a PCM-16 wav of one channel."""
    size = 2 * samples
    riff = struct.pack('<4sI4s', b'RIFF', 36 + size, b'WAVE')
    form = struct.pack('<4sIHHIIHH', b'fmt ', 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return riff + form + struct.pack('<4sI', b'data', size)


def folder(root, lists):
    """What a recipe does on its first start: a walk, all headers, the list."""
    trial_files.training_list(root, None, lists / 'train.txt')


def doctor(root, lists):
    """What `--doctor` looks at, without a paper's weights and noise."""
    load = Load(lists / 'run', {'batch_size': (BATCH, CROP)}, workers=WORKERS, gpu=False)
    examine(Corpora({'path_train': root}, train=root, train_list=lists / 'train.txt'), load)


def start(root, lists):
    """What a recipe does on every later start, until its first batch is there."""
    train = trial_files.training_list(root, None, lists / 'train.txt')
    batch = next(iter(shuffled_loader(Crops(train, seed=0), BATCH, seed=0, workers=WORKERS)))
    assert batch['waves'].shape == (BATCH, 1, CROP)


def draw(root, lists):
    """The trials that choose an epoch where none are given."""
    trial_files.drawn_trials(root, lists / 'valid.txt', trial_files.VALID_TRIALS, seed=0)


def trials(root, lists):
    """A long list of trials, with a look for its files."""
    voxceleb.read_trials(lists / 'long.txt', root)


def long_list(root, lists):
    """Writes the list that `trials` reads: pairs of as many files as Vox1-E has."""
    rng = np.random.default_rng(0)
    all_files = voxceleb.read_list(lists / 'train.txt', root, check_files=False)
    rows = np.sort(rng.permutation(len(all_files))[:TRIAL_FILES])
    names = tuple(all_files.name(i) for i in rows)
    enrol, test = rng.integers(len(names), size=(2, TRIALS))
    long = Trials('long', enrol, test, rng.random(TRIALS) < 0.5, names, sha256='')
    voxceleb.write_trials(long, lists / 'long.txt')


def run_step(name, root, lists):
    """(wall seconds, processor seconds, peak MiB) of one step in a process of its own."""
    command = [sys.executable, __file__, '--step', name, '--folder', str(root.parent)]
    if name == 'prepare':
        command = [sys.executable, '-m', 'shared.datasets.prepare', 'list', str(root)]
        command += ['--out', str(lists / 'prepared.txt')]
    if name == 'trials':
        long_list(root, lists)
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f'error: {name} ended with status {process.returncode}:\n{said[-3000:]}')
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    """Prints the table; exits 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('--files', type=int, default=FILES, help='in the tree')
    parser.add_argument('--folder', type=Path, help='for the tree, on the disk to be measured')
    parser.add_argument('--step', choices=STEPS, help=argparse.SUPPRESS)
    add_json(parser)
    args = parser.parse_args()
    if args.step:
        globals()[args.step](args.folder / 'vox', args.folder / 'lists')
        return 0
    free = shutil.disk_usage(args.folder or tempfile.gettempdir()).free
    if free < args.files * DISK:
        parser.error(f'needs {args.files * DISK / 1e9:.1f} GB, {free / 1e9:.1f} are free; --folder')
    rows, missed = [], False
    with tempfile.TemporaryDirectory(prefix='scale-', dir=args.folder) as temporary:
        root, lists = Path(temporary) / 'vox', Path(temporary) / 'lists'
        lists.mkdir()
        make_tree(root, args.files)
        print(f'{args.files:,} files\n')
        print(
            f'{"":40} {"seconds":>8} {"target":>7} {"processor":>10} {"peak MiB":>9} {"target":>7}'
        )
        for name, (what, allowed) in STEPS.items():
            seconds, processor, peak = run_step(name, root, lists)
            missed |= peak > MEMORY or seconds > (allowed or seconds)
            target = f'< {allowed}' if allowed else ''
            print(
                f'{what:40} {seconds:8.1f} {target:>7} {processor:10.1f} {peak:9.0f} < {MEMORY:5}'
            )
            target = f'{target} s' if allowed else None
            what = f'{args.files:,} files: {what}'
            rows.append(row(what, seconds, unit='s', target=target, device='CPU, 2 cores'))
            what = f'{what}, peak memory'
            rows.append(row(what, peak, unit='MiB', target=f'< {MEMORY} MiB', device='CPU'))
    hand_over(rows, args.json)
    return int(missed)


if __name__ == '__main__':
    raise SystemExit(main())
