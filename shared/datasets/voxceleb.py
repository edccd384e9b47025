"""VoxCeleb1 and 2: speakers from folders or list files, and trial lists in either layout.

Layout: `<speaker>/<video>/<utterance>.wav` (or .flac); `<speaker>/<utterance>.wav` is taken too.
Lists are white-space separated without a header (spec lgl 2.2).
"""

import hashlib
import math
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from shared.datasets.items import DataError, Trials, Utterances
from shared.datasets.lists import (
    AUDIO,
    Columns,
    audio_files,
    bad_line,
    existing,
    leads_out,
    lines,
    listing,
    require_files,
    sorted_names,
)
from shared.datasets.packed import packed_folder
from shared.files import write_text

KNOWN_COUNTS = {  # trials of the published lists, original and cleaned
    37720: 'Vox1-O original',
    37611: 'Vox1-O cleaned',
    581480: 'Vox1-E original',
    579818: 'Vox1-E cleaned',
    552536: 'Vox1-H original',
    550894: 'Vox1-H cleaned',
}
BELOW = 'must name files by paths without `..`, relative to'
TRIAL_LABELS = {'1': True, 'target': True, '0': False, 'nontarget': False}


def known_name(count: int) -> str | None:
    """Name of the VoxCeleb1 list with this many trials, such as 'Vox1-O cleaned'."""
    return KNOWN_COUNTS.get(count)


def read_folder(root: str | Path) -> Utterances:
    """Every utterance below a folder of speakers, in the order of their paths.

    A packed folder says itself who speaks, and knows the seconds.

    Raises:
        DataError: no such folder, no audio two or three levels down, speakers further down, or a
            name that no list can hold.
    """
    root = existing(root, 'VoxCeleb folder')
    if packed := packed_folder(root):
        _check_listable(root, map(os.fsdecode, packed.names.tolist()))
        return packed.utterances()
    columns = Columns()
    for folder, names in audio_files(root):
        if not folder or folder.count('/') > 1:
            raise DataError(
                f'{root}: found {os.path.join(folder, names[0])}, expected '
                'speaker/video/utterance.wav: give the folder that holds the speaker folders'
            )
        speaker = folder.partition('/')[0]
        paths = [f'{folder}/{name}' for name in names]
        _check_listable(root, paths)
        for path in paths:
            columns.add(speaker, path)
    if not len(columns):
        raise DataError(
            f'{root}: no speaker/video/utterance.wav (or .flac) in it; it holds {listing(root)}'
        )
    return columns.utterances(root)


def read_list(list_path: str | Path, root: str | Path, check_files: bool = True) -> Utterances:
    """Utterances of a train list, lines `speaker path [... seconds]`, in the order of the list.

    Seconds are the last column when there are three or more. Speaker ids are sorted, whatever the
    order of the lines.

    Raises:
        DataError: an unreadable line (number and text), files that are not below `root` (first
            three and their count; not looked for with `check_files=False`), an empty list.
    """
    root = existing(root, 'VoxCeleb folder')
    columns, width = Columns(), 0
    for number, fields in lines(list_path):
        width = width or len(fields)
        if len(fields) < 2 or len(fields) != width:
            what = (
                f'{len(fields)} columns, {width} in the first line' if width > 1 else 'one column'
            )
            raise bad_line(list_path, number, fields, f'has {what}')
        if not fields[1].endswith(AUDIO):
            raise bad_line(list_path, number, fields, 'column 2 must be a .wav or .flac path')
        if leads_out(fields[1]):
            raise bad_line(list_path, number, fields, f'{BELOW} {root}')
        columns.add(fields[0], fields[1])
        if width > 2:
            columns.seconds.append(_seconds(list_path, number, fields))
    if not len(columns):
        raise DataError(f'{list_path}: is empty; lines must be `speaker path [seconds]`')
    utterances = columns.utterances(root)
    if check_files:
        require_files(list_path, root, utterances.paths)
    return utterances


def read_trials(list_path: str | Path, root: str | Path | None = None) -> Trials:
    """Trials of a list, lines `label file file` or `file file label`, in the order of the list.

    Labels are 0 or 1, or nontarget or target; the layout is the first line's.

    Raises:
        DataError: an unreadable line (number and text), a list without both kinds of trial, and
            with `root` given, files that are not below it (first three and their count).
    """
    place: int | None = None
    numbers: dict[str, int] = {}
    enrol, test, labels = array('q'), array('q'), array('b')
    for number, fields in lines(list_path):
        if place is None and len(fields) == 3:
            place = next((i for i in (0, 2) if fields[i].lower() in TRIAL_LABELS), None)
        if place is None or len(fields) != 3 or fields[place].lower() not in TRIAL_LABELS:
            layout = {0: '`label file file`', 2: '`file file label`'}.get(
                place if place is not None else -1, '`label file file` or `file file label`'
            )
            what = f'must be {layout} with label 0/1 or target/nontarget'
            raise bad_line(list_path, number, fields, what)
        labels.append(TRIAL_LABELS[fields.pop(place).lower()])
        if any(map(leads_out, fields)):
            raise bad_line(list_path, number, fields, f'{BELOW} the folder of the files')
        for side, name in zip((enrol, test), fields):
            side.append(numbers.setdefault(name, len(numbers)))
    trials = _trials(Path(list_path).stem, list(numbers), enrol, test, labels, _digest(list_path))
    if trials.labels.all() or not trials.labels.any():
        raise DataError(
            f'{list_path}: {len(trials)} trials of which {trials.labels.sum()} are target; '
            'an error rate needs both kinds'
        )
    if root is not None:
        require_files(list_path, existing(root, 'folder of the trials'), trials.files)
    return trials


