"""Continue exactly where a run was killed.

One folder per phase of a recipe: `last.pt` (everything needed to continue), `best.pt` and
`epoch_NNNN.pt` (weights only). Each file is written under a temporary name and renamed, so that a
kill or a full disk leaves the previous one in place.

On another number of processes a phase continues with the same batches in the same order, schedules,
running means and history; every rank that was there before goes on with its own random numbers.
What depends on who computes what does not stay equal: the dropout of ranks that come or go, and
batch norm over the part of a batch that one process holds.
"""

import contextlib
import filecmp
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from shared import ddp, seed
from shared.errors import UserError
from shared.files import remove_unfinished, replacing, write_text
from shared.weight_files import load_weights, read, write

SEEN = 120.0  # s until a file of rank 0 has to be seen everywhere; network disks remember absence
AGREE, MOST = 5.0, 10  # s and steps, after which ranks agree whether to save; torchrun grants 30 s


class Checkpoint:
    """Named stateful objects, the position in the run, the history of its epochs.

    ```
    checkpoint = Checkpoint(folder, framework=framework, optimizer=optimizer, meters=meters)
    for epoch in checkpoint.epochs(args['epoch']):
        for batch in checkpoint.batches(loader):
            ...
        checkpoint.end_epoch({'eer': eer}, value=eer)
    checkpoint.finish()
    ```

    Args:
        folder: of this phase; made when missing.
        keep: how many `epoch_NNNN.pt` to keep; those of earlier epochs are removed.
        save_minutes: time between two saves inside an epoch.
        objects: anything with `state_dict` (called on every rank, stored by rank 0) and
            `load_state_dict`; 'framework' is the one whose weights go into best.pt and
            epoch_NNNN.pt. Give the module, not its DDP wrapper.

    Raises:
        UserError: on construction, when last.pt is there but of another model, or unreadable. On
            every rank, when rank 0 cannot write.
    """

    def __init__(self, folder: str | Path, *, keep=3, save_minutes=10.0, **objects: Any) -> None:
        self.folder = Path(folder)
        self.history: list[dict[str, float]] = []  # one entry per finished epoch
        self.best: dict[str, float] | None = None  # {'epoch', 'value'}; the lowest, the earliest
        self.summary: dict[str, Any] | None = None  # set once the phase is finished
        self.saved_by: int | None = None  # processes of the run that is continued
        self._objects, self._keep, self._save_seconds = objects, keep, save_minutes * 60
        self._epoch, self._batch = 1, 0  # the next step to do
        self._pace = 1  # steps until the ranks ask each other again
        self._saved = self._asked = 0.0  # s, monotonic
        self._shared = False  # whether every rank has seen a file of rank 0
        self._resume()
        self._check_position()

    @property
    def finished(self) -> bool:
        """True when the phase was completed, in this process or an earlier one."""
        return self.summary is not None

    def epochs(self, last: int) -> Iterator[int]:
        """The epochs still to do, 1-based; the first may be a half-done one."""
        while self._epoch <= last and not self.finished:
            yield self._epoch

    def batches(self, loader) -> Iterator:
        """The batches of the epoch still to do; saves every `save_minutes` and when told to stop.

        Raises:
            ddp.Stopped: after the state was saved.
        """
        self._check_devices()
        loader.batch_sampler.set_position(self._epoch, self._batch)
        self._saved = self._asked = time.monotonic()
        steps = 0  # since the ranks last asked each other
        with ddp.deferred_interrupt():
            for batch in loader:
                yield batch
                self._batch, steps = self._batch + 1, steps + 1
                if self._batch % self._pace == 0:
                    self._save_if_asked(steps)
                    steps = 0
            self._save_if_asked(0)

    def _save_if_asked(self, steps: int) -> None:
        """Saves when time is up, after so many steps, or when any rank was told to stop."""
        now = time.monotonic()
        late = steps > 0 and now - self._saved > self._save_seconds
        spent = (now - self._asked) / max(steps, 1)  # s a step
        wishes = ddp.gather_objects((late, ddp.stop_requested(), spent))
        if ddp.world_size() > 1 and steps:  # to ask costs a message, so not after every step
            slowest = max(spent for _, _, spent in wishes)
            self._pace = min(max(int(AGREE / max(slowest, 1e-9)), 1), MOST)
        told = max(number for _, number, _ in wishes)
        if told or any(late for late, _, _ in wishes):
            self.save()
            self._saved = time.monotonic()
        self._asked = time.monotonic()
        if told:
            raise ddp.Stopped(told, saved=True)

    @property
    def batches_done(self) -> int:
        """Batches of the current epoch that were done before `batches` is called."""
        return self._batch

    def end_epoch(self, metrics: dict[str, float], value: float) -> bool:
        """Records an epoch and saves; returns True when `value` is the lowest so far.

        What rank 0 has measured counts: another processor may round otherwise.
        """
        metrics, value = ddp.broadcast_object((metrics, value))
        self.history.append(_plain({'epoch': self._epoch, **metrics}))
        lowest = self.best['value'] if self.best else math.nan
        better = self.best is None or value < lowest or (math.isnan(lowest) and value == value)
        if better:
            self.best = _plain({'epoch': self._epoch, 'value': value})
        weights = self._objects['framework'].state_dict()
        on_main(partial(write, weights, self._file_of(self._epoch)))
        self._epoch, self._batch = self._epoch + 1, 0
        self.save()
        if better:  # last: killed before, the next start takes it from the epoch's own file
            on_main(partial(write, weights, self.folder / 'best.pt'))
        if ddp.is_main():
            for old in range(1, self._epoch - self._keep):
                with contextlib.suppress(OSError):  # the next epoch tries again
                    self._file_of(old).unlink(missing_ok=True)
        return better

    def _file_of(self, epoch: int) -> Path:
        return self.folder / f'epoch_{epoch:04d}.pt'

    def finish(self, summary: dict[str, Any] | None = None) -> None:
        """Marks the phase as done; the same command will skip it from now on."""
        self.summary = _plain(summary or {})
        self.save()

    def load_best(self) -> None:
        """Puts the weights of best.pt into the framework."""
        load_weights(self._objects['framework'], read(self.folder / 'best.pt'), 'best.pt')

    def save(self) -> None:
        """Writes last.pt; every rank calls it, rank 0 writes and the others wait for it."""
        state = {
            'position': {'epoch': self._epoch, 'batch': self._batch},
            'history': self.history,
            'best': self.best,
            'summary': self.summary,
            'generators': ddp.gather_objects(seed.generators()),
            'objects': {name: item.state_dict() for name, item in self._objects.items()},
        }
        # One that ended after Ctrl-C would end rank 0 while it writes; one that reads the file
        # next must not see the previous one. So the others wait.
        on_main(partial(write, state, self.folder / 'last.pt'))
        if not self._shared:
            self._check_shared(self.folder / 'last.pt')
            self._shared = True

    def _check_shared(self, path: Path) -> None:
        """Looks whether every rank sees what rank 0 has written."""
        end = time.monotonic() + SEEN
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.2)
        seen = ddp.gather_objects(path.exists())
        if not all(seen):
            end_all(
                f'rank {seen.index(False)} does not see {path}, which rank 0 has written; all '
                'machines need the same folder: give a `path_log` on a disk that they share'
            )

    def _check_position(self) -> None:
        """Looks whether every rank goes on where rank 0 does, in the same folder, that is."""
        found = ddp.gather_objects((self._epoch, self._batch, self.finished))
        for rank, (epoch, batch, _) in enumerate(found):
            if found[rank] != found[0]:
                end_all(
                    f'{self.folder}: rank 0 is at epoch {found[0][0]}, batch {found[0][1]}, rank '
                    f'{rank} at epoch {epoch}, batch {batch}; all machines need the same folder: '
                    'give a `path_log` on a disk that they share'
                )

    def _check_devices(self) -> None:
        """An optimizer takes up its state where the weights are: they must not move afterwards."""
        optimizers = [x for x in self._objects.values() if isinstance(x, torch.optim.Optimizer)]
        for weight, state in chain.from_iterable(x.state.items() for x in optimizers):
            tensors = [x for x in state.values() if torch.is_tensor(x) and x.ndim]
            if any(x.device != weight.device for x in tensors):
                raise RuntimeError('weights moved after the checkpoint: distribute them before')

    def _resume(self) -> None:
        if ddp.is_main():
            remove_unfinished(self.folder)
        path = self.folder / 'last.pt'
        if not path.exists():
            return
        state = read(path)
        stored = state.get('objects') if isinstance(state, dict) else None
        if stored is None:
            raise UserError(f'{path}: not a checkpoint of a run (weights alone, perhaps)')
        differing = self._objects.keys() ^ stored.keys()
        if differing:
            raise UserError(f'{path}: another kind of run (differs in {sorted(differing)})')
        for name, item in self._objects.items():
            if isinstance(item, torch.nn.Module):
                load_weights(item, stored[name], f'{path} ({name})')
                continue
            try:
                item.load_state_dict(stored[name])
            except (KeyError, ValueError) as error:  # an optimizer of other parameter groups
                raise UserError(f'{path} ({name}): state of another run: {error}') from None
        self._epoch, self._batch = state['position']['epoch'], state['position']['batch']
        self.history, self.best = state['history'], state['best']
        self.summary = state['summary']
        if ddp.is_main():
            self._complete_best()
        self.saved_by = len(state['generators'])
        if ddp.rank() < self.saved_by:  # a new rank has the numbers that the recipe gave it
            seed.set_generators(state['generators'][ddp.rank()])

    def _complete_best(self) -> None:
        """Writes best.pt where a run was killed between last.pt, which names it, and best.pt."""
        epoch = self._epoch - 1
        newest, best = self._file_of(epoch), self.folder / 'best.pt'
        if self._batch or not self.best or self.best['epoch'] != epoch or not newest.exists():
            return
        if not best.exists() or not filecmp.cmp(newest, best, shallow=False):
            with replacing(best) as temporary:
                shutil.copyfile(newest, temporary)


