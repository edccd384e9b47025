"""Processes: talk between them, agree on when to stop.

No function below needs a second process, so no caller ever asks how many there are. `ranks.py`
starts and ends them.
"""

import contextlib
import datetime
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = datetime.timedelta(hours=4)  # one rank clusters a million embeddings, the others wait
INTERRUPTED = 130  # exit status of Ctrl-C, as shells have it
STOPPED = 75  # of SIGTERM, SIGUSR1 and a stalled rank: EX_TEMPFAIL, start the same command again
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
ECHO = 3.0  # s; a scheduler tells the whole group, and torchrun or the parent tells it once more


def rank() -> int:
    """This process's number among all, 0 on one process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes, over all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """The number of processes on this machine."""
    return int(os.environ.get('LOCAL_WORLD_SIZE', world_size()))


def local_rank() -> int:
    """This process's number among those of its machine."""
    return int(os.environ.get('LOCAL_RANK', rank()))


def is_main() -> bool:
    """True on rank 0."""
    return rank() == 0


def barrier() -> None:
    """Waits for every rank."""
    if world_size() > 1:
        dist.barrier()


def all_reduce(tensor: Tensor, op: str = 'sum') -> Tensor:
    """A new tensor, reduced over ranks; no gradient.

    Args:
        tensor: equal shapes on every rank.
        op: 'sum', 'mean' or 'max'.
    """
    kind = {'sum': dist.ReduceOp.SUM, 'mean': dist.ReduceOp.SUM, 'max': dist.ReduceOp.MAX}[op]
    result = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(result, kind)
        if op == 'mean':
            result = result / world_size()
    return result


def all_gather(tensor: Tensor) -> Tensor:
    """Rows of every rank in rank order, (N, ...) -> (W * N, ...); equal shapes, no gradient."""
    if world_size() == 1:
        return tensor.detach()
    own = tensor.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return torch.cat(parts)


def gather_with_grad(tensor: Tensor) -> Tensor:
    """`all_gather` whose gradient returns to the rank that owns the row.

    A rank receives the sum of what all ranks' losses say of its rows. With each rank's loss a
    mean over its own rows, DDP's average over ranks is then the gradient of the global mean.
    """
    return tensor if world_size() == 1 else _Gather.apply(tensor)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        ctx.rows = tensor.shape[0]
        return all_gather(tensor)

    @staticmethod
    def backward(ctx, grad):
        total = all_reduce(grad.contiguous())
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def gather_objects(item: Any) -> list:
    """Every rank's object, in rank order, on every rank."""
    if world_size() == 1:
        return [item]
    items: list = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def broadcast_object(item: Any) -> Any:
    """Rank 0's object, on every rank."""
    if world_size() == 1:
        return item
    box = [item]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_buffers(module: nn.Module) -> None:
    """Gives every rank the buffers of rank 0: the running statistics of batch norm.

    DDP does so at the start of each forward, so after the last one of an epoch they differ.
    """
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def any_rank(flag: bool) -> bool:
    """True on every rank when `flag` is true on one: decisions that end a loop go through here."""
    return any(gather_objects(flag))


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside a DDP wrapper; methods are always called on this one."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


class Stopped(KeyboardInterrupt):
    """The run was told to stop by Ctrl-C, SIGTERM or SIGUSR1; its text is what the user is shown.

    Args:
        number: of the signal.
        saved: the loop that was running has saved its state.
    """

    def __init__(self, number: int = signal.SIGINT, saved: bool = False) -> None:
        self.status = INTERRUPTED if number == signal.SIGINT else STOPPED
        told = f'told to stop ({signal.Signals(number).name})'
        if number == signal.SIGINT:
            super().__init__('interrupted; the same command continues from the last checkpoint')
        elif saved:
            super().__init__(f'{told}: saved; the same command continues')
        else:
            super().__init__(f'{told}; the same command continues from the last checkpoint')


_deferring = False
_requested = 0  # the signal that was noted
_heard = -ECHO  # s, monotonic; when SIGTERM or SIGUSR1 last came


@contextlib.contextmanager
def on_signals(act: Callable) -> Iterator[None]:
    """Inside, `act(number, frame)` is called for Ctrl-C, SIGTERM and SIGUSR1."""
    previous = {number: signal.signal(number, act) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stop_on_signals() -> contextlib.AbstractContextManager:
    """Inside, a signal raises `Stopped` at once, but in `deferred_interrupt`."""
    global _requested
    _requested = 0
    return on_signals(_on_interrupt)


def leave_signals_to_parent() -> None:
    """For worker processes: a signal to the whole group is the rank's to handle, which ends them.

    It does so by a SIGTERM of its own, which alone is obeyed (where the sender can be known).
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_when_parent_says, daemon=True).start()


def _end_when_parent_says() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Inside, a first signal is only noted (`stop_requested`); a second one acts at once.

    Raises:
        Stopped: on leaving, when a signal came too late for the last look at `stop_requested`.
    """
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False
    if _requested:
        raise Stopped(_requested)


def stop_requested() -> int:
    """The signal that came inside `deferred_interrupt`, on this rank; 0: none."""
    return int(_requested)


def is_echo(number: int) -> bool:
    """True of a SIGTERM or SIGUSR1 that came by another way just before; Ctrl-C always counts."""
    global _heard
    if number == signal.SIGINT:
        return False
    before, _heard = _heard, time.monotonic()
    return _heard - before < ECHO


def _on_interrupt(number, frame) -> None:
    global _requested
    if is_echo(number):
        return
    if _deferring and not _requested:
        _requested = number
        return
    raise Stopped(number)
