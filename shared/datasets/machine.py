"""What this machine gives its ranks: processors and memory, within a container's limits."""

import os
from collections.abc import Iterator
from pathlib import Path

from shared import ddp
from shared.datasets.items import DataError

MOST_WORKERS = 8  # of a rank; more hardly helped on any machine that fits the rest of the work
ROOT = Path('/')


def workers_for(wanted: int | None) -> int:
    """Loader processes of a rank: as many as wanted, else one for each core that its ranks leave.

    The ranks of this machine share its cores, and each needs one itself. At least 1, at most
    `MOST_WORKERS`.

    Raises:
        DataError: fewer than 0.
    """
    if wanted is not None and wanted < 0:
        raise DataError(f'{wanted} loader processes: give 0 or more, or none to choose here')
    if wanted is not None:
        return wanted
    return min(max(cores() // ddp.local_world_size() - 1, 1), MOST_WORKERS)


def describe_workers(wanted: int | None) -> str:
    """The number of loader processes; a second line warns of more than there are cores."""
    workers, ranks, there = workers_for(wanted), ddp.local_world_size(), cores()
    text = f'{workers} loader processes'
    if ranks > 1:
        text += f' x {ranks} ranks'
    if wanted is not None and workers * ranks > there:
        text += (
            f'\nwarning: {workers} workers x {ranks} GPUs on {there} cores wait for each other; '
            f'{workers_for(None)} would be chosen here'
        )
    return text


def cores(root: Path = ROOT) -> int:
    """Processors that this process may use at a time.

    Those it is bound to, or fewer where its container is given less time (Docker's `--cpus`).

    Args:
        root: where /proc and /sys are.
    """
    bound = getattr(os, 'sched_getaffinity', None)  # Linux alone has it
    found = len(bound(0)) if bound else os.cpu_count() or 1
    for folder in _cgroups(root, 'cpu'):
        old_style = _numbers(folder, 'cpu.cfs_quota_us') + _numbers(folder, 'cpu.cfs_period_us')
        for time in (_numbers(folder, 'cpu.max'), old_style):
            if len(time) == 2 and min(time) > 0:  # microseconds, of so many; -1: no limit
                found = min(found, -(-time[0] // time[1]))
    return found


def free_memory(root: Path = ROOT) -> int:
    """Bytes that can still be taken, of the machine and within its container's limit.

    What the kernel keeps of files and can drop counts as free.

    Args:
        root: where /proc and /sys are.
    """
    found = 1024 * _entry(root / 'proc/meminfo', 'MemAvailable:', default=0)
    for folder in _cgroups(root, 'memory'):
        for limit, used, files in (
            ('memory.max', 'memory.current', 'inactive_file'),
            ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'),
        ):
            most, taken = _numbers(folder, limit), _numbers(folder, used)
            if most and taken:
                left = most[0] - taken[0] + _entry(folder / 'memory.stat', files, default=0)
                found = min(found, max(left, 0))
    return found


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The control groups that limit this process, from its own upwards; of old kernels the top."""
    top = root / 'sys/fs/cgroup'
    yield top / controller
    try:
        lines = (root / 'proc/self/cgroup').read_text().splitlines()
    except OSError:
        lines = []
    own = next((line[3:] for line in lines if line.startswith('0::')), '/')
    folder = top / own.strip('/')
    yield folder
    while folder != top and top in folder.parents:
        folder = folder.parent
        yield folder


def _numbers(folder: Path, name: str) -> tuple[int, ...]:
    """The numbers in a file; () where it is missing or says 'max'."""
    try:
        return tuple(int(word) for word in (folder / name).read_text().split())
    except (OSError, ValueError):
        return ()


def _entry(path: Path, name: str, default: int) -> int:
    """The number behind a name in a file of lines `name number`."""
    try:
        for line in path.read_text().splitlines():
            words = line.split()
            if words and words[0] == name:
                return int(words[1])
    except (OSError, ValueError, IndexError):
        pass
    return default
