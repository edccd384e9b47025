import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from shared import ddp, heartbeat, ranks

ROOT = Path(__file__).parents[2]


def hurry(stall=1.5, period=0.1):
    """Seconds instead of minutes."""
    heartbeat.STALL = heartbeat.FIRST = stall
    heartbeat.PERIOD = period


@pytest.fixture
def said(monkeypatch):
    """What was said, in a hurry; nothing is ended."""
    monkeypatch.setattr(heartbeat, 'STALL', 0.3)
    monkeypatch.setattr(heartbeat, 'FIRST', 0.3)
    monkeypatch.setattr(heartbeat, 'PERIOD', 0.02)
    monkeypatch.setattr(ranks, 'leave', lambda *given: pytest.fail('ended'))
    lines = []
    monkeypatch.setattr(ranks, 'say_once', lines.append)
    return lines


def nap(seconds):
    time.sleep(seconds)


# one process


def test_batches_are_those_given_and_no_thread_stays(said):
    before = threading.active_count()
    seen = []
    for batch in heartbeat.watch('train 1', iter('abc')):
        assert threading.active_count() == before + 1
        seen.append(batch)
    assert seen == list('abc') and threading.active_count() == before
    assert list(heartbeat.watch('train 1', [])) == [] and threading.active_count() == before


def test_no_thread_stays_after_an_error(said):
    before = threading.active_count()
    batches = heartbeat.watch('train 1', iter('abc'))
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_rank_alone_says_where_it_stands_once_a_stall_and_goes_on(said):
    seen = []
    for batch in heartbeat.watch('train 7', range(3), done=4):
        nap(0.02 if batch == 1 else 0.9)
        seen.append(batch)
    assert seen == [0, 1, 2] and len(said) == 2
    assert "in step 5 of 'train 7' (test_heartbeat.py:" in said[0] and ' nap)' in said[0]
    assert "in step 7 of 'train 7'" in said[1]
    assert said[0].startswith('\nno progress for ') and said[0].count('\n') == 2


def test_steps_that_go_on_are_no_stall_however_many(said):
    for _ in heartbeat.watch('train 1', range(12)):
        nap(0.06)
    assert said == []


def test_first_step_of_a_loop_may_take_longer(said, monkeypatch):
    monkeypatch.setattr(heartbeat, 'FIRST', 60)
    for batch in heartbeat.watch('train 1', range(2), done=3):
        nap(0.6 if batch == 0 else 0.0)
    assert said == []


def test_what_comes_between_loops_is_not_watched(said):
    for _ in range(2):
        list(heartbeat.watch('train 1', range(2)))
        nap(0.6)
    assert said == []


def test_slow_loader_is_named_as_such(said):
    def batches():
        yield 1
        nap(0.6)
        yield 2

    list(heartbeat.watch('train 1', batches()))
    assert len(said) == 1 and "before step 2 of 'train 1'" in said[0] and ' nap)' in said[0]


# two ranks


def stall(job, *given):
    """What this rank says at its end, which does not come; None: it had nothing to say."""
    hurry()
    told, ended = [], threading.Event()

    def leave(status, text):
        told.append((status, text))
        ended.set()

    ranks.leave = leave
    job(ended, *given)
    dist.barrier()
    return told


def late_batch(ended):
    """Rank 1 does not get its sixth batch."""

    def batches():
        for batch in range(8):
            if batch == 5 and ddp.rank() == 1:
                nap(3.0)
            yield batch

    for _ in heartbeat.watch('train 2', batches()):
        dist.all_reduce(torch.ones(1))


def frozen(ended, numbers):
    """Rank 1 is stopped in its sixth step, until rank 0 has complained."""
    for batch in heartbeat.watch('train 2', range(8)):
        dist.all_reduce(torch.ones(1))
        if batch == 5 and ddp.rank() == 0:
            nap(0.3)  # the last sign is of this step
            other = int(numbers.read_text())
            os.kill(other, signal.SIGSTOP)
            assert ended.wait(20)
            os.kill(other, signal.SIGCONT)
        elif batch == 4 and ddp.rank() == 1:
            numbers.write_text(str(os.getpid()))
        dist.barrier()


def healthy(ended):
    for _ in heartbeat.watch('train 2', range(12)):
        dist.all_reduce(torch.ones(1))
        time.sleep(0.3)


@pytest.mark.slow
def test_rank_that_gets_no_batch_is_named_by_the_one_that_waits(run_ranks):
    for told in run_ranks(stall, late_batch):
        [(status, text)] = told
        assert status == ddp.STOPPED and text.count('\n') == 2
        assert 'rank 1 since' in text and "before step 6 of 'train 2'" in text
        assert 'nap)' in text and 'rank 0' not in text


@pytest.mark.slow
def test_stopped_process_is_named_and_does_not_blame_others_when_it_goes_on(run_ranks, tmp_path):
    waiting, stopped = run_ranks(stall, frozen, tmp_path / 'number')
    [(status, text)] = waiting
    assert status == ddp.STOPPED and 'rank 1 gives no sign of life, was since' in text
    assert "step 6 of 'train 2'" in text and 'rank 0' not in text
    assert stopped == []


@pytest.mark.slow
def test_healthy_ranks_are_silent(run_ranks):
    assert run_ranks(stall, healthy) == [[], []]


SCRIPT = """
import os, signal, sys
import torch
from shared import ddp, heartbeat, ranks

heartbeat.STALL = heartbeat.FIRST = 1.5
heartbeat.PERIOD, ranks.GRACE = 0.1, 1.0

def run(rank, args, experiment_args):
    for batch in heartbeat.watch('train 3', range(100)):
        torch.distributed.all_reduce(torch.ones(1))
        if rank == 0 and batch == 5:
            os.kill(os.getpid(), signal.SIGSTOP)

if __name__ == '__main__':
    ranks.spawn(run, {'usable_gpu': ''}, {}, 2)
"""


@pytest.mark.slow
def test_run_whose_rank_0_is_stopped_ends_with_one_line(tmp_path, python):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    ended = python(script, seconds=60)
    [line] = ended.stderr.strip().splitlines()
    assert ended.returncode == ddp.STOPPED
    assert 'rank 0 or its machine (127.0.0.1:' in line and 'does not answer; rank 1 since' in line
    assert "in step 7 of 'train 3'" in line and line.endswith('from the last checkpoint')
