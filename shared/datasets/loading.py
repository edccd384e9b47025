"""Loaders: training batches that survive bad files, and whole files in batches of equal length."""

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from shared import ddp
from shared.datasets.items import DataError, Sample, Utterances, collate
from shared.datasets.reading import AudioError, AudioReader, durations
from shared.datasets.samplers import ShuffledBatches, padded_batches, truncated_batches

TOLERATED = 10  # samples that may be replaced in a run, however few it has read
SHORTEST = 400  # samples at 16 kHz, one analysis window; shorter files are wrapped around


def train_loader(dataset: Dataset, sampler: ShuffledBatches, workers: int) -> DataLoader:
    """Batches of `collate` from a dataset indexed by (epoch, index); 0 workers read in place.

    Workers stay alive between epochs and compute on one thread each. Starting an epoch draws
    nothing from torch's global generator, so that a resumed run goes on with the same numbers.
    """
    return loader(
        dataset, workers, batch_sampler=sampler, collate_fn=collate, keep_workers=workers > 0
    )


def with_substitute(
    make: Callable[[int], Sample], index: int, size: int, attempts: int = 10
) -> Sample:
    """The sample of `index`, or of the next utterance whose audio can be read.

    What was wrong with those passed over is in the sample's `skipped`.

    Raises:
        DataError: none of `attempts` utterances can be read.
    """
    skipped: list[str] = []
    for step in range(min(attempts, size)):
        try:
            sample = make((index + step) % size)
        except AudioError as error:
            skipped.append(str(error))
        else:
            sample.skipped += skipped
            return sample
    raise DataError(
        f'{len(skipped)} utterances in a row cannot be read; the first: {skipped[0]}; '
        'check the data folders'
    )


class SkippedFiles:
    """Counts and lists the files that training passed over, and stops a run with too many.

    Args:
        path_log_file: text file that gets one line for each bad file.
        max_share: part of the samples, from 0 to 1, that may be replaced; `TOLERATED` always may.
    """

    def __init__(self, path_log_file: str | Path, max_share: float):
        self.path, self.max_share = Path(path_log_file), max_share
        self.samples = self.replaced = 0
        self.files: set[str] = set()
        self.converted: Counter = Counter()

    def watch(self, loader: Iterable[dict]) -> Iterator[dict]:
        """The loader's batches without 'skipped' and 'converted', which are counted.

        Raises:
            DataError: more than the set share and `TOLERATED`, from the 100th sample on.
        """
        for batch in loader:
            self._count(batch.pop('skipped'), batch.pop('converted'), len(batch['index']))
            yield batch

    def _count(self, messages: list[str], converted: dict[str, int], samples: int) -> None:
        self.samples += samples
        self.replaced += len(messages)
        self.converted.update(converted)
        new = [message for message in dict.fromkeys(messages) if message not in self.files]
        if new:
            self.files.update(new)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, 'a') as file:
                file.write(''.join(f'{message}\n' for message in new))
        allowed = max(TOLERATED, self.max_share * self.samples)
        if self.samples >= 100 and self.replaced > allowed:
            raise DataError(
                f'{self.replaced} of {self.samples} samples had to be replaced, more than '
                f'{100 * self.max_share:g} %; bad files are listed in {self.path}'
            )

    def summary(self) -> str:
        """One line: samples read, files passed over, files converted."""
        text = f'{self.samples} samples, {self.replaced} replaced ({len(self.files)} bad files)'
        kinds = ', '.join(f'{count} {kind}' for kind, count in sorted(self.converted.items()))
        return f'{text}, {kinds}' if kinds else text


def whole_files(
    paths: Sequence[Path],
    seconds: np.ndarray | None,
    reader: AudioReader,
    *,
    budget_seconds: float,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    truncate: bool = False,
    on_error: Literal['raise', 'skip'] = 'raise',
) -> DataLoader:
    """Every file once, in batches of similar length, this rank's share of them.

    Batches are dicts of index (b,), waves (b, Lmax) zero-padded, lengths (b,) in samples, skipped
    (messages). The longest come first, so that memory runs out at once or never.

    Args:
        paths: any sequence of paths; `Utterances.all_paths()` holds no object a file.
        seconds: (N,) durations to sort by; None reads them from the headers.
        reader: how files are read.
        budget_seconds: audio in a batch, padding included.
        workers: loader processes.
        rank: this process.
        world_size: processes that share the files.
        truncate: cuts every member to its batch's shortest, as the published clustering does
            (spec lgl 2.6); files shorter than listed are wrapped around.
        on_error: 'skip' leaves unreadable files out of their batch, which may become empty.

    Raises:
        AudioError: a file cannot be read and `on_error` is 'raise'.
    """
    if seconds is None:
        seconds = durations(paths, reader)
    plan = truncated_batches if truncate else padded_batches
    batches = plan(seconds, budget_seconds)[::-1][rank::world_size]
    dataset = _WholeFiles(paths, seconds, batches, reader, truncate, on_error == 'skip')
    return loader(dataset, workers)


