"""Ranks that meet, come late, never come, or look for a machine that nobody knows."""

import datetime
import socket

import pytest
import torch.distributed as dist

from shared import ddp, meeting
from shared.errors import UserError
from shared.meeting import meet


@pytest.fixture
def meeting_point(monkeypatch):
    """A free port, as the variables of a run of three ranks; half a second to join."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setenv('MASTER_PORT', str(port))
    monkeypatch.delenv('TORCHELASTIC_USE_AGENT_STORE', raising=False)
    monkeypatch.setattr(meeting, 'JOIN', datetime.timedelta(seconds=0.6))
    return port


def test_rank_that_never_comes_is_named(meeting_point):
    with pytest.raises(UserError) as caught:
        meet(0, 3)
    assert str(caught.value).startswith(
        '1 of 3 ranks joined within 0.01 minutes, missing: rank 1, 2; '
    )


@pytest.mark.parametrize('machines, name', [('1', 'attempt 3'), ('2', 'attempt')])
def test_ranks_that_are_all_there_get_a_store_that_waits_for_hours(
    machines, name, meeting_point, monkeypatch
):
    server = dist.TCPStore('127.0.0.1', meeting_point, 2, True, wait_for_workers=False)
    other = dist.PrefixStore(name, server)
    other.set('here/0', '')
    served_by_torchrun(monkeypatch, machines)
    store = meet(1, 2)
    assert store.timeout == ddp.TIMEOUT and other.check(['here/1'])


def test_ranks_that_torchrun_started_before_are_not_met(meeting_point, monkeypatch):
    server = dist.TCPStore('127.0.0.1', meeting_point, 2, True, wait_for_workers=False)
    dist.PrefixStore('attempt 2', server).set('here/0', '')
    served_by_torchrun(monkeypatch, '1')
    with pytest.raises(UserError, match='missing: rank 0;'):
        meet(1, 2)


def served_by_torchrun(monkeypatch, machines):
    monkeypatch.setenv('TORCHELASTIC_USE_AGENT_STORE', 'True')
    monkeypatch.setenv('GROUP_WORLD_SIZE', machines)
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '3')


def test_rank_0_that_does_not_answer_is_one_line(meeting_point):
    with pytest.raises(UserError) as caught:
        meet(1, 3)
    text = str(caught.value)
    assert text.startswith('rank 1 of 3 cannot join: rank 0 does not answer at 127.0.0.1:')
    assert '\n' not in text


def test_machine_that_nobody_knows_is_named_at_once(meeting_point, monkeypatch):
    monkeypatch.setenv('MASTER_ADDR', '87932a4239e9.invalid')  # RFC 6761: never a name
    monkeypatch.setattr(meeting, 'FIND', 0.3)
    for rank in (0, 1):
        with pytest.raises(UserError) as caught:
            meet(rank, 2)
        text = str(caught.value)
        assert text.startswith(
            f'rank {rank} of 2 cannot join: 87932a4239e9.invalid, as the machine of rank 0 calls '
            f'itself, is no known name on {socket.gethostname()} ('
        )
        assert '--local_addr' in text and '\n' not in text


def test_machine_whose_name_comes_late_is_met(meeting_point, monkeypatch):
    asked, known = [], socket.getaddrinfo

    def late(host, *more, **kinds):
        asked.append(host)
        if len(asked) < 3:
            raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')
        return known(host, *more, **kinds)

    monkeypatch.setattr(socket, 'getaddrinfo', late)
    assert meet(0, 1).check(['here/0']) and len(asked) >= 3
