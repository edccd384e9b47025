"""Samples per second of one core: our Stage II data path against the straightforward one.

    python benchmarks/loader.py            # the full table, about a minute
    python benchmarks/loader.py --quick    # smaller corpora and fewer rounds, for CI

A sample is that of spec lgl 2.5: a crop of 48,240 samples (3.015 s at 16 kHz), with probability 0.5
a simulated room response of unit energy, with probability 0.5 noise, music or babble of 3 to 8
speech files at an SNR. Both paths draw from the same generated corpora, on one thread, in turns;
times are processor time with warm file caches, which other jobs on the machine disturb little.

Ours: crops by seek, then reverberation and mixing of the whole batch in float32; what the training
device would do is part of the time. Straightforward: every file decoded whole in float64, then
scipy.signal.convolve and mixing utterance by utterance. 'split' MUSAN is in pieces of 5 s; 'memory'
is 'unsplit' with MUSAN and responses in shared memory (datasets/memory.py), against files.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import table
import torch

from shared.augmentations.augment import augment
from shared.augmentations.reverb import unit_energy
from shared.datasets.crops import CropSet
from shared.datasets.items import Sample
from shared.datasets.loading import train_loader
from shared.datasets.memory import keep_in_memory
from shared.datasets.musan import Musan, NoiseRange, split_musan
from shared.datasets.reading import AudioReader
from shared.datasets.rirs import Rirs
from shared.datasets.samplers import ShuffledBatches, sample_rng
from shared.datasets.voxceleb import read_folder

RATE = 16000
CROP = 48240  # samples
SNR = {'noise': (0, 15), 'speech': (13, 20), 'music': (5, 15)}  # dB
BABBLE = (3, 8)  # speech files
TARGET = {'unsplit': 5.0, 'split': 2.0, 'memory': 5.0}  # at least so many times faster (issue 2)
MEMORY_GIB = 2.0  # holds all of these corpora


class StageTwo(CropSet):
    """Our path up to the device: what one worker reads for one sample."""

    def __init__(self, utterances, musan, rirs):
        super().__init__(utterances, seed=0)
        self.musan, self.rirs = musan, rirs

    def sample(self, epoch, index):
        rng = sample_rng(self.seed, epoch, index)
        sample = Sample(self.crop(index, CROP, rng)[None], label=0, index=index)
        if rng.random() < 0.5:
            sample.rirs.append((0, unit_energy(self.rirs.draw(rng))))
        if rng.random() < 0.5:
            category = rng.choice(list(SNR))
            files = BABBLE if category == 'speech' else (1, 1)
            drawn = self.musan.several(category, CROP, rng, NoiseRange(SNR[category], files))
            sample.noises = [(0, noise, snr) for noise, snr in drawn]
        return sample


def straightforward(utterances, musan, rirs, rng, index):
    """One sample as it is usually written, float32 (L,)."""
    wave = crop_of_whole(utterances.path(index), rng)
    if rng.random() < 0.5:
        rir, _ = soundfile.read(rirs.root / os.fsdecode(rng.choice(rirs.files)))
        wave = scipy.signal.convolve(wave, rir / np.sqrt(np.sum(rir**2)))[:CROP]
    if rng.random() < 0.5:
        category = rng.choice(list(SNR))
        count = int(rng.integers(BABBLE[0], BABBLE[1] + 1)) if category == 'speech' else 1
        level, noises = decibels(wave), []
        for name in rng.choice(musan.files[category], size=count, replace=False):
            noise = crop_of_whole(musan.root / os.fsdecode(name), rng)
            gain = level - decibels(noise) - rng.uniform(*SNR[category])
            noises.append(np.sqrt(10 ** (gain / 10)) * noise)
        wave = wave + np.sum(noises, axis=0)
    return torch.from_numpy(wave.astype(np.float32))


def crop_of_whole(path, rng):
    """Decodes the whole file in float64 and cuts a crop out, wrapped around when it is short."""
    wave, _ = soundfile.read(path)
    if len(wave) < CROP:
        wave = np.pad(wave, (0, CROP - len(wave)), mode='wrap')
    start = int(rng.integers(len(wave) - CROP + 1))
    return wave[start : start + CROP]


def decibels(wave):
    return 10 * np.log10(np.mean(wave**2) + 1e-4)


def make_corpora(root, scale):
    """Noise in the shape of VoxCeleb2 (mean 8 s), MUSAN and simulated RIRs, PCM-16 at 16 kHz.

    Speech and music last 100 to 290 s (195 s is MUSAN's mean over all files), noises 4 to 44 s,
    responses 0.3 to 1 s.
    """
    rng = np.random.default_rng(0)
    for i in range(int(100 * scale)):
        path = root / f'vox/id{i % 10:05d}/video{i % 3}/{i:05d}.wav'
        write(path, rng, 0.05, rng.uniform(4, 12))
    for category, (low, high) in {
        'speech': (100, 290),
        'music': (100, 290),
        'noise': (4, 44),
    }.items():
        for i in range(max(int(24 * scale), BABBLE[1])):
            path = root / f'musan/{category}/free/{category}-{i:04d}.wav'
            write(path, rng, 0.05, rng.uniform(low, high))
    for i in range(int(60 * scale)):
        seconds = rng.uniform(0.3, 1)
        decay = np.exp(-6.9 * np.arange(int(seconds * RATE)) / (seconds * RATE))
        write(root / f'rirs/smallroom/Room{i:03d}/Room{i:03d}-00001.wav', rng, 0.3 * decay, seconds)
    split_musan(root / 'musan', root / 'musan_split')


def write(path, rng, level, seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = level * rng.standard_normal(int(seconds * RATE))
    soundfile.write(path, wave.clip(-1, 1), RATE, subtype='PCM_16')


def ours_per_sample(data, batch_size, batches, epoch):
    """Seconds of each sample in this epoch's first batches: (reading and collation, device part)."""
    # The permutation, 20 ms for a million utterances, is once an epoch and not counted here.
    sampler = ShuffledBatches(batches * batch_size, batch_size, seed=epoch)
    read = compute = 0.0
    start = time.process_time()
    for number, batch in enumerate(train_loader(Repeated(data), sampler, workers=0), start=1):
        loaded = time.process_time()
        augment(batch)
        done = time.process_time()
        read, compute, start = read + loaded - start, compute + done - loaded, done
        if number == batches:
            return read / (batches * batch_size), compute / (batches * batch_size)


class Repeated(torch.utils.data.Dataset):
    """An epoch of a large corpus on few files: another number, another draw from the same file."""

    def __init__(self, data):
        self.data = data

    def __getitem__(self, key):
        return self.data[(key[1], key[1] % len(self.data.utterances))]


def straightforward_per_sample(parts, samples, epoch):
    """Seconds of each sample, stacked into a batch at the end."""
    start = time.process_time()
    rng = np.random.default_rng(epoch)
    utterances = parts[0]
    torch.stack(
        [straightforward(*parts, rng, int(rng.integers(len(utterances)))) for _ in range(samples)]
    )
    return (time.process_time() - start) / samples


def compare(root, kind, rounds, batch_size, batches):
    """Rounds of seconds a sample, (rounds, 3): reading, device part, straightforward."""
    parts = (
        read_folder(root / 'vox'),
        Musan(root / ('musan_split' if kind == 'split' else 'musan'), AudioReader()),
        Rirs(root / 'rirs', AudioReader()),
    )
    if kind == 'memory':
        keep_in_memory(MEMORY_GIB, *parts[1:])
    data, times = StageTwo(*parts), []
    for epoch in range(rounds + 1):
        ours = ours_per_sample(data, batch_size, batches, epoch)
        times.append((*ours, straightforward_per_sample(parts, batch_size * batches, epoch)))
    return np.array(times[1:])  # the first round warms caches


def main():
    """Prints the table; exits 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('--quick', action='store_true', help='smaller corpora, fewer rounds')
    table.add_json(parser)
    options = parser.parse_args()
    quick, rows = options.quick, []
    torch.set_num_threads(1)
    rounds, batch_size, batches = (3, 64, 1) if quick else (7, 100, 2)
    print(f'samples/s on one core (processor time), median of {rounds} rounds\n')
    print(
        f'{"MUSAN":8} {"straight":>9} {"ours":>9} {"ratio":>7} {"target":>7}   ours: read + device'
    )
    with tempfile.TemporaryDirectory() as folder:
        make_corpora(Path(folder), 0.3 if quick else 1)
        for kind, target in TARGET.items():
            times = compare(Path(folder), kind, rounds, batch_size, batches)
            ratio = np.median(times[:, 2] / (times[:, 0] + times[:, 1]))
            read, device, usual = np.median(times, axis=0)
            what, found = f'Stage II samples of LGL, MUSAN {kind}', (1 / (read + device), 1 / usual)
            row = table.row(what, *found, unit='samples/s', target=f'>= {target:g}x')
            rows.append({**row, 'ratio': float(ratio)})  # of each round, then their median
            print(
                f'{kind:8} {1 / usual:9.0f} {1 / (read + device):9.0f} {ratio:6.1f}x '
                f'{target:6.0f}x   {1e3 * read:.2f} + {1e3 * device:.2f} ms'
            )
    table.hand_over(rows, options.json)
    return int(any(table.met(one) is False for one in rows))


if __name__ == '__main__':
    raise SystemExit(main())
