"""MUSAN: noise, speech and music to add to speech, whole files or split into 5 s pieces.

Layouts: `{noise,speech,music}/<subset>/<stem>.wav` as distributed, one folder deeper when split
(spec lgl 2.1). CC BY 4.0: https://www.openslr.org/17/
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from wave import open as open_wav

import numpy as np
from tqdm import tqdm

from shared import ddp
from shared.datasets.items import DataError
from shared.datasets.lists import audio_files, existing, listing
from shared.datasets.packed import find, packed_folder
from shared.datasets.reading import AudioReader
from shared.files import replacing

CATEGORIES = ('noise', 'speech', 'music')
PIECE, HOP = 80000, 48000  # samples at 16 kHz: 5 s pieces, one every 3 s


@dataclass(frozen=True)
class NoiseRange:
    """What is drawn for noise of one category, uniformly, both bounds included.

    `snr` in dB; `files`: how many at once, several of 'speech' make babble.
    """

    snr: tuple[float, float]
    files: tuple[int, int] = (1, 1)


class Musan:
    """The files of each category, and crops of them.

    `files[category]` holds paths relative to `root`, (files,) bytes, sorted.

    Args:
        path: folder with the three categories, or the folder above it.
        reader: how crops are read.

    Raises:
        DataError: a category is missing or holds no audio.
    """

    def __init__(self, path: str | Path, reader: AudioReader):
        self.root, self.reader = categories_folder(path), reader
        self.files = {name: audio_below(self.root, name) for name in CATEGORIES}
        for name, files in self.files.items():
            if not len(files):
                raise DataError(
                    f'{self.root / name}: no .wav or .flac in it; expected {name}/<subset>/<stem>.wav '
                    f'or {name}/<subset>/<stem>/<second>.wav; it holds {listing(self.root / name)}'
                )

    def pick(self, category: str, rng: np.random.Generator, count: int = 1) -> np.ndarray:
        """Numbers of `count` different files, (count,); all files where there are fewer."""
        files = len(self.files[category])
        return rng.choice(files, size=min(count, files), replace=False)

    def crop(
        self, category: str, length: int, rng: np.random.Generator, file: int | None = None
    ) -> np.ndarray:
        """A crop of one file, float32 (length,), its start uniform over every possible one.

        A shorter file is repeated from its first sample on.

        Args:
            category: 'noise', 'speech' or 'music'.
            length: samples.
            rng: where the file and the start are drawn from.
            file: number of the file; None draws it uniformly.
        """
        files = self.files[category]
        name = files[rng.integers(len(files)) if file is None else file]
        return self.reader.crop(self.root / os.fsdecode(name), length, rng)

    def noises(
        self,
        categories: Sequence[str],
        length: int,
        rng: np.random.Generator,
        ranges: Mapping[str, NoiseRange],
    ) -> list[tuple[np.ndarray, float]]:
        """One noise a category, in that order: (float32 (length,), SNR in dB) each.

        To be added in turn, each against the mixture so far (`augmentations.augment_in_turn`). A
        noise is the mean of crops of different files (spec nawsv 2.4, oskdft 2.3).

        Args:
            categories: of 'noise', 'speech' and 'music'.
            length: samples.
            rng: where the number of files, the files, their crops and the SNR are drawn from.
            ranges: what to draw from, by category.
        """
        noises = []
        for category in categories:
            low, high = ranges[category].files
            files = self.pick(category, rng, int(rng.integers(low, high + 1)))
            crops = [self.crop(category, length, rng, file=file) for file in files]
            noise = np.stack(crops).mean(axis=0, dtype=np.float32)
            noises.append((noise, float(rng.uniform(*ranges[category].snr))))
        return noises

    def several(
        self, category: str, length: int, rng: np.random.Generator, drawn: NoiseRange
    ) -> list[tuple[np.ndarray, float]]:
        """Noises of different files of a category: (float32 (length,), SNR in dB) each.

        To be added together, each at its own SNR to the speech alone (`augmentations.augment`; spec
        lgl 2.5, wavlm_ssl 2.3).

        Args:
            category: 'noise', 'speech' or 'music'.
            length: samples.
            rng: where the number of files, the files, their crops and SNRs are drawn from.
            drawn: what to draw from.
        """
        low, high = drawn.files
        noises = []
        for file in self.pick(category, rng, int(rng.integers(low, high + 1))):
            noise = self.crop(category, length, rng, file=file)
            noises.append((noise, float(rng.uniform(*drawn.snr))))
        return noises


def categories_folder(path: str | Path) -> Path:
    """The folder that holds noise, speech and music: `path` or one right below it.

    Raises:
        DataError: neither is.
    """
    path = existing(path, 'MUSAN folder')
    packed = packed_folder(path)
    names = packed.names.tolist() if packed else map(os.fsencode, os.listdir(path))
    inside = sorted({os.fsdecode(name.partition(b'/')[0]) for name in names})
    for folder in (path, *(path / name for name in inside)):
        if all(is_folder(folder / name) for name in CATEGORIES):
            return folder
    raise DataError(
        f'{path}: no folders noise, speech and music in it or one level down; '
        f'it holds {listing(path)}'
    )


def is_folder(path: Path) -> bool:
    """Whether it is a folder, also one inside a packed folder."""
    packed = find(path)
    return len(packed[0].below(packed[1])) > 0 if packed else path.is_dir()


def audio_below(root: Path, folder: str) -> np.ndarray:
    """Audio files anywhere below root/folder, relative to `root`, sorted, (files,) bytes."""
    if packed := find(root / folder):
        above = os.path.relpath(os.path.abspath(root), packed[0].root)
        skip = 0 if above == '.' else len(os.fsencode(above)) + 1
        found = [name[skip:] for name in packed[0].below(packed[1]).tolist()]
    else:
        found = [
            os.fsencode(os.path.normpath(os.path.join(folder, inside, name)))
            for inside, names in audio_files(root / folder)
            for name in names
        ]
    return np.array(sorted(found), dtype='S')


def windows(length: int) -> Sequence[int]:
    """First samples of the 5 s pieces of a file: 0, 48000, ... below length - 80000 (spec lgl 2.1).

    The published preparation leaves files of 5 s or less out; here they are one piece, whole.
    """
    return range(0, max(length - PIECE, 1), HOP)


def split_musan(path: str | Path, out: str | Path) -> int:
    """Writes MUSAN as `<category>/<subset>/<stem>/<start second, 5 digits>.wav` below `out`.

    Pieces are 16 kHz PCM-16. Files that are there already are left as they are, so an interrupted
    call can be repeated. Returns the number of pieces.
    """
    source, reader = Musan(path, AudioReader()), AudioReader()
    names = [name for files in source.files.values() for name in files.tolist()]
    count = 0
    for name in tqdm(names, desc='splitting MUSAN', unit='file', disable=not ddp.is_main() or None):
        name = os.fsdecode(name)
        folder = (Path(out) / name).with_suffix('')
        with reader.open(source.root / name) as audio:
            starts = windows(audio.length)
            for start in starts:
                piece = folder / f'{start // reader.rate:05d}.wav'
                if not piece.exists():
                    write_pcm16(piece, audio.read(start, min(PIECE, audio.length)), reader.rate)
            count += len(starts)
    return count


def write_pcm16(path: Path, wave: np.ndarray, rate: int) -> None:
    """Writes a wav whose PCM-16 values read back as they were (soundfile scales by 32767)."""
    values = np.clip(np.rint(wave * 32768), -32768, 32767).astype(np.int16)
    # not soundfile: it syncs each file to the disk, and `replacing` does so again
    with replacing(path) as temporary, open_wav(str(temporary), 'wb') as file:
        file.setparams((1, 2, rate, len(values), 'NONE', ''))
        file.writeframes(values.astype('<i2').tobytes())
