"""List files and folders of audio: lines, columns, and one-line errors about what is not there."""

import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from shared.datasets.items import DataError, Utterances

AUDIO = ('.wav', '.flac')
ROWS_AT_ONCE = 65536  # Python strings alive while a list is read


def existing(path: str | Path, what: str) -> Path:
    """The path, when it is a folder.

    Raises:
        DataError: it is empty, missing or no folder.
    """
    if not str(path).strip():
        raise DataError(f'path of the {what} is empty: give it')
    if not Path(path).is_dir():
        raise DataError(f'{path}: no such folder ({what}): give an existing one')
    return Path(path)


def listing(folder: Path, show: int = 5) -> str:
    """What a folder holds, for error messages."""
    names = sorted(os.listdir(folder))
    rest = f' and {len(names) - show} more' if len(names) > show else ''
    return (', '.join(names[:show]) or 'nothing') + rest


def require_files(list_path: str | Path, root: Path, names: Iterable[str | bytes]) -> None:
    """Checks that every listed file is there, folder by folder (one look a folder, not a file).

    Raises:
        DataError: the first three missing ones and their count.
    """
    missing, folder, present = [], None, set()
    for name in np.sort(np.asarray(names)).tolist():
        name = os.fsdecode(name)
        above, last = os.path.split(name)
        if above != folder:
            folder = above
            try:
                present = set(os.listdir(root / above))
            except OSError:
                present = set()
        if last not in present:
            missing.append(name)
    if missing:
        few = ', '.join(missing[:3]) + (', ...' if len(missing) > 3 else '')
        raise DataError(
            f'{list_path}: {len(missing)} listed files are not below {root}: {few}; '
            'correct the folder or the list'
        )


def lines(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """(number, columns) of every line that is not blank.

    Raises:
        DataError: no path given, no such file, or not a text file.
    """
    if not str(path).strip():
        raise DataError('path of a list file is empty: give it')
    try:
        with open(path, encoding='utf-8') as file:
            for number, line in enumerate(file, start=1):
                if fields := line.split():
                    yield number, fields
    except UnicodeDecodeError:
        raise DataError(f'{path}: is not a text file') from None
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror}): give a list file') from None


def bad_line(path: str | Path, number: int, fields: list[str], what: str) -> DataError:
    """The error about one line: file, number, what is wrong, its text."""
    return DataError(f'{path}: line {number} {what}: {" ".join(fields)[:120]!r}')


class Columns:
    """Grows the columns of Utterances while a list is read."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}  # speaker -> number in order of appearance
        self.speakers, self.seconds = array('q'), array('d')
        self.chunks: list[np.ndarray] = []
        self.pending: list[bytes] = []

    def __len__(self) -> int:
        return len(self.speakers)

    def add(self, speaker: str, path: str) -> None:
        """One more row; its seconds, if known, are appended to `seconds` by the caller."""
        self.speakers.append(self.numbers.setdefault(speaker, len(self.numbers)))
        self.pending.append(os.fsencode(path))
        if len(self.pending) == ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Packs the pending paths."""
        self.chunks.append(np.array(self.pending, dtype='S'))
        self.pending = []

    def utterances(self, root: Path) -> Utterances:
        """The finished columns, speakers numbered in sorted order."""
        self.flush()
        ids, (speakers,) = sorted_names(list(self.numbers), self.speakers)
        seconds = np.array(self.seconds) if self.seconds else None
        return Utterances(root, np.concatenate(self.chunks), speakers, ids, seconds)


def sorted_names(names: list[str], *columns: array) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names that occur in the columns, sorted, and the columns renumbered to that order."""
    used = sorted({int(i) for column in columns for i in np.unique(column)}, key=names.__getitem__)
    renumber = np.zeros(len(names), dtype=np.int64)
    renumber[used] = np.arange(len(used))
    return tuple(names[i] for i in used), [renumber[np.asarray(column)] for column in columns]
