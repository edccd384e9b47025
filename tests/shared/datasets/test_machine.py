"""Processors and memory within a container's limits, and loader processes chosen from them."""

import os

import pytest

from shared import ddp
from shared.datasets import machine
from shared.datasets.items import DataError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """`root({'sys/fs/cgroup/cpu.max': '...'})`: a tree of such files; this process has 16 cores."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(16)), raising=False)

    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(
    'files, expected',
    [
        ({}, 16),
        ({'sys/fs/cgroup/cpu.max': 'max 100000\n'}, 16),
        ({'sys/fs/cgroup/cpu.max': '400000 100000\n'}, 4),
        ({'sys/fs/cgroup/cpu.max': '250000 100000\n'}, 3),  # a part of a third one
        ({'sys/fs/cgroup/cpu.max': '6400000 100000\n'}, 16),
        ({'sys/fs/cgroup/cpu.max': 'nonsense'}, 16),
        (
            {
                'proc/self/cgroup': '0::/slurm/job7/step0\n',
                'sys/fs/cgroup/slurm/job7/cpu.max': '500000 100000\n',
                'sys/fs/cgroup/slurm/job7/step0/cpu.max': 'max 100000\n',
                'sys/fs/cgroup/slurm/cpu.max': '1200000 100000\n',
                'sys/fs/cgroup/other/cpu.max': '100000 100000\n',
            },
            5,
        ),
        (
            {
                'sys/fs/cgroup/cpu/cpu.cfs_quota_us': '200000\n',
                'sys/fs/cgroup/cpu/cpu.cfs_period_us': '100000\n',
            },
            2,
        ),
        (
            {
                'sys/fs/cgroup/cpu/cpu.cfs_quota_us': '-1\n',
                'sys/fs/cgroup/cpu/cpu.cfs_period_us': '100000\n',
            },
            16,
        ),
    ],
)
def test_cores_are_those_of_this_process_within_its_containers_time(root, files, expected):
    assert machine.cores(root(files)) == expected


def test_cores_without_an_affinity_are_all_there_are(tmp_path, monkeypatch):
    monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 6)
    assert machine.cores(tmp_path) == 6


MEMINFO = {'proc/meminfo': 'MemTotal:  2000000 kB\nMemAvailable:  1000000 kB\n'}


@pytest.mark.parametrize(
    'files, expected',
    [
        ({}, 1_024_000_000),
        ({'sys/fs/cgroup/memory.max': 'max\n', 'sys/fs/cgroup/memory.current': '7'}, 1_024_000_000),
        ({'sys/fs/cgroup/memory.max': '900', 'sys/fs/cgroup/memory.current': '500'}, 400),
        ({'sys/fs/cgroup/memory.max': '400', 'sys/fs/cgroup/memory.current': '500'}, 0),
        (
            {
                'sys/fs/cgroup/memory.max': '900',
                'sys/fs/cgroup/memory.current': '500',
                'sys/fs/cgroup/memory.stat': 'anon 100\ninactive_file 300\n',
            },
            700,
        ),
        (
            {
                'sys/fs/cgroup/memory/memory.limit_in_bytes': '900',
                'sys/fs/cgroup/memory/memory.usage_in_bytes': '500',
                'sys/fs/cgroup/memory/memory.stat': 'inactive_file 1\ntotal_inactive_file 200\n',
            },
            600,
        ),
    ],
)
def test_free_memory_is_what_machine_and_container_leave(root, files, expected):
    assert machine.free_memory(root(MEMINFO | files)) == expected


def test_free_memory_is_nothing_where_nothing_tells(tmp_path):
    assert machine.free_memory(tmp_path) == 0
    assert machine.free_memory() > 2**20  # here


@pytest.mark.parametrize(
    'cores, ranks, expected',
    [(2, 1, 1), (16, 1, 8), (64, 8, 7), (128, 8, 8), (8, 8, 1), (4, 8, 1), (6, 2, 2)],
)
def test_workers_are_what_the_ranks_of_a_machine_leave(monkeypatch, cores, ranks, expected):
    monkeypatch.setattr(machine, 'cores', lambda: cores)
    monkeypatch.setattr(ddp, 'local_world_size', lambda: ranks)
    assert machine.workers_for(None) == expected
    assert machine.workers_for(0) == 0 and machine.workers_for(40) == 40


def test_workers_fewer_than_none_are_refused():
    with pytest.raises(DataError, match='-1 loader processes: give 0 or more, or none'):
        machine.workers_for(-1)


@pytest.mark.parametrize(
    'wanted, ranks, expected',
    [
        (None, 1, '8 loader processes'),
        (0, 1, '0 loader processes'),
        (64, 1, '64 loader processes'),
        (8, 8, '8 loader processes x 8 ranks'),
        (
            16,
            8,
            '16 loader processes x 8 ranks\nwarning: 16 workers x 8 GPUs on 64 cores wait for each '
            'other; 7 would be chosen here',
        ),
    ],
)
def test_workers_are_described_and_too_many_warned_of(monkeypatch, wanted, ranks, expected):
    monkeypatch.setattr(machine, 'cores', lambda: 64)
    monkeypatch.setattr(ddp, 'local_world_size', lambda: ranks)
    assert machine.describe_workers(wanted) == expected


def test_local_ranks_come_from_the_launcher_where_it_tells(monkeypatch):
    assert (ddp.local_rank(), ddp.local_world_size()) == (0, 1)
    monkeypatch.setenv('LOCAL_RANK', '3')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    assert (ddp.local_rank(), ddp.local_world_size()) == (3, 4)
