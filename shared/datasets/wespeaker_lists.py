"""Lists of utterances as wespeaker and Kaldi write them (spec enskd 2.1, 2.2).

A relative path in a list starts from the `root` given, by default from the folder of the list.
Speakers are numbered in the order of their names, of those that occur or, where utt2spk is given,
of all that it has, so that a part of a set has the classes of the whole.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shared.datasets.items import DataError, Utterances
from shared.datasets.lists import AUDIO, Columns, bad_line, lines, require_files
from shared.datasets.outer_files import is_url
from shared.datasets.packed import find, read_shards
from shared.datasets.shards import listed_tars

COLUMNS = {'key', 'spk', 'wav'}  # of a line of raw.list


def is_raw_or_shard_list(list_path: str | Path) -> bool:
    """Whether the first line is JSON or a single path, as no list of other programs begins.

    Raises:
        DataError: the list cannot be read.
    """
    _, fields = next(lines(list_path), (0, []))
    return bool(fields) and (fields[0].startswith('{') or len(fields) == 1)


def read_list(
    list_path: str | Path,
    kept: str | Path,
    root: str | Path | None = None,
    utt2spk: str | Path | None = None,
    workers: int = 8,
) -> Utterances:
    """Utterances of raw.list, shard.list or wav.scp, whichever the first line shows.

    Args:
        list_path: one of them; wav.scp needs `utt2spk`.
        kept: see `read_shard_list`, and so the next three.
        root: of relative paths.
        utt2spk: of the classes.
        workers: threads.

    Raises:
        DataError: as the three functions below.
    """
    number, fields = next(lines(list_path), (0, []))
    if not fields:
        raise DataError(f'{list_path}: is empty; give a raw.list, shard.list or wav.scp')
    if fields[0].startswith('{'):
        return read_raw_list(list_path, root, utt2spk)
    if len(fields) == 1:
        return read_shard_list(list_path, kept, root, utt2spk, workers)
    if utt2spk is None:
        raise bad_line(list_path, number, fields, 'is of a wav.scp, which needs its utt2spk')
    return read_wav_scp(list_path, utt2spk, root)


def read_raw_list(
    list_path: str | Path, root: str | Path | None = None, utt2spk: str | Path | None = None
) -> Utterances:
    """Utterances of JSON lines with key, spk and wav, in their order.

    Names are the paths below the folder that all files share.

    Raises:
        DataError: a line that is none, features without waveforms, an unknown column, a file that
            is missing or not decoded here, a key that occurs twice, a speaker without a class.
    """
    speakers = _read_speakers(utt2spk)
    utterances = _utterances(list_path, _raw_rows(list_path), root)
    return _with_classes(utterances, speakers, list_path, utt2spk)


def read_wav_scp(
    list_path: str | Path, utt2spk: str | Path, root: str | Path | None = None
) -> Utterances:
    """Utterances of lines `key path`, in their order; speakers from lines `key speaker`.

    Names are the paths below the folder that all files share.

    Raises:
        DataError: a line that is none (commands are not run), a key without speaker, a file that is
            missing or not decoded here, a key that occurs twice.
    """
    speakers = _read_speakers(utt2spk)
    utterances = _utterances(list_path, _scp_rows(list_path, speakers, utt2spk), root)
    return _with_classes(utterances, speakers, list_path, utt2spk)


def read_shard_list(
    list_path: str | Path,
    kept: str | Path,
    root: str | Path | None = None,
    utt2spk: str | Path | None = None,
    workers: int = 8,
) -> Utterances:
    """Utterances of a list of tar shards, a path or URL a line; see `packed.read_shards`.

    Args:
        list_path: shard.list.
        kept: folder of the index, made where it is not; every rank reads it.
        root: where relative paths start; None: the folder of the list.
        utt2spk: lines `key speaker` whose speakers are the classes; None: those of the shards.
        workers: threads that read headers.

    Raises:
        DataError: as `read_shards`; no line, a line that is no path, a speaker without a class.
    """
    speakers = _read_speakers(utt2spk)
    tars = listed_tars(list_path, root)
    if missing := [tar for tar in tars if not is_url(tar) and not os.path.exists(tar)]:
        raise DataError(
            f'{list_path}: {len(missing)} shards are missing, first {missing[0]}; correct the list '
            'or the folder that its paths start from'
        )
    utterances = read_shards(tars, kept, workers)
    return _with_classes(utterances, speakers, list_path, utt2spk)


def _root(list_path: str | Path, root: str | Path | None) -> Path:
    return Path(list_path).absolute().parent if root is None else Path(root).absolute()


Rows = Iterator[tuple[int, list[str], str, str, str]]  # number, fields, key, speaker, path


def _raw_rows(list_path: str | Path) -> Rows:
    for number, fields in lines(list_path):
        try:
            row = json.loads(' '.join(fields))
        except ValueError:
            row = None
        if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()):
            what = 'must be JSON such as {"key": ..., "spk": ..., "wav": ...}'
            raise bad_line(list_path, number, fields, what)
        if 'feat' in row:
            what = 'holds features, no waveform: give the raw.list or shard.list of the set'
            raise bad_line(list_path, number, fields, what)
        if row.keys() != COLUMNS:
            odd = ', '.join(sorted(row.keys() ^ COLUMNS))
            raise bad_line(
                list_path, number, fields, f'must have key, spk and wav alone, see {odd}'
            )
        yield number, fields, row['key'], row['spk'], row['wav']


def _scp_rows(list_path: str | Path, speakers: dict[str, str], utt2spk: str | Path) -> Rows:
    for number, fields in lines(list_path):
        if len(fields) != 2:
            what = 'must be `key path`: commands are not run, nor may a path hold blanks'
            raise bad_line(list_path, number, fields, what)
        if fields[0] not in speakers:
            raise bad_line(list_path, number, fields, f'has no speaker in {utt2spk}')
        yield number, fields, fields[0], speakers[fields[0]], fields[1]


def _utterances(list_path: str | Path, rows: Rows, root: str | Path | None) -> Utterances:
    """The rows in columns, their files below the folder that they share; all must be there."""
    above, columns, keys = _root(list_path, root), Columns(), set()
    for number, fields, key, speaker, path in rows:
        if not path.endswith(AUDIO):
            what = f'must name a file that is decoded here ({", ".join(AUDIO)})'
            raise bad_line(list_path, number, fields, what)
        if not key or key in keys or len(speaker.split()) != 1:
            what = 'repeats a key' if key in keys else 'needs a key and a speaker without blanks'
            raise bad_line(list_path, number, fields, what)
        keys.add(key)
        columns.add(speaker, str(above / path))
    if not keys:
        raise DataError(f'{list_path}: is empty; give a list of utterances')
    utterances = columns.utterances(above)
    folder, below = _split_root(utterances.paths)
    if packed := find(folder):  # whatever part of it the files share
        folder = packed[0].root
        below = np.array(
            [path[len(os.fsencode(folder)) + 1 :] for path in utterances.paths.tolist()]
        )
    require_files(list_path, folder, below)
    return dataclasses.replace(utterances, root=folder, paths=below)


def _split_root(paths: np.ndarray) -> tuple[Path, np.ndarray]:
    """The deepest folder above all of the full paths (N,) bytes, and what is below it."""
    ends = np.sort(paths)[[0, -1]].tolist()  # what these share, all share
    root = os.path.commonpath([os.path.dirname(path) for path in ends])
    skip = len(root.rstrip(b'/')) + 1
    letters = np.ascontiguousarray(paths).view('S1').reshape(len(paths), -1)  # (N, bytes)
    below = np.ascontiguousarray(letters[:, skip:]).view(f'S{letters.shape[1] - skip}')
    return Path(os.fsdecode(root)), below.ravel()


def _read_speakers(utt2spk: str | Path | None) -> dict[str, str]:
    """Key -> speaker; empty where no file is given."""
    speakers: dict[str, str] = {}
    if utt2spk is None:
        return speakers
    for number, fields in lines(utt2spk):
        if len(fields) != 2:
            raise bad_line(utt2spk, number, fields, 'must be `key speaker`')
        if fields[0] in speakers:
            raise bad_line(utt2spk, number, fields, 'repeats a key')
        speakers[fields[0]] = sys.intern(fields[1])
    if not speakers:
        raise DataError(f'{utt2spk}: is empty; lines must be `key speaker`')
    return speakers


def _with_classes(
    utterances: Utterances,
    speakers: dict[str, str],
    list_path: str | Path,
    utt2spk: str | Path | None,
) -> Utterances:
    """The utterances, their speakers numbered among all of utt2spk."""
    if utt2spk is None:
        return utterances
    names = sorted(set(speakers.values()))
    numbers = {name: number for number, name in enumerate(names)}
    if unknown := [name for name in utterances.speaker_ids if name not in numbers]:
        raise DataError(
            f'{list_path}: speaker {unknown[0]} is not in {utt2spk} ({len(unknown)} are not): give '
            'the utt2spk of this list'
        )
    renumber = np.array([numbers[name] for name in utterances.speaker_ids], dtype=np.int64)
    return dataclasses.replace(
        utterances, speakers=renumber[utterances.speakers], speaker_ids=tuple(names)
    )
