"""The rows that benchmarks hand over, and the one table that is made of them.

A row is one claim: ours against another way, measured in the same run, in one unit, on one device.
`ratio` says how many times better ours is. `target` is '>= 5x' (of the ratio), '< 2 s' or '> 9 MB/s'
(of ours, in the row's unit), or None where nothing is claimed.
"""

import json
import math
import re
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from pathlib import Path

from shared.errors import UserError
from shared.files import write_text

FIELDS = ('what', 'ours', 'other', 'ratio', 'target', 'unit', 'device')
TARGET = re.compile(r'(>=|<|>) ([0-9.]+)(x| .+)')
BEGIN, END = '<!-- generated: {} -->', '<!-- end of {} -->'


def add_json(parser: ArgumentParser) -> None:
    """The option of every benchmark that `run.py` uses."""
    parser.add_argument('--json', metavar='FILE', help='also write the rows of the table there')


def row(what, ours, other=None, *, unit, target=None, device='CPU, 1 thread') -> dict:
    """A row; the ratio is of rates where the unit ends in '/s', else of costs."""
    ratio = None
    if other is not None:
        ratio = ours / other if unit.endswith('/s') else other / ours
    return dict(zip(FIELDS, (what, ours, other, ratio, target, unit, device)))


def hand_over(rows: Sequence[dict], file: str | None) -> None:
    """Writes the rows as JSON, where a file is asked for."""
    if file is not None:
        write_text(file, json.dumps(rows, indent=1) + '\n')


def read_rows(file: str | Path) -> list[dict]:
    """The rows of a file.

    Raises:
        UserError: there is none, or it holds no rows; where and what.
    """
    try:
        rows = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f'{file}: no rows ({error})') from None
    for number, one in enumerate(rows if isinstance(rows, list) else [rows]):
        if not isinstance(one, dict) or set(one) != set(FIELDS):
            raise UserError(f'{file}: row {number} needs exactly {", ".join(FIELDS)}: {one}')
        check_target(one)
    return rows


def check_target(one: dict) -> None:
    """Raises UserError where a target says nothing that could be missed."""
    target = one['target']
    parts = TARGET.fullmatch(target) if target is not None else None
    if target is not None and not parts:
        raise UserError(f"{one['what']}: target {target!r}; write '>= 5x' or '< 2 s'")
    if parts and parts[3] == 'x' and one['ratio'] is None and one['ours'] is not None:
        raise UserError(f'{one["what"]}: target {target!r} of a ratio, but nothing to compare with')
    if parts and parts[3] != 'x' and parts[3].strip() != one['unit']:
        raise UserError(f'{one["what"]}: target {target!r} is not in its unit, {one["unit"]}')


def met(one: dict) -> bool | None:
    """Whether a row reaches its target; None where it has none or was not measured."""
    if one['target'] is None or one['ours'] is None:
        return None
    sign, limit, unit = TARGET.fullmatch(one['target']).groups()
    value = one['ratio'] if unit == 'x' else one['ours']
    found = {'>=': value >= float(limit), '<': value < float(limit), '>': value > float(limit)}
    return bool(found[sign])  # a NaN misses every target


def markdown(rows: Iterable[dict]) -> str:
    """The table, a line for each row."""
    lines = ['| what | ours | other way | ratio | target | device |', '|---|---|---|---|---|---|']
    for one in rows:
        ours = 'not measured' if one['ours'] is None else f'{figure(one["ours"])} {one["unit"]}'
        other = '' if one['other'] is None else f'{figure(one["other"])} {one["unit"]}'
        ratio = '' if one['ratio'] is None else f'{figure(one["ratio"])}x'
        said = {None: '', True: ', met', False: ', **MISSED**'}[met(one)]
        cells = (one['what'], ours, other, ratio, (one['target'] or '') + said, one['device'])
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def figure(value: float) -> str:
    """Three digits that count, without an exponent."""
    if not math.isfinite(value):
        return str(value)
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f'{round(value, digits):,.{max(digits, 0)}f}'


def replace_part(text: str, name: str, new: str, where: str) -> str:
    """`text` with another part between the two markers called `name`.

    Raises:
        UserError: the markers are not there, each once and in order.
    """
    begin, end = BEGIN.format(name), END.format(name)
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if (text.count(begin), text.count(end), rest.count(end)) != (1, 1, 1):
        raise UserError(f'{where}: needs one line {begin!r} and, after it, one line {end!r}')
    return f'{before}{begin}\n{new.strip()}\n{end}{after}'
