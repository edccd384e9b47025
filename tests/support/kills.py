"""Kills runs with SIGKILL at drawn moments, and finds what that has changed or left behind.

A moment is a second of an undisturbed run. A killed run takes longer and does some things twice, so
the moment is found again by what was there: the newest landmark (a file or folder) of the undisturbed
run, and the seconds since. Linux only: processes are found in /proc.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from recipes import ROOT, logged
from safetensors import safe_open

CORPUS, RUNS, SCRATCH = 'corpus', 'runs', 'tmp'  # of a lane
MARK = 'SV_KILLS_RUN'  # in the environment of every process of a start
WRITE_SECONDS = 5  # that a kill waits for a file to be written
VARYING = re.compile(
    r'second|wait|ms /|^(time|started|finished|starts)$'
)  # names of what may differ
# What a checkpoint holds that no result depends on: in which batch its process began an epoch, and
# Python's own generator, which importing scikit-learn advances wherever a process first does so.
OF_THE_PROCESS = re.compile(r'/objects/sampler/batch|/generators/\d+/python')
TEMPORARY = re.compile(r'\..*\.tmp')
HIDDEN = re.compile(r'(^|/)\..*\.tmp(/|$)')  # below such a folder, too


@dataclass(frozen=True)
class Kill:
    """At a second of the undisturbed run: the whole process group, or its first process `alone`.

    With `writing` it waits from there on until a file of the run folder is being written.
    """

    at: float
    alone: bool
    writing: bool


def draw_kills(seed, count, seconds):
    """The kills of a run that takes so many seconds: one at random in each of `count` equal parts.

    All is drawn from the seed. The last moments of a run are left out: it may be faster next time.
    """
    rng = np.random.default_rng(seed)
    moments = (np.arange(count) + rng.random(count)) / count * 0.97 * seconds
    alone, writing = rng.random((2, count)) < 0.4
    return [Kill(*kill) for kill in zip(moments.tolist(), alone.tolist(), writing.tolist())]


class Lane:
    """A command, started again and again, that works in `root`: corpus/, runs/ and tmp/.

    Args:
        command: without the interpreter.
        root: of everything it writes.
        starting: seconds from a start to where it goes on.
        patience: seconds in which what a killed process has started must end by itself.
        limit: seconds of one start.
    """

    def __init__(self, command, root, starting=0.0, patience=30.0, limit=1200.0):
        self.command, self.root = [sys.executable, *command], Path(root)
        self.starting, self.patience, self.limit = starting, patience, limit
        (self.root / SCRATCH).mkdir(parents=True, exist_ok=True)
        self.printed = self.root / 'printed.txt'

    @contextlib.contextmanager
    def start(self):
        """A process of the command, in a group of its own, and the mark of its children.

        It is over when the block ends, by a kill if need be.
        """
        mark = secrets.token_hex(8)
        own = {MARK: mark, 'TMPDIR': str(self.root / SCRATCH), 'PYTHONPATH': str(ROOT)}
        with open(self.printed, 'ab') as printed:
            process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', **own},
                start_new_session=True,
            )
        try:
            yield process, mark
        finally:
            to_group(process, signal.SIGKILL)
            process.wait()

    def undisturbed(self):
        """Runs to the end; returns its seconds, and landmark -> second in which it was first seen."""
        there, seen, began = landmarks(self.root), {}, time.monotonic()

        def look():
            now = time.monotonic() - began
            for name in landmarks(self.root) - there:
                seen.setdefault(name, now)

        self.finish(look)
        return time.monotonic() - began, seen

    def finish(self, look=lambda: None):
        """Runs to the end, however often it was killed before; looks four times a second."""
        with self.start() as (process, mark):
            end = time.monotonic() + self.limit
            while process.poll() is None:
                look()
                self._in_time(end)
                time.sleep(0.25)
            self._ended_well(process)
            await_end(mark, self.patience)

    def killed(self, kill, seen):
        """Starts it and kills it: a record of where; None where it ended before, and well.

        A run that is faster than the undisturbed one is killed at the landmark that comes next.
        """
        passed = [name for name in seen if seen[name] <= kill.at]
        landmark = max(passed, key=seen.get, default=None)
        wait = kill.at - (seen[landmark] if landmark else 0.0)
        coming = [name for name in seen if name not in passed and not (self.root / name).exists()]
        following = min(coming, key=seen.get, default=None)
        with self.start() as (process, mark):
            began, since = time.monotonic(), time.time()
            if landmark and (self.root / landmark).exists():
                wait += self.starting
            there, end = None, began + self.limit
            while process.poll() is None and (there is None or time.monotonic() < there + wait):
                if there is None and (landmark is None or (self.root / landmark).exists()):
                    there = time.monotonic()
                if following is not None and (self.root / following).exists():
                    break
                self._in_time(end)
                time.sleep(0.01)
            writing = self._next_write(process) if kill.writing else None
            to_group(process, signal.SIGSTOP)  # so that it stays there while we look
            children = living(mark)
            memory = shared_memory_of(children)
            if process.poll() is not None:
                self._ended_well(process)
                return None
            ran = time.monotonic() - began
            if kill.alone:
                process.kill()
                process.wait()
                to_group(process, signal.SIGCONT)
            else:
                to_group(process, signal.SIGKILL)
                process.wait()
            await_end(mark, self.patience)
        left = [path for path in memory if path.exists()]
        # Named semaphores of 32 bytes are left to Python's resource tracker, which died with them.
        semaphores = [path for path in left if path.name.startswith('sem.') and not kill.alone]
        for path in semaphores:
            path.unlink()
        assert left == semaphores, f'{kill} left in memory: {left}'
        return {
            'at': round(kill.at, 2),
            'landmark': landmark,
            'plus': round(wait, 2),
            'of this start': round(ran, 2),
            'killed': f'the first of {len(children)}' if kill.alone else f'all {len(children)}',
            'writing': writing,
            'semaphores': len(semaphores),
            **self.state(since),
        }

    def state(self, since=0.0):
        """Where a start is, `since` when: newest file, last value logged, last line printed."""
        files = {path: path.stat().st_mtime for path in self._files() if path.is_file()}
        files = {path: changed for path, changed in files.items() if changed >= since}
        newest = max(files, key=files.get, default=None)
        values = [path for path in files if path.name == 'metrics.jsonl']
        lines = values[0].read_text().splitlines() if values else []
        last = json.loads(lines[-1]) if lines else {}
        printed = self.printed.read_bytes().decode(errors='replace').replace('\r', '\n')
        return {
            'newest': str(newest.relative_to(self.root)) if newest else None,
            'logged': f'{last["name"]} {last["step"]}' if last else None,
            'printed': (printed.strip().splitlines() or [''])[-1][-120:],
            'temporary': [str(p.relative_to(self.root)) for p in temporaries(self.root)],
        }

    def _files(self):
        return [path for part in (RUNS, CORPUS) for path in (self.root / part).rglob('*')]

    def _next_write(self, process):
        """Waits until a file of the run folder is being written: its temporary name, or None."""
        end = time.monotonic() + WRITE_SECONDS
        old = set(temporaries(self.root / RUNS))
        while time.monotonic() < end and process.poll() is None:
            if new := set(temporaries(self.root / RUNS)) - old:
                return min(new).name
        return None

    def _ended_well(self, process):
        printed = self.printed.read_bytes()[-4000:].decode(errors='replace')
        assert process.returncode == 0, f'status {process.returncode}: {printed}'

    def _in_time(self, end):
        assert time.monotonic() < end, f'not at its end after {self.limit} s: {self.state()}'


def landmarks(root):
    """Names of files and folders of a lane; of the corpus, which has thousands, two levels."""
    found = set()
    for folder, folders, files in os.walk(root):
        parts = Path(folder).relative_to(root).parts
        folders[:] = [name for name in folders if name[0] != '.' and name != 'scripts']
        if not parts:
            folders[:], files = [name for name in folders if name in (CORPUS, RUNS)], []
        names = [*folders, *(name for name in files if name[0] != '.')]
        found.update('/'.join((*parts, name)) for name in names)
        if parts[:1] == (CORPUS,) and len(parts) > 1:
            folders.clear()
    return found


def temporaries(folder):
    """Files and folders that bear a temporary name."""
    found = []
    for where, folders, files in os.walk(folder):
        names = [name for name in (*folders, *files) if TEMPORARY.fullmatch(name)]
        found += [Path(where) / name for name in names]
        folders[:] = [name for name in folders if name not in names]
    return found


# --- processes


def to_group(process, kind):
    """Sends a signal to a process and those of its group, if there are any left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, kind)


