"""Ranks: start them, watch them, end them together.

`python main.py` runs on no GPU or one (in this process, so a debugger works) or on N (one spawned
process each); under torchrun they are there and only join. Exit statuses: 0, 1 (failed; the first
failure is shown once), 2 (wrong arguments), `ddp.INTERRUPTED` and `ddp.STOPPED`.
"""

import atexit
import contextlib
import math
import multiprocessing.connection
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from shared import ddp
from shared.errors import UserError
from shared.files import advice
from shared.meeting import meet

GRACE = 5.0  # s a rank gets to end by itself once another has died
LOOK = 0.2  # s between two looks at the ranks

_gate: str | None = None  # made by the first rank that says why the run ends


def launch(run: Callable, args: dict, experiment_args: dict) -> None:
    """Calls `run(rank, args, experiment_args)` in every process and returns when all are done.

    `args` gains the run-time facts `rank`, `world_size` and `device`. A rank that dies takes the
    others down; the first traceback is shown once and the exit status is 1. A `UserError` shows
    its one line only; so do Ctrl-C, which ends with status 130, and SIGTERM and SIGUSR1, which end
    with 75: a training loop saves first, anything else continues from the last checkpoint.

    Args:
        run: a function at the top level of a module (spawned processes import it).
        args: may hold `usable_gpu`, such as '0,1'; None means every visible GPU, '' none; and
            `tf32`, false: full fp32 products and convolutions on a GPU.
        experiment_args: passed through.
    """
    gpus = _choose_gpus(args.get('usable_gpu'))
    if 'LOCAL_RANK' in os.environ:  # torchrun
        started = int(os.environ.get('LOCAL_WORLD_SIZE', '1'))
        if args.get('usable_gpu') and started > gpus:
            raise SystemExit(
                f'error: usable_gpu {args["usable_gpu"]}: {gpus} GPUs for {started} processes; '
                f'torchrun --nproc_per_node {gpus}, or in the image PROCESSES={gpus}'
            )
        _process(int(os.environ['LOCAL_RANK']), run, args, experiment_args, _torchrun_gate())
        return
    if gpus <= 1:
        _process(0, run, args, experiment_args, None)
        return
    spawn(run, args, experiment_args, gpus)


def spawn(run: Callable, args: dict, experiment_args: dict, processes: int) -> None:
    """`launch` with this many ranks on this machine, spawned and watched from here."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(_free_port()))
    os.environ['WORLD_SIZE'] = str(processes)
    for name in ('RANK', 'LOCAL_WORLD_SIZE'):  # of whatever started this process
        os.environ.pop(name, None)
    told: list[int] = []

    def note(number, frame) -> None:
        # the terminal gives Ctrl-C to the ranks as well
        if number != signal.SIGINT and not ddp.is_echo(number):
            told.append(number)

    with tempfile.TemporaryDirectory(prefix='sv-') as folder, ddp.on_signals(note):
        gate = os.path.join(folder, 'failed')
        context = torch.multiprocessing.start_processes(
            _process, (run, args, experiment_args, gate), nprocs=processes, join=False
        )
        killed = _watch(context.processes, told)
        codes = [process.exitcode or 0 for process in context.processes]
        for number, code in enumerate(codes):
            if code < 0 and number not in killed and -code not in told:
                name = signal.Signals(-code).name
                print(f'rank {number} was ended by {name}', file=sys.stderr)
        status = _status(codes, told)
        if status == ddp.STOPPED and told:  # ranks that had not yet begun did not say it
            _say_once(gate, f'{ddp.Stopped(told[0])}\n')
    if status:
        raise SystemExit(status)


def _watch(processes: Sequence, told: list[int]) -> set[int]:
    """Waits for all ranks to end, hands them the signals that come into `told`.

    After `GRACE` it kills those that outlive a failed one (they wait for it, and cannot save) or
    a second signal; returns their numbers.
    """
    handed, limit = 0, math.inf
    killed: set[int] = set()
    while running := {n: p for n, p in enumerate(processes) if p.exitcode is None}:
        multiprocessing.connection.wait([p.sentinel for p in running.values()], LOOK)
        for number in told[handed:]:
            handed += 1
            for process in running.values():
                os.kill(process.pid, number)  # not reaped before the next look: still this one
        if handed > 1 or any(process.exitcode for process in processes):
            limit = min(limit, time.monotonic() + GRACE)
        if time.monotonic() > limit:
            killed.update(running)
            for process in running.values():
                process.kill()
    return killed


def _status(codes: Sequence[int], told: Sequence[int]) -> int:
    """What a run ends with: a rank that says why it stopped tells more than those that lost it."""
    for status in (ddp.STOPPED, ddp.INTERRUPTED):
        if status in codes:
            return status
    if told and any(codes) and max(codes) <= 0:  # ended by the signal, or killed after it
        return ddp.STOPPED
    return int(any(codes))


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
    global _gate
    _gate, status, text = gate, 0, ''
    with contextlib.ExitStack() as stack:
        try:
            _join(local_rank, args)  # in vain it is ended by any signal, at once
            stack.enter_context(ddp.stop_on_signals())
            run(ddp.rank(), args, experiment_args)
        except KeyboardInterrupt as error:
            stop = error if isinstance(error, ddp.Stopped) else ddp.Stopped()
            status, text = stop.status, f'{stop}\n'
        except UserError as error:
            status, text = 1, f'error: {error}\n'
        except Exception as error:
            where = f'rank {ddp.rank()}: ' if ddp.world_size() > 1 else ''
            status, text = 1, where + traceback.format_exc()
            if isinstance(error, OSError) and (what := advice(error)):
                text = f'error: {where}{error}; {what}, then run the same command again\n'
        if status and gate is not None:
            leave(status, text)  # a peer may wait in a collective
        if status:
            say_once(text)
            sys.stdout.flush()
            raise SystemExit(status)
    if dist.is_initialized():
        dist.destroy_process_group()
    if gate is not None:
        # Not by Python's own end: a thread that is still inside torch's store would abort it.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def leave(status: int, text: str) -> NoReturn:
    """Says why, unless another rank has, and ends this process without any farewell.

    From any thread, also when the main one hangs in the output: that is waited for a moment only.
    """

    def last_words() -> None:
        say_once(text)
        sys.stdout.flush()

    words = threading.Thread(target=last_words, daemon=True)
    words.start()
    words.join(GRACE)
    os._exit(status)


def say_once(text: str) -> None:
    """Prints, unless another rank of this run on this machine has already done so."""
    _say_once(_gate, text)


def _say_once(gate: str | None, text: str) -> None:
    try:
        if gate is not None:
            os.close(os.open(gate, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    except OSError:  # no room for it, perhaps why the run ends: better said twice than not at all
        pass
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
        rank, ranks = int(os.environ.get('RANK', local_rank)), int(os.environ['WORLD_SIZE'])
        dist.init_process_group(
            'nccl' if cuda else 'gloo',
            store=meet(rank, ranks),
            rank=rank,
            world_size=ranks,
            timeout=ddp.TIMEOUT,
            device_id=device if cuda else None,
        )
    args.update(rank=ddp.rank(), world_size=ddp.world_size(), device=str(device))


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
