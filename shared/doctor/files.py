"""Folders of audio under the doctor's eyes: what is in them, and what opening the files tells."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from shared.datasets.convert import SUFFIXES, find_ffmpeg
from shared.datasets.decoding import AudioError
from shared.datasets.items import Paths
from shared.datasets.lists import AUDIO, existing, sizes_below
from shared.datasets.reading import AudioReader
from shared.doctor.findings import Check, Finding, awaited, few
from shared.errors import UserError

SAMPLED = 2000  # files of a folder that are opened; a fault of 0.2 % of them shows up almost surely
PEEKED = 100  # top-level folders searched for audio that is not read here
HEADER = 44  # bytes of a wav without samples
END = 10 * 16000  # samples read at either end of a file that is longer than both
SEED = 0  # of what is looked at
THREADS, AHEAD = 16, 4096  # files opened at a time, as they wait for the disk; jobs waiting


@dataclass(frozen=True)
class Files:
    """The audio files of a folder: `names` (N,) bytes relative to `root`, `sizes` (N,) bytes."""

    root: Path
    names: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.names)

    def rows(self, paths: np.ndarray) -> np.ndarray:
        """The row of each path (M,) bytes, -1 where there is none."""
        if np.array_equal(paths, self.names):
            return np.arange(len(self))
        if not len(self):
            return np.full(len(paths), -1)
        at = np.searchsorted(self.names, paths, sorter=self._order)
        rows = self._order[np.minimum(at, len(self) - 1)]
        return np.where(self.names[rows] == paths, rows, -1)

    def there(self, paths: np.ndarray) -> np.ndarray:
        """Those of the paths (M,) bytes that are in the folder."""
        return paths[self.rows(paths) >= 0]


@dataclass(frozen=True)
class Opening:
    """How files are opened: of which role, below which folder, and how bad bad ones are.

    `tolerated` is the share, 0 to 1, that a run passes over before it stops. `channel` is the one
    that is read; None: files should have only one. `full` opens all, else `sampled` of them.
    `any_kind`: rate and channels do not matter.
    """

    role: str
    root: Path
    tolerated: float = 0.0
    channel: int | None = None
    full: bool = False
    sampled: int = SAMPLED
    any_kind: bool = False


def audio_below(role: str, path: str | Path) -> Check[Files | None]:
    """The files of a folder; audio that is not read here, and none at all, are errors."""
    root = existing(path, f'{role} data')
    files = Files(root, *awaited(f'{role}: files below {root}', partial(sizes_below, root)))
    yield from other_audio(role, files)
    return files if len(files) else None


def other_audio(role: str, files: Files) -> Check[None]:
    """Files of other formats in some of the folders; the lack of any that can be read."""
    found = _others(files.root) if not (files.root / 'index.npz').exists() else []
    named = f'{files.root}/{found[0]}' if found else ''
    if found and Path(found[0]).suffix.lower() in AUDIO:
        yield Finding(
            'error', role, f'{named} and others: endings in capitals are not seen', 'rename them'
        )
    elif found:
        yield Finding(
            'error',
            role,
            f'{named} and others are neither wav nor FLAC, so they are not seen',
            f'python -m shared.datasets.prepare convert {files.root} {files.root}_wav',
        )
        yield ffmpeg()
    elif not len(files):
        yield Finding(
            'error',
            role,
            f'{files.root}: no .wav or .flac in it',
            'give the folder that holds the speaker folders',
        )


def ffmpeg() -> Finding:
    """Whether there is the program that converts such files."""
    try:
        return Finding('ok', 'ffmpeg', find_ffmpeg())
    except UserError as error:
        return Finding('warning', 'ffmpeg', str(error))


def _others(root: Path) -> list[str]:
    """Paths of other audio below `root`, relative, in some of its folders."""
    with os.scandir(root) as entries:
        top = sorted(entry.path for entry in entries if entry.is_dir())
    if len(top) > PEEKED:
        rows = np.random.default_rng(SEED).choice(len(top), PEEKED, replace=False)
        top = [top[row] for row in sorted(rows)]
    found = _strange(str(root), os.listdir(root))
    for folder in top:
        for above, _, names in os.walk(folder, followlinks=True):
            found += _strange(above, names)
        if found:
            break
    return [os.path.relpath(path, root) for path in sorted(found)]


def _strange(folder: str, names: Sequence[str]) -> list[str]:
    """Audio by its ending that is not read, '.m4a' or '.WAV', without a file beside it that is."""
    split = [os.path.splitext(name) for name in names]
    read = {stem for stem, ending in split if ending in AUDIO}
    return [
        os.path.join(folder, stem + ending)
        for stem, ending in split
        if stem not in read and ending.lower() in SUFFIXES
    ]


def empty_files(files: Files, role: str, tolerated: float) -> Check[None]:
    """Files without a single sample, by their size, and links that lead nowhere."""
    for what, bad in (
        ('links lead to no file', files.sizes < 0),
        ('files hold no audio', (files.sizes >= 0) & (files.sizes <= HEADER)),
    ):
        if count := int(bad.sum()):
            names = map(os.fsdecode, files.names[np.flatnonzero(bad)[:4]])
            yield Finding(
                'warning' if count <= tolerated * len(files) else 'error',
                role,
                f'{files.root}: {count:,} of {len(files):,} {what}: {few(names)}',
                'make or copy them again, or leave them out of the list',
            )


def opened(names: np.ndarray, opening: Opening) -> Check[None]:
    """Opens and reads files (N,) bytes, a seeded sample or all, and says what is odd in them."""
    count = len(names) if opening.full else min(opening.sampled, len(names))
    rows = np.arange(len(names))
    if count < len(names):
        rows = np.sort(np.random.default_rng(SEED).choice(len(names), count, replace=False))
    odd: dict[str, list[str]] = {}
    paths = Paths(opening.root, names[rows])
    bar = tqdm(total=count, desc=f'{opening.role}: files', unit='file', leave=False, disable=None)
    with ThreadPoolExecutor(THREADS) as pool, bar:
        for first in range(0, count, AHEAD):
            for kinds in pool.map(partial(_look, opening.channel), paths[first : first + AHEAD]):
                for kind, detail in kinds:
                    odd.setdefault(kind, []).append(detail)
                bar.update()
    if opening.any_kind:
        odd = {kind: details for kind, details in odd.items() if kind not in ('rate', 'channels')}
    looked = f'{count:,} files' + (f' (of {len(names):,})' if count < len(names) else '')
    yield from _told(odd, looked, count, opening)


def _told(odd: dict[str, list[str]], looked: str, count: int, opening: Opening) -> Check[None]:
    convert = (
        f'python -m shared.datasets.prepare convert {opening.root} '
        f'{opening.root}_16k makes 16 kHz mono'
    )
    again = 'make or copy them again, or leave them out of the list'
    for kind, what, fix in (
        ('bad', 'cannot be used', again),
        ('silent', 'are digital silence', again),
        ('rate', 'are not at 16000 Hz, and are resampled whenever they are read', convert),
        ('channels', 'have several channels, whose mean is taken', convert),
    ):
        if details := odd.get(kind):
            bad = kind == 'bad' and len(details) > opening.tolerated * count
            yield Finding(
                'error' if bad else 'warning',
                opening.role,
                f'{len(details):,} of the {looked} looked at {what}: {few(details, 2)}',
                fix,
            )
    if not odd:
        yield Finding('ok', opening.role, f'{looked} opened and read')


def _look(channel: int | None, path: Path) -> list[tuple[str, str]]:
    """What is odd in a file: kinds of `_told`, and what to say of it."""
    found = []
    try:
        with AudioReader().open(path, channel) as audio:
            file = audio.file
            if file.samplerate != audio.reader.rate:
                found.append(('rate', f'{path} at {file.samplerate} Hz'))
            if file.channels > 1 and channel is None:
                found.append(('channels', f'{path} with {file.channels}'))
            ends = [(0, file.frames)]
            if file.frames > 2 * END:
                ends = [(0, END), (file.frames - END, END)]
            waves = [file.read(*part, channel) for part in ends]
            if not any(wave.any() for wave in waves):
                found.append(('silent', str(path)))
    except AudioError as error:
        found.append(('bad', str(error)))
    return found


def first_folders(names: np.ndarray) -> list[bytes]:
    """The different first folders of paths (N,) bytes, sorted: speakers. b'' of a bare name."""
    if not len(names):
        return []
    letters = np.ascontiguousarray(names).view('u1').reshape(len(names), -1)  # (N, bytes)
    slash = np.argmax(letters == ord('/'), axis=1)
    width = max(int(slash.max()), 1)
    heads = letters[:, :width].copy()
    heads[np.arange(width) >= slash[:, None]] = 0
    heads = heads.view(f'S{width}').ravel()
    changes = np.append(True, heads[1:] != heads[:-1])  # lists are mostly sorted
    return np.unique(heads[changes]).tolist()
