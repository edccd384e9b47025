"""Test and validation lists under the doctor's eyes, and who speaks in them and in training."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from shared.datasets import voxceleb
from shared.datasets.items import Trials
from shared.doctor.files import (
    Files,
    Opening,
    audio_below,
    empty_files,
    first_folders,
    opened,
)
from shared.doctor.findings import Check, Finding, few, guarded
from shared.doctor.plan import Corpora, Place
from shared.doctor.training import known_count


def trials_and_files(
    corpora: Corpora, full: bool
) -> Check[tuple[dict[str, tuple[Trials, set[str]]], int]]:
    """The test lists with their speakers, by name, and the bytes of the first one's files."""
    lists: dict[str, tuple[Trials, set[str]]] = {}
    if corpora.test_root is None or not Path(corpora.test_root).is_dir():
        return lists, 0
    files = yield from audio_below('test', corpora.test_root)
    for path in corpora.tests:
        if files is not None and Path(path).exists():
            trials = yield from guarded('test', one_list('test', path, files))
            if trials is not None:
                lists[str(path)] = trials, _speakers(trials)
    if files is None or not lists:
        return lists, 0
    folders = {os.fsdecode(name) for name in first_folders(files.names)}
    if corpora.published:
        yield from known_count('test', corpora.test_root, len(files), folders)
    names = files.there(_union(trials for trials, _ in lists.values()))
    yield from opened(names, Opening('test', files.root, full=full))
    first = files.rows(_union([next(iter(lists.values()))[0]]))
    return lists, int(files.sizes[first[first >= 0]].sum())


def one_list(role: str, path: Place, files: Files) -> Check[Trials]:
    """A list of trials: what it is, and whether its files are there and hold audio."""
    trials = voxceleb.read_trials(path)
    name = voxceleb.known_name(len(trials)) or 'by its count no published list'
    yield Finding(
        'ok',
        role,
        f'{path}: {len(trials):,} trials, {int(trials.labels.sum()):,} target, of '
        f'{len(trials.files):,} files; {name}; SHA-256 {trials.sha256}',
    )
    names = _union([trials])
    rows = files.rows(names)
    if missing := np.flatnonzero(rows < 0)[:4].tolist():
        yield Finding(
            'error',
            role,
            f'{path}: {int((rows < 0).sum()):,} files are not below {files.root}: '
            f'{few(os.fsdecode(names[row]) for row in missing)}',
            'give the folder that its paths start from; lists E and H need VoxCeleb1 dev and test '
            'in one: python -m shared.datasets.prepare merge DEV TEST --out FOLDER',
        )
    there = rows[rows >= 0]
    yield from empty_files(
        replace(files, names=names[rows >= 0], sizes=files.sizes[there]), role, 0
    )
    return trials


def _union(trials: Iterable[Trials]) -> np.ndarray:
    """The files of several lists, (N,) bytes."""
    return np.array(sorted({os.fsencode(name) for one in trials for name in one.files}))


def _speakers(trials: Trials) -> set[str]:
    """First folders of the files; without folders nothing is known of the speakers."""
    return {os.fsdecode(name) for name in first_folders(_union([trials]))} - {''}


def validation(corpora: Corpora, lists: Mapping, full: bool) -> Check[set[str]]:
    """The speakers of what an epoch is chosen on, where that is not the test list."""
    root, given = corpora.valid_root, corpora.valid_list
    if root is None or not Path(root).is_dir() or (given and not Path(given).exists()):
        return set()
    files = yield from audio_below('validation', root)
    if files is None:
        return set()
    if given:
        trials = yield from one_list('validation', given, files)
        if str(given) not in lists:
            names = files.there(_union([trials]))
            yield from opened(names, Opening('validation', files.root, full=full))
        return _speakers(trials)
    yield from empty_files(files, 'validation', corpora.tolerated)
    speakers = {os.fsdecode(name) for name in first_folders(files.names)}
    if corpora.published:
        yield from known_count('validation', root, len(files), speakers)
    if len(speakers) < 2:
        yield Finding(
            'error',
            'validation',
            f'{root}: {len(speakers)} speaker; trials cannot be drawn',
            'give a folder of several speakers, or a list of trials',
        )
    return speakers


def overlaps(
    train: set[str], lists: Mapping[str, tuple[Trials, set[str]]], valid: set[str]
) -> Check[None]:
    """Speakers that are in two of the sets."""
    for path, (_, speakers) in lists.items():
        if both := sorted(speakers & train):
            yield Finding(
                'error',
                'speakers',
                f'{len(both):,} of {len(speakers):,} speakers of {path} are in the training set '
                f'too: {few(both)}',
                'its error rate would mean nothing; leave them out of training '
                '(prepare list --exclude), or do not score this list',
            )
    if both := sorted(valid & train):
        yield Finding(
            'warning',
            'speakers',
            f'{len(both):,} speakers of validation are in the training set too: {few(both)}',
            'epochs would be chosen on what was learnt by heart; give other speakers',
        )
    first = next(iter(lists.items()), None)
    if first and (both := sorted(valid & first[1][1])):
        yield Finding(
            'warning',
            'speakers',
            f'{len(both):,} speakers of validation are in {first[0]} too: {few(both)}',
            'epochs would be chosen on test speakers; give others',
        )
    if train and lists and not any(train & speakers for _, speakers in lists.values()):
        yield Finding(
            'ok', 'speakers', f'none of {len(train):,} training speakers is in the test lists'
        )
