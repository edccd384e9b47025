"""The lists a recipe starts from: train lists, a user's own corpus, trial lists, room responses.

A list that is there is never replaced by another.
"""

import filecmp
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from shared.datasets import voxceleb
from shared.datasets.convert import COMPRESSED
from shared.datasets.decoding import AudioError
from shared.datasets.items import DataError, Trials, Utterances
from shared.datasets.lists import existing
from shared.datasets.reading import AudioReader, durations
from shared.datasets.rirs import Rirs
from shared.errors import UserError
from shared.files import replacing, write_text

KNOWN_MD5 = {'b73110731c9223c1461fe49cb48dddfc': 'Vox1-O cleaned'}  # spec lgl 2.2
LOOKED_AT = 1000  # files, for one that should be converted first
MOST_VALID = 40  # speakers that validate unless it is said: as many as Vox1-O has


@dataclass(frozen=True)
class TrainList:
    """A written train list, and how many utterances it leaves out.

    `unreadable` do not open (`<stem>_skipped.txt`); `short` and `excluded` as it was asked.
    """

    path: Path
    utterances: Utterances
    unreadable: int
    short: int
    excluded: int

    def describe(self) -> str:
        """One line: where it is, what is in it, what is not."""
        used = self.utterances
        per_speaker = np.unique(used.speakers, return_counts=True)[1]
        text = (
            f'{self.path}: {len(used):,} utterances of {len(per_speaker):,} speakers '
            f'({per_speaker.min()} to {per_speaker.max()} each), '
            f'{np.sum(np.asarray(used.seconds)) / 3600:,.1f} h'
        )
        left_out = {'excluded': self.excluded, 'too short': self.short}
        left_out[f'unreadable ({_skipped(self.path).name})'] = self.unreadable
        left = ', '.join(f'{count:,} {what}' for what, count in left_out.items() if count)
        return f'{text}; left out: {left}' if left else text


@dataclass(frozen=True)
class OwnLists:
    """Lists of a user's corpus; `train` is None where every speaker is in the trials."""

    train: TrainList | None
    trials: Trials
    trials_path: Path
    speakers: int  # in the trials


def train_list(
    root: str | Path,
    out: str | Path,
    *,
    exclude: Iterable[str | Path] = (),
    min_seconds: float = 0.0,
    workers: int = 8,
) -> TrainList:
    """Writes lines `speaker path seconds` of a folder of speakers.

    Args:
        root: folder of speakers.
        out: the list.
        exclude: trial lists whose speakers are left out.
        min_seconds: shorter utterances are left out.
        workers: threads that read headers.

    Raises:
        DataError: as `voxceleb.read_folder`; nothing is left; a name that no list can hold.
        UserError: another list is there.
    """
    tested = {  # a wrong list shows before the folder is walked
        name.partition('/')[0] for path in exclude for name in voxceleb.read_trials(path).files
    }
    found = speakers_below(root)
    outside = np.array([speaker not in tested for speaker in found.speaker_ids])
    if tested and outside.all():
        raise DataError(
            f'{root}: has none of the {len(tested)} speakers to exclude, such as {min(tested)}: '
            'leave --exclude out, or correct the paths of those lists'
        )
    return _write_train(found, outside[found.speakers], Path(out), min_seconds, workers)


