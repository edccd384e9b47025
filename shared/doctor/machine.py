"""The machine under the doctor's eyes: processes, GPUs, processors, memory, disks."""

import os
import re
import shutil
import time
from pathlib import Path

import torch
import torch.distributed as dist

from shared import ddp
from shared.datasets.machine import cores, free_memory
from shared.doctor.findings import Check, Finding
from shared.doctor.plan import Facts, Load
from shared.doctor.programs import driver_fits, imports, packages
from shared.errors import UserError
from shared.optim.accumulation import check_batches

GIB = 2**30
SHARED = Path('/dev/shm')  # where loader processes leave their batches
PREFETCH = 2  # batches that each of them has ready, torch's default
WITH_NOISE = 2  # times the crops: a batch brings noises and responses for most of them
RANK_BYTES, WORKER_BYTES = 3 * GIB, GIB // 4  # host memory of each, a generous guess
TALK_SECONDS = 60.0


def machine(load: Load) -> Check[None]:
    """What is the same for all processes of a machine; its first one looks."""
    yield from driver_fits(load.gpu)
    yield from packages()
    yield from imports()
    yield from processors(load.workers)
    yield from memory(load)


def talk(device: str, seconds: float = TALK_SECONDS) -> Check[None]:
    """Whether the ranks reach each other: they sum up their numbers. Every rank calls it."""
    count = ddp.world_size()
    if count == 1:
        yield Finding('ok', 'processes', 'one')
        return
    backend, number = dist.get_backend(), torch.tensor(float(ddp.rank()), device=device)
    work = dist.all_reduce(number, async_op=True)
    end = time.monotonic() + seconds
    while not work.is_completed() and time.monotonic() < end:
        time.sleep(0.01)
    if not work.is_completed():
        yield Finding(
            'error',
            'processes',
            f'{count} ranks had not summed up their numbers by {backend} after {seconds:g} s',
            'NCCL_DEBUG=INFO tells more; often NCCL_P2P_DISABLE=1 or NCCL_SOCKET_IFNAME helps',
        )
        return
    work.wait()
    found, right = number.item(), count * (count - 1) / 2
    if found == right:
        yield Finding('ok', 'processes', f'{count} ranks reach each other by {backend}')
    else:
        yield Finding(
            'error',
            'processes',
            f'{count} ranks sum up their numbers to {found:g} by {backend}, not to {right:g}',
            'NCCL_P2P_DISABLE=1 may help: some boards mix up what GPUs send each other',
        )


def gpu(device: str) -> Check[None]:
    """The GPU of this process, if it has one."""
    if not device.startswith('cuda'):
        return
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    free, total = torch.cuda.mem_get_info(device)
    built = torch.cuda.get_arch_list()
    said = f'{device}: {name}, {total / GIB:.0f} GiB, compute capability {capability[0]}.{capability[1]}'
    if not runs_on(capability, built):
        yield Finding(
            'error',
            'GPU',
            f'{said}, which torch {torch.__version__} is not built for ({", ".join(built)})',
            'install a torch for this GPU, or use another GPU',
        )
    elif free < 0.9 * total:
        yield Finding(
            'warning',
            'GPU',
            f'{said}, of which {free / GIB:.0f} GiB are free',
            'another process uses it, see nvidia-smi',
        )
    else:
        yield Finding('ok', 'GPU', said)


def runs_on(capability: tuple[int, int], built: list[str]) -> bool:
    """Whether code for ['sm_80', 'compute_90', ...] runs on a GPU: same major, or compiled anew."""
    for arch in built:
        found = re.fullmatch(r'(sm|compute)_(\d+)(\d)[a-z]?', arch)
        if found and (int(found[2]), int(found[3])) <= capability:
            if found[1] == 'compute' or int(found[2]) == capability[0]:
                return True
    return False


