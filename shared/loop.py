"""Everything in a training loop that is not the algorithm."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from tqdm import tqdm

from shared import ddp, heartbeat
from shared.checkpoint import Checkpoint, end_all, on_main
from shared.datasets.loading import SkippedFiles
from shared.datasets.replay import batch_again
from shared.errors import UserError
from shared.meters import Meters, Progress
from shared.weight_files import write


class Logger(Protocol):
    """What is needed of a logger; a `LoggerList` is one."""

    def log_metrics(self, values: dict[str, float], step: int | None = None) -> None: ...
    def curves(self) -> None: ...


class Loop(Checkpoint):
    """A `Checkpoint` that also owns the loader, the running means and the progress bar.

    ```
    loop = Loop(folder, loader, framework=framework, optimizer=optimizer)
    for epoch in loop.epochs(args['epoch']):
        for batch in loop.batches(f'train {epoch}'):
            ...
            loop.meters.update({'loss': loss})
        metrics = loop.means()
        loop.log_epoch('train', epoch, metrics, logger, shown=('loss',))
        loop.end_epoch(metrics, value=eer)
    loop.finish()
    ```

    What the loader could not read is removed from its batches and counted in `skipped`
    (`SkippedFiles`), with a line for each file in the folder's `skipped.txt`.

    A loss or weight that is NaN or infinite ends every rank before anything more is saved, with
    one line; the batch of that step is left in `bad_batch.pt`, or `bad_batch_rank<r>.pt`.

    Args:
        folder: of this phase.
        loader: its `batch_sampler` is a `ShuffledBatches`.
        max_bad_share: part of the samples, 0 to 1, that may be replaced before the run stops.
        keep: epochs whose weights are kept.
        save_minutes: between two saves inside an epoch.
        objects: see `Checkpoint`; meters and sampler are added.
    """

    def __init__(
        self,
        folder: str | Path,
        loader,
        *,
        max_bad_share: float = 0.001,
        keep: int = 3,
        save_minutes: float = 10.0,
        **objects: Any,
    ) -> None:
        self.loader, self.meters = loader, Meters()
        self.skipped = SkippedFiles(Path(folder) / 'skipped.txt', max_bad_share)
        self._speed: dict[str, float] = {}
        self._title = ''
        super().__init__(
            folder,
            keep=keep,
            save_minutes=save_minutes,
            meters=self.meters,
            sampler=loader.batch_sampler,
            **objects,
        )
        if ddp.is_main() and not self.finished and self.saved_by not in (None, ddp.world_size()):
            tqdm.write(
                f'{self.folder}: continued on {ddp.world_size()} processes instead of '
                f'{self.saved_by}: same batches, schedule and means; dropout and unsynchronised '
                'batch norm differ'
            )

    def batches(self, title: str) -> Iterator[dict]:  # type: ignore[override]
        """The batches of the epoch still to do, behind a progress bar called `title`.

        Raises:
            UserError: a value given to the meters, or a weight, has become NaN or infinite.
        """
        self._title = title
        # before the length is asked for: epochs may differ in theirs
        self.loader.batch_sampler.set_position(self._epoch, self.batches_done)
        progress = Progress(
            title,
            len(self.loader),
            self.loader.batch_sampler.batch_size,
            start=self.batches_done,
            show=ddp.is_main(),
        )
        source = self.skipped.watch(super().batches(self.loader))
        source = heartbeat.watch(title, source, self.batches_done)
        for batch in progress.watch(source, self.meters):
            yield batch
            if progress.due:
                self._stop_if_not_finite()
        self._stop_if_not_finite(weights=True)
        self._speed = progress.speed

    def save(self) -> None:
        """As of `Checkpoint`; inside an epoch, only what is finite."""
        if self._batch:
            self._stop_if_not_finite(weights=True)
        super().save()

    def _stop_if_not_finite(self, weights: bool = False) -> None:
        """Ends all ranks if a loss is NaN or infinite on one, or a weight; every rank calls it."""
        step, what = self.meters.step, ''
        if bad := self.meters.not_finite():
            step, values = bad
            what = ', '.join(f'{name} is {value}' for name, value in values.items())
        elif weights and step and (name := self._broken_weight()):
            what = f'the gradient of {name} was not finite'  # as all losses so far were
        found = ddp.gather_objects((step, what))
        if not any(what for _, what in found):
            return
        # Through the gradients one rank's NaN is everyone's a step later: the first is to blame.
        step = min(step for step, what in found if what)
        first = [rank for rank, (at, what) in enumerate(found) if what and at == step]
        saved = ddp.gather_objects(self._save_bad_batch(step) if ddp.rank() in first else '')
        ranks = f' on rank {", ".join(map(str, first))}' if ddp.world_size() > 1 else ''
        end_all(
            f'{self._title}: {found[first[0]][1]} at step {step}{ranks}; {saved[first[0]]}; look '
            'at its files, or lower the learning rate or try `--amp false` in a run of another '
            '`name`; the same command goes on from the last save'
        )

    def _broken_weight(self) -> str | None:
        """The name of one that is NaN or infinite."""
        modules = [item for item in self._objects.values() if isinstance(item, nn.Module)]
        weights = chain.from_iterable(module.named_parameters() for module in modules)
        return next((name for name, weight in weights if not weight.isfinite().all()), None)

    def _save_bad_batch(self, step: int) -> str:
        """Leaves this rank's batch of a step in the folder; says where, or why not."""
        rank = ddp.rank()
        path = self.folder / (f'bad_batch_rank{rank}.pt' if rank else 'bad_batch.pt')
        about = {
            'loop': self._title,
            'epoch': self._epoch,
            'step': step,
            'rank': rank,
            'values': self.meters.recent(),
        }
        try:
            write({**about, **batch_again(self.loader, self._epoch, step)}, path)
        except (UserError, OSError) as error:
            return f'its batch could not be saved ({error})'
        return f'its batch is in {path}'

    def means(self) -> dict[str, float]:
        """The epoch's means over all ranks, with its speed; starts anew for the next epoch."""
        means = {**self.meters.means(), **self._speed}
        self.meters.clear()
        return means

    def log_epoch(
        self,
        split: str,
        step: int,
        metrics: Mapping[str, float],
        logger: Logger,
        shown: Sequence[str] = (),
    ) -> None:
        """Logs an epoch as `<split>/<name>` of this step, draws the curves, shows one line.

        Args:
            split: such as 'train'.
            step: epochs so far, over all phases that share the split.
            metrics: of the epoch.
            logger: where they go.
            shown: names on the line, in this order, where there are; none: all.
        """
        if ddp.is_main():
            names = [name for name in shown or metrics if name in metrics]
            line = ', '.join(f'{name} {metrics[name]:.4g}' for name in names)
            tqdm.write(f'{split} epoch {step}: {line}')
        logger.log_metrics({f'{split}/{name}': value for name, value in metrics.items()}, step)
        logger.curves()

    def finish(self, summary: dict[str, Any] | None = None) -> None:
        """As of `Checkpoint`; rank 0 also says how many files were skipped or converted."""
        super().finish(summary)
        if ddp.is_main() and (self.skipped.files or self.skipped.converted):
            tqdm.write(f'{self.folder}: {self.skipped.summary()}')

    def export(self, states: Callable[[], Mapping[str, Mapping[str, Tensor]]]) -> dict[str, Path]:
        """Puts the chosen epoch's weights into the framework and ends the phase.

        Args:
            states: called afterwards: what the phase hands on, as kind -> state of that network.

        Returns:
            The file <kind>.pt of each in the folder; written once, by rank 0.
        """
        self.load_best()
        found = states()
        files = {kind: self.folder / f'{kind}.pt' for kind in found}
        if not self.finished:
            for kind, state in found.items():
                on_main(partial(write, state, files[kind]))
            self.finish({'epochs': len(self.history)})
        return files