def on_main(work: Callable[[], None]) -> None:
    """Calls it on rank 0, while the others wait; its `UserError` is every rank's."""
    problem = None
    if ddp.is_main():
        try:
            work()
        except UserError as error:
            problem = str(error)
    # All to all: rank 0 may end after this, and nobody may still be waiting for it.
    problem = ddp.gather_objects(problem)[0]
    if problem is not None:
        end_all(problem)


def end_all(text: str) -> NoReturn:
    """Raises a `UserError` that every rank has; rank 0 first, as it has a progress bar to clear."""
    if not ddp.is_main():
        time.sleep(0.5)
    raise UserError(text)


def once(path: Path, make: Callable[[], dict], key: Any) -> dict:
    """`make()` the first time, its stored JSON as long as the key is the same; every rank calls it.

    For passes that are not training (an evaluation, say) and should not be repeated when a run is
    continued.

    Args:
        path: of the JSON file, {'key': ..., 'result': ...}; another file is replaced.
        make: what is to be done; its result can be written as JSON.
        key: what the result depends on besides the run, such as the SHA-256 of the test lists; can
            be written as JSON.
    """
    key = json.loads(json.dumps(_plain(key)))  # as it is read: a tuple becomes a list
    stored = json.loads(path.read_text()) if ddp.is_main() and path.exists() else {}
    stored = ddp.broadcast_object(stored)
    if stored.keys() == {'key', 'result'} and stored['key'] == key:
        return stored['result']
    result = json.dumps({'key': key, 'result': _plain(make())}, indent=1)
    on_main(partial(write_text, path, result))
    return json.loads(result)['result']


def _plain(item: Any) -> Any:
    """Numbers of numpy or torch as Python's own: `read` would refuse those of numpy."""
    if isinstance(item, dict):
        return {key: _plain(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [_plain(value) for value in item]
    return item.tolist() if isinstance(item, np.generic | np.ndarray | torch.Tensor) else item