def processors(workers: int) -> Check[None]:
    """Loader processes against cores."""
    ranks, there = ddp.local_world_size(), cores()
    said = f'{workers} loader processes x {ranks} ranks on {there} cores'
    if workers * ranks > there:
        yield Finding(
            'warning',
            'cores',
            said,
            f'they will wait for each other; {max(there // ranks - 1, 1)} loader processes fit',
        )
    else:
        yield Finding('ok', 'cores', said)


def memory(load: Load, shared: Path = SHARED) -> Check[None]:
    """Memory of the machine, and the part that loader processes hand over their batches in."""
    ranks = ddp.local_world_size()
    largest = max((size * samples for size, samples in load.batches.values()), default=0)
    share = ranks / ddp.world_size()  # of a global batch, on this machine
    handed = int(load.workers * PREFETCH * largest * 4 * WITH_NOISE * share)
    needed = ranks * (RANK_BYTES + load.workers * WORKER_BYTES) + load.cache_gib * GIB + handed
    free = free_memory()
    said = f'{free / GIB:.1f} GiB are free, about {needed / GIB:.1f} are needed'
    if needed > free > 0:
        yield Finding(
            'warning',
            'memory',
            f'{said} ({load.workers} loader processes x {ranks} ranks)',
            'the kernel may end loader processes: fewer of them, or a smaller cache',
        )
    else:
        yield Finding('ok', 'memory', said)
    if not load.workers or not shared.is_dir():
        return
    there = shutil.disk_usage(shared).free
    said = f'{there / GIB:.2f} GiB are free, loader processes fill about {handed / GIB:.2f}'
    if there < handed:
        yield Finding(
            'error',
            str(shared),
            said,
            f'they would end with a bus error: docker run --shm-size {-(-2 * handed // GIB)}g '
            '(or --ipc host), or fewer loader processes',
        )
    else:
        yield Finding('ok', str(shared), said)


def disks(load: Load, facts: Facts) -> Check[None]:
    """Room for what the run writes, by disk."""
    wanted = {Path(load.path_log): ('checkpoints', load.checkpoints)}
    for folder, size_for in load.made.items():
        if not Path(folder).exists():  # else made before, or begun
            wanted[Path(folder)] = 'files made of the corpora', size_for(facts)
    totals: dict[int, float] = {}
    for folder, (what, size) in wanted.items():
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if not os.access(there, os.W_OK):
            yield Finding(
                'error', 'disk', f'{there} cannot be written to', 'name another folder for the run'
            )
            continue
        disk = there.stat().st_dev
        totals[disk] = totals.get(disk, 0) + size
        free = shutil.disk_usage(there).free
        said = f'{folder}: {free / GIB:.1f} GiB are free'
        if free < totals[disk]:
            yield Finding(
                'error',
                'disk',
                f'{said}, {what} take about {size / GIB:.1f} GiB, all of this disk '
                f'{totals[disk] / GIB:.1f}',
                'free some space, name another folder, or keep fewer checkpoints',
            )
        else:
            yield Finding('ok', 'disk', f'{said}, {what} take about {size / GIB:.1f} GiB')


def batches(load: Load, facts: Facts) -> Check[None]:
    """Batches against processes, and what needs many utterances against those there are."""
    count = ddp.world_size()
    sizes = {name: size for name, (size, _) in load.batches.items()}
    odd = False
    for name, size in sizes.items():
        try:
            check_batches({name: (size, load.parts.get(name, 1))}, count)
        except UserError as error:
            odd = True
            yield Finding('error', 'batches', str(error))
    few = {
        name: needed
        for name, needed in (sizes | dict(load.least)).items()
        if 0 < facts.utterances < needed
    }
    for name, needed in few.items():
        yield Finding(
            'error',
            name,
            f'{needed:,} are more than the {facts.utterances:,} training utterances',
            'a smaller value, or more data',
        )
    if sizes and not odd and not few:
        said = ', '.join(f'{name} {size}' for name, size in sizes.items())
        yield Finding('ok', 'batches', f'{said} over {count} processes')
