"""Continue exactly where a run was killed.

One folder per phase of a recipe: `last.pt` (everything needed to continue), `best.pt` and
`epoch_NNNN.pt` (weights only). Each file is written under a temporary name and renamed, so that a
kill or a full disk leaves the previous one in place.
"""

import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared import ddp
from shared.errors import UserError
from shared.files import replacing, write_text


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
        UserError: on construction, when last.pt is there but of another model, or unreadable.
    """

    def __init__(self, folder: str | Path, *, keep=3, save_minutes=10.0, **objects: Any) -> None:
        self.folder = Path(folder)
        self.history: list[dict[str, float]] = []  # one entry per finished epoch
        self.best: dict[str, float] | None = None  # {'epoch', 'value'}; the lowest, the earliest
        self.summary: dict[str, Any] | None = None  # set once the phase is finished
        self._objects, self._keep, self._save_seconds = objects, keep, save_minutes * 60
        self._epoch, self._batch = 1, 0  # the next step to do
        self._resume()

    @property
    def finished(self) -> bool:
        """True when the phase was completed, in this process or an earlier one."""
        return self.summary is not None

    def epochs(self, last: int) -> Iterator[int]:
        """The epochs still to do, 1-based; the first may be a half-done one."""
        while self._epoch <= last and not self.finished:
            yield self._epoch

    def batches(self, loader) -> Iterator:
        """The batches of the epoch still to do; saves every `save_minutes` and on Ctrl-C.

        Raises:
            KeyboardInterrupt: after the state was saved.
        """
        loader.batch_sampler.set_position(self._epoch, self._batch)
        saved = time.monotonic()
        with ddp.deferred_interrupt():
            for batch in loader:
                yield batch
                self._batch += 1
                # Several ranks agree on a save, which costs a message: every tenth step only.
                if self._batch % 10 == 0 or ddp.world_size() == 1:
                    late = time.monotonic() - saved > self._save_seconds
                    if self._save_if_asked(late):
                        saved = time.monotonic()
            self._save_if_asked(late=False)

    def _save_if_asked(self, late: bool) -> bool:
        """Saves when time is up or Ctrl-C was pressed on any rank; returns whether it did."""
        wishes = ddp.gather_objects((late, ddp.interrupt_requested()))
        wanted = any(late or interrupted for late, interrupted in wishes)
        if wanted:
            self.save()
        if any(interrupted for _, interrupted in wishes):
            raise KeyboardInterrupt
        return wanted

    @property
    def batches_done(self) -> int:
        """Batches of the current epoch that were done before `batches` is called."""
        return self._batch

    def end_epoch(self, metrics: dict[str, float], value: float) -> bool:
        """Records an epoch and saves; returns True when `value` is the lowest so far."""
        self.history.append(_plain({'epoch': self._epoch, **metrics}))
        lowest = self.best['value'] if self.best else math.nan
        better = self.best is None or value < lowest or (math.isnan(lowest) and value == value)
        if better:
            self.best = _plain({'epoch': self._epoch, 'value': value})
        weights = self._objects['framework'].state_dict()
        if ddp.is_main():
            write(weights, self.folder / f'epoch_{self._epoch:04d}.pt')
            if better:
                write(weights, self.folder / 'best.pt')
        self._epoch, self._batch = self._epoch + 1, 0
        self.save()
        if ddp.is_main():
            for old in range(1, self._epoch - self._keep):
                (self.folder / f'epoch_{old:04d}.pt').unlink(missing_ok=True)
        return better

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
            'generators': ddp.gather_objects(_generators()),
            'objects': {name: item.state_dict() for name, item in self._objects.items()},
        }
        if ddp.is_main():
            write(state, self.folder / 'last.pt')
        # One that ended after Ctrl-C would end rank 0 while it writes; one that reads the file
        # next must not see the previous one.
        ddp.barrier()

    def _resume(self) -> None:
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
        if len(state['generators']) == ddp.world_size():
            _set_generators(state['generators'][ddp.rank()])


def write(state: Any, path: Path) -> None:
    """`torch.save` through `replacing`, whose error it raises."""
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        torch.save(state, file)


def read(path: str | Path, device: str = 'cpu') -> Any:
    """`torch.load` of tensors and plain values only: nothing in the file is executed.

    Raises:
        UserError: missing, damaged, or holding anything but tensors and plain values.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f'{path}: no such checkpoint file') from None
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = (str(error).strip().splitlines() or [repr(error)])[0][:200]
        if reason.startswith('Weights only'):  # torch goes on to advise opening it nonetheless
            found = re.search(r'GLOBAL (\S+)', str(error))
            reason = f'it holds {found[1] if found else "more"} besides tensors and plain values'
        raise UserError(f'{path}: not a readable checkpoint ({reason})') from None


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
    if ddp.is_main():
        write_text(path, result)
    return json.loads(result)['result']


def load_weights(module: torch.nn.Module, state: dict[str, Any], source: str) -> None:
    """Strict `load_state_dict` whose one-line error names what does not fit.

    Raises:
        UserError: missing, unexpected or differently shaped entries, or no entries at all.
    """
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise UserError(f'{source}: not a set of weights (named tensors)')
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    check_entries(state, shapes, f'{source}: checkpoint of another model')
    module.load_state_dict(state)


def check_entries(
    entries: dict[str, torch.Tensor],
    shapes: dict[str, tuple[int, ...]],
    complaint: str,
    **more: list[str],
) -> None:
    """Raises one line that names everything wrong with the entries of a file.

    Args:
        entries: what was read.
        shapes: of the entries that should be there.
        complaint: how the line begins: file, and what it is not.
        more: kind of a further fault -> the entries that have it; underscores become blanks.

    Raises:
        UserError: missing, unexpected or differently shaped entries, or `more`.
    """
    common = sorted(entries.keys() & shapes.keys())
    problems = {
        'missing': sorted(shapes.keys() - entries.keys()),
        'unexpected': sorted(entries.keys() - shapes.keys()),
        'of another shape': [
            f'{name} {tuple(entries[name].shape)} instead of {shapes[name]}'
            for name in common
            if tuple(entries[name].shape) != shapes[name]
        ],
        **{kind.replace('_', ' '): names for kind, names in more.items()},
    }
    found = [
        f'{len(names)} {kind} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'
        for kind, names in problems.items()
        if names
    ]
    if found:
        raise UserError(f'{complaint}: {"; ".join(found)}')


def _plain(item: Any) -> Any:
    """Numbers of numpy or torch as Python's own: `read` would refuse those of numpy."""
    if isinstance(item, dict):
        return {key: _plain(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [_plain(value) for value in item]
    return item.tolist() if isinstance(item, np.generic | np.ndarray | torch.Tensor) else item


def _generators() -> dict[str, Any]:
    """The state of every random generator of this process, as tensors and plain values."""
    legacy = np.random.get_state(legacy=False)
    keys = torch.from_numpy(legacy['state']['key'].astype(np.int64))
    position, has_gauss, cached = legacy['state']['pos'], legacy['has_gauss'], legacy['gauss']
    state = {
        'python': random.getstate(),
        'numpy': (legacy['bit_generator'], keys, position, has_gauss, cached),
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def _set_generators(state: dict[str, Any]) -> None:
    random.setstate(state['python'])
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])
