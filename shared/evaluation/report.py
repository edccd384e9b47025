"""report.html: one file that shows a run, readable without a network, on a desk or a phone."""

import base64
import html
import json
import math
from pathlib import Path
from typing import Any

from shared.files import write_text

IMAGE_FOLDERS = ('curves', 'plots', 'images')  # in the order of the page
LEFT_OUT = ('scripts', 'wandb', 'neptune', 'tensorboard', 'models')
MOST_IMAGES = 60  # of one folder; the rest is named, not shown
LONGEST = 60_000  # characters of one text

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5d6b7c; --line: #dde3ea;
  --page: #f5f7f9; --card: #ffffff; --mark: #1f5fa8; --best: #e8f1fb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ef; --soft: #97a5b5; --line: #313b47;
  --page: #14191f; --card: #1c232b; --mark: #7db4f0; --best: #21364d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .8rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .4rem; }
p { margin: .2rem 0; } .soft { color: var(--soft); font-size: .9rem; }
nav { margin: .9rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
a { color: var(--mark); text-decoration: none; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.2rem; margin-top: 1.1rem; }
.badge { display: inline-block; border: 1px solid var(--line); border-radius: 99px;
  padding: 0 .6rem; font-size: .82rem; margin: .2rem .3rem 0 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
.wide > table.results { width: 100%; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.best { font-weight: 700; color: var(--mark); }
.pairs td:last-child { overflow-wrap: anywhere; }
.pictures { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); }
.pictures.full { grid-template-columns: 100%; } .full figure { overflow-x: auto; }
.full img { min-width: 760px; width: 100%; }
figure { margin: 0; } figcaption { font-size: .85rem; color: var(--soft); margin-top: .25rem; }
img { max-width: 100%; height: auto; display: block; background: #fff; border-radius: 6px; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; margin: 0; }
details { margin-top: .7rem; } summary { cursor: pointer; color: var(--mark); }
@media (max-width: 600px) { main { padding: 1rem .6rem 3rem; } section { padding: .9rem .8rem; } }
"""


def write_report(path_log: str | Path) -> Path:
    """Writes `report.html` into a run folder, from whatever the folder holds; returns its path.

    Looked at: `run.json`, `status.json`, `results.json` ('table': rows; 'evaluations': metrics
    with their protocol), PNGs in any folder called curves, plots or images, `text/`,
    `arguments.json`, `environment.json`, `commit.txt`. What is missing is left out. Pictures are
    inside the file. Secrets are no concern here: the folder holds none.
    """
    path_log = Path(path_log)
    results = _read(path_log / 'results.json')
    sections = [
        ('Results', _results(results)),
        *((name.capitalize(), _pictures(path_log, name)) for name in IMAGE_FOLDERS),
        ('Notes', _texts(path_log)),
        ('Arguments', _pairs(_read(_latest(path_log, 'arguments.json')))),
        ('Provenance', _provenance(path_log)),
    ]
    body = [_heading(path_log, [title for title, content in sections if content])]
    for title, content in sections:
        if content:
            body.append(f'<section id="{title.lower()}"><h2>{title}</h2>{content}</section>')
    name = html.escape(_title(path_log))
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{name}</title><style>{STYLE}</style></head>\n'
        f'<body><main>{"".join(body)}</main></body></html>\n'
    )
    path = path_log / 'report.html'
    write_text(path, page)
    return path


def _title(path_log: Path) -> str:
    run = _read(_latest(path_log, 'run.json'))
    name = run.get('name') if isinstance(run, dict) else None
    return str(name or path_log.resolve().name)


def _heading(path_log: Path, titles: list[str]) -> str:
    run = _read(_latest(path_log, 'run.json'))
    run = run if isinstance(run, dict) else {}
    status = _read(path_log / 'status.json')
    status = status if isinstance(status, dict) else {}
    tags = run.get('tags') or []
    badges = [str(run['project'])] if run.get('project') else []
    badges += [str(tag) for tag in tags] if isinstance(tags, list) else [str(tags)]
    times = []
    if status:
        times.append(f'started {status.get("started")}')
        end = status.get('finished')
        times.append(f'finished {end}' if end else 'not finished when this page was written')
        if status.get('starts', 1) > 1:
            times.append(f'{status["starts"]} starts')
    parts = [f'<h1>{html.escape(_title(path_log))}</h1>']
    if run.get('description'):
        parts.append(f'<p>{html.escape(str(run["description"]))}</p>')
    if times:
        parts.append(f'<p class="soft">{html.escape(" · ".join(times))}</p>')
    parts += [f'<span class="badge">{html.escape(badge)}</span>' for badge in badges]
    links = ''.join(f'<a href="#{title.lower()}">{title}</a>' for title in titles)
    return f'<header>{"".join(parts)}<nav>{links}</nav></header>'


def _results(results: Any) -> str:
    """The summary table, then every evaluation with its protocol."""
    if isinstance(results, list):
        results = {'table': results}
    if not isinstance(results, dict) or not results:
        return ''
    parts = [_table(results.get('table'))]
    evaluations = results.get('evaluations')
    for number, evaluation in enumerate(evaluations if isinstance(evaluations, list) else [], 1):
        if isinstance(evaluation, dict):
            names = [evaluation.get(key) for key in ('list', 'name', 'trials')]
            name = next(filter(None, names), f'evaluation {number}')
            label = html.escape(f'Protocol: {name}' if isinstance(name, str) else str(number))
            parts.append(
                f'<details><summary>{label}</summary>{_pairs(_flat(evaluation))}</details>'
            )
    rest = {k: v for k, v in results.items() if k not in ('table', 'evaluations')}
    parts.append(_pairs(_flat(rest)))
    return ''.join(parts)


def _table(rows: Any) -> str:
    """Records as rows; columns in order of appearance; the smallest error of a column marked."""
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    if not rows:
        return ''
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[row.get(column) for column in columns] for row in rows]
    best = [_smallest(column, [line[i] for line in cells]) for i, column in enumerate(columns)]
    numeric = [
        all(_is_number(line[i]) or line[i] is None for line in cells) for i in range(len(columns))
    ]
    head = ''.join(
        f'<th{" class=number" if right else ""}>{html.escape(str(column))}</th>'
        for column, right in zip(columns, numeric)
    )
    lines = []
    for line in cells:
        lines.append('<tr>')
        for value, lowest, right in zip(line, best, numeric):
            classes = ['number'] * right + ['best'] * (lowest is not None and value == lowest)
            mark = f' class="{" ".join(classes)}"' if classes else ''
            lines.append(f'<td{mark}>{_shown(value)}</td>')
        lines.append('</tr>')
    return (
        f'<div class="wide"><table class="results"><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(lines)}</tbody></table></div>'
    )


def _smallest(column: Any, values: list) -> float | None:
    """The best of a column of errors, when there is something to compare."""
    numbers = [value for value in values if _is_number(value) and math.isfinite(value)]
    is_error = any(word in str(column).lower() for word in ('eer', 'dcf'))
    return min(numbers) if is_error and len(set(numbers)) > 1 else None


def _pictures(path_log: Path, folder: str) -> str:
    """PNGs of every folder of this name, not counting what services and copies left."""
    found = [
        path
        for path in sorted(path_log.rglob('*.png'))
        if path.parent.name == folder
        and not any(part in LEFT_OUT for part in path.relative_to(path_log).parts)
    ]
    if not found:
        return ''
    parts = []
    for path in found[:MOST_IMAGES]:
        data = base64.b64encode(path.read_bytes()).decode()
        inner = path.relative_to(path_log)
        above = [part for part in inner.parent.parts if part != folder]
        caption = html.escape(' / '.join([*above, path.stem.replace('_', ' ')]))
        parts.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f'<figcaption>{caption}</figcaption></figure>'
        )
    more = len(found) - MOST_IMAGES
    rest = f'<p class="soft">{more} more in the run folder</p>' if more > 0 else ''
    # a figure of curves holds several panels and needs the whole width
    style = 'pictures full' if folder == 'curves' else 'pictures'
    return f'<div class="{style}">{"".join(parts)}</div>{rest}'


def _texts(path_log: Path) -> str:
    parts = []
    for path in sorted((path_log / 'text').glob('*.txt')):
        text = path.read_text(encoding='utf-8', errors='replace')
        parts.append(f'<details><summary>{html.escape(path.stem)}</summary>{_pre(text)}</details>')
    return ''.join(parts)


def _provenance(path_log: Path) -> str:
    parts = []
    commit = _latest(path_log, 'commit.txt')
    if commit.exists():
        parts.append(f'<h3>Commit</h3>{_pre(commit.read_text(encoding="utf-8"))}')
    environment = _read(_latest(path_log, 'environment.json'))
    if isinstance(environment, dict):
        packages = environment.pop('packages', None)
        command = environment.get('command')
        if isinstance(command, list):
            environment['command'] = ' '.join(map(str, command))
        parts.append(f'<h3>Environment</h3>{_pairs(environment)}')
        if isinstance(packages, dict):
            summary = f'<summary>{len(packages)} packages</summary>'
            parts.append(f'<details>{summary}{_pairs(packages)}</details>')
    return ''.join(parts)


def _pairs(entries: Any) -> str:
    if not isinstance(entries, dict) or not entries:
        return ''
    rows = ''.join(
        f'<tr><th>{html.escape(str(key))}</th><td>{_shown(value)}</td></tr>'
        for key, value in entries.items()
    )
    return f'<div class="wide"><table class="pairs"><tbody>{rows}</tbody></table></div>'


def _flat(entries: dict, prefix: str = '') -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f'{prefix}{key}.'))
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def _pre(text: str) -> str:
    cut = text if len(text) <= LONGEST else f'{text[:LONGEST]}\n... (whole text in the run folder)'
    return f'<pre>{html.escape(cut)}</pre>'


def _shown(value: Any) -> str:
    if value is None:
        return '–'
    if isinstance(value, float):
        return f'{value:.6g}'
    if isinstance(value, (list, tuple)):
        return ', '.join(map(_shown, value)) or '–'
    return html.escape(str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _latest(path_log: Path, name: str) -> Path:
    """commit.txt, or the highest of commit-2.txt, commit-3.txt, ... of later starts."""
    path, number = path_log / name, 2
    while (later := path_log / f'{Path(name).stem}-{number}{Path(name).suffix}').exists():
        path, number = later, number + 1
    return path


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
