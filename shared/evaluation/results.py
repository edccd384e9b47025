"""Everything an evaluation leaves behind: pictures, results.json, report.html, and its tables."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared import ddp
from shared.evaluation import plots
from shared.evaluation.report import write_report
from shared.evaluation.tables import text_table
from shared.evaluation.verification import write_results


@dataclass(frozen=True)
class Evaluation:
    """One scored trial list.

    `record` is that of `verify` or `score_record`; `scores` (M,) and `labels` (M,) are drawn (None:
    no pictures of this one); `systems` are the curves of the DET plot, this one's alone if none.
    """

    name: str
    record: dict
    scores: np.ndarray | None = None
    labels: np.ndarray | None = None
    systems: Sequence[plots.System] = ()


@dataclass(frozen=True)
class ScoredSystem:
    """One of several systems scored on the same lists.

    `scores` is the .npy file of its scores (M,) on the first list; `records` those of its headline,
    one a list.
    """

    name: str
    scores: str | Path
    records: Sequence[dict]


def compared(systems: Sequence[ScoredSystem], labels: np.ndarray) -> list[Evaluation]:
    """Every system on every list: its histogram and the curves of all systems with the first record.

    Args:
        systems: with one record a list at least.
        labels: (M,) of the first list, True for the same speaker.
    """
    curves = [plots.System(one.name, np.load(one.scores), labels) for one in systems]
    found: list[Evaluation] = []
    for one, curve in zip(systems, curves):
        for record in one.records:
            name = f'{one.name}, {record["name"]}, {record["crop"]}'
            drawn = (curve.scores, labels, curves) if not found else (None, None, ())
            found.append(Evaluation(name, record, *drawn))
    return found


def with_seed(name: str, seed: int, seeds: Iterable[int]) -> str:
    """A system's name, with its seed where there are several."""
    return f'{name}, seed {seed}' if len(set(seeds)) > 1 else name


def write_evaluation(
    folder: str | Path, table: list[dict], evaluations: Sequence[Evaluation]
) -> str:
    """Writes plots/scores_<name>.png and plots/det_<name>.png, results.json and report.html.

    Evaluations of the same name are numbered from the second on. Rank 0 writes; it returns both
    tables, `table` and one row an evaluation, and the path of the report as text. '' elsewhere.

    Args:
        folder: of the run or of the evaluation; made when missing.
        table: rows for people, such as one a phase; may be empty.
        evaluations: in the order of the table.

    Raises:
        ValueError: a value that JSON does not have, or scores that cannot be drawn.
    """
    if not ddp.is_main():
        return ''
    folder = Path(folder)
    names = _unique([evaluation.name for evaluation in evaluations])
    for name, evaluation in zip(names, evaluations):
        _draw(folder / 'plots', name, evaluation)
    records = [{'list': name, **e.record} for name, e in zip(names, evaluations)]
    write_results(folder / 'results.json', table, records)
    tables = [text_table(rows) for rows in (table, _summary(records)) if rows]
    return '\n\n'.join([*tables, f'report: {write_report(folder)}'])


def _draw(folder: Path, name: str, evaluation: Evaluation) -> None:
    scores, labels = evaluation.scores, evaluation.labels
    if scores is None or labels is None:
        return
    title = f'{evaluation.record["known_name"] or name}: {len(scores):,} trials'
    file = re.sub(r'[^\w.-]+', '_', name)
    plots.draw_histogram(folder / f'scores_{file}.png', scores, labels, title=title)
    systems = evaluation.systems or [plots.System('this encoder', scores, labels)]
    plots.draw_det(folder / f'det_{file}.png', systems, title=title)


def _summary(records: list[dict]) -> list[dict]:
    """One row a list; columns that no list fills are left out."""
    rows = [
        {
            'list': record['list'],
            'EER %': record['eer'],
            '95 %': _interval(record['eer_interval']),
            **{f'minDCF {p}': value for p, value in record['min_dcf'].items()},
            'trials': record['trials'],
            'converted files': _counts(record.get('converted')),
        }
        for record in records
    ]
    used = {name for row in rows for name, value in row.items() if value is not None}
    return [{name: value for name, value in row.items() if name in used} for row in rows]


def _interval(interval: Sequence[float] | None) -> str | None:
    return '{:.2f} to {:.2f}'.format(*interval) if interval else None


def _counts(converted: dict[str, int] | None) -> str | None:
    """'2 resampled, 1 mixed to mono'; None where nothing was converted."""
    return ', '.join(f'{count} {kind}' for kind, count in (converted or {}).items()) or None


def _unique(names: Sequence[str]) -> list[str]:
    """Names usable as parts of file names, none twice: 'a', 'a' -> 'a', 'a_2'."""
    taken: Counter = Counter()
    found: list[str] = []
    for name in (name.replace('/', '_') for name in names):
        taken[name] += 1
        while taken[name] > 1 and f'{name}_{taken[name]}' in {*names, *found}:
            taken[name] += 1
        found.append(name if taken[name] == 1 else f'{name}_{taken[name]}')
    return found
