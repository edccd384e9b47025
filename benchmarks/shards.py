"""Random crops from tar shards against crops from files, and the index of 1.1 million utterances.

    python benchmarks/shards.py            # the full table, about a minute
    python benchmarks/shards.py --quick    # fewer files and rounds, a small index, for CI

A crop is 2 s at 16 kHz from anywhere in an utterance of 4 to 12 s, read through `AudioReader`. The
same utterances lie in folders of wav and of FLAC files and in packed folders of both. Straightforward
is what one writes without an index: the shard opened with tarfile, the member looked up by its name,
decoded whole with soundfile. One thread, in turns, processor time with warm file caches; rates are
medians over rounds, ratios medians of the rounds' ratios. Speech-like levels: noise of 6 dB an octave
under a slow envelope, which FLAC brings to about half.
"""

import argparse
import io
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import table

from shared.datasets.offset_index import write_index
from shared.datasets.packed import INDEX, PackedFolder, pack
from shared.datasets.reading import AudioReader
from shared.datasets.shards import Shard

RATE, CROP = 16_000, 32_000  # samples
UTTERANCES, PER_SHARD = 1_100_000, 1000  # of VoxCeleb2 dev; spec enskd 2.2
AGAINST = (  # ours, the other way, at least so many times as fast
    ('shard of wavs', 'wav files', 0.8),
    ('shard of wavs', 'FLAC files', 1.0),
    ('shard of FLACs', 'FLAC files', 0.9),  # equal but for the copy of what is not decoded
    ('shard of wavs', 'tarfile + soundfile', 5.0),
)
MOST_SECONDS, MOST_MIB = 2.0, 300.0  # of processor time and memory to load an index


def make_folders(root, files):
    """Folders `wav` and `flac` and their packed twins; returns the names without suffix."""
    rng, names = np.random.default_rng(0), []
    for i in range(files):
        samples = int(rng.uniform(4, 12) * RATE)
        wave = scipy.signal.lfilter([0.05], [1, -0.97], rng.standard_normal(samples))
        wave *= np.abs(np.sin(np.arange(samples) * 4 * np.pi / RATE)) * 0.2
        names.append(f'id{i % 20:05d}/video{i % 3}/{i:05d}')
        for kind in ('wav', 'flac'):
            path = root / kind / f'{names[-1]}.{kind}'
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave, RATE)
    for kind in ('wav', 'flac'):
        pack(root / kind, root / f'packed-{kind}', per_shard=min(PER_SHARD, files // 2))
    return names


def reading(root, kind, names):
    """A way to read: crops of all files below a folder, of this kind."""
    reader, paths = AudioReader(), [root / f'{name}.{kind}' for name in names]

    def crops(rng):
        for path in paths:
            reader.crop(path, CROP, rng)

    return crops


def straightforward(root, names):
    """The way without an index; some of the files, as it is slow. Its rate is per file."""
    places = {}
    for path in sorted((root / 'packed-wav/shards').iterdir()):
        with tarfile.open(path) as tar:
            places.update((member.name, path) for member in tar)

    def crops(rng):
        for name in names:
            member = f'{name}.wav.wav'
            with tarfile.open(places[member]) as tar:
                wave, _ = soundfile.read(io.BytesIO(tar.extractfile(member).read()))
            start = int(rng.integers(len(wave) - CROP + 1))
            wave[start : start + CROP].astype(np.float32)

    return crops


def rates(ways, rounds):
    """Crops per second of each way, {name: (rounds,)}; `ways` holds (crops, files) by name."""
    found = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, (crops, files) in ways.items():
            start = time.process_time()
            crops(np.random.default_rng(number))
            found[name].append(files / (time.process_time() - start))
    return {name: np.array(values[1:]) for name, values in found.items()}  # the first warms caches


def load_index(root, utterances):
    """(seconds, MiB) of processor time and memory that loading an index takes."""
    names = [
        f'id{i // 183:05d}/{i // 8 * 2654435761 % 2**44:011x}/{i % 8:05d}.wav'
        for i in range(utterances)
    ]
    order, shards = np.random.default_rng(0).permutation(utterances), {}
    for first in range(0, utterances, PER_SHARD):
        keys = [names[i] for i in order[first : first + PER_SHARD]]
        shards[f'{root}/shards/{first}.tar'] = Shard(
            np.array(keys, 'S'),
            np.array([key[:7] for key in keys], 'S'),
            np.arange(len(keys)) * 250_000,
            np.full(len(keys), 249_000),
            np.full((len(keys), 3), (124_000, RATE, 1)),
            (250_000_000, 1),
        )
    write_index(root / INDEX, shards)
    # A process of its own, which has no memory left over from the writing.
    with ProcessPoolExecutor(1, get_context('spawn')) as pool:
        return pool.submit(load, root, utterances).result()


def load(root, utterances):
    """(seconds, MiB) of loading alone."""
    before, start = peak_mib(), time.process_time()
    folder = PackedFolder(root)
    spent = time.process_time() - start
    assert len(folder) == utterances
    return spent, peak_mib() - before


def peak_mib():
    """Most memory that this process has had; getrusage would add what its parent had."""
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) for line in file if line.startswith('VmHWM')) / 1024


def main():
    """Prints the table; exits 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('--quick', action='store_true', help='fewer files and rounds, small index')
    table.add_json(parser)
    args = parser.parse_args()
    files, rounds, utterances = (60, 5, 50_000) if args.quick else (400, 9, UTTERANCES)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = make_folders(root, files)
        ways = {
            'wav files': (reading(root / 'wav', 'wav', names), files),
            'shard of wavs': (reading(root / 'packed-wav', 'wav', names), files),
            'FLAC files': (reading(root / 'flac', 'flac', names), files),
            'shard of FLACs': (reading(root / 'packed-flac', 'flac', names), files),
            'tarfile + soundfile': (straightforward(root, names[:20]), 20),
        }
        found = rates(ways, rounds)
        for ours, other, least in AGAINST:
            one = table.row(
                f'2 s crops: {ours}, other: {other}',
                float(np.median(found[ours])),
                float(np.median(found[other])),
                unit='crops/s',
                target=f'>= {least:g}x',
            )
            rows.append({**one, 'ratio': float(np.median(found[ours] / found[other]))})
        (root / 'index').mkdir()
        seconds, mib = load_index(root / 'index', utterances)
    what = f'load the index of {utterances:,} utterances'
    rows.append(table.row(what, seconds, unit='s', target=f'< {MOST_SECONDS:g} s'))
    rows.append(table.row(what, mib, unit='MiB', target=f'< {MOST_MIB:g} MiB'))
    print(table.markdown(rows))
    table.hand_over(rows, args.json)
    return int(not all(table.met(one) for one in rows))


if __name__ == '__main__':
    raise SystemExit(main())
