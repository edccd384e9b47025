"""Which utterances come when: shuffled global batches and the random numbers of one sample."""

import zlib
from collections.abc import Iterator

import numpy as np

from shared.datasets.items import DataError


def sample_rng(seed: int, epoch: int, index: int, *more: int) -> np.random.Generator:
    """Random numbers of one sample, a function of (seed, epoch, index) and nothing else.

    The same sample is drawn whatever the number of workers and ranks and wherever a run was
    resumed (spec lgl 9.3, item 11). `more` opens further independent streams.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch, index, *more)))


class ShuffledBatches:
    """Batch sampler over `size` utterances: lists of (epoch, index), each index once an epoch.

    The epoch's permutation is cut into global batches of `batch_size` and rank r takes its
    contiguous part of each, so the global batches do not depend on the number of ranks. The last,
    incomplete batch is dropped.

    Iterating starts at the position and leaves it alone: workers read ahead, so only the training
    loop knows what was consumed. It calls `set_position(epoch, batch)` before it iterates.

    Raises:
        DataError: the batch does not divide by the ranks, or exceeds the number of utterances.
    """

    depends_on: tuple[str, ...] = ('size', 'batch_size', 'seed')  # what a position is good for

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        if batch_size < 1 or batch_size % world_size:
            raise DataError(
                f'batch_size {batch_size} does not divide by {world_size} processes: '
                f'choose a multiple of {world_size}'
            )
        if size < batch_size:
            raise DataError(
                f'{size} utterances do not fill one batch of {batch_size}: lower batch_size'
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.batch = 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch,)))
        order = rng.permutation(self.size)
        share = self.batch_size // self.world_size
        for batch in range(self.batch, len(self)):
            first = batch * self.batch_size + self.rank * share
            yield [(epoch, int(index)) for index in order[first : first + share]]

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """The next iteration starts with this batch of this epoch."""
        self.epoch, self.batch = epoch, batch

    def state_dict(self) -> dict[str, int]:
        """Position, and what the permutation depends on."""
        names = (*self.depends_on, 'epoch', 'batch')
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes up a saved position.

        Raises:
            DataError: the state belongs to other data, batch size or seed.
        """
        for name in self.depends_on:
            if state.get(name) != getattr(self, name):
                raise DataError(
                    f'sampler state has {name} {state.get(name)}, this run {getattr(self, name)}: '
                    'continue with the settings and data of the saved run'
                )
        self.set_position(state['epoch'], state['batch'])


class DistinctBatches(ShuffledBatches):
    """Global batches in which no class comes twice: lists of (epoch, index) (spec wavlm_ssl 2.4).

    With `each` above 1 an item is that many utterances of one class, (epoch, first, second, ...).
    Items are walked in shuffled order; one whose class is already in the batch being filled is left
    out of the epoch, and so is the incomplete last batch (after Chung et al.'s voxceleb_trainer;
    spec nawsv 2.7). Ranks share a global batch as in `ShuffledBatches`.

    Args:
        classes: (N,) integers, the class of each utterance.
        batch_size: items of a global batch.
        seed: of every epoch's order.
        rank: this process.
        world_size: processes that share the batches.
        most: utterances of a class in an epoch, drawn anew for each.
        each: utterances of an item.

    Raises:
        DataError: as `ShuffledBatches`, or there are too few classes for one batch.
    """

    depends_on = (*ShuffledBatches.depends_on, 'most', 'classes_crc32')

    def __init__(
        self,
        classes: np.ndarray,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        most: int = 500,
        each: int = 1,
    ):
        super().__init__(len(classes), batch_size, seed, rank, world_size)
        self.classes, self.most, self.each = np.asarray(classes, dtype=np.int64), most, each
        self.classes_crc32 = zlib.crc32(self.classes.tobytes())
        self._drawn: tuple[int, list[np.ndarray]] = (-1, [])  # epoch and its global batches
        if not self._batches_of(1):
            raise DataError(
                f'batch of {batch_size}: {len(np.unique(self.classes))} speakers or clusters do not '
                'fill it, as each may come once; lower the batch size'
            )

    def __len__(self) -> int:
        """Batches of this epoch; what is left out differs from epoch to epoch."""
        return len(self._batches_of(max(self.epoch, 1)))

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:  # type: ignore[override]
        epoch, share = self.epoch, self.batch_size // self.world_size
        for batch in self._batches_of(epoch)[self.batch :]:
            own = batch[self.rank * share : (self.rank + 1) * share]
            yield [(epoch, *item) for item in own.tolist()]

    def _batches_of(self, epoch: int) -> list[np.ndarray]:
        """The global batches of an epoch, (batch_size, each) utterances."""
        if self._drawn[0] != epoch:
            rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch,)))
            self._drawn = epoch, self._fill(rng.permutation(self._items(rng)))
        return self._drawn[1]

    def _items(self, rng: np.random.Generator) -> np.ndarray:
        """(items, each): the utterances of each class, at most `most`, class by class."""
        order = np.argsort(self.classes, kind='stable')
        starts = np.flatnonzero(np.diff(self.classes[order])) + 1
        items = []
        for rows in np.split(order, starts):
            kept = min(len(rows), self.most) // self.each * self.each
            items.append(rng.permutation(rows)[:kept].reshape(-1, self.each))
        return np.concatenate(items)

    def _fill(self, items: np.ndarray) -> list[np.ndarray]:
        """Full batches in the order of the items."""
        batches: list[np.ndarray] = []
        batch: list[int] = []
        present: set[int] = set()
        for row, label in enumerate(self.classes[items[:, 0]].tolist()):
            if label in present:
                continue
            batch.append(row)
            present.add(label)
            if len(batch) == self.batch_size:
                batches.append(items[batch])
                batch, present = [], set()
        return batches


def padded_batches(seconds: np.ndarray, budget: float) -> list[np.ndarray]:
    """Rows by ascending duration, cut where count * longest would exceed `budget` seconds.

    A file longer than the budget is a batch by itself; rows of unknown duration (NaN) come last, in
    batches of their own.
    """
    order, known = _by_duration(seconds)
    batches, first = [], 0
    for last in range(1, known + 1):
        if last == known or (last + 1 - first) * seconds[order[last]] > budget:
            batches.append(order[first:last])
            first = last
    return batches + _chunks(order[known:])


def truncated_batches(seconds: np.ndarray, budget: float) -> list[np.ndarray]:
    """Rows by ascending duration; max(1, floor(budget / d)) from the shortest left, d seconds.

    All members are to be cut to d (spec lgl 2.6). Rows of unknown duration as in `padded_batches`.
    """
    order, known = _by_duration(seconds)
    batches, first = [], 0
    while first < known:
        size = max(1, int(budget / seconds[order[first]]))
        batches.append(order[first : min(first + size, known)])
        first += size
    return batches + _chunks(order[known:])


def _by_duration(seconds: np.ndarray) -> tuple[np.ndarray, int]:
    """Rows in ascending order, NaN last, and how many are not NaN."""
    return np.argsort(seconds, kind='stable'), int(np.isfinite(seconds).sum())


def _chunks(rows: np.ndarray, size: int = 64) -> list[np.ndarray]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]
