"""Tables of results: rows of seeds averaged, and plain text for the terminal and the logs."""

from collections.abc import Mapping, Sequence

import numpy as np


def mean_row(rows: Sequence[Mapping], **named: object) -> dict:
    """A row with the columns of `named`, then the means of all other columns that every row has.

    Args:
        rows: one or more; what is averaged is numbers.
        named: such as system='mean of 3 seeds', instead of what the rows say there.
    """
    shared = [name for name in rows[0] if name not in named and all(name in row for row in rows)]
    return {**named, **{name: float(np.mean([row[name] for row in rows])) for name in shared}}


def text_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Aligned columns; a column missing from a row, or None, shows as '-'.

    Columns appear in the order in which the rows first name them; floats have two decimals, or
    three below one.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns] + [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    numeric = [all(_number(row.get(name)) for row in rows) for name in columns]
    lines = [
        '  '.join(
            c.rjust(w) if n else c.ljust(w) for c, w, n in zip(line, widths, numeric)
        ).rstrip()
        for line in cells
    ]
    return '\n'.join([lines[0], '  '.join('-' * w for w in widths), *lines[1:]])


def _number(value: object) -> bool:
    return value is None or isinstance(value, int | float)


def _cell(value: object) -> str:
    if value is None:
        return '-'
    if isinstance(value, float):
        return f'{value:.3f}' if abs(value) < 1 else f'{value:.2f}'
    return str(value)
