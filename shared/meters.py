"""Running means without waiting for the device, and the progress bar of every loop."""

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

INTERVAL = 10  # steps between two looks at the numbers; only then is the device waited for

# tqdm's own lock is one of several processes: a rank that ends at once would leave a semaphore, and
# Python would say so below the line that tells why the run ended. Only rank 0 has a bar.
tqdm.set_lock(threading.RLock())


class Meters:
    """Weighted running means by name, kept on the device until they are read.

    A number is fetched only in `means`, so a step never waits for the host. The state can be
    saved, so that a run continued inside an epoch reports the mean of the whole epoch. Of the last
    `INTERVAL` steps each value is kept by itself, to name the one that went wrong.
    """

    def __init__(self) -> None:
        self.step = 0  # the one that `update` is about; whoever counts them sets it
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._recent: deque[tuple[int, dict[str, Tensor]]] = deque(maxlen=INTERVAL)

    def update(self, values: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        """Adds one step's values, means over `weight` items each."""
        if not self._recent or self._recent[-1][0] != self.step:
            self._recent.append((self.step, {}))
        for name, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float64).detach()
            self._recent[-1][1][name] = value
            value = value * weight
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

    def recent(self) -> dict[int, dict[str, float]]:
        """The values of the last `INTERVAL` steps, on this rank."""
        return {
            step: {name: float(value) for name, value in values.items()}
            for step, values in self._recent
        }

    def not_finite(self) -> tuple[int, dict[str, float]] | None:
        """The first recent step with NaN or infinite values, and these; None: there is none.

        On this rank. The sums are asked first, as neither is ever lost in them.
        """
        if all(map(math.isfinite, self.means(over_ranks=False).values())):
            return None
        for step, values in self.recent().items():
            bad = {name: value for name, value in values.items() if not math.isfinite(value)}
            if bad:
                return step, bad
        return None  # the sums were so already when they were loaded

    def clear(self) -> None:
        """Starts anew, for the next epoch."""
        self.step = 0
        self._sums.clear()
        self._weights.clear()
        self._recent.clear()

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
        interval: int = INTERVAL,
        show: bool = True,
    ) -> None:
        self._title, self._total, self._start = title, total, start
        self._batch_size, self._interval, self._show = batch_size, interval, show
        self.speed: dict[str, float] = {}
        self.due = False

    def watch(self, batches: Iterable, meters: Meters) -> Iterator:
        """Yields the batches, says in `meters.step` which this is, sets `due` where to look.

        That is on each `interval`-th step and on the last.
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
                meters.step = done
                yield batch
                bar.update()
                if self.due:
                    means = meters.means(over_ranks=False)
                    spent = time.perf_counter() - began
                    self.speed = {
                        'utterances_per_second': steps * self._batch_size / spent,
                        'step_seconds': spent / steps,
                        'data_wait_percent': 100 * waited / spent,
                    }
                    bar.set_postfix_str(self._line(means))

    def _line(self, means: Mapping[str, float]) -> str:
        loss = f'loss {means["loss"]:.3f}, ' if 'loss' in means else ''
        speed = self.speed
        return (
            f'{loss}{speed["utterances_per_second"]:.0f} utt/s, '
            f'data-wait {speed["data_wait_percent"]:.0f} %'
        )
