"""Rooms, noise and filter banks of a batch: ours, batched, against one utterance after the other.

    python benchmarks/augmentation.py            # half a minute
    python benchmarks/augmentation.py --quick    # fewer rounds

A batch is 128 crops of 3 s at 16 kHz. Each gets a simulated room (0.3 to 1 s of response), a noise
at an SNR of 0 to 15 dB, and Kaldi's 80 log-mels. Ours: `augment` and `KaldiFbank`, on the device.
The other way: scipy.signal.fftconvolve, numpy and torchaudio.compliance.kaldi.fbank for each
utterance, in fp32, on the CPU, as a loader process would. CPU: one thread, processor time, the ways
in turn, median of the rounds. GPU: wall time of a batch from pinned memory to features, against the
other way on one core of that machine. Both give the same features; that is checked first.
"""

import argparse
import time

import numpy as np
import scipy.signal
import table
import torch
from torchaudio.compliance.kaldi import fbank

from shared.augmentations.augment import augment
from shared.augmentations.reverb import unit_energy
from shared.datasets.items import Sample, collate, to_device
from shared.models.kaldi_fbank import KaldiFbank

RATE, CROP, BATCH, MELS = 16000, 48000, 128, 80
POWER_FLOOR = 1e-4  # of `augmentations.noise`
SAME = 2e-3  # of a log-mel, natural logarithm: weak bands lose digits in fp32
TARGETS = {'cpu': 1.0, 'cuda': 20.0}  # at least this many times faster (issue 7)


def make_samples(rng):
    """What the loader's workers would have read for one batch."""
    samples = []
    for index in range(BATCH):
        wave, noise = 0.1 * rng.standard_normal((2, CROP), dtype=np.float32)
        seconds = rng.uniform(0.3, 1)
        decay = np.exp(-6.9 * np.arange(int(seconds * RATE)) / (seconds * RATE))
        rir = unit_energy((decay * rng.standard_normal(len(decay))).astype(np.float32))
        drawn = {'noises': [(0, noise, rng.uniform(0, 15))], 'rirs': [(0, rir)]}
        samples.append(Sample(wave[None], label=0, index=index, **drawn))
    return samples


def ours(batch, network, device):
    """Features (B, F, T) on the device."""
    waves = augment(to_device(batch, device)).squeeze(1)
    return network(waves)[0]


def one_by_one(samples):
    """The same, (B, F, T)."""
    return torch.stack([features_of(sample) for sample in samples])


def features_of(sample):
    (_, rir), (_, noise, snr) = sample.rirs[0], sample.noises[0]
    wave = scipy.signal.fftconvolve(sample.waves[0], rir)[:CROP]
    gain = decibels(wave) - decibels(noise) - snr
    wave = wave + np.float32(10 ** (gain / 20)) * noise
    found = fbank(
        torch.from_numpy(wave)[None] * 32768,
        num_mel_bins=MELS,
        sample_frequency=RATE,
        window_type='hamming',
        dither=0.0,
    )
    return (found - found.mean(0)).T


def decibels(wave):
    return 10 * np.log10(np.mean(wave**2) + POWER_FLOOR)


def cpu_seconds(samples, rounds):
    """Medians over rounds of processor time a batch: (ours, one by one)."""
    batch, network, times = collate(samples), KaldiFbank(MELS), []
    check_same(ours(batch, network, 'cpu'), one_by_one(samples))
    for _ in range(rounds):
        times.append((spent(ours, batch, network, 'cpu'), spent(one_by_one, samples)))
    return np.median(times, axis=0)


def spent(work, *given):
    start = time.process_time()
    work(*given)
    return time.process_time() - start


def gpu_seconds(samples, rounds):
    """Medians over rounds of wall time a batch: (ours, one by one on a core)."""
    batch, network, times = collate(samples), KaldiFbank(MELS).cuda(), []
    batch = {k: v.pin_memory() if torch.is_tensor(v) else v for k, v in batch.items()}
    check_same(ours(batch, network, 'cuda').cpu(), one_by_one(samples))
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            ours(batch, network, 'cuda')
        torch.cuda.synchronize()
        half = time.perf_counter()
        one_by_one(samples)
        times.append(((half - start) / 10, time.perf_counter() - half))
    return np.median(times, axis=0)


def check_same(found, expected):
    """Raises AssertionError where features differ: a fast wrong answer is none."""
    worst = float((found - expected).abs().max())
    assert worst < SAME, f'features differ by up to {worst:.2g}'


def main():
    """Prints the table; exits 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('--quick', action='store_true', help='fewer rounds')
    table.add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 3 if options.quick else 9
    samples = make_samples(np.random.default_rng(0))
    rows = [row_of('cpu', 'CPU, 1 thread', cpu_seconds(samples, rounds))]
    if torch.cuda.is_available():
        rows.append(row_of('cuda', torch.cuda.get_device_name(), gpu_seconds(samples, rounds)))
    print(table.markdown(rows))
    table.hand_over(rows, options.json)
    return int(any(table.met(one) is False for one in rows))


def row_of(kind, device, seconds):
    what = f'room, noise and log-mels of {BATCH} x {CROP // RATE} s, utterance by utterance'
    own, other = 1e3 * seconds
    return table.row(what, own, other, unit='ms', target=f'>= {TARGETS[kind]:g}x', device=device)


if __name__ == '__main__':
    raise SystemExit(main())
