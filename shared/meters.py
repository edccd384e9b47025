"""Running means without waiting for the device, and the progress bar of every loop."""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm


class Meters:
    """Weighted running means by name, kept on the device until they are read.

    A number is fetched only in `means`, so a step never waits for the host. The state can be
    saved, so that a run continued inside an epoch reports the mean of the whole epoch.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def update(self, values: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        """Adds one step's values, means over `weight` items each."""
        for name, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float64).detach() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def means(self, over_ranks: bool = True) -> dict[str, float]:
        """The means so far, over all ranks unless told otherwise."""
        names = sorted(self._sums)
        if not names:
            return {}
        rows = [[float(self._sums[name]), self._weights[name]] for name in names]
        table = torch.tensor(rows, dtype=torch.float64)
        if over_ranks and _world_size() > 1:
            table = table.to('cuda' if dist.get_backend() == 'nccl' else 'cpu')
            dist.all_reduce(table)
        return {
            name: float(total / max(weight, 1e-12)) for name, (total, weight) in zip(names, table)
        }

    def clear(self) -> None:
        """Starts anew, for the next epoch."""
        self._sums.clear()
        self._weights.clear()

    def state_dict(self) -> dict[str, Any]:
        """The sums of every rank, for `Checkpoint`; every rank calls it."""
        sums = {name: float(value) for name, value in self._sums.items()}
        ranks: list = [{'sums': sums, 'weights': dict(self._weights)}]
        if _world_size() > 1:
            own, ranks = ranks[0], [None] * _world_size()
            dist.all_gather_object(ranks, own)
        return {'ranks': ranks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up this rank's sums; those of ranks that are no more go to the remaining ones."""
        self.clear()
        rank = dist.get_rank() if dist.is_initialized() else 0
        for index, part in enumerate(state['ranks']):
            own = index % _world_size() == rank
            for name, value in part['sums'].items():  # every rank gets every name, see `means`
                total = torch.tensor(value if own else 0.0, dtype=torch.float64)
                self._sums[name] = self._sums[name] + total if name in self._sums else total
                weight = part['weights'][name] if own else 0.0
                self._weights[name] = self._weights.get(name, 0.0) + weight


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


class Progress:
    """A bar with ETA, the loss, utterances per second and the share of time spent on waiting.

    Args:
        title: shown in front of the bar.
        total: steps of the whole epoch.
        start: steps already done before (a continued epoch).
        batch_size: utterances per step over all ranks.
        interval: steps between two looks at the numbers; only then is the device waited for.
        show: False on every rank but the first.
    """

    def __init__(
        self,
        title: str,
        total: int,
        batch_size: int,
        *,
        start: int = 0,
        interval: int = 10,
        show: bool = True,
    ) -> None:
        self._title, self._total, self._start = title, total, start
        self._batch_size, self._interval, self._show = batch_size, interval, show
        self.speed: dict[str, float] = {}
        self.due = False

    def watch(self, batches: Iterable, meters: Meters) -> Iterator:
        """Yields the batches; sets `due` on each `interval`-th step and on the last.

        Raises:
            FloatingPointError: a mean has become NaN or infinite.
        """
        waited, steps, began = 0.0, 0, time.perf_counter()
        bar = tqdm(
            total=self._total,
            initial=self._start,
            desc=self._title,
            unit='step',
            disable=not self._show,
            dynamic_ncols=True,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,  # seconds; a log file is no screen
            leave=False,
        )
        source = iter(batches)
        with bar:
            while True:
                asked = time.perf_counter()
                batch = next(source, None)
                if batch is None:
                    return
                waited += time.perf_counter() - asked
                steps += 1
                done = self._start + steps
                self.due = done % self._interval == 0 or done == self._total
                yield batch
                bar.update()
                if self.due:
                    means = meters.means(over_ranks=False)
                    self._check(means, done)
                    spent = time.perf_counter() - began
                    self.speed = {
                        'utterances_per_second': steps * self._batch_size / spent,
                        'step_seconds': spent / steps,
                        'data_wait_percent': 100 * waited / spent,
                    }
                    bar.set_postfix_str(self._line(means))

    def _check(self, means: Mapping[str, float], step: int) -> None:
        for name, value in means.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f'{self._title}: {name} is {value} at step {step}; '
                    'lower the learning rate or look at the last batches'
                )

    def _line(self, means: Mapping[str, float]) -> str:
        loss = f'loss {means["loss"]:.3f}, ' if 'loss' in means else ''
        speed = self.speed
        return (
            f'{loss}{speed["utterances_per_second"]:.0f} utt/s, '
            f'data-wait {speed["data_wait_percent"]:.0f} %'
        )
