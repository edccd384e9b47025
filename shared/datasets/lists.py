"""List files and folders of audio: lines, columns, and one-line errors about what is not there."""

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from tqdm import tqdm

from shared import ddp
from shared.datasets.items import DataError, Utterances

if TYPE_CHECKING:
    from shared.datasets.packed import PackedFolder

AUDIO = ('.wav', '.flac')
ROWS_AT_ONCE = 65536  # Python strings alive while a list is read
LOOKS = 16  # folders looked at at a time: a network file system answers each in a millisecond or so
ABSENT_AT_ONCE = 4096  # sorted names that one thread looks for
FOUND = TypeVar('FOUND')


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


def audio_files(root: str | Path) -> Iterator[tuple[str, list[str]]]:
    """(folder relative to root, its audio files sorted) for every folder that holds some.

    A folder comes before those in it, which are sorted; '' is the root. Links are followed, but
    for those that lead back up.

    Raises:
        DataError: a folder cannot be read.
    """
    if packed := _packed(root):
        for first in range(0, len(packed.names), ROWS_AT_ONCE):
            names = map(os.fsdecode, packed.names[first : first + ROWS_AT_ONCE].tolist())
            for folder, group in groupby(map(os.path.split, names), key=lambda name: name[0]):
                yield folder, [last for _, last in group]
    else:
        yield from _walk(root, lambda entries: [entry.name for entry in entries])


def sizes_below(root: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Paths of all audio files relative to root, (N,) bytes, and their sizes, (N,) int64.

    In the order of `audio_files`; a link that leads nowhere has size -1.

    Raises:
        DataError: a folder cannot be read.
    """
    if packed := _packed(root):
        return packed.names, np.asarray(packed.sizes(), dtype=np.int64)
    sizes, chunks, pending = array('q'), [np.empty(0, dtype='S')], []
    for folder, found in _walk(root, lambda entries: [(e.name, _size(e)) for e in entries]):
        pending += [os.fsencode(os.path.join(folder, name)) for name, _ in found]
        sizes.extend(size for _, size in found)
        if len(pending) >= ROWS_AT_ONCE:
            chunks.append(np.array(pending))
            pending = []
    if pending:
        chunks.append(np.array(pending))
    return np.concatenate(chunks), np.array(sizes, dtype=np.int64)


def _walk(
    root: str | Path, take: Callable[[list[os.DirEntry]], FOUND]
) -> Iterator[tuple[str, FOUND]]:
    """(folder, what `take` makes of its audio files) in the order of `audio_files`."""

    def look(folder: str) -> tuple[list[os.DirEntry], list[str]]:
        files, folders = [], []
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    if entry.is_dir():
                        if not (entry.is_symlink() and _leads_up(entry.path)):
                            folders.append(os.path.join(folder, entry.name))
                    elif entry.name.endswith(AUDIO):
                        files.append(entry)
        except OSError as error:
            raise DataError(
                f'{os.path.join(root, folder)}: cannot be listed ({error.strerror}); '
                'mend its permissions or its disk'
            ) from None
        return sorted(files, key=lambda entry: entry.name), sorted(folders)

    def below(folder: str) -> list[tuple[str, FOUND]]:
        found, folders = [], [folder]
        while folders:
            folder = folders.pop()
            files, inside = look(folder)
            folders += reversed(inside)
            if files:
                found.append((folder, take(files)))
        return found

    files, folders = look('')
    if files:
        yield '', take(files)
    bar = {'desc': f'looking into {root}', 'unit': 'folder', 'delay': 1.0, 'leave': False}
    with ThreadPoolExecutor(LOOKS) as pool:
        looked = pool.map(below, folders)
        for found in tqdm(looked, total=len(folders), disable=not ddp.is_main() or None, **bar):
            yield from found


def _leads_up(link: str) -> bool:
    """Whether a link to a folder leads to one that it is in."""
    target, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([target, here]) == target


def _size(entry: os.DirEntry) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return -1


def _packed(root: str | Path) -> 'PackedFolder | None':
    """The packed folder that `root` is, if it is one."""
    from shared.datasets.packed import packed_folder  # which builds on this file

    return packed_folder(root)


def require_files(list_path: str | Path, root: Path, names: Iterable[str | bytes]) -> None:
    """Checks that every listed file is there, folder by folder (one look a folder, not a file).

    Raises:
        DataError: the first three missing ones and their count.
    """
    if not isinstance(names, np.ndarray):
        names = np.array([os.fsencode(name) for name in names], dtype='S')
    if packed := _packed(root):
        missing = sorted(packed.missing(names).tolist())
    else:
        ordered = np.sort(names)
        parts = [ordered[i : i + ABSENT_AT_ONCE] for i in range(0, len(ordered), ABSENT_AT_ONCE)]
        with ThreadPoolExecutor(LOOKS) as pool:
            missing = sum(pool.map(lambda part: _absent(os.fsencode(root), part), parts), [])
    if missing:
        few = ', '.join(map(os.fsdecode, missing[:3])) + (', ...' if len(missing) > 3 else '')
        raise DataError(
            f'{list_path}: {len(missing)} listed files are not below {root}: {few}; '
            'correct the folder or the list'
        )


def _absent(root: bytes, names: np.ndarray) -> list[bytes]:
    """Those of sorted names that are not there."""
    missing, folder, present = [], None, set()
    for name in names.tolist():
        above, _, last = name.rpartition(b'/')
        if above != folder:
            folder = above
            try:
                present = set(os.listdir(os.path.join(root, above)))
            except OSError:
                present = set()
        if last not in present:
            missing.append(name)
    return missing


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


def leads_out(name: str) -> bool:
    """Whether a listed path does not stay below the folder that it starts from."""
    return name.startswith('/') or ('..' in name and '..' in name.split('/'))


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
