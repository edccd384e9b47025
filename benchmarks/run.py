"""Runs every benchmark and writes the table of benchmarks/README.md.

    python benchmarks/run.py                    # `make bench`: all, about an hour on two quiet cores
    python benchmarks/run.py --quick            # smaller sizes, a quarter of an hour, for a look
    python benchmarks/run.py --only scoring     # one or several; the rows of the others stay

Each benchmark is a process of its own with one thread a library. One that fails or misses a target
does not stop the others; the status is 1 then. With --quick nothing is written but what is printed.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import table

from shared.errors import UserError
from shared.files import write_text

HERE = Path(__file__).parent
README, KEPT = HERE / 'README.md', HERE / 'rows.json'
# in the order of the table; which of them know --quick
SCRIPTS = {
    'loader': True,
    'shards': True,
    'scale': False,
    'augmentation': True,
    'ssl_encoder': True,
    'train_step': True,
    'oskdft': True,
    'enskd': True,
    'extraction': True,
    'scoring': False,
    'clustering': True,
}
QUICKER = {'scale': ('--files', '20000')}  # in place of --quick
VERSIONS = ('torch', 'torchaudio', 'transformers', 'numpy', 'scikit-learn')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--only', nargs='+', choices=SCRIPTS, default=list(SCRIPTS))
    options = parser.parse_args()
    fresh, failed, when = {}, [], described()
    for name in (name for name in SCRIPTS if name in options.only):
        print(f'== {name}', flush=True)
        found, status = rows_of(name, options.quick)
        fresh[name] = {'rows': found, 'when': when}
        missed = [one['what'] for one in found if table.met(one) is False]
        failed += [f'{name}: missed {what}' for what in missed]
        failed += [f'{name}: status {status}'] if status and not missed else []
    kept = {**read_kept(), **fresh}
    if not options.quick:
        write_text(KEPT, json.dumps(kept, indent=1) + '\n')
        text = README.read_text()
        write_text(README, table.replace_part(text, 'table', generated(kept), str(README)))
    print('\n' + table.markdown(row for one in fresh.values() for row in one['rows']))
    print('\n'.join(['', *failed] if failed else ['', 'every target was reached']))
    return int(bool(failed))


def rows_of(name: str, quick: bool) -> tuple[list[dict], int]:
    """What a benchmark hands over, and its exit status; what it prints is shown."""
    command = [sys.executable, str(HERE / f'{name}.py')]
    if quick:
        command += QUICKER.get(name, ('--quick',) if SCRIPTS[name] else ())
    threads = {f'{library}_NUM_THREADS': '1' for library in ('OMP', 'OPENBLAS', 'MKL')}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'rows.json'
        command += ['--json', str(file)]
        status = subprocess.run(command, env={**os.environ, **threads}).returncode
        try:
            return table.read_rows(file), status
        except UserError as error:
            print(error, file=sys.stderr)
            return [], status or 1


def read_kept() -> dict[str, dict]:
    """The rows of earlier runs by benchmark, in the order of the table."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    return {name: kept.get(name, {'rows': [], 'when': ''}) for name in SCRIPTS}


def generated(kept: dict[str, dict]) -> str:
    """What stands between the markers: the table, and when and where its rows were measured."""
    rows = [row for one in kept.values() for row in one['rows']]
    groups: dict[str, list[str]] = {}
    for name, one in kept.items():
        if one['rows']:
            groups.setdefault(one['when'], []).append(name)
    notes = [f'- {", ".join(names)}: {when}' for when, names in groups.items()]
    missing = [name for name, one in kept.items() if not one['rows']]
    notes += [f'- not measured: {", ".join(missing)}'] if missing else []
    return table.markdown(rows) + '\n\n' + '\n'.join(notes)


def described() -> str:
    """Date, commit, machine and versions of a measurement."""
    versions = ', '.join(f'{package} {version(package)}' for package in VERSIONS)
    busy = f'load {os.getloadavg()[0]:.0f} on {len(os.sched_getaffinity(0))} cores'
    return f'{datetime.date.today()}, commit {commit()}, {processor()}, {busy}; {versions}'


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return 'missing'


def commit() -> str:
    """The commit, with a + where files differ from it; '?' outside a repository."""

    def git(*words: str) -> str:
        command = ['git', '-C', str(HERE), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except FileNotFoundError:  # no git here
            return ''

    changed = git(
        'status', '--porcelain', '--untracked-files=no', '--', '.', '../shared', '../papers'
    )
    return (git('rev-parse', '--short', 'HEAD') or '?') + ('+' if changed else '')


def processor() -> str:
    """The CPU's name, and the GPU's if there is one."""
    import torch

    names = {
        line.partition(':')[2].strip() for line in cpu_lines() if line.startswith('model name')
    }
    cpu = ', '.join(sorted(names)) or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'
    return f'{cpu}, {gpu}'


def cpu_lines() -> list[str]:
    file = Path('/proc/cpuinfo')
    return file.read_text().splitlines() if file.exists() else []


if __name__ == '__main__':
    sys.exit(main())