def living(mark):
    """Process id -> command line of those whose environment bears the mark."""
    found = {}
    for process in filter(str.isdigit, os.listdir('/proc')):
        try:
            if f'{MARK}={mark}'.encode() in Path(f'/proc/{process}/environ').read_bytes():
                line = Path(f'/proc/{process}/cmdline').read_bytes().replace(b'\0', b' ')
                found[int(process)] = line.decode(errors='replace')[:120]
        except OSError:  # it has ended, or is not ours
            continue
    return found


def await_end(mark, seconds):
    """Waits until no process bears the mark; those that stay fail the test, and are ended."""
    end = time.monotonic() + seconds
    while left := living(mark):
        if time.monotonic() > end:
            for process in left:
                os.kill(process, signal.SIGKILL)
            raise AssertionError(f'still alive {seconds} s after the kill: {left}')
        time.sleep(0.1)


def shared_memory_of(processes):
    """Files of /dev/shm that these processes map."""
    found = set()
    for process in processes:
        with contextlib.suppress(OSError):  # it has ended
            maps = Path(f'/proc/{process}/maps').read_text()
            found.update(re.findall(r' (/dev/shm/\S+)$', maps, re.MULTILINE))  # none ' (deleted)'
    return [Path(name) for name in sorted(found)]


# --- what a run leaves


