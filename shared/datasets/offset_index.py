"""The file that says where each utterance of many shards is: written, read, checked.

An uncompressed npz of columns, N utterances in the order of a walk through the unpacked folder:
names (N,) bytes; order (N,), which sorts them as bytes; tar (N,) numbers the shards; speakers (N,)
index speaker_ids; offsets, sizes (N,) and forms (N, 3) as in `shards.Shard`. And of T shards tars (T,),
paths that start from the folder of the file or URLs, and stamps (T, 2).
"""

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared.datasets.items import DataError
from shared.datasets.lists import ROWS_AT_ONCE
from shared.datasets.outer_files import place_of
from shared.datasets.shards import Shard
from shared.datasets.tars import safe_name
from shared.files import replacing

VERSION = 2
PER_FILE = ('order', 'tar', 'speakers', 'offsets', 'sizes', 'forms')
COLUMNS = ('names', 'speakers', 'offsets', 'sizes', 'forms')  # of a shard
REST = ('names', 'speaker_ids', 'tars', 'stamps')
ODD = (b'//', b'/./', b'/../')  # never in a plain name between two slashes


def read_index(path: Path) -> dict[str, np.ndarray]:
    """The columns of an index.

    Raises:
        DataError: damaged, none, of another version, or an unsafe name in it.
    """
    table = _load(path)
    if table['version'] != VERSION:
        raise DataError(f'{path}: is an index of version {table["version"]}: make it again')
    names = table.get('names', np.empty(0))
    whole = all(name in table for name in REST) and names.dtype.kind == 'S'
    if not whole or {len(table.get(name, ())) for name in PER_FILE} != {len(names)}:
        raise DataError(f'{path}: is a damaged index of shards: make it again')
    for row in np.flatnonzero(_suspect(names)).tolist():
        safe_name(os.fsdecode(names[row]), path)
    return table


def kept_shards(path: Path) -> dict[str, Shard]:
    """The shards of an index by their paths or URLs; nothing where there is none or one of old.

    Raises:
        DataError: as `read_index`.
    """
    if not path.exists() or _load(path)['version'] != VERSION:
        return {}
    table = read_index(path)
    rows = np.argsort(table['tar'], kind='stable')
    cuts = np.searchsorted(table['tar'][rows], np.arange(1, len(table['tars'])))
    table |= {'speakers': table['speaker_ids'][table['speakers']]}
    parts = list(zip(*(np.split(table[name][rows], cuts) for name in COLUMNS)))
    places = [place_of(os.fsdecode(tar), path.parent, path) for tar in table['tars'].tolist()]
    stamps = [(int(size), int(change)) for size, change in table['stamps']]
    return {place: Shard._make((*part, stamp)) for place, part, stamp in zip(places, parts, stamps)}


def write_index(path: Path, shards: Mapping[str, Shard]) -> None:
    """Writes the index of shards, by their paths or URLs; those below its folder may move with it.

    A speaker that a shard does not tell is the first part of the name.

    Raises:
        DataError: no utterance, or a name twice.
    """
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(shard, name) for shard in shards.values()])
        for name in COLUMNS
    }
    if not len(columns['names']):
        raise DataError(f'{", ".join(list(shards)[:3])}: no utterance in all shards')
    tar = np.repeat(np.arange(len(shards)), [len(shard.names) for shard in shards.values()])
    rows = np.argsort(_by_parts(columns['names']), kind='stable')
    columns = {name: column[rows] for name, column in columns.items()} | {'tar': tar[rows]}
    names = columns['names']
    for row in np.flatnonzero(names[1:] == names[:-1])[:1].tolist():
        first, second = (list(shards)[columns['tar'][row + step]] for step in (0, 1))
        raise DataError(f'{second}: {os.fsdecode(names[row])} is there twice, or also in {first}')
    ids, speakers = np.unique(_speakers(columns), return_inverse=True)
    columns |= {'speakers': speakers, 'order': np.argsort(names, kind='stable')}
    columns['speaker_ids'] = ids
    columns['tars'] = np.array([os.fsencode(_line(place, path)) for place in shards])
    columns['stamps'] = np.array([shard.stamp for shard in shards.values()], dtype=np.int64)
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        np.savez(file, **{**columns, 'version': np.int64(VERSION)})


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return {**file, 'version': int(file['version'])}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        raise DataError(
            f'{path}: is no index of shards: give another folder, or remove it'
        ) from None


def _speakers(columns: dict[str, np.ndarray]) -> np.ndarray:
    """The speakers, (N,) bytes, first parts of names where there are none."""
    names, speakers = columns['names'], columns['speakers']
    silent = speakers == b''
    speakers = speakers.astype(f'S{max(names.itemsize, speakers.itemsize)}')
    speakers[silent] = [name.partition(b'/')[0] for name in names[silent].tolist()]
    return speakers


def _line(place: str, path: Path) -> str:
    """The place of a shard as the index at `path` has it."""
    above = os.path.abspath(path.parent) + os.sep
    return place.removeprefix(above)


def _by_parts(names: np.ndarray) -> np.ndarray:
    """Keys that sort as a walk goes: the files of a folder, then the folders in it; (N,) bytes."""
    letters = names.view(np.uint8).reshape(len(names), -1)
    slash = letters == ord('/')
    keys = np.empty((len(names), letters.shape[1] + 1), np.uint8)
    keys[:, 0] = 2  # before each folder, and 1 before the file; letters are larger
    keys[:, 1:] = np.where(slash, 2, letters)
    last = np.where(slash.any(axis=1), letters.shape[1] - slash[:, ::-1].argmax(axis=1), 0)
    keys[np.arange(len(names)), last] = 1
    return keys.view(f'S{keys.shape[1]}').ravel()


def _suspect(names: np.ndarray) -> np.ndarray:
    """Which names are not plain ASCII paths that stay below their folder, (N,) bool."""
    found = np.zeros(len(names), dtype=bool)
    for first in range(0, len(names), ROWS_AT_ONCE):
        some = np.ascontiguousarray(names[first : first + ROWS_AT_ONCE])
        letters = some.view(np.uint8).reshape(len(some), -1)
        lengths = np.char.str_len(some)
        inside = np.arange(letters.shape[1]) < lengths[:, None]
        odd = (((letters < 32) & inside) | (letters >= 127)).any(axis=1)
        framed = np.pad(letters, ((0, 0), (1, 1)))  # each part between two slashes
        framed[:, 0] = framed[np.arange(len(some)), lengths + 1] = ord('/')
        for part in ODD:
            width = framed.shape[1] - len(part) + 1
            hits = (framed[:, k : k + width] == letter for k, letter in enumerate(part))
            odd |= np.logical_and.reduce(list(hits)).any(axis=1) if width > 0 else False
        found[first : first + ROWS_AT_ONCE] = odd
    return found
