"""metrics.jsonl: one value a line, appended, readable after a kill at any moment."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np


def read_metrics(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What `metrics.jsonl` holds: name -> (steps, values), by step; the last of equal steps wins.

    A line that a killed process left torn is passed over. `path` is the file or its folder.
    """
    path = Path(path)
    return as_series(read_values(path / 'metrics.jsonl' if path.is_dir() else path))


def read_values(path: Path) -> dict[str, dict[int, float]]:
    """name -> step -> value."""
    values: dict[str, dict[int, float]] = {}
    if not path.exists():
        return values
    with open(path, encoding='utf-8', errors='replace') as file:
        for line in file:
            # anything but a whole record is what a killed process left
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                name, step, value = record['name'], int(record['step']), float(record['value'])
                values.setdefault(name, {})[step] = value
    return values


def as_series(values: dict[str, dict[int, float]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> (steps, values), sorted by step."""
    return {
        name: (np.array(sorted(points)), np.array([points[step] for step in sorted(points)]))
        for name, points in values.items()
    }


def open_for_lines(path: Path):
    """Opens for appending at the start of a line, also after a line that was torn."""
    file = open(path, 'ab+')
    if file.tell():
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b'\n':
            file.write(b'\n')
    file.close()
    return open(path, 'a', encoding='utf-8')
