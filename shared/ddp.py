"""Processes: start them, talk between them, end them together.

`python main.py` runs on no GPU or one (in this process, so a debugger works) or on N (one spawned
process each); under torchrun they are there and only join. No function below needs a second
process, so no caller ever asks how many there are.
"""

import contextlib
import datetime
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shared.errors import UserError

INTERRUPTED = 130  # exit status of Ctrl-C, as shells have it
TIMEOUT = datetime.timedelta(hours=4)  # one rank clusters a million embeddings, the others wait
GRACE = 5.0  # seconds a rank gets to end by itself once another has died


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


def per_process(batch_size: int) -> int:
    """The share of a global batch that each process takes.

    Raises:
        UserError: the batch does not divide among the processes.
    """
    if batch_size % world_size():
        raise UserError(
            f'batch_size {batch_size} does not divide among {world_size()} processes; '
            f'use a multiple of {world_size()}'
        )
    return batch_size // world_size()


def launch(run: Callable, args: dict, experiment_args: dict) -> None:
    """Calls `run(rank, args, experiment_args)` in every process and returns when all are done.

    `args` gains the run-time facts `rank`, `world_size` and `device`. A rank that dies takes the
    others down; the first traceback is shown once and the exit status is 1. A `UserError` shows
    its one line only, Ctrl-C ends with status 130.

    Args:
        run: a function at the top level of a module (spawned processes import it).
        args: may hold `usable_gpu`, such as '0,1'; None means every visible GPU, '' none; and
            `tf32`, false: full fp32 products and convolutions on a GPU.
        experiment_args: passed through.
    """
    if 'LOCAL_RANK' in os.environ:  # torchrun
        _process(int(os.environ['LOCAL_RANK']), run, args, experiment_args, _torchrun_gate())
        return
    gpus = _choose_gpus(args.get('usable_gpu'))
    if gpus <= 1:
        _process(0, run, args, experiment_args, None)
        return
    spawn(run, args, experiment_args, gpus)


def spawn(run: Callable, args: dict, experiment_args: dict, processes: int) -> None:
    """`launch` with this many ranks on this machine, spawned and watched from here."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(_free_port()))
    os.environ['WORLD_SIZE'] = str(processes)
    folder = tempfile.TemporaryDirectory(prefix='sv-')
    gate = os.path.join(folder.name, 'failed')
    context = torch.multiprocessing.start_processes(
        _process, (run, args, experiment_args, gate), nprocs=processes, join=False
    )
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the ranks get Ctrl-C themselves
    try:
        while not context.join(grace_period=GRACE):
            pass
    except torch.multiprocessing.ProcessExitedException as error:
        for number, process in enumerate(context.processes):
            ended = -(process.exitcode or 0)
            if ended > 0 and ended != signal.SIGTERM:  # which came from here
                print(f'rank {number} was ended by {signal.Signals(ended).name}', file=sys.stderr)
        raise SystemExit(max(error.exit_code, 1)) from None
    finally:
        signal.signal(signal.SIGINT, previous)
        folder.cleanup()


def _torchrun_gate() -> str:
    """A path that the ranks of one torchrun attempt on this machine share, and no other run."""
    try:
        started = Path(f'/proc/{os.getppid()}/stat').read_text().rsplit(')', 1)[1].split()[19]
    except OSError:  # no /proc: the parent's number alone
        started = ''
    attempt = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    return os.path.join(tempfile.gettempdir(), f'sv-{os.getppid()}-{started}-{attempt}.failed')


def _process(local_rank, run, args, experiment_args, gate) -> None:
    """One rank, from joining the group to leaving it."""
    status = 0
    try:
        _join(local_rank, args)
        signal.signal(signal.SIGINT, _on_interrupt)
        run(rank(), args, experiment_args)
    except KeyboardInterrupt:
        status = INTERRUPTED
        _say_once(gate, 'interrupted; the same command continues from the last checkpoint\n')
    except UserError as error:
        status = 1
        _say_once(gate, f'error: {error}\n')
    except Exception:
        status = 1
        where = f'rank {rank()}: ' if world_size() > 1 else ''
        _say_once(gate, where + traceback.format_exc())
    if status:
        sys.stdout.flush()
        if gate is None:
            raise SystemExit(status)
        os._exit(status)  # a peer may wait in a collective: leave without any farewell
    if dist.is_initialized():
        dist.destroy_process_group()


def _say_once(gate: str | None, text: str) -> None:
    """Prints, unless another rank of this run on this machine has already done so."""
    try:
        if gate is not None:
            os.close(os.open(gate, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    print(text, end='', file=sys.stderr, flush=True)


def _join(local_rank: int, args: dict) -> None:
    """Joins the process group and writes the run-time facts into `args`."""
    cuda = torch.cuda.is_available() and args.get('usable_gpu') != ''
    device = torch.device('cuda', local_rank) if cuda else torch.device('cpu')
    if cuda:
        torch.cuda.set_device(device)
        allowed = args.get('tf32', True)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    elif 'OMP_NUM_THREADS' not in os.environ:
        local_world = int(os.environ.get('LOCAL_WORLD_SIZE', os.environ.get('WORLD_SIZE', '1')))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world))
    if 'WORLD_SIZE' in os.environ and not dist.is_initialized():
        dist.init_process_group(
            'nccl' if cuda else 'gloo',
            rank=int(os.environ.get('RANK', local_rank)),
            world_size=int(os.environ['WORLD_SIZE']),
            timeout=TIMEOUT,
            device_id=device if cuda else None,
        )
    args.update(rank=rank(), world_size=world_size(), device=str(device))


def _choose_gpus(usable_gpu: str | None) -> int:
    """Restricts this process and its children to `usable_gpu`; returns how many there are."""
    if usable_gpu is not None:
        wanted = [part.strip() for part in usable_gpu.split(',') if part.strip()]
        visible = os.environ.get('CUDA_VISIBLE_DEVICES')
        known = visible.split(',') if visible else None
        there = len(known) if known else torch.cuda.device_count()
        for part in wanted:
            if not part.isdigit() or int(part) >= there or wanted.count(part) > 1:
                raise SystemExit(f'error: usable_gpu {usable_gpu}: there are {there} GPUs here')
        chosen = [known[int(part)] if known else part for part in wanted]
        os.environ['CUDA_VISIBLE_DEVICES'] = ','.join(chosen)
        return len(chosen)
    return torch.cuda.device_count()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


_deferring = _requested = False


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Inside, a first Ctrl-C is only noted (`interrupt_requested`); a second one acts at once."""
    global _deferring
    _deferring = True
    try:
        yield
    finally:
        _deferring = False


def interrupt_requested() -> bool:
    """True once Ctrl-C was pressed inside `deferred_interrupt`, on this rank."""
    return _requested


def _on_interrupt(number, frame) -> None:
    global _requested
    if _deferring and not _requested:
        _requested = True
        return
    raise KeyboardInterrupt
