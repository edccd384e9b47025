"""The run folder: everything a run says, in files that outlive it. Nothing is ever deleted."""

import json
import math
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import UserError
from shared.files import remove_unfinished
from shared.log import pictures, provenance
from shared.log._interface import ExperimentLogger
from shared.log.files import (
    as_json,
    file_name,
    now,
    read_json,
    readable_errors,
    replacing,
    write_atomically,
    write_beside,
    write_folder_beside,
    write_json,
)
from shared.log.metrics_file import as_series, open_for_lines, read_metrics, read_values

CURVE_SECONDS = 60.0

__all__ = ['LocalLogger', 'check_same_run', 'read_metrics']


class LocalLogger(ExperimentLogger):
    """Files under one folder.

    `metrics.jsonl` one line a value, flushed at once; `arguments.json`, `run.json`, `commit.txt`,
    `diff.patch`, `environment.json` and `scripts/` say what ran. A later start in the same folder
    that differs in one of these writes it under the next free number (`commit-2.txt`); a later
    start that does not differ adds nothing. `curves/`, `images/`, `text/` and `models/` hold the
    last of each name.

    Args:
        path_log: the run folder; created.
        path_scripts: the recipe's folder, copied together with `shared`.
        description: of the run: name, project, tags and whatever else belongs into `run.json`.
    """

    essential = True

    def __init__(self, path_log: str | Path, path_scripts: str | Path, description: dict) -> None:
        self.path, self._drawn_at = Path(path_log), -math.inf
        with readable_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self.path)
            self._say_what_runs(Path(path_scripts), description)
            self._values = read_values(self.path / 'metrics.jsonl')
            self._file = open_for_lines(self.path / 'metrics.jsonl')
            self._status = read_json(self.path / 'status.json') or {'starts': 0}
            self._status.update(starts=self._status.get('starts', 0) + 1, finished=None)
            self._status.setdefault('started', now())
            write_json(self.path / 'status.json', self._status)
        # of earlier starts as well: one that was killed may have drawn less than it logged
        self._undrawn = dict.fromkeys(map(pictures.group_of, self._values))

    def log_metrics(self, values: dict[str, float], step: int | None = None) -> None:
        moment = round(time.time(), 3)
        lines = []
        for name, value in values.items():
            series = self._values.setdefault(name, {})
            self._undrawn[pictures.group_of(name)] = None
            at = len(series) if step is None else int(step)
            series[at] = float(value)
            # JSON has no NaN; the reader's float() understands 'nan' and 'inf'
            shown = float(value) if np.isfinite(float(value)) else str(float(value))
            lines.append(json.dumps({'name': name, 'value': shown, 'step': at, 'time': moment}))
        with readable_errors(self.path / 'metrics.jsonl'):
            self._file.write(''.join(line + '\n' for line in lines))
            self._file.flush()

    def log_arguments(self, arguments: dict[str, Any]) -> None:
        with readable_errors(self.path / 'arguments.json'):
            write_beside(self.path / 'arguments.json', as_json(arguments))

    def log_text(self, name: str, text: str) -> None:
        self._write('text', f'{file_name(name)}.txt', text.encode())

    def log_image(self, name: str, image: bytes, step: int | None = None) -> None:
        suffix = '' if step is None else f'_{step:06d}'
        self._write('images', f'{file_name(name)}{suffix}.png', image)

    def save_model(self, name: str, state_dict: dict) -> None:
        import torch

        path = self.path / 'models' / f'{file_name(name)}.pt'
        with readable_errors(path):
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as temporary:
                torch.save(state_dict, temporary)

    def curves(self) -> None:
        """Draws `curves/<split>.png` from all values so far, those of earlier starts included.

        At most once a minute: a picture takes half a second, an epoch may take less.
        """
        if time.monotonic() - self._drawn_at > CURVE_SECONDS:
            self._draw_curves()

    def _draw_curves(self) -> None:
        for group in self._undrawn:
            values = {n: v for n, v in self._values.items() if pictures.group_of(n) == group}
            png = pictures.curves_png(group, as_series(values))
            self._write('curves', f'{file_name(group)}.png', png)
        self._undrawn.clear()
        self._drawn_at = time.monotonic()

    def finish(self) -> None:
        if self._file.closed:
            return
        self._draw_curves()
        self._file.close()
        self._status['finished'] = now()
        with readable_errors(self.path):
            write_json(self.path / 'status.json', self._status)

    def _say_what_runs(self, path_scripts: Path, description: dict) -> None:
        commit, patch = provenance.commit(path_scripts)
        write_beside(self.path / 'commit.txt', commit.encode())
        if patch:
            write_beside(self.path / 'diff.patch', patch.encode())
        write_beside(self.path / 'environment.json', as_json(provenance.environment()))
        write_beside(self.path / 'run.json', as_json(description))
        write_folder_beside(self.path / 'scripts', provenance.sources(path_scripts))

    def _write(self, folder: str, name: str, content: bytes) -> None:
        path = self.path / folder / name
        with readable_errors(path):
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, content)


def check_same_run(
    path_log: str | Path, experiment_args: dict[str, Any], ignore: Collection[str] = ()
) -> None:
    """Stops a run that would continue in the folder of another.

    Args:
        path_log: a run folder, which need not exist.
        experiment_args: what this run is about to do.
        ignore: names that may differ, such as the number of epochs.

    Raises:
        UserError: the folder's `arguments.json` differs; names each key with both values.
    """
    path = Path(path_log) / 'arguments.json'
    if not path.exists():
        return
    stored = read_json(path)
    if not isinstance(stored, dict):
        raise UserError(f'{path}: not readable as arguments; change `name` or move the file away')
    new = json.loads(as_json(experiment_args))

    def shown(arguments: dict, key: str) -> str:
        return json.dumps(arguments[key]) if key in arguments else 'absent'

    differing = [
        f'{key} {shown(stored, key)} -> {shown(new, key)}'
        for key in dict.fromkeys([*stored, *new])
        if key not in ignore and shown(stored, key) != shown(new, key)
    ]
    if differing:
        raise UserError(
            f'{path_log}: holds a run with other arguments ({", ".join(differing)}); change `name`'
        )