def draw_trials(utterances: Utterances, targets: int, nontargets: int, seed: int) -> Trials:
    """Seeded trials among labelled utterances, none twice; fewer where there are not so many.

    Target trials pair different videos (folders) of a speaker where the speaker has several;
    speakers are drawn uniformly.

    Raises:
        DataError: no speaker has two utterances, or there is one speaker only.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(utterances.speakers, kind='stable')
    starts = np.flatnonzero(np.diff(utterances.speakers[order], prepend=-1))
    rows = np.split(order, starts[1:])  # utterances of each speaker present
    several = [group for group in rows if len(group) > 1]
    if not several or len(rows) < 2:
        raise DataError(
            f'{utterances.root}: {len(utterances)} utterances of {len(rows)} speakers; trials need '
            'two speakers, and one of them with two utterances'
        )
    videos = [os.path.dirname(path) for path in utterances.paths.tolist()]

    def target() -> tuple[int, int]:
        group = several[rng.integers(len(several))]
        first = rng.choice(group)
        others = [row for row in group if videos[row] != videos[first]]
        return first, rng.choice(others or group[group != first])

    def nontarget() -> tuple[int, int]:
        first, second = rng.choice(len(rows), size=2, replace=False)
        return rng.choice(rows[first]), rng.choice(rows[second])

    pairs = _distinct(target, targets, sum(_pairs(group, videos) for group in several))
    labels = [True] * len(pairs)
    across = len(order) ** 2 - sum(len(group) ** 2 for group in rows)
    pairs += _distinct(nontarget, nontargets, across // 2)
    labels += [False] * (len(pairs) - len(labels))
    names = [utterances.name(i) for i in range(len(utterances))]
    enrol, test = np.array(pairs).T
    drawn = _trials(f'drawn with seed {seed}', names, enrol, test, labels, '')
    digest = hashlib.sha256(_trials_text(drawn).encode()).hexdigest()
    return Trials(drawn.name, drawn.enrol, drawn.test, drawn.labels, drawn.files, digest)


def write_trials(trials: Trials, path: str | Path) -> None:
    """Writes `label file file` lines."""
    write_text(path, _trials_text(trials))


def _check_listable(root: Path, paths: Iterable[str]) -> None:
    """Raises DataError for a path that a list would not give back."""
    for path in paths:
        if path.isascii() and path.isprintable() and ' ' not in path:
            continue
        if path.split() != [path]:
            what = 'has a space in it, where a list would end it'
        elif any('\ud800' <= letter <= '\udfff' for letter in path):  # fsdecode could not decode it
            what = 'is not UTF-8, as lists are'
        else:
            continue
        raise DataError(f'{root}: the name of {ascii(path)} {what}: rename it')


def _trials(name, names, enrol, test, labels, digest) -> Trials:
    files, (enrol, test) = sorted_names(names, enrol, test)
    return Trials(name, enrol, test, np.array(labels, dtype=bool), files, digest)


def _trials_text(trials: Trials) -> str:
    rows = zip(trials.labels, trials.enrol, trials.test)
    return ''.join(f'{int(y)} {trials.files[a]} {trials.files[b]}\n' for y, a, b in rows)


def _pairs(rows: np.ndarray, videos: list[bytes]) -> int:
    """Target trials that a speaker with these rows can give."""
    sizes = list(Counter(videos[row] for row in rows).values())
    within = sum(size**2 for size in sizes) if len(sizes) > 1 else len(rows)
    return (len(rows) ** 2 - within) // 2


def _distinct(
    draw: Callable[[], tuple[int, int]], count: int, possible: int
) -> list[tuple[int, int]]:
    """Up to `count` of the possible unordered pairs, none twice; gives up when draws repeat."""
    seen: dict[tuple[int, int], None] = {}
    for _ in range(20 * count + 100):
        if len(seen) == min(count, possible):
            break
        first, second = draw()
        if (second, first) not in seen:
            seen[(int(first), int(second))] = None
    return list(seen)


def _seconds(path: str | Path, number: int, fields: list[str]) -> float:
    try:
        seconds = float(fields[-1])
    except ValueError:
        seconds = 0.0
    if not (0 < seconds < float('inf') or math.isnan(seconds)):  # nan: `durations` could not tell
        what = f'the last column must be a duration in seconds, not {fields[-1]!r}'
        raise bad_line(path, number, fields, what)
    return seconds


def _digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
