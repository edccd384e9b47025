"""Weights & Biases, online or offline."""

import io
import os
from pathlib import Path
from typing import Any

from shared.log._interface import ExperimentLogger, one_line, warn
from shared.log.files import kept_id

INIT_SECONDS = 30.0  # then the run is recorded offline instead
FINISH_SECONDS = 120.0  # what has not been sent by then stays on disk for `wandb sync`


class WandbLogger(ExperimentLogger):
    """A W&B run of which only arguments, numbers, texts and images leave this machine.

    `WANDB_MODE=offline` is respected. Without a key, or when the service does not answer, the run
    is recorded offline under the run folder's `wandb/` and `wandb sync` sends it later. A
    continued run keeps its id (`wandb_id.txt`), hence its page. The step is a logged quantity
    of its own, because W&B drops values whose step is lower than one it has seen.

    Args:
        path_log: the run folder.
        name: of the run.
        project: of W&B.
        tags: of the run.
        description: shown as the run's notes.
        entity: user or team; None is the account's own.
        group: that W&B shows this run in.
        api_key: for this process only; None uses `WANDB_API_KEY` or `wandb login`.
    """

    def __init__(
        self,
        path_log: str | Path,
        name: str,
        project: str,
        tags: list[str],
        description: str,
        *,
        entity: str | None = None,
        group: str | None = None,
        api_key: str | None = None,
    ) -> None:
        import wandb

        path = Path(path_log)
        path.mkdir(parents=True, exist_ok=True)
        self._wandb = wandb
        known: dict[str, Any] = {
            'dir': str(path),
            'name': name,
            'project': project,
            'tags': tags,
            'notes': description,
            'entity': entity,
            'group': group,
            'id': kept_id(path / 'wandb_id.txt'),
        }
        self._run = self._start(known, api_key)
        self._run.define_metric('*', step_metric='step')

    def _start(self, known: dict[str, Any], api_key: str | None):
        """An online run, or an offline one with a warning."""
        mode: Any = os.environ.get('WANDB_MODE') or self._wandb.setup().settings.mode
        if mode in ('offline', 'dryrun', 'disabled'):
            return self._wandb.init(**known, mode=mode, settings=self._settings())
        try:
            # login(key=...) would write the key to ~/.netrc; a key in the settings stays here
            if api_key is None and not self._wandb.login(prompt=False):
                raise PermissionError('no key: set WANDB_API_KEY or run `wandb login`')
            return self._wandb.init(**known, resume='allow', settings=self._settings(api_key))
        except Exception as error:
            warn(f'wandb: {one_line(error)}; recording offline, `wandb sync` sends it later')
        self._wandb.teardown()  # the failed attempt still holds the run's id
        return self._wandb.init(**known, mode='offline', settings=self._settings())

    def _settings(self, api_key: str | None = None):
        """No source, no git remote, no command line, no console: only what is logged."""
        return self._wandb.Settings(
            api_key=api_key,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            silent=True,
            console='off',
            save_code=False,
            disable_git=True,
            x_disable_meta=True,
        )

    def log_metrics(self, values: dict[str, float], step: int | None = None) -> None:
        self._log(values, step)

    def log_arguments(self, arguments: dict[str, Any]) -> None:
        self._run.config.update(arguments, allow_val_change=True)

    def log_text(self, name: str, text: str) -> None:
        self._run.summary[name] = text

    def log_image(self, name: str, image: bytes, step: int | None = None) -> None:
        from PIL import Image

        self._log({name: self._wandb.Image(Image.open(io.BytesIO(image)))}, step)

    def _log(self, values: dict[str, Any], step: int | None) -> None:
        self._run.log(values if step is None else {**values, 'step': step})

    def finish(self) -> None:
        self._run.finish()