def whole_utterances(
    utterances: Utterances,
    *,
    budget_seconds: float,
    workers: int,
    truncate: bool = False,
    on_error: Literal['raise', 'skip'] = 'raise',
) -> DataLoader:
    """`whole_files` of utterances: each once, this rank's share, sorted by their seconds.

    Args:
        utterances: a corpus or a part of it.
        budget_seconds: see `whole_files`, and so the next three.
        workers: loader processes.
        truncate: cuts to the shortest of a batch.
        on_error: what happens to unreadable files.

    Raises:
        AudioError: as `whole_files`.
    """
    return whole_files(
        utterances.all_paths(),
        utterances.seconds,
        AudioReader(),
        budget_seconds=budget_seconds,
        workers=workers,
        rank=ddp.rank(),
        world_size=ddp.world_size(),
        truncate=truncate,
        on_error=on_error,
    )


class _WholeFiles(Dataset):
    """One item is one batch of files."""

    def __init__(self, paths, seconds, batches, reader, truncate, skip):
        self.paths, self.seconds, self.batches = paths, seconds, batches
        self.reader, self.truncate, self.skip = reader, truncate, skip

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, number):
        rows = self.batches[number]
        shortest = self.seconds[rows[0]]  # batches are sorted; NaN for files that do not open
        cut = int(shortest * self.reader.rate) if self.truncate and shortest > 0 else None
        waves, kept, skipped = [], [], []
        for row in rows:
            try:
                with self.reader.open(self.paths[row]) as audio:
                    waves.append(audio.read(0, max(cut or audio.length, SHORTEST)))
            except AudioError as error:
                if not self.skip:
                    raise
                skipped.append(str(error))
            else:
                kept.append(int(row))
        padded = torch.zeros(len(waves), max((len(wave) for wave in waves), default=0))
        for line, wave in zip(padded.numpy(), waves):
            line[: len(wave)] = wave
        return {
            'index': torch.tensor(kept, dtype=torch.int64),
            'waves': padded,
            'lengths': torch.tensor([len(wave) for wave in waves], dtype=torch.int64),
            'skipped': skipped,
        }


def loader(
    dataset: Dataset,
    workers: int,
    *,
    batch_sampler: ShuffledBatches | None = None,
    collate_fn: Callable | None = None,
    keep_workers: bool = False,
) -> DataLoader:
    """A loader whose workers compute on one thread each and whose batches can be copied fast.

    Workers are forked, so that lists and samples in memory are there once, whatever their number;
    from Python 3.14 on that has to be asked for.

    Args:
        dataset: of samples; without a sampler each of its items is a batch.
        workers: processes; 0 reads in place.
        batch_sampler: gives the keys of each batch.
        collate_fn: makes a batch of samples.
        keep_workers: they stay alive between epochs.
    """
    forked = workers > 0 and sys.platform == 'linux'
    return DataLoader(
        dataset,
        batch_size=None if batch_sampler is None else 1,  # 1 is what torch takes for unset
        batch_sampler=batch_sampler,
        collate_fn=collate_fn,
        num_workers=workers,
        persistent_workers=keep_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        multiprocessing_context='fork' if forked else None,
        generator=torch.Generator(),  # not the global one; nothing is drawn from it but worker seeds
    )


def _start_worker(worker: int) -> None:
    """One thread a worker; signals are the main process's to handle, which then ends the workers.

    What was inherited is frozen: a worker must not run the main process's finalisers, and pages
    that its garbage collector never touches stay shared.
    """
    torch.set_num_threads(1)
    ddp.leave_signals_to_parent()
    gc.freeze()
