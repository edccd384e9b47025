import signal

import pytest
import torch
from torch import nn

from shared import ddp

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


def test_unknown_reduction_is_an_error():
    with pytest.raises(KeyError, match='maximum'):
        ddp.all_reduce(torch.ones(1), 'maximum')


def test_unwrap_leaves_a_bare_module_alone():
    module = nn.Linear(1, 1)
    assert ddp.unwrap(module) is module


@pytest.fixture
def handled(monkeypatch):
    """What `launch` does with signals, for one test."""
    monkeypatch.setattr(ddp, '_heard', -ddp.ECHO)
    monkeypatch.setattr(ddp, '_requested', 0)
    with ddp.stop_on_signals():
        yield


TERMS = [signal.SIGTERM, signal.SIGUSR1]
ALL = [signal.SIGINT, *TERMS]


@pytest.mark.parametrize('number', ALL, ids=lambda number: number.name)
def test_first_signal_in_a_loop_is_noted_and_the_second_acts(number, handled, monkeypatch):
    monkeypatch.setattr(ddp, 'ECHO', 0.0)
    with pytest.raises(ddp.Stopped) as caught, ddp.deferred_interrupt():
        assert ddp.stop_requested() == 0
        signal.raise_signal(number)
        assert ddp.stop_requested() == number
        signal.raise_signal(number)
        pytest.fail('the second did not act')
    assert caught.value.status == (130 if number == signal.SIGINT else 75)


@pytest.mark.parametrize('number', ALL, ids=lambda number: number.name)
def test_signal_acts_at_once_outside_and_after_a_loop(number, handled, monkeypatch):
    monkeypatch.setattr(ddp, 'ECHO', 0.0)
    for _ in range(2):
        with pytest.raises(ddp.Stopped):
            signal.raise_signal(number)
        with ddp.deferred_interrupt():
            pass
    assert ddp.stop_requested() == 0


def test_signal_after_the_last_look_of_a_loop_acts_when_the_loop_is_left(handled):
    with pytest.raises(ddp.Stopped, match='SIGTERM'), ddp.deferred_interrupt():
        signal.raise_signal(signal.SIGTERM)


def test_error_in_a_loop_that_was_told_to_stop_is_not_hidden(handled):
    with pytest.raises(ZeroDivisionError), ddp.deferred_interrupt():
        signal.raise_signal(signal.SIGTERM)
        1 / 0  # noqa: B018


def test_same_stop_by_two_ways_counts_once_and_ctrl_c_always(handled, monkeypatch):
    now = 100.0
    monkeypatch.setattr(ddp.time, 'monotonic', lambda: now)
    with pytest.raises(ddp.Stopped, match='interrupted'), ddp.deferred_interrupt():
        signal.raise_signal(signal.SIGTERM)
        now += 0.5
        signal.raise_signal(signal.SIGTERM)
        now += ddp.ECHO - 0.1
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGINT)
    now += 100
    with pytest.raises(ddp.Stopped, match='SIGTERM'), ddp.deferred_interrupt():
        signal.raise_signal(signal.SIGTERM)
        now += ddp.ECHO + 0.1
        signal.raise_signal(signal.SIGTERM)
        pytest.fail('the second did not act')


def test_handlers_are_put_back():
    def present():
        return [signal.getsignal(number) for number in ALL]

    with ddp.on_signals(print):
        with ddp.stop_on_signals():
            assert present() == [ddp._on_interrupt] * 3
        assert present() == [print] * 3


@pytest.mark.parametrize(
    'number, saved, status, text',
    [
        (2, False, 130, 'interrupted; the same command continues from the last checkpoint'),
        (2, True, 130, 'interrupted; the same command continues from the last checkpoint'),
        (15, True, 75, 'told to stop (SIGTERM): saved; the same command continues'),
        (
            10,
            False,
            75,
            'told to stop (SIGUSR1); the same command continues from the last checkpoint',
        ),
    ],
)
def test_stopped_says_what_was_kept(number, saved, status, text):
    stopped = ddp.Stopped(number, saved)
    assert (stopped.status, str(stopped)) == (status, text)


# two ranks


def collectives():
    """Everything that talks, on this rank."""
    rank = ddp.rank()
    rows = torch.arange(6.0).view(3, 2) + 10 * rank
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
