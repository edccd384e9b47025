import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from shared import ddp
from shared.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def handler(monkeypatch):
    """What `launch` installs for Ctrl-C, for one test."""
    monkeypatch.setattr(ddp, '_requested', False)
    previous = signal.signal(signal.SIGINT, ddp._on_interrupt)
    yield
    signal.signal(signal.SIGINT, previous)


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


# one process


def test_one_process_needs_no_other():
    x = torch.arange(6.0, requires_grad=True).view(2, 3)
    assert (ddp.rank(), ddp.world_size(), ddp.is_main()) == (0, 1, True)
    ddp.barrier()
    for op in ('sum', 'mean', 'max'):
        reduced = ddp.all_reduce(x, op)
        assert torch.equal(reduced, x) and not reduced.requires_grad
    reduced += 1  # a new tensor: the argument stays
    assert x[0, 0] == 0
    assert torch.equal(ddp.all_gather(x), x) and not ddp.all_gather(x).requires_grad
    assert ddp.gather_with_grad(x) is x
    assert ddp.gather_objects({'a': 1}) == [{'a': 1}]
    assert ddp.broadcast_object('x') == 'x'
    assert ddp.any_rank(True) is True and ddp.any_rank(False) is False
    assert ddp.per_process(7) == 7


def test_unknown_reduction_is_an_error():
    with pytest.raises(KeyError, match='maximum'):
        ddp.all_reduce(torch.ones(1), 'maximum')


def test_unwrap_leaves_a_bare_module_alone():
    module = nn.Linear(1, 1)
    assert ddp.unwrap(module) is module


def test_first_ctrl_c_is_noted_and_the_second_acts(handler):
    with ddp.deferred_interrupt():
        assert not ddp.interrupt_requested()
        press_ctrl_c()
        assert ddp.interrupt_requested()
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()


def test_ctrl_c_acts_at_once_outside_and_after_deferral(handler):
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()
    with ddp.deferred_interrupt():
        pass
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()
    assert not ddp.interrupt_requested()


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
    assert ddp._choose_gpus(wanted) == len([x for x in chosen.split(',') if x])
    assert os.environ['CUDA_VISIBLE_DEVICES'] == chosen
    assert ddp._choose_gpus(None) == count


@pytest.mark.parametrize('wanted', ['2', '0,2', '-1', 'a', '1,1'])
def test_usable_gpu_that_is_not_there_is_one_line(wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(ddp, 'spawn', lambda *given: pytest.fail('started ranks'))
    with pytest.raises(SystemExit) as caught:
        ddp.launch(print, {'usable_gpu': wanted}, {})
    assert caught.value.code.startswith(f'error: usable_gpu {wanted}: ')
    assert '\n' not in caught.value.code and 'CUDA_VISIBLE_DEVICES' not in os.environ


def test_launch_on_the_cpu_runs_here_and_tells_the_device(monkeypatch, handler):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    args, calls = {'usable_gpu': ''}, []
    ddp.launch(lambda *given: calls.append(given), args, {'lr': 1})
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
    ],
)
def test_launch_ends_in_one_line(error, status, lines, monkeypatch, capsys, handler):
    def run(rank, args, experiment_args):
        raise error

    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    with pytest.raises(SystemExit) as caught:
        ddp.launch(run, {'usable_gpu': ''}, {})
    assert caught.value.code == status
    assert capsys.readouterr().err.splitlines() == lines


def test_launch_shows_the_traceback_of_anything_else(monkeypatch, capsys, handler):
    def run(rank, args, experiment_args):
        raise ValueError('planned')

    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    with pytest.raises(SystemExit) as caught:
        ddp.launch(run, {'usable_gpu': ''}, {})
    shown = capsys.readouterr().err
    assert caught.value.code == 1
    assert shown.count('Traceback') == 1 and shown.endswith('ValueError: planned\n')


# two ranks


def collectives():
    """Everything that talks, on this rank."""
    rank = ddp.rank()
    rows = torch.arange(6.0).view(3, 2) + 10 * rank
    try:
        ddp.per_process(5)
    except UserError as error:
        indivisible = str(error)
    ddp.barrier()
    return {
        'place': (rank, ddp.world_size(), ddp.is_main()),
        'gathered': ddp.all_gather(rows).tolist(),
        'transposed': ddp.all_gather(rows.T).tolist(),
        'flags': ddp.all_gather(torch.tensor([rank == 0])).tolist(),
        'reduced': {op: ddp.all_reduce(rows, op).tolist() for op in ('sum', 'mean', 'max')},
        'untouched': rows.tolist(),
        'objects': ddp.gather_objects({'rank': rank}),
        'broadcast': ddp.broadcast_object(f'from {rank}'),
        'any': [ddp.any_rank(flag) for flag in (False, rank == 1, True)],
        'share': ddp.per_process(6),
        'indivisible': indivisible,
    }


@pytest.mark.slow
def test_two_ranks_agree_on_everything(run_ranks):
    rows = torch.arange(6.0).view(3, 2)
    results = run_ranks(collectives)
    for rank, found in enumerate(results):
        assert found['place'] == (rank, 2, rank == 0)
        assert found['gathered'] == rows.tolist() + (rows + 10).tolist()
        assert found['transposed'] == rows.T.tolist() + (rows + 10).T.tolist()
        assert found['flags'] == [True, False]
        assert found['reduced']['sum'] == (2 * rows + 10).tolist()
        assert found['reduced']['mean'] == (rows + 5).tolist()
        assert found['reduced']['max'] == (rows + 10).tolist()
        assert found['untouched'] == (rows + 10 * rank).tolist()
        assert found['objects'] == [{'rank': 0}, {'rank': 1}]
        assert found['broadcast'] == 'from 0'
        assert found['any'] == [False, True, True]
        assert found['share'] == 3
        assert 'batch_size 5 does not divide among 2 processes' in found['indivisible']


def pairwise_gradient(inputs):
    """Gradient of a loss in which each of this rank's rows meets every row of the global batch."""
    torch.manual_seed(0)
    encoder = nn.Linear(4, 3).double()
    share = len(inputs) // ddp.world_size()
    own = encoder(torch.tensor(inputs).double()[ddp.rank() * share :][:share])
    everything = ddp.gather_with_grad(own)
    (own @ everything.T).logsumexp(1).mean().backward()
    return [ddp.all_reduce(x.grad, 'mean').tolist() for x in encoder.parameters()]


@pytest.mark.slow
def test_gradient_through_the_gather_is_that_of_the_whole_batch(run_ranks):
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)).double().tolist()
    expected = pairwise_gradient(inputs)
    for found in run_ranks(pairwise_gradient, inputs):
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-6, atol=0)


# ends of a run: `SCRIPT case` starts two ranks, under torchrun it joins them

SCRIPT = """
import os, signal, sys
import torch
from shared import ddp
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
        ddp.launch(run, args, case)
    else:
        ddp.spawn(run, args, case, 2)
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
    ended = python(script, 'fine', seconds=SECONDS)
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
