"""Everything in a training loop that is not the algorithm."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from tqdm import tqdm

from shared import ddp
from shared.checkpoint import Checkpoint, write
from shared.datasets.loading import SkippedFiles
from shared.meters import Meters, Progress


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
        super().__init__(
            folder,
            keep=keep,
            save_minutes=save_minutes,
            meters=self.meters,
            sampler=loader.batch_sampler,
            **objects,
        )

    def batches(self, title: str) -> Iterator[dict]:  # type: ignore[override]
        """The batches of the epoch still to do, behind a progress bar called `title`."""
        progress = Progress(
            title,
            len(self.loader),
            self.loader.batch_sampler.batch_size,
            start=self.batches_done,
            show=ddp.is_main(),
        )
        yield from progress.watch(self.skipped.watch(super().batches(self.loader)), self.meters)
        self._speed = progress.speed

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
            if ddp.is_main():
                for kind, state in found.items():
                    write(state, files[kind])
            self.finish({'epochs': len(self.history)})
        return files
