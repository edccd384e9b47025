"""The data of a run under the doctor's eyes: all checks of it, and those of noises and rooms."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shared.datasets.lists import sizes_below
from shared.datasets.musan import CATEGORIES, Musan
from shared.datasets.reading import AudioReader
from shared.datasets.rirs import Rirs
from shared.doctor.files import Opening, audio_below, empty_files, opened
from shared.doctor.findings import Check, Finding, guarded
from shared.doctor.plan import Corpora, Facts, Place
from shared.doctor.training import training
from shared.doctor.trials import overlaps, trials_and_files, validation

MUSAN_FILES = {'noise': 930, 'speech': 426, 'music': 660}  # spec enskd 2.1
ROOMS = 60_000  # simulated responses, spec enskd 2.1
NOISE_SAMPLED = 100  # files of MUSAN that are opened, of each kind; they are long


def look_at_data(corpora: Corpora, full: bool = False) -> Check[Facts]:
    """Everything about the data of a run; `full` opens every file instead of some."""
    yield from missing_paths(corpora.needed)
    train = yield from guarded('training', training(corpora, full))
    utterances, speakers, names = train or (0, 0, set())
    tests = yield from guarded('test', trials_and_files(corpora, full))
    lists, test_bytes = tests or ({}, 0)
    valid = yield from guarded('validation', validation(corpora, lists, full))
    yield from overlaps(names, lists, valid or set())
    musan_bytes = yield from guarded('MUSAN', noises(corpora, full))
    yield from guarded('rooms', rooms(corpora, full))
    for folders, any_kind in ((corpora.more, False), (corpora.sources, True)):
        for role, folder in folders.items():
            yield from guarded(role, other_folder(role, folder, full, any_kind))
    return Facts(utterances, speakers, test_bytes, musan_bytes or 0)


def missing_paths(needed: Mapping[str, Place | Sequence[Place] | None]) -> Check[None]:
    """Whether every path is there."""
    found = 0
    for name, value in needed.items():
        for path in [value] if isinstance(value, str | Path) else value or ():
            if Path(path).exists():
                found += 1
            else:
                yield Finding(
                    'error', name, f'{path} is not there', 'edit arguments.py, or try --demo first'
                )
    if found:
        yield Finding('ok', 'paths', f'{found} are there')


def noises(corpora: Corpora, full: bool) -> Check[int]:
    """MUSAN, whole or in pieces; returns its bytes."""
    if corpora.musan is None or not Path(corpora.musan).is_dir():
        return 0
    musan = Musan(corpora.musan, AudioReader())
    counts = {name: len(musan.files[name]) for name in CATEGORIES}
    said = f'{musan.root}: ' + ', '.join(f'{count:,} {name}' for name, count in counts.items())
    whole = ', '.join(f'{count} {name}' for name, count in MUSAN_FILES.items())
    short = any(counts[name] < count for name, count in MUSAN_FILES.items())
    if short and corpora.published:
        yield Finding(
            'warning',
            'MUSAN',
            f'{said}; published: {whole}',
            'other noise on purpose, or a part is missing: unpack musan.tar.gz again',
        )
    else:
        pieces = corpora.published and counts != MUSAN_FILES
        yield Finding(
            'ok', 'MUSAN', said + (' (more than published: in pieces?)' if pieces else '')
        )
    if corpora.musan_name is not None:
        for name in np.concatenate(list(musan.files.values())).tolist():
            corpora.musan_name(os.fsdecode(name))
    for name, files in musan.files.items():
        seen = Opening(
            f'MUSAN {name}', musan.root, corpora.tolerated, full=full, sampled=NOISE_SAMPLED
        )
        yield from opened(files, seen)
    return int(sizes_below(musan.root)[1].sum())


def rooms(corpora: Corpora, full: bool) -> Check[None]:
    """Room responses."""
    if corpora.rooms is None or not Path(corpora.rooms).is_dir():
        return
    rirs = Rirs(corpora.rooms, AudioReader())
    simulated = sum(name.startswith(b'simulated_rirs/') for name in rirs.files.tolist())
    count = simulated or len(rirs.files)
    if corpora.published and count != ROOMS:
        yield Finding(
            'warning',
            'rooms',
            f'{rirs.root}: {count:,} responses; RIRS_NOISES has {ROOMS:,} simulated ones',
            'others on purpose, or a part is missing: unpack rirs_noises.zip again',
        )
    else:
        yield Finding('ok', 'rooms', f'{rirs.root}: {count:,} responses')
    yield from opened(rirs.files, Opening('rooms', rirs.root, corpora.tolerated, 0, full=full))


def other_folder(role: str, folder: Place, full: bool, any_kind: bool) -> Check[None]:
    """A further folder of audio."""
    if Path(folder).is_dir():
        files = yield from audio_below(role, folder)
        if files is not None:
            yield from empty_files(files, role, 0)
            seen = Opening(role, files.root, full=full, any_kind=any_kind)
            yield from opened(files.names, seen)