def own_lists(
    root: str | Path,
    out: str | Path,
    *,
    valid_speakers: int | None = None,
    train: bool = True,
    trials: int = 20000,
    seed: int = 42,
    workers: int = 8,
) -> OwnLists:
    """Writes `train.txt` and `valid_trials.txt`, of different speakers, of a user's corpus.

    Args:
        root: `<speaker>/<utterance>.wav` or `<speaker>/<video>/<utterance>.wav` (or .flac).
        out: folder of the lists.
        valid_speakers: in the trials, drawn among those with two utterances; None: a tenth of all,
            from 2 to `MOST_VALID`.
        train: False writes `trials.txt` alone, of all speakers.
        trials: of each kind, fewer where there are not so many.
        seed: of the draw of speakers and trials.
        workers: threads that read headers.

    Raises:
        DataError: as `train_list`; too few speakers.
        UserError: other lists are there.
    """
    out, found = Path(out), speakers_below(root)
    counts = np.bincount(found.speakers, minlength=len(found.speaker_ids))
    several, everyone = np.flatnonzero(counts > 1), len(counts)
    wanted = min(max(everyone // 10, 2), MOST_VALID) if valid_speakers is None else valid_speakers
    if train and (wanted < 2 or len(several) < wanted or everyone - wanted < 2):
        raise DataError(
            f'{root}: has {everyone} speakers, {len(several)} of them with two utterances or more; '
            f'validation takes {wanted} of these (at least 2), training 2 others or more: add '
            'speakers, change --valid_speakers, or give --eval_only'
        )
    chosen = np.arange(everyone)
    if train:
        chosen = np.random.default_rng(seed).choice(several, size=wanted, replace=False)
    tested = np.isin(found.speakers, chosen)
    drawn = voxceleb.draw_trials(found.select(np.flatnonzero(tested)), trials, trials, seed)
    path = out / ('valid_trials.txt' if train else 'trials.txt')
    _write_new(path, partial(voxceleb.write_trials, drawn))
    made = _write_train(found, ~tested, out / 'train.txt', 0.0, workers) if train else None
    return OwnLists(made, drawn, path, len(chosen))


def speakers_below(root: str | Path) -> Utterances:
    """As `voxceleb.read_folder`.

    Raises:
        DataError: as there; also for files that are to be converted first.
    """
    try:
        return voxceleb.read_folder(root)
    except DataError:
        walk = os.walk(existing(root, 'folder of speakers'), followlinks=True)
        names = itertools.islice((name for *_, files in walk for name in files), LOOKED_AT)
        if name := next((name for name in names if name.lower().endswith(COMPRESSED)), None):
            raise DataError(
                f'{root}: holds {os.path.splitext(name)[1]} files: '
                f'first `python -m shared.datasets.prepare convert {root} OUT`'
            ) from None
        raise


def describe_trials(
    path: str | Path, root: str | Path | None = None, sha256: str | None = None
) -> str:
    """One line: which published list it is, its trials, targets, files and SHA-256.

    Raises:
        DataError: as `voxceleb.read_trials`; another SHA-256 than this.
    """
    trials = voxceleb.read_trials(path, root)
    if sha256 is not None and trials.sha256 != sha256.lower():
        raise DataError(f'{path}: SHA-256 is {trials.sha256}, not {sha256}: get the list again')
    md5 = hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()
    known, counted = KNOWN_MD5.get(md5), voxceleb.known_name(len(trials))
    what = 'no published list has as many trials'
    if known:
        what = f'{known}, byte for byte'
    elif counted in KNOWN_MD5.values():
        what = f'{counted} by its count, but other bytes (order, layout or line ends differ)'
    elif counted:
        what = f'{counted} by its count'
    return (
        f'{path}: {what}; {len(trials):,} trials, {trials.labels.sum():,} target, '
        f'{len(trials.files):,} files, SHA-256 {trials.sha256}'
    )


def rir_index(root: str | Path, out: str | Path, workers: int = 8) -> tuple[int, list[str]]:
    """Writes lines `path seconds rate channels` of room responses; their number, and the bad ones.

    Every response is read: unreadable and silent ones are left out, and listed in
    `<stem>_skipped.txt`.

    Raises:
        DataError: as `Rirs`; none can be used.
        UserError: another list is there.
    """
    rirs, out = Rirs(root, AudioReader()), Path(out)

    def look(name: str) -> tuple[str, str]:
        """(line, why it cannot be used)"""
        try:
            with rirs.reader.open(rirs.root / name, channel=0) as audio:
                file = audio.file
                if not audio.read(0, audio.length).any():
                    return '', f'{rirs.root / name}: the response is silent'
                seconds = file.frames / file.samplerate
                return f'{name} {seconds:.10g} {file.samplerate} {file.channels}\n', ''
        except AudioError as error:
            return '', str(error)

    names = [os.fsdecode(name) for name in rirs.files.tolist()]
    if strange := next((name for name in names if name.split() != [name]), None):
        raise DataError(f'{root}: {strange!r} holds a blank, where a list would end it: rename it')
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        bar = tqdm(pool.map(look, names), 'responses', len(names), unit='file', disable=None)
        found = list(bar)
    lines, bad = [line for line, _ in found if line], [why for _, why in found if why]
    if not lines:
        raise DataError(f'{root}: none of {len(bad)} responses can be used; the first: {bad[0]}')
    _write_new(out, lambda path: write_text(path, ''.join(lines)))
    _write_skipped(out, bad)
    return len(lines), bad


def _write_train(
    found: Utterances, rows: np.ndarray, out: Path, min_seconds: float, workers: int
) -> TrainList:
    """Writes a list of some rows (N,) bool, without what does not open or is too short."""
    kept = found.select(np.flatnonzero(rows))
    reader = AudioReader()
    seconds = durations(kept.all_paths(), reader, workers)
    opens = ~np.isnan(seconds)
    long = seconds >= min_seconds  # not, where it does not open
    if not long.any():
        raise DataError(
            f'{found.root}: nothing is left of {len(found)} utterances: {len(found) - len(kept)} '
            f'excluded, {np.sum(~opens)} unreadable, {np.sum(opens & ~long)} too short'
        )
    why = []
    for row in np.flatnonzero(~opens).tolist():
        try:
            reader.open(kept.path(row)).file.close()
        except AudioError as error:
            why.append(str(error))
    chosen = np.flatnonzero(long)
    timed = Utterances(
        kept.root, kept.paths[chosen], kept.speakers[chosen], kept.speaker_ids, seconds[chosen]
    )
    _write_new(out, timed.write)
    _write_skipped(out, why)
    short, excluded = int(np.sum(opens & ~long)), len(found) - len(kept)
    return TrainList(out, timed, int(np.sum(~opens)), short, excluded)


def _write_new(path: Path, write: Callable[[Path], None]) -> None:
    """Writes a file unless another is there."""
    with replacing(path) as temporary:
        write(temporary)
        if path.exists() and not filecmp.cmp(path, temporary, shallow=False):
            raise UserError(f'{path}: is there already, with other lines: name another file')


def _write_skipped(path: Path, why: list[str]) -> None:
    skipped = _skipped(path)
    if why or skipped.exists():
        write_text(skipped, ''.join(f'{line}\n' for line in why))


def _skipped(path: Path) -> Path:
    return path.with_name(f'{path.stem}_skipped.txt')
