import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from shared import ddp, ranks
from shared.errors import UserError
from shared.weight_files import read

ROOT = Path(__file__).parents[2]


# one process


@pytest.mark.parametrize(
    ('visible', 'count', 'wanted', 'chosen'),
    [
        (None, 4, '0,2', '0,2'),
        (None, 4, '', ''),
        ('4,6', 2, '1', '6'),  # numbers count among the visible ones
        ('GPU-aa,GPU-bb', 2, '1, 0', 'GPU-bb,GPU-aa'),
    ],
)
def test_usable_gpu_narrows_what_is_visible(visible, count, wanted, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: count)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    assert ranks._choose_gpus(wanted) == len([x for x in chosen.split(',') if x])
    assert os.environ['CUDA_VISIBLE_DEVICES'] == chosen
    assert ranks._choose_gpus(None) == count


@pytest.mark.parametrize('wanted', ['2', '0,2', '-1', 'a', '1,1'])
def test_usable_gpu_that_is_not_there_is_one_line(wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(ranks, 'spawn', lambda *given: pytest.fail('started ranks'))
    with pytest.raises(SystemExit) as caught:
        ranks.launch(print, {'usable_gpu': wanted}, {})
    assert caught.value.code.startswith(f'error: usable_gpu {wanted}: ')
    assert '\n' not in caught.value.code and 'CUDA_VISIBLE_DEVICES' not in os.environ


@pytest.mark.parametrize(('processes', 'fits'), [('2', True), ('3', False)])
def test_usable_gpu_holds_for_the_ranks_of_torchrun(processes, fits, monkeypatch):
    joined = []
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setattr(ranks, '_process', lambda *given: joined.append(given[0]))
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setenv('LOCAL_RANK', '1')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', processes)
    if fits:
        ranks.launch(print, {'usable_gpu': '2,3'}, {})
        assert joined == [1] and os.environ['CUDA_VISIBLE_DEVICES'] == '2,3'
        return
    with pytest.raises(SystemExit) as caught:
        ranks.launch(print, {'usable_gpu': '2,3'}, {})
    assert caught.value.code.startswith('error: usable_gpu 2,3: 2 GPUs for 3 processes; torchrun ')
    assert not joined


def test_why_a_run_ends_is_said_also_where_no_file_can_be_made(tmp_path, capsys):
    for gate, times in ((tmp_path / 'gate', 1), (tmp_path / 'nowhere' / 'gate', 2)):
        for _ in range(2):
            ranks._say_once(str(gate), 'why\n')
        assert capsys.readouterr().err == times * 'why\n'


def test_launch_on_the_cpu_runs_here_and_tells_the_device(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    args, calls = {'usable_gpu': ''}, []
    ranks.launch(lambda *given: calls.append(given), args, {'lr': 1})
    facts = {'rank': 0, 'world_size': 1, 'device': 'cpu'}
    assert calls == [(0, {'usable_gpu': '', **facts}, {'lr': 1})]


@pytest.mark.parametrize(
    ('error', 'status', 'lines'),
    [
        (UserError('what, where, what to do'), 1, ['error: what, where, what to do']),
        (
            KeyboardInterrupt(),
            130,
            ['interrupted; the same command continues from the last checkpoint'],
        ),
        (
            ddp.Stopped(signal.SIGTERM, saved=True),
            75,
            ['told to stop (SIGTERM): saved; the same command continues'],
        ),
    ],
)
def test_launch_ends_in_one_line(error, status, lines, monkeypatch, capsys):
    def run(rank, args, experiment_args):
        raise error

    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    with pytest.raises(SystemExit) as caught:
        ranks.launch(run, {'usable_gpu': ''}, {})
    assert caught.value.code == status
    assert capsys.readouterr().err.splitlines() == lines


def test_launch_shows_the_traceback_of_anything_else(monkeypatch, capsys):
    def run(rank, args, experiment_args):
        raise ValueError('planned')

    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    with pytest.raises(SystemExit) as caught:
        ranks.launch(run, {'usable_gpu': ''}, {})
    shown = capsys.readouterr().err
    assert caught.value.code == 1
    assert shown.count('Traceback') == 1 and shown.endswith('ValueError: planned\n')


# watching: processes that do next to nothing


def end_with(code, seconds=0.0):
    time.sleep(seconds)
    os._exit(code)


def die(number):
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    signal.pause()


def end_when_told(codes, ready):
    """Ends with codes[signal]; others are only noted, as inside a step, which is no endless one."""
    signal.alarm(15)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: number in codes and os._exit(codes[number]))
    ready.release()
    while True:
        signal.pause()


@pytest.fixture
def watched(monkeypatch):
    """`watched([(function, *arguments), ...], told)`: exit codes, who was killed, seconds."""
    monkeypatch.setattr(ranks, 'GRACE', 1.0)
    monkeypatch.setattr(ranks, 'LOOK', 0.02)
    context, begun = get_context('fork'), []

    def run(jobs, told=(), later=()):
        begun[:] = [context.Process(target=job, args=args) for job, *args in jobs]
        for process in begun:
            process.start()
        for *_, ready in [job for job in jobs if job[0] is end_when_told]:
            assert ready.acquire(timeout=20)
        signals, began = Told(told, later), time.monotonic()
        killed = ranks._watch(begun, signals)
        codes = [process.exitcode for process in begun]
        return codes, killed, ranks._status(codes, told), time.monotonic() - began

    yield run
    for process in begun:
        process.kill()


LATER = 75  # looks


class Told(list):
    """Signals that came, those of `later` only after the grace time."""

    def __init__(self, told, later):
        super().__init__(told)
        self.later, self.looks = list(later), 0

    def __getitem__(self, index):
        self.looks += 1
        if self.looks == LATER:
            self += self.later
        return super().__getitem__(index)


def stubborn():
    return (end_when_told, {}, get_context('fork').Semaphore(0))


def obedient(code, number=signal.SIGTERM):
    return (end_when_told, {number: code}, get_context('fork').Semaphore(0))


def test_ranks_that_all_succeed_end_a_run_well(watched):
    codes, killed, status, _ = watched([(end_with, 0), (end_with, 0, 0.2)])
    assert (codes, killed, status) == ([0, 0], set(), 0)


def test_rank_that_outlives_a_failed_one_is_killed_after_the_grace_time(watched):
    codes, killed, status, seconds = watched([stubborn(), (end_with, 1), (end_with, 0, 0.1)])
    assert (codes, killed, status) == ([-9, 1, 0], {0}, 1)
    assert seconds >= ranks.GRACE


def test_stop_is_handed_to_every_rank_and_ends_in_its_own_status(watched):
    jobs = [obedient(75, signal.SIGUSR1), obedient(75, signal.SIGUSR1)]
    codes, killed, status, _ = watched(jobs, told=[signal.SIGUSR1])
    assert (codes, killed, status) == ([75, 75], set(), ddp.STOPPED)


def test_first_stop_waits_for_the_step_however_long_and_the_second_does_not(watched):
    jobs, told = [stubborn(), stubborn()], [signal.SIGTERM]
    codes, killed, status, seconds = watched(jobs, told, later=[signal.SIGTERM])
    assert (codes, killed, status) == ([-9, -9], {0, 1}, ddp.STOPPED)
    assert seconds >= (LATER - 1) * ranks.LOOK + ranks.GRACE


@pytest.mark.parametrize(
    'codes, told, status',
    [
        ([0, 0], [], 0),
        ([0, 0], [15], 0),  # it was over before
        ([1, -9], [], 1),
        ([-9, 0], [], 1),
        ([130, 1], [], 130),  # the other lost it
        ([1, 75], [], 75),  # a stalled rank
        ([-15, -15], [15], 75),  # not yet begun
        ([-15, -9], [], 1),
        ([1, -9], [15], 1),  # saving failed
    ],
    ids=str,
)
def test_status_of_a_run(codes, told, status):
    assert ranks._status(codes, told) == status


# ends of a run: `SCRIPT case` starts two ranks, under torchrun it joins them

SCRIPT = """
import os, signal, sys
import torch
from shared import ddp, ranks
from shared.errors import UserError

def wait_for_the_other():
    torch.distributed.all_reduce(torch.ones(1))

def run(rank, args, experiment_args):
    case = experiment_args['case']
    ddp.barrier()
    os.write(1, b'ready\\n')  # in one piece, whatever the other rank writes
    if case == 'fine':
        return
    if rank == 0 and case != 'interrupted':
        wait_for_the_other()
    if case == 'raises':
        raise ValueError('planned')
    if case == 'user error':
        raise UserError('what, where, what to do')
    if case == 'killed':
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause() if rank == 0 else wait_for_the_other()  # interrupted

if __name__ == '__main__':
    args, case = {'usable_gpu': ''}, {'case': sys.argv[1]}
    if 'LOCAL_RANK' in os.environ:
        ranks.launch(run, args, case)
    else:
        ranks.spawn(run, args, case, 2)
    print('after')
"""
# A rank waiting in a collective would wait for hours; this includes the start of three Pythons.
SECONDS = 60


@pytest.fixture
def script(tmp_path):
    path = tmp_path / 'script.py'
    path.write_text(SCRIPT)
    return path


@pytest.mark.slow
def test_spawned_ranks_that_succeed_return_to_the_caller(script, python):
    foreign = {'RANK': '0', 'LOCAL_WORLD_SIZE': '7'}  # some platforms set it
    ended = python(script, 'fine', seconds=SECONDS, **foreign)
    assert (ended.returncode, ended.stderr) == (0, '')
    assert ended.stdout == 'ready\nready\nafter\n'


@pytest.mark.slow
def test_rank_that_raises_ends_all_and_is_shown_once(script, python):
    ended = python(script, 'raises', seconds=SECONDS)
    assert ended.returncode == 1 and 'after' not in ended.stdout
    assert ended.stderr.startswith('rank 1: Traceback')
    assert ended.stderr.count('Traceback') == 1
    assert ended.stderr.endswith('ValueError: planned\n')


@pytest.mark.slow
def test_user_error_of_a_rank_is_one_line(script, python):
    ended = python(script, 'user error', seconds=SECONDS)
    assert (ended.returncode, ended.stderr) == (1, 'error: what, where, what to do\n')


@pytest.mark.slow
def test_rank_that_is_killed_ends_all_and_is_named(script, python):
    ended = python(script, 'killed', seconds=SECONDS)
    assert ended.returncode == 1 and 'after' not in ended.stdout
    assert 'rank 1 was ended by SIGKILL' in ended.stderr
    assert ended.stderr.count('Traceback') <= 1  # of the rank that lost its peer


@pytest.mark.slow
@pytest.mark.parametrize('case', ['raises', 'killed'])
def test_rank_that_dies_under_torchrun_ends_all(case, script, python):
    torchrun = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2')
    ended = python(*torchrun, script, case, seconds=SECONDS)
    assert ended.returncode == 1 and 'after' not in ended.stdout
    ours = [line for line in ended.stderr.splitlines() if line.startswith('rank ')]
    if case == 'raises':
        assert ours == ['rank 1: Traceback (most recent call last):']
        assert ended.stderr.count('ValueError: planned\n') == 1
    else:
        assert len(ours) <= 1 and 'SIGKILL' in ended.stderr


@pytest.mark.slow
def test_ctrl_c_ends_spawned_ranks_with_status_130(script):
    process = subprocess.Popen(
        [sys.executable, script, 'interrupted'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
        cwd=ROOT,
        start_new_session=True,  # a terminal sends Ctrl-C to the whole group
    )
    try:
        assert [process.stdout.readline() for _ in range(2)] == ['ready\n'] * 2
        os.killpg(process.pid, signal.SIGINT)
        _, shown = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 130
    assert shown == 'interrupted; the same command continues from the last checkpoint\n'


# stops of a run: `STOPS where` starts two ranks; alone it is one process, under torchrun it joins

STOPS = """
import os, signal, sys, time
import torch
from torch.utils.data import DataLoader
from shared import ddp, ranks
from shared.checkpoint import Checkpoint
from shared.framework import Framework

class Batches(list):
    def set_position(self, epoch, batch):
        self[:] = [[i] for i in range(batch, 2000)]

class Toy(Framework):
    pass

def run(rank, args, experiment_args):
    where = experiment_args['where']
    checkpoint = Checkpoint(experiment_args['folder'], save_minutes=60, framework=Toy())
    if where == 'evaluates':
        checkpoint.save()
        os.write(1, b'x\\n' * 3)
        time.sleep(100)
    loader = DataLoader(
        range(2000), batch_sampler=Batches(), num_workers=1, multiprocessing_context='fork',
        worker_init_fn=lambda worker: ddp.leave_signals_to_parent(),
    )
    kept = checkpoint.batches(loader)  # as a traceback would keep it: the end of Python ends them
    sys.kept = kept
    for batch in kept:
        torch.distributed.is_initialized() and torch.distributed.all_reduce(torch.ones(1))
        time.sleep(0.02)
        os.write(1, b'x\\n')
        if where == 'restarts' and checkpoint.batches_done == 12 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if where == 'restarts' and checkpoint.batches_done == 25:
            return

if __name__ == '__main__':
    args, given = {'usable_gpu': ''}, {'where': sys.argv[1], 'folder': sys.argv[2]}
    if 'alone' in sys.argv or 'LOCAL_RANK' in os.environ:
        ranks.launch(run, args, given)
    else:
        ranks.spawn(run, args, given, 2)
"""
SAVED = 'told to stop ({}): saved; the same command continues\n'
AT_ONCE = 'told to stop ({}); the same command continues from the last checkpoint\n'
TORCHRUN = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2')


@pytest.fixture
def stops(tmp_path):
    """The file with STOPS."""
    path = tmp_path / 'stops.py'
    path.write_text(STOPS)
    return path


@pytest.fixture
def stopped(tmp_path, stops):
    """`stopped(number, where, group)`: status, errors and position of a run that got a signal."""

    def stop(number, where='trains', *words, launcher=(), group=False):
        process = subprocess.Popen(
            [sys.executable, *launcher, stops, where, tmp_path / 'run', *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'PET_SIGNALS_TO_HANDLE': 'SIGUSR1'},
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            assert [process.stdout.readline() for _ in range(6)] == ['x\n'] * 6
            os.killpg(process.pid, number) if group else process.send_signal(number)
            _, errors = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        return process.returncode, errors, read(tmp_path / 'run' / 'last.pt')['position']['batch']

    return stop


@pytest.mark.slow
def test_stop_of_one_process_and_its_workers_saves_the_step(stopped):
    status, errors, batch = stopped(signal.SIGUSR1, 'trains', 'alone', group=True)
    assert (status, errors) == (75, SAVED.format('SIGUSR1'))
    assert 6 <= batch < 1000


@pytest.mark.slow
def test_stop_of_spawned_ranks_saves_the_same_step_on_all(stopped):
    """Ranks hear it directly and from the parent, their workers as well."""
    status, errors, batch = stopped(signal.SIGTERM, group=True)
    assert (status, errors) == (75, SAVED.format('SIGTERM'))
    assert 0 < batch < 1000


@pytest.mark.slow
def test_stop_outside_of_a_training_loop_acts_at_once(stopped):
    """It is the parent that is told."""
    status, errors, batch = stopped(signal.SIGUSR1, 'evaluates')
    assert (status, errors, batch) == (75, AT_ONCE.format('SIGUSR1'), 0)


@pytest.mark.slow
def test_stop_of_torchrun_reaches_the_ranks_and_saves(stopped):
    """It hands the signal (docker/run.sh names it) to the group of each rank, with the workers."""
    status, errors, batch = stopped(signal.SIGUSR1, launcher=TORCHRUN)
    assert status != 0 and errors.count(SAVED.format('SIGUSR1')) == 1
    assert 'DataLoader worker' not in errors and 'rank 0: ' not in errors
    assert 0 < batch < 1000


@pytest.mark.slow
def test_rank_that_was_told_to_stop_ends_all_and_torchrun_starts_them_again(
    stops, python, tmp_path
):
    command = (*TORCHRUN, '--max_restarts', '1', stops, 'restarts', tmp_path / 'run')
    ended = python(*command, seconds=SECONDS)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count(SAVED.format('SIGTERM')) == 1
    assert 13 <= read(tmp_path / 'run' / 'last.pt')['position']['batch'] <= 20
    assert ended.stdout.count('x\n') == 2 * 26  # none is done twice
