"""All sinks behind one name, and the builder that puts them together."""

from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.log._interface import ExperimentLogger, one_line, warn
from shared.log.local_logger import LocalLogger
from shared.log.redaction import redact, remember


class LoggerList:
    """Hands everything to each sink. An empty list is a logger that does nothing.

    Names are `<split>/<quantity>`, such as 'valid/eer'. Secrets are taken out of arguments and
    texts before any sink sees them. A sink that needs a service may fail: that costs one warning,
    and the run goes on without the sink. The run folder may not fail.
    """

    def __init__(self, sinks: list[ExperimentLogger]) -> None:
        self._sinks = list(sinks)

    def __len__(self) -> int:
        return len(self._sinks)

    def log_metric(self, name: str, value: Any, step: int | None = None) -> None:
        """One number; tensors of one element are taken to the CPU here."""
        self.log_metrics({name: value}, step)

    def log_metrics(self, values: dict[str, Any], step: int | None = None) -> None:
        """Numbers of one step; `step` None counts each quantity's own values."""
        if self._sinks:
            self._each('log_metrics', {name: float(v) for name, v in values.items()}, step)

    def log_arguments(self, arguments: dict[str, Any]) -> None:
        """What the run is. Give `experiment_args`: this is what online services see."""
        self._each('log_arguments', redact(arguments))

    def log_text(self, name: str, text: str) -> None:
        """A text, kept in full."""
        self._each('log_text', name, redact(text))

    def log_image(self, name: str, image: Any, step: int | None = None) -> None:
        """A matplotlib figure, a PNG's path or bytes, or an array (H, W) or (H, W, 3)."""
        if self._sinks:
            from shared.log.pictures import as_png

            self._each('log_image', name, as_png(image), step)

    def save_model(self, name: str, state_dict: dict) -> None:
        """Weights as `models/<name>.pt` of the run folder; to resume, use `Checkpoint`."""
        self._each('save_model', name, state_dict)

    def curves(self) -> None:
        """Draws the learning curves so far; cheap enough for the end of every epoch."""
        self._each('curves')

    def finish(self) -> None:
        """Completes and closes every sink; a second call does nothing."""
        self._each('finish')
        self._sinks.clear()

    def _each(self, method: str, *values: Any) -> None:
        for sink in list(self._sinks):
            try:
                getattr(sink, method)(*values)
            except Exception as error:
                if sink.essential:
                    raise
                self._sinks.remove(sink)
                warn(f'{sink.title}: {method} failed ({one_line(error)}); going on without it')

    class Builder:
        """Collects the sinks of a run, one line each, in any order.

        Only process 0 logs: with `args['rank']` above 0, `build` returns an empty list and
        touches no file. Keys that are passed here go to their service and nowhere else; leave
        them out to use the environment or the service's own login.

        Args:
            name: of this run.
            project: that the run belongs to.
            tags: to find the run again.
            description: one sentence.
            path_scripts: the recipe's folder, copied into the run folder.
            args: every argument; 'rank' (0 if absent) and 'path_log' are looked at, and all are
                kept, without secrets, in the run folder only.
        """

        def __init__(
            self,
            name: str,
            project: str,
            tags: Any,
            description: str,
            path_scripts: str | Path,
            args: dict,
        ) -> None:
            self.name, self.project, self.description = name, project, description
            self.tags = [tags] if isinstance(tags, str) else [str(tag) for tag in tags or ()]
            self.path_scripts, self.args = Path(path_scripts), args
            self._path_log: Path | None = None
            self._makers: list = []  # (title, function of the run folder), in order of the calls

        def use_local_logger(self, path_log: str | Path) -> 'LoggerList.Builder':
            """Files in `path_log`, the run folder."""
            self._path_log = Path(path_log)
            return self

        def use_tensorboard_logger(self) -> 'LoggerList.Builder':
            """Event files in the run folder's `tensorboard/`."""

            def make(path: Path) -> ExperimentLogger:
                from shared.log.tensorboard import TensorboardLogger

                return TensorboardLogger(path / 'tensorboard')

            self._makers.append(('tensorboard', make))
            return self

        def use_wandb_logger(
            self, entity: str | None, group: str | None = None, api_key: str | None = None
        ) -> 'LoggerList.Builder':
            """Weights & Biases; `WANDB_MODE=offline` writes into the run folder's `wandb/`."""
            remember(api_key)

            def make(path: Path) -> ExperimentLogger:
                from shared.log.wandb import WandbLogger

                about = (self.name, self.project, self.tags, self.description)
                return WandbLogger(path, *about, entity=entity, group=group, api_key=api_key)

            self._makers.append(('wandb', make))
            return self

        def use_neptune_logger(self, user: str, token: str | None = None) -> 'LoggerList.Builder':
            """Neptune, offline or on your own server: the hosted service closed in March 2026."""
            remember(token)

            def make(path: Path) -> ExperimentLogger:
                from shared.log.neptune import NeptuneLogger

                about = (self.name, self.project, self.tags, self.description)
                return NeptuneLogger(path, *about, user=user, token=token)

            self._makers.append(('neptune', make))
            return self

        def build(self) -> 'LoggerList':
            """The logger; a service that cannot be reached is left out with a warning.

            Raises:
                UserError: no run folder is named although a sink needs one.
            """
            if self.args.get('rank', 0) != 0:
                return LoggerList([])
            sinks: list[ExperimentLogger] = []
            if self._path_log is not None:
                about = {
                    'name': self.name,
                    'project': self.project,
                    'tags': self.tags,
                    'description': self.description,
                    'args': self.args,
                }
                sinks.append(LocalLogger(self._path_log, self.path_scripts, about))
            folder = self._path_log or self.args.get('path_log')
            if folder is None:
                if self._makers:
                    raise UserError(
                        "logger: no run folder; call use_local_logger or set args['path_log']"
                    )
                return LoggerList([])
            for title, make in self._makers:
                try:
                    sinks.append(make(Path(folder)))
                except Exception as error:
                    warn(f'{title}: not available ({one_line(error)}); going on without it')
            return LoggerList(sinks)
