"""What the doctor is told of a run: its data, its weights, and what it asks of the machine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.datasets.items import Utterances

Place = str | Path


@dataclass(frozen=True)
class Corpora:
    """What a run reads; what it does not read is None or empty.

    Args:
        needed: every path that has to be there, by the name of its argument.
        train: folder of speakers.
        train_list: list of its utterances; None: everything that is in it.
        kept_list: the list that an earlier start has made of the folder, if it did.
        read_train: reads a list that names its files itself; then without `train`.
        tests: lists of trials; the first is the one that counts.
        test_root: folder of their files.
        valid_list: list of trials for the choice of an epoch; None: drawn from `valid_root`.
        valid_root: folder of its files.
        musan: folder.
        rooms: folder of responses.
        more: further folders of audio, by what they are.
        sources: such folders of which files are made once, so that rate and channels do not matter.
        tolerated: share of the training files, 0 to 1, that may be bad.
        published: whether counts are compared with those of the published corpora.
        musan_name: raises a UserError for a file of MUSAN with a name that does not do.
    """

    needed: Mapping[str, Place | Sequence[Place] | None]
    train: Place | None = None
    train_list: Place | None = None
    kept_list: Place | None = None
    read_train: Callable[[], Utterances] | None = None
    tests: Sequence[Place] = ()
    test_root: Place | None = None
    valid_list: Place | None = None
    valid_root: Place | None = None
    musan: Place | None = None
    rooms: Place | None = None
    more: Mapping[str, Place] = field(default_factory=dict)
    sources: Mapping[str, Place] = field(default_factory=dict)
    tolerated: float = 0.0
    published: bool = True
    musan_name: Callable[[str], object] | None = None


@dataclass(frozen=True)
class Facts:
    """What the data turned out to be; 0 where it could not be read."""

    utterances: int = 0  # of the training set, and so its speakers
    speakers: int = 0
    test_bytes: int = 0  # of the files of the first list of trials
    musan_bytes: int = 0


@dataclass(frozen=True)
class Weights:
    """A file or folder of weights that a run begins with.

    Args:
        name: of the argument.
        path: of the file or folder.
        read: reads it strictly, with a UserError for what it cannot take.
        origin: where to get it.
        digests: SHA-256 of known files -> what they are.
        fits: what is wrong with what `read` gave, for these facts of the data; '' if nothing is.
    """

    name: str
    path: Place
    read: Callable[[Place], Any]
    origin: str
    digests: Mapping[str, str] = field(default_factory=dict)
    fits: Callable[[Any, Facts], str] | None = None


@dataclass(frozen=True)
class Load:
    """What a run asks of the machine.

    Args:
        path_log: folder of the run.
        batches: argument -> utterances over all processes, and samples of each, all crops together.
        workers: loader processes of a rank.
        cache_gib: noise and responses kept in memory, on each machine.
        checkpoints: bytes that they will take, see `checkpoint_bytes`.
        made: folder that the run fills first -> bytes, for these facts of the data.
        least: argument -> training utterances that its value needs.
        parts: argument of a batch -> parts of each process's share, where there are several.
        gpu: whether it should run on one.
    """

    path_log: Place
    batches: Mapping[str, tuple[int, int]]
    workers: int
    cache_gib: float = 0.0
    checkpoints: float = 0.0
    made: Mapping[Place, Callable[[Facts], float]] = field(default_factory=dict)
    least: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)
    gpu: bool = True


def checkpoint_bytes(numbers: int, *, phases: int, keep: int, moments: int = 2) -> int:
    """An estimate of what the checkpoints of a run take.

    Args:
        numbers: that are learnt, 4 bytes each.
        phases: trainings, each in a folder of its own.
        keep: epochs of each whose weights stay; the best one is kept besides.
        moments: numbers that the optimizer has of each: Adam 2, SGD 1.
    """
    last = 1 + moments
    return 4 * numbers * (phases * (keep + 1 + last) + last)  # one is written beside the old one


def weight_numbers(path: Place) -> int:
    """About how many numbers a file or folder of weights holds, 0 where it is not there."""
    file = weight_file(path)
    return file.stat().st_size // 4 if file else 0


def weight_file(path: Place) -> Path | None:
    """The file itself, or the largest of the folder; None where there is none."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob('*')) if path.is_dir() else []
    files = [file for file in files if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size, default=None)
