"""MUSAN in halves of 5 s pieces, and noisy copies of test utterances (spec nawsv 2.3-2.5).

Everything is a function of names and the seed: any order, any number of processes, killed and
continued, the files are the same (spec nawsv Q17). Call both functions on every rank.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from shared.augmentations.noise import POWER_FLOOR
from shared.datasets.derived import digest_of, make_files
from shared.datasets.items import DataError
from shared.datasets.lists import existing, listing
from shared.datasets.musan import CATEGORIES, Musan, audio_below, write_pcm16
from shared.datasets.reading import AudioReader

RATE = 16000
PIECE, HOP = 5 * RATE, 3 * RATE  # samples, spec nawsv 2.3
SNRS = (0, 5, 10, 15, 20)  # dB, spec nawsv 2.5
FILES_MIXED = {
    'noise': (1, 1),
    'speech': (3, 6),
    'music': (1, 1),
    'nonspeech': (1, 1),
}  # spec nawsv 2.4
SILENCE = 1e-20  # mean square (-200 dB) that keeps the level of digital silence finite


def split_musan(source: str | Path, folder: str | Path, workers: int) -> tuple[Path, Path]:
    """Writes MUSAN as `{train,test}/<category>/<subset>/<stem>wav/<from>_<to>.wav` (spec nawsv 2.3).

    Returns the folders of the two halves, each a MUSAN of its own. Pieces are 16 kHz PCM-16.
    """
    maker = MusanPieces(source)
    settings = {'made': 'MUSAN split', 'version': 1, 'piece': PIECE, 'hop': HOP, 'rate': RATE}
    names = [os.fsdecode(name) for files in maker.musan.files.values() for name in files.tolist()]
    for name in names:
        half(name)  # a wrong name is an error before anything is written
    make_files(
        names, maker, folder=folder, settings=settings, workers=workers, title='splitting MUSAN'
    )
    return Path(folder) / 'train', Path(folder) / 'test'


class MusanPieces:
    """Maker of the pieces of one MUSAN file."""

    def __init__(self, source):
        self.musan = Musan(source, AudioReader(RATE))

    def targets(self, source):
        name = PurePosixPath(source)
        folder = f'{half(source)}/{name.parent}/{name.stem}{name.suffix[1:]}'  # dot removed
        with self.musan.reader.open(self.musan.root / source) as audio:
            return [f'{folder}/{piece}.wav' for piece in pieces(audio.length)]

    def make(self, source, missing, folder):
        with self.musan.reader.open(self.musan.root / source) as audio:
            for target in missing:
                start, length = pieces(audio.length)[PurePosixPath(target).stem]
                write_pcm16(folder / target, audio.read(start, length), RATE)


def half(name: str) -> str:
    """'train' or 'test': even and odd numbers, four digits before `.wav` (spec nawsv 2.3)."""
    digits = re.search(r'(?<!\d)(0\d{3})$', PurePosixPath(name).stem)
    if not digits:
        raise DataError(
            f'{name}: does not end in a number from 0000 to 0999, which decides between train and '
            'test; give MUSAN as it is distributed, not a split one'
        )
    return ('train', 'test')[int(digits[1]) % 2]


def pieces(length: int) -> dict[str, tuple[int, int]]:
    """Name of a piece -> its first sample and length.

    (length - 5 s) // 3 s windows, so the last possible one is left out, and files below 8 s stay
    whole (spec nawsv Q16: kept).
    """
    count = (length - PIECE) // HOP
    if count <= 0:
        return {'all': (0, length)}
    return {f'{3 * i}_{3 * i + 5}': (i * HOP, PIECE) for i in range(count)}


def noise_conditions(
    categories: Sequence[str] = CATEGORIES, snrs: Sequence[float] = SNRS
) -> dict[str, tuple[str, float]]:
    """'noise_0' -> ('noise', 0), ... in the order of the published logs."""
    return {f'{name}_{snr:g}': (name, snr) for name in categories for snr in snrs}


def noisy_test_sets(
    files: Sequence[str],
    root: str | Path,
    folder: str | Path,
    musan_test: str | Path,
    nonspeech: str | Path | None = None,
    *,
    snrs: Sequence[float] = SNRS,
    seed: int = 0,
    exact_snr: bool = False,
    workers: int = 0,
) -> dict[str, Path]:
    """Noisy copies of the files of trials, `<condition>/<file>`; condition -> folder of its files.

    Args:
        files: relative to `root`, as `Trials.files` has them; others can be added by a later call.
        root: of the clean files.
        folder: of the MUSAN conditions; `nonspeech` has its own records in a folder inside, because
            it can be added later.
        musan_test: second folder of `split_musan`.
        nonspeech: Nonspeech100, wavs at any rate; None leaves these conditions out.
        snrs: dB.
        seed: of everything drawn, with the file, the category and the SNR.
        exact_snr: leaves out the level floor, which makes quiet files less noisy (spec nawsv Q18).
        workers: processes.
    """
    noises: dict[Path, Musan | FlatNoises] = {Path(folder): Musan(musan_test, AudioReader(RATE))}
    if nonspeech is not None:
        noises[Path(folder) / 'nonspeech'] = FlatNoises(nonspeech)
    roots: dict[str, Path] = {}
    for place, noise in noises.items():
        maker = NoisyCopies(root, noise.root, noise.files, snrs, seed, exact_snr)
        make_files(
            list(files),
            maker,
            folder=place,
            settings=maker.settings(),
            workers=workers,
            title=f'noisy test sets ({", ".join(noise.files)})',
            max_skipped=0.0,  # a trial list needs every file
        )
        roots |= {name: place / name for name in maker.conditions}
    return roots


class FlatNoises:
    """Nonspeech100: every wav below a folder is of the category 'nonspeech'."""

    def __init__(self, path):
        self.root = existing(path, 'Nonspeech100 folder')
        self.files = {'nonspeech': audio_below(self.root, '.')}
        if not len(self.files['nonspeech']):
            raise DataError(f'{path}: no .wav or .flac in it; it holds {listing(self.root)}')


class NoisyCopies:
    """Maker of all noisy copies of one utterance, which is read once.

    Args:
        root: of the clean files.
        noise_root: of the noise files.
        noises: category -> names (files,) bytes, relative to `noise_root`.
        snrs: dB.
        seed: of everything drawn.
        exact_snr: no level floor.
    """

    def __init__(
        self,
        root: str | Path,
        noise_root: Path,
        noises: Mapping[str, np.ndarray],
        snrs: Sequence[float],
        seed: int,
        exact_snr: bool,
    ):
        self.root, self.noise_root, self.noises = Path(root), noise_root, dict(noises)
        self.conditions = noise_conditions(tuple(noises), snrs)
        self.seed, self.floor = seed, SILENCE if exact_snr else POWER_FLOOR
        self.reader = AudioReader(RATE)

    def settings(self):
        """What the files depend on besides the utterance."""
        noises = {
            f'{category} files': f'{len(names)} (digest {digest_of([*map(os.fsdecode, names)])})'
            for category, names in self.noises.items()
        }
        return {
            'made': 'noisy test sets',
            'version': 1,
            'seed': self.seed,
            'conditions': list(self.conditions),
            'level floor': self.floor,
            **noises,
        }

    def targets(self, source):
        return [f'{condition}/{source}' for condition in self.conditions]

    def make(self, source, missing, folder):
        with self.reader.open(self.root / source) as audio:
            speech = audio.read(0, audio.length)
        for target in missing:
            category, snr = self.conditions[target.partition('/')[0]]
            rng = rng_of(self.seed, source, category, snr)
            noise = self.draw_noise(category, len(speech), rng)
            write_pcm16(folder / target, add_noise(speech, noise, snr, self.floor), RATE)

    def draw_noise(self, category, length, rng):
        """Mean of some different files, each a random window or wrapped around (spec nawsv 2.4)."""
        names, (fewest, most) = self.noises[category], FILES_MIXED[category]
        count = min(int(rng.integers(fewest, most + 1)), len(names))
        total = np.zeros(length, dtype=np.float32)
        for file in rng.choice(len(names), size=count, replace=False):
            with self.reader.open(self.noise_root / os.fsdecode(names[file])) as audio:
                total += audio.read(int(rng.integers(max(audio.length - length, 1))), length)
        return total / count


def rng_of(seed: int, file: str, category: str, snr: float) -> np.random.Generator:
    """Random numbers of one noisy file (spec nawsv Q17); the hash is the same in every process."""
    key = hashlib.sha256(f'{seed} {category} {snr:g} {file}'.encode(errors='surrogateescape'))
    return np.random.default_rng(int.from_bytes(key.digest()[:16], 'little'))


def add_noise(speech: np.ndarray, noise: np.ndarray, snr: float, floor: float) -> np.ndarray:
    """speech + sqrt(10^((L(speech) - L(noise) - snr) / 10)) noise, L(v) = 10 log10(mean v^2 + floor).

    The rule of spec nawsv 2.4 and of `shared.augmentations.noise`, out of place (Q1 there). In
    numpy, because torch's sums depend on the number of threads.
    """
    powers = [np.mean(np.square(wave, dtype=np.float64)) + floor for wave in (speech, noise)]
    gain = np.sqrt(powers[0] / powers[1] * 10 ** (-snr / 10))
    return speech + np.float32(gain) * noise
