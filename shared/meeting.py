"""How the ranks of a run find each other, and who says so when they do not."""

import datetime
import os
import socket
import time

import torch.distributed as dist

from shared import ddp
from shared.errors import UserError

FIND = 60.0  # s until a name means something: those of containers come late
JOIN = datetime.timedelta(minutes=30)  # until all ranks are there: imports from a slow disk
LOOK = 0.2  # s between two looks


def meet(rank: int, ranks: int) -> dist.Store:
    """The store through which the ranks find each other, once all are there.

    As init_process_group makes it from the same variables, which would wait `ddp.TIMEOUT` for a
    rank that never comes, and not say which.

    Args:
        rank: of this process, 0 to ranks - 1.
        ranks: processes of the run.

    Raises:
        UserError: who is missing after `JOIN`; that rank 0 does not answer, or is nowhere: the name
            that its machine gives itself (torchrun's choice) means nothing here.
    """
    host, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    torchrun_serves = os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
    minutes = f'{JOIN.total_seconds() / 60:g} minutes'
    advice = 'look at what the others said, then start all of them again'
    _find(host, port, rank, ranks)
    end, missing = time.monotonic() + JOIN.total_seconds(), list(range(ranks))
    try:
        server = dist.TCPStore(
            host,
            port,
            ranks,
            is_master=rank == 0 and not torchrun_serves,
            timeout=JOIN,
            wait_for_workers=False,
            multi_tenant=True,
        )
        store = dist.PrefixStore(_attempt(torchrun_serves), server)
        store.set(f'here/{rank}', '')
        while missing := [other for other in missing if not store.check([f'here/{other}'])]:
            if time.monotonic() > end:
                break
            time.sleep(LOOK)
    except RuntimeError as error:  # torch's kinds, of a connection
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f'rank {rank} of {ranks} cannot join: rank 0 does not answer at {host}:{port} '
            f'({reason}); {advice}'
        ) from None
    if missing:
        names = ', '.join(map(str, missing[:8])) + (', ...' if len(missing) > 8 else '')
        raise UserError(
            f'{ranks - len(missing)} of {ranks} ranks joined within {minutes}, missing: rank '
            f'{names}; {advice}'
        )
    store.set_timeout(ddp.TIMEOUT)
    return store


def _find(host: str, port: int, rank: int, ranks: int) -> None:
    """Looks whether rank 0's machine is known here; torch alone would try for all of `JOIN`."""
    end = time.monotonic() + FIND
    while True:
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f'rank {rank} of {ranks} cannot join: {host}, as the machine of rank 0 calls '
                    f'itself, is no known name on {socket.gethostname()} ({error.strerror}); give '
                    'torchrun there --local_addr with its address, or put the name into /etc/hosts'
                ) from None
            time.sleep(LOOK)


def _attempt(torchrun_serves: bool) -> str:
    """A name under which these ranks meet, and not those that torchrun started before them.

    On one machine its store outlives a restart, with all that was written there. On several each
    counts its own restarts; the store is a new one with TORCH_DISABLE_SHARE_RDZV_TCP_STORE.
    """
    alone = torchrun_serves and os.environ.get('GROUP_WORLD_SIZE') == '1'
    return f'attempt {os.environ["TORCHELASTIC_RESTART_COUNT"]}' if alone else 'attempt'
