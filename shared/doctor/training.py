"""The training set under the doctor's eyes: folder against list, list against disk, counts."""

import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.datasets import voxceleb
from shared.datasets.items import Utterances
from shared.doctor.files import (
    Files,
    Opening,
    audio_below,
    empty_files,
    first_folders,
    opened,
)
from shared.doctor.findings import Check, Finding, awaited, few
from shared.doctor.plan import Corpora, Place


class Known(NamedTuple):
    """A published set; `ids` are the numbers of its speakers, id00012 is 12."""

    name: str
    speakers: int
    utterances: int
    ids: range


VOX1, VOX2 = range(10001, 11252), range(0, 10000)
KNOWN = (  # specs lgl 2.1, nawsv 2.1, enskd 2.1; VoxCeleb1's test part is the difference of two
    Known('VoxCeleb2 dev', 5994, 1_092_009, VOX2),
    Known('VoxCeleb1 dev', 1211, 148_642, VOX1),
    Known('VoxCeleb1 test', 40, 4_874, VOX1),
    Known('VoxCeleb1', 1251, 153_516, VOX1),
)
RATE, BYTES = 16000, 2  # of the wavs that sizes are compared with
SLACK = 0.2  # seconds that a file may differ from its list, by its header or rounding


def training(corpora: Corpora, full: bool) -> Check[tuple[int, int, set[str]] | None]:
    """The training set: number of utterances, number of speakers, names of the speakers."""
    if corpora.read_train is not None:
        listed = corpora.read_train()
        seen = Opening('training', listed.root, corpora.tolerated, full=full)
        yield from opened(listed.paths, seen)
        yield Finding('ok', 'training', f'{len(listed):,} listed utterances')
        return len(listed), len(listed.speaker_ids), set(listed.speaker_ids)
    if corpora.train is None or not Path(corpora.train).is_dir():
        return None
    files = yield from audio_below('training', corpora.train)
    if files is None:
        return None
    yield from empty_files(files, 'training', corpora.tolerated)
    folders = {os.fsdecode(name) for name in first_folders(files.names)}
    paths, speakers = files.names, folders
    if given := corpora.train_list or _there(corpora.kept_list):
        read = partial(voxceleb.read_list, given, files.root, check_files=False)
        listed = awaited(f'training list: {given}', read)
        paths = yield from listed_files(given, listed, files, corpora)
        folders = {os.fsdecode(name) for name in first_folders(listed.paths)}
        speakers = set(listed.speaker_ids)
    yield from depth_of(files, listed_only=bool(given))
    if corpora.published:
        yield from known_count('training', corpora.train, len(paths), folders)
    else:
        said = f'{len(paths):,} utterances of {len(speakers):,} speakers'
        yield Finding('ok', 'training', f'{corpora.train}: {said}')
    yield from opened(paths, Opening('training', files.root, corpora.tolerated, full=full))
    return len(paths), len(speakers), folders | speakers


def _there(path: Place | None) -> Place | None:
    return path if path is not None and Path(path).exists() else None


def depth_of(files: Files, listed_only: bool) -> Check[None]:
    """Whether speakers are the first folders, where no list says so."""
    depths = np.char.count(files.names, b'/')
    odd = np.flatnonzero((depths < 1) | (depths > 2))
    if len(odd) and not listed_only:
        yield Finding(
            'error',
            'training',
            f'{files.root}: {len(odd):,} files such as {os.fsdecode(files.names[odd[0]])} are not '
            'speaker/video/utterance.wav',
            'give the folder that holds the speaker folders, or a list',
        )


