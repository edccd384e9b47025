"""Packed folders: audio in tar shards that is read at random, as if it lay unpacked in the folder.

A packed folder holds `index.npz`: the name of each audio file, its shard and its place there. The
shards are below the folder (`pack`), or anywhere, also at URLs of fsspec (`index`). Whatever takes a
folder of audio takes a packed one: `folder / name` opens through `file_parts.open_bytes`. Columns
are arrays; a million files cost about a hundred megabytes.
"""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np

from shared import ddp
from shared.datasets.items import DataError, Utterances
from shared.datasets.lists import Columns, audio_files, existing, listing
from shared.datasets.offset_index import kept_shards, read_index, write_index
from shared.datasets.outer_files import FilePart, Stamp, is_url, open_outer, place_of
from shared.datasets.shards import LOSSY, listed_tars, look_into, write_shards

INDEX = 'index.npz'
REMOTE_WORKERS = 32  # threads that wait for URLs
_loaded: dict[str, tuple[Stamp, 'PackedFolder']] = {}  # by root


class PackedFolder:
    """The audio files of a packed folder, N of them, in the order of a walk through it unpacked.

    `names` (N,) bytes are relative to `root`; `speakers` (N,) index `speaker_ids`, which is sorted.

    Args:
        root: the folder.

    Raises:
        DataError: its index is damaged or none, or holds an unsafe name.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        table = read_index(self.root / INDEX)
        self.names, self.speakers = table['names'], table['speakers']
        self.speaker_ids = tuple(map(os.fsdecode, table['speaker_ids'].tolist()))
        self._order = table['order'].astype(np.intp)  # of the names as bytes
        self._tar, self._offsets, self._sizes = table['tar'], table['offsets'], table['sizes']
        self._forms = table['forms']
        tars = [os.fsdecode(tar) for tar in table['tars'].tolist()]
        self._places = [place_of(tar, self.root, self.root / INDEX) for tar in tars]
        self._stamps = [(int(size), int(change)) for size, change in table['stamps']]

    def __len__(self) -> int:
        return len(self.names)

    def sizes(self) -> np.ndarray:
        """Bytes of each file, (N,) int64."""
        return self._sizes

    def seconds(self, rate: int = 16000) -> np.ndarray:
        """Duration of each file when read at `rate`, (N,) float64; NaN where `forms` has zeros."""
        frames, own, _ = self._forms.T
        known = frames > 0
        return np.where(known, -(-frames * rate // np.where(known, own, 1)) / rate, np.nan)

    def forms(self) -> np.ndarray:
        """Samples of a channel, samples per second and channels, (N, 3) int64.

        Zeros where headers do not tell; they do of PCM-16 wavs and FLAC files.
        """
        return self._forms

    def rows(self, names: np.ndarray | Sequence[str | bytes]) -> np.ndarray:
        """Number of each of M names, (M,) int64; -1 where there is no such file."""
        wanted = _as_bytes(names)
        if not len(self):
            return np.full(len(wanted), -1)
        ordered = np.argsort(wanted)  # neighbours are found in memory that is near
        at = np.empty(len(wanted), dtype=np.int64)
        at[ordered] = np.searchsorted(self.names, wanted[ordered], sorter=self._order)
        rows = self._order[np.minimum(at, len(self) - 1)]
        return np.where(self.names[rows] == wanted, rows, -1)

    def missing(self, names: np.ndarray | Sequence[str | bytes]) -> np.ndarray:
        """Those of `names` that are not there, bytes."""
        wanted = _as_bytes(names)
        lost = wanted[self.rows(wanted) < 0]
        if not len(lost):
            return lost
        plain = [os.path.normpath(name) for name in lost.tolist()]  # a//b, ./a
        return lost[self.rows(np.array(plain)) < 0]

    def below(self, folder: str) -> np.ndarray:
        """The names that begin with `folder/`, in their order; all of '' or '.'."""
        start = os.fsencode(os.path.normpath(folder or '.')) + b'/'
        if start == b'./':
            return self.names
        if len(start) > self.names.itemsize:
            return self.names[:0]
        return self.names[self.names.astype(f'S{len(start)}') == start]

    def open(self, name: str | bytes) -> FilePart | BytesIO:
        """The bytes of one file.

        Raises:
            FileNotFoundError: no such file.
            DataError: its shard is not there, has changed, or does not answer.
        """
        row = self._row(os.fsencode(name))
        tar = self._tar[row]
        outer = open_outer(self._places[tar], self._stamps[tar])
        return outer.part(int(self._offsets[row]), int(self._sizes[row]))

    def _row(self, name: bytes) -> int:
        if len(name) <= self.names.itemsize:  # a longer one would make numpy copy all names
            at = self.names.searchsorted(name, sorter=self._order)
            if at < len(self) and self.names[self._order[at]] == name:
                return int(self._order[at])
        raise FileNotFoundError(2, f'not in the index of {self.root}', os.fsdecode(name))

    def utterances(self) -> Utterances:
        """All files with their speakers; seconds where all headers tell them."""
        seconds = self.seconds()
        known = None if np.isnan(seconds).any() else seconds
        return Utterances(self.root, self.names, self.speakers, self.speaker_ids, known)


def packed_folder(path: str | Path) -> PackedFolder | None:
    """The packed folder that `path` is; None for any other. Loaded once, again when it changed.

    Raises:
        DataError: as `PackedFolder`.
    """
    root = os.path.abspath(path)
    try:
        found = os.stat(os.path.join(root, INDEX))
    except (FileNotFoundError, NotADirectoryError):
        _loaded.pop(root, None)
        return None
    stamp = (found.st_size, found.st_mtime_ns)
    if root not in _loaded or _loaded[root][0] != stamp:
        _loaded[root] = stamp, PackedFolder(root)
    return _loaded[root][1]


def find(path: str | Path, known: bool = False) -> tuple[PackedFolder, str] | None:
    """The packed folder that a path leads into and the rest of the path; None where there is none.

    Args:
        path: of a file or folder.
        known: look at folders that were loaded before, and at nothing on the disk.
    """
    if known and not _loaded:
        return None
    text = os.path.abspath(path)
    if known:
        for root, (_, folder) in tuple(_loaded.items()):
            if text.startswith(root + '/'):
                return folder, text[len(root) + 1 :]
        return None
    inside = ''
    while not os.path.isdir(text):
        text, last = os.path.split(text)
        inside = os.path.join(last, inside) if inside else last
    found = packed_folder(text)
    return None if found is None else (found, inside)


def pack(
    source: str | Path, out: str | Path, *, per_shard: int = 1000, seed: int = 42
) -> PackedFolder:
    """Packs a folder of audio, byte by byte; a second call goes on, or does nothing.

    Speakers are the first parts of the paths. The layout is that of `shards.write_shards`.

    Args:
        source: speakers, MUSAN, room responses, test files: any folder of wav and FLAC files.
        out: the packed folder.
        per_shard: files in a tar.
        seed: of their order.

    Raises:
        DataError: no such folder, nothing in it that is decoded here, or audio of other kinds; as
            `write_shards`.
    """
    root, columns = existing(source, 'folder to pack'), Columns()
    if os.path.realpath(root) == os.path.realpath(out) or packed_folder(root):
        raise DataError(f'{out}: give a folder of its own, and as source one that is not packed')
    for folder, names in audio_files(root):
        for name in names:
            columns.add((folder or name).partition('/')[0], os.path.join(folder, name))
    _require_decoded(root)
    if not len(columns):
        raise DataError(f'{root}: no .wav or .flac below it; it holds {listing(root)}')
    listed = write_shards(columns.utterances(root), out, per_shard, seed)
    return index(listed_tars(listed), out)


def index(tars: Sequence[str | Path], out: str | Path) -> PackedFolder:
    """A packed folder of shards made by others, which stay where they are.

    Only headers are read, and only of shards that are new or have changed. A speaker is what the
    .spk of an utterance says, or the first part of its name.

    Args:
        tars: paths, URLs of fsspec, or a `.list` of them.
        out: the folder; its `index.npz` is written.

    Raises:
        DataError: no shards or one twice, an unusable one (see `shards.look_into`), a name twice.
    """
    places: list[str] = []
    for tar in map(str, tars):
        places += listed_tars(tar) if tar.endswith('.list') else [place_of(tar, '.', 'shards')]
    _update(places, Path(out) / INDEX)
    return _loaded_folder(out)


def read_shards(tars: Sequence[str | Path], kept: str | Path, workers: int = 8) -> Utterances:
    """The utterances of tar shards, in the order of an unpacked folder, with their speakers.

    So the numbers of utterances, and all that is drawn by them, depend neither on the packing nor
    on the order of the tars.

    Args:
        tars: paths or URLs of the shards, all or some.
        kept: folder of their index. Rank 0 makes it once and then looks again into tars that have
            changed; every rank reads it.
        workers: threads that read headers.

    Raises:
        DataError: as `index`; an utterance without a speaker.
    """
    places = [place_of(str(tar), '.', 'shards') for tar in tars]
    if ddp.is_main():
        _update(places, Path(kept) / INDEX, workers, labelled=True)
    ddp.barrier()
    return _loaded_folder(kept).utterances()


def _update(places: list[str], path: Path, workers: int = 8, labelled: bool = False) -> None:
    """Makes the index true of these shards; `labelled`: each utterance must have a .spk."""
    for place, times in Counter(places).most_common(1):
        if times > 1:
            raise DataError(f'{place}: is listed twice')
    if not places:
        raise DataError('no shards: list some tars')
    shards = kept_shards(path)
    workers = max(workers, REMOTE_WORKERS if any(map(is_url, places)) else 1)
    with ThreadPoolExecutor(workers) as pool:
        stamps = list(pool.map(lambda place: open_outer(place).stamp, places))
    new = [p for p, stamp in zip(places, stamps) if p not in shards or shards[p].stamp != stamp]
    if not new and list(shards) == places:
        return
    for place, shard in zip(new, look_into(new, workers)):
        if labelled and (shard.speakers == b'').any():
            name = os.fsdecode(shard.names[shard.speakers == b''][0])
            raise DataError(f'{place}: {name} has no .spk, which tells its speaker')
        shards[place] = shard
    write_index(path, {place: shards[place] for place in places})


def _loaded_folder(root: str | Path) -> PackedFolder:
    folder = packed_folder(root)
    if folder is None:
        raise DataError(
            f'{root}: index of the shards is not here: give a folder all machines share'
        )
    return folder


def _require_decoded(root: Path) -> None:
    """That audio of other kinds, if there is any, has been converted."""
    for above, _, names in os.walk(root):
        stems = {os.path.splitext(name)[0] for name in names if not name.endswith(LOSSY)}
        for name in names:
            if name.endswith(LOSSY) and os.path.splitext(name)[0] not in stems:
                raise DataError(
                    f'{os.path.join(above, name)}: is neither wav nor FLAC: convert it first '
                    '(python -m shared.datasets.prepare convert)'
                )


def _as_bytes(names: np.ndarray | Sequence[str | bytes]) -> np.ndarray:
    names = np.asarray(names)
    if names.dtype.kind == 'S':
        return names
    return np.array([os.fsencode(name) for name in names.tolist()], dtype='S')
