"""The lists a recipe starts from: trials with the loader of their files, and lists made when missing.

What is missing is made by rank 0, once, in a file of the run folder; then every rank reads that file,
so that all have the same.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from shared import ddp
from shared.datasets import voxceleb
from shared.datasets.items import Trials, Utterances
from shared.datasets.loading import whole_files
from shared.datasets.reading import AudioReader, durations, file_forms, seconds_of

VALID_TRIALS = 20000  # drawn of each kind where there is no validation list


class TrialFiles:
    """Trials and where their files are.

    Attributes: `trials`, `root`, and `paths`, the files in the order of `trials.files`.

    Args:
        trials: the list.
        root: folder that its paths start from.
        budget_seconds: audio in a batch of `loader`, padding included.
        workers: loader processes.
    """

    def __init__(
        self, trials: Trials, root: str | Path, *, budget_seconds: float, workers: int
    ) -> None:
        self.trials, self.root = trials, Path(root)
        self.paths = [self.root / name for name in trials.files]
        self._budget, self._workers = budget_seconds, workers
        self._headers: tuple[np.ndarray, dict[str, int]] | None = None

    def loader(self) -> DataLoader:
        """Every file once and whole, in batches of similar length, sharded over the ranks.

        The batches are those of `whole_files`; headers are read for their durations the first time.

        Raises:
            AudioError: a file cannot be read; also while batches are drawn.
        """
        return whole_files(
            self.paths,
            self._read_headers()[0],
            AudioReader(),
            budget_seconds=self._budget,
            workers=self._workers,
            rank=ddp.rank(),
            world_size=ddp.world_size(),
        )

    @property
    def converted(self) -> dict[str, int]:
        """Files that reading has to change, by kind: {'resampled': 2, 'mixed to mono': 1}."""
        return self._read_headers()[1]

    def _read_headers(self) -> tuple[np.ndarray, dict[str, int]]:
        if self._headers is None:
            reader, forms = AudioReader(), file_forms(self.paths)
            converted = {
                'resampled': int(((forms[:, 1] != reader.rate) & (forms[:, 0] > 0)).sum()),
                'mixed to mono': int((forms[:, 2] > 1).sum()),
            }
            kinds = {kind: count for kind, count in converted.items() if count}
            self._headers = seconds_of(forms, reader), kinds
        return self._headers


def training_list(root: str | Path, given: str | Path | None, kept: str | Path) -> Utterances:
    """The training utterances with their seconds, from a list or from what the folder holds.

    A `given` list with durations is taken as it is. Else headers are read, once, and the list is
    kept.

    Args:
        root: folder of speakers.
        given: list of lines `speaker path [... seconds]`; None: everything below `root`.
        kept: where the list with durations is written, and read from ever after.

    Raises:
        DataError: as `voxceleb.read_list` and `voxceleb.read_folder`; not one file can be read.
    """
    check = ddp.local_rank() == 0  # once a machine
    train = voxceleb.read_list(given, root, check) if given else None
    if train is not None and train.seconds is not None:
        return train
    kept = Path(kept)
    if ddp.is_main() and not kept.exists():
        made = _with_seconds(train or voxceleb.read_folder(root))
        made.write(kept)
        ddp.barrier()
        return made  # what the others read now
    ddp.barrier()
    return voxceleb.read_list(kept, root, check)


def _with_seconds(utterances: Utterances) -> Utterances:
    """Utterances and what their headers tell.

    Raises:
        AudioError: the first file's, where none of all can be read.
    """
    if utterances.seconds is not None:
        return utterances
    reader = AudioReader()
    seconds = durations(utterances.all_paths(), reader)
    if np.isnan(seconds).all():
        reader.open(utterances.path(0))
    return dataclasses.replace(utterances, seconds=seconds)


def drawn_trials(root: str | Path, kept: str | Path, count: int, seed: int) -> Trials:
    """Trials drawn from a folder of speakers, once: `count` of each kind, fewer where there are not.

    Args:
        root: folder of speakers.
        kept: where the list is written, and read from ever after.
        count: trials of each kind.
        seed: of the draw.

    Raises:
        DataError: as `voxceleb.read_folder`, `draw_trials` and `read_trials`.
    """
    kept = Path(kept)
    check = ddp.local_rank() == 0  # once a machine
    if ddp.is_main() and not kept.exists():
        drawn = voxceleb.draw_trials(voxceleb.read_folder(root), count, count, seed)
        voxceleb.write_trials(drawn, kept)
        check = False
    ddp.barrier()
    return voxceleb.read_trials(kept, root if check else None)


def trial_lists(
    lists: Iterable[str | Path], root: str | Path, *, budget_seconds: float, workers: int
) -> list[TrialFiles]:
    """Trial lists with the loaders of their files, which are all below one folder.

    Args:
        lists: of the files of trials.
        root: see `TrialFiles`, and so the next two.
        budget_seconds: audio in a batch.
        workers: loader processes.

    Raises:
        DataError: as `voxceleb.read_trials`.
    """
    read = [voxceleb.read_trials(path, root) for path in lists]
    return [TrialFiles(t, root, budget_seconds=budget_seconds, workers=workers) for t in read]


def validation_files(
    root: str | Path,
    given: str | Path | None,
    kept: str | Path,
    *,
    seed: int,
    budget_seconds: float,
    workers: int,
) -> TrialFiles:
    """The list an epoch is chosen on: a given one, or trials drawn once from a folder of speakers.

    Args:
        root: folder of speakers, or of the files of the given list.
        given: list of trials; None: `VALID_TRIALS` of each kind are drawn.
        kept: where the drawn list is written.
        seed: of the draw.
        budget_seconds: see `TrialFiles`.
        workers: see `TrialFiles`.

    Raises:
        DataError: as `drawn_trials` and `voxceleb.read_trials`.
    """
    if given:
        trials = voxceleb.read_trials(given, root)
    else:
        trials = drawn_trials(root, kept, VALID_TRIALS, seed)
    return TrialFiles(trials, root, budget_seconds=budget_seconds, workers=workers)