def listed_files(
    path: Place, listed: Utterances, files: Files, corpora: Corpora
) -> Check[np.ndarray]:
    """A list against the disk, both ways; returns the paths (M,) that are on both."""
    rows = files.rows(listed.paths)
    if missing := np.flatnonzero(rows < 0)[:4].tolist():
        yield Finding(
            'error',
            'training list',
            f'{path}: {int((rows < 0).sum()):,} of {len(listed):,} files are not below '
            f'{files.root}: {few(map(listed.name, missing))}',
            f'correct the folder or the list, or remove {path} to have it made again'
            if path == corpora.kept_list
            else 'correct the folder or the list',
        )
    there = rows[rows >= 0]
    unlisted = np.ones(len(files), dtype=bool)
    unlisted[there] = False
    if count := int(unlisted.sum()):
        first = os.fsdecode(files.names[np.argmax(unlisted)])
        made = path == corpora.kept_list
        yield Finding(
            'warning' if made else 'ok',
            'training list',
            f'{count:,} files on the disk are not in it and take no part, such as {first}',
            f'if they are new, remove {path}, or start another run' if made else '',
        )
    if len(there) > len(files) - count:
        repeated = len(there) - (len(files) - count)
        yield Finding(
            'warning',
            'training list',
            f'{path}: {repeated:,} files occur twice',
            'keep one line of each',
        )
    yield from durations_fit(path, listed, files, rows, corpora.tolerated)
    if len(there) == len(listed):
        yield Finding('ok', 'training list', f'{path}: all {len(listed):,} files are on the disk')
    return files.names[there]


def durations_fit(
    path: Place, listed: Utterances, files: Files, rows: np.ndarray, tolerated: float
) -> Check[None]:
    """The list's seconds against the sizes of the wavs: files that are cut, or of another kind."""
    if listed.seconds is None:
        return
    if unknown := int(np.isnan(listed.seconds).sum()):
        yield Finding(
            'warning' if unknown <= tolerated * len(listed) else 'error',
            'training list',
            f'{path}: {unknown:,} files could not be opened when it was made (nan)',
            'make or copy them again, then the list',
        )
    there = np.flatnonzero(rows >= 0)
    wavs = there[np.char.endswith(listed.paths[there], b'.wav') & ~np.isnan(listed.seconds[there])]
    seconds = (files.sizes[rows[wavs]] - 44) / (RATE * BYTES)
    odd = np.flatnonzero(np.abs(seconds - listed.seconds[wavs]) > SLACK)
    if len(odd):
        first = wavs[odd[0]]
        yield Finding(
            'warning',
            'training list',
            f'{path}: {len(odd):,} wavs have another size than their seconds say, such as '
            f'{listed.name(first)} ({listed.seconds[first]:.2f} s listed, {seconds[odd[0]]:.2f} s '
            'as 16 kHz mono)',
            'files cut short, of another rate, or replaced since; make the list again',
        )


def known_count(role: str, path: Place, utterances: int, folders: set[str]) -> Check[None]:
    """The count of a set by speakers like VoxCeleb's, against those that are published."""
    ids = {int(name[2:]) for name in folders if name[:2] == 'id' and name[2:].isdecimal()}
    said = f'{path}: {utterances:,} utterances of {len(folders):,} speakers'
    sets = [known for known in KNOWN if ids and ids <= set(known.ids)]
    if len(ids) < len(folders) or not sets:
        mixed = ids and len(ids) == len(folders)
        what = 'VoxCeleb1 and 2 together' if mixed else 'no published set by their names'
        yield Finding('ok', role, f'{said}; {what}')
        return
    near = min(sets, key=lambda known: abs(known.speakers - len(folders)))
    if (near.speakers, near.utterances) == (len(folders), utterances):
        yield Finding('ok', role, f'{said}: {near.name}, whole')
        return
    if len(folders) < near.speakers or utterances < near.utterances:
        meaning = 'a part on purpose, or an unpacking or conversion that did not end: repeat it'
    else:
        meaning = 'another part is among them, or files are there twice: give this set alone'
    yield Finding(
        'warning',
        role,
        f'{said}; {near.name} has {near.utterances:,} of {near.speakers:,}',
        meaning,
    )
