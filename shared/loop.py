"""Everything in a training loop that is not the algorithm."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared import ddp
from shared.checkpoint import Checkpoint
from shared.meters import Meters, Progress


class Loop(Checkpoint):
    """A `Checkpoint` that also owns the loader, the running means and the progress bar.

    ```
    loop = Loop(folder, loader, skipped, framework=framework, optimizer=optimizer)
    for epoch in loop.epochs(args['epoch']):
        for batch in loop.batches(f'train {epoch}'):
            ...
            loop.meters.update({'loss': loss})
        loop.end_epoch(loop.means(), value=eer)
    loop.finish()
    ```

    Args:
        folder: of this phase.
        loader: its `batch_sampler` is a `ShuffledBatches`.
        skipped: its `watch` removes and counts what the loader could not read.
        keep: epochs whose weights are kept.
        save_minutes: between two saves inside an epoch.
        objects: see `Checkpoint`; meters and sampler are added.
    """

    def __init__(
        self, folder: str | Path, loader, skipped, *, keep=3, save_minutes=10.0, **objects: Any
    ) -> None:
        self.loader, self.skipped, self.meters = loader, skipped, Meters()
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