def litter(folder):
    """A line for each file of a folder that is temporary, unfinished or torn."""
    found = [f'{path.relative_to(folder)}: temporary' for path in temporaries(folder)]
    for path in sorted(path for path in folder.rglob('*') if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if HIDDEN.search(name):
            continue
        if '.unfinished.' in name:
            found.append(f'{name}: unfinished')
        elif problem := torn(path):
            found.append(f'{name}: {problem}')
    return found


def torn(path):
    """What keeps a file from being read to its end, or None."""
    if path.stat().st_size == 0 and path.suffix != '.py':  # __init__.py
        return 'empty'
    try:
        _read(path)
    except Exception as error:  # every reader has its own
        return f'torn ({type(error).__name__}: {str(error)[:80]})'
    return None


def _read(path):
    """What is in a file that can be compared, None of other kinds; raises where it is torn."""
    kind = path.suffix
    if kind == '.pt':
        return torch.load(path, map_location='cpu', weights_only=True)
    if kind == '.json':
        return json.loads(path.read_text())
    if kind == '.jsonl':
        return [json.loads(line) for line in path.read_text().splitlines()]
    if kind in ('.npy', '.npz'):
        found = np.load(path, allow_pickle=False)
        return {name: found[name] for name in found.files} if kind == '.npz' else found
    if kind == '.safetensors':
        with safe_open(path, 'pt') as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if kind == '.wav':
        with open(path, 'rb') as file:
            head = file.read(8)
        if int.from_bytes(head[4:], 'little') + 8 != path.stat().st_size:
            raise ValueError('its header tells another length')
    if kind == '.png' and not path.read_bytes().endswith(b'IEND\xaeB`\x82'):
        raise ValueError('its end is missing')
    if kind == '.html' and not path.read_text().rstrip().endswith('</html>'):
        raise ValueError('its end is missing')
    return None


def differences(first, second, part):
    """A line for each file below `part` of two lanes that one alone has, or that differs.

    What `VARYING` names is left out, and pictures and reports, which show speeds, are only there.
    Metrics are compared by name and step. Each lane's own path counts as the same word.
    """
    names, others = (_names(lane / part) for lane in (first, second))
    found = [f'{part}/{name}: only in {first}' for name in sorted(names - others)]
    found += [f'{part}/{name}: only in {second}' for name in sorted(others - names)]
    for name in sorted(names & others):
        one, other = (_comparable(lane / part / name, lane) for lane in (first, second))
        found += [f'{part}/{name}: {where}' for where in _unlike(one, other)]
    return found


def _names(folder):
    paths = {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()}
    return {path for path in paths if not HIDDEN.search(path)}


def _comparable(path, lane):
    """The contents of a file, as plain values, arrays or bytes."""
    if path.name == 'status.json':
        return {'ended': json.loads(path.read_text())['finished'] is not None}
    if path.name == 'metrics.jsonl':
        return logged(path.parent)
    if path.suffix in ('.png', '.html'):
        return None
    if path.suffix in ('.pt', '.npy', '.npz', '.safetensors'):
        return _read(path)
    content = path.read_bytes().replace(str(lane).encode(), b'LANE')
    return json.loads(content) if path.suffix == '.json' else content


def _unlike(one, other, where=''):
    """Places in which two values differ, bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if not VARYING.search(str(key))]
        keys = [key for key in keys if not OF_THE_PROCESS.fullmatch(f'{where}/{key}')]
        missing = [f'{where}/{key}: in one alone' for key in keys if (key in one) != (key in other)]
        both = (key for key in keys if key in one and key in other)
        return missing + [
            w for key in both for w in _unlike(one[key], other[key], f'{where}/{key}')
        ]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return [f'{where}: {len(one)} instead of {len(other)} values']
        pairs = enumerate(zip(one, other))
        return [w for n, pair in pairs for w in _unlike(*pair, f'{where}/{n}')]
    if torch.is_tensor(one) and torch.is_tensor(other):
        one, other = (x.contiguous().numpy(force=True) for x in (one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and one.tobytes() == other.tobytes() else [f'{where}: other numbers']
    if isinstance(one, bytes):
        return [] if one == other else [f'{where}: other bytes']
    return [] if repr(one) == repr(other) else [f'{where}: {one!r:.60} and {other!r:.60}']
