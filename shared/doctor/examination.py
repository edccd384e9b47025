"""Looks at data, weights and machine before a run, and says what would spoil it, and what to do.

It trains nothing and changes nothing but its own report, `doctor.txt` in the folder of the run.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tqdm import tqdm

from shared import ddp
from shared.datasets.items import Utterances
from shared.doctor import machine
from shared.doctor.data import look_at_data
from shared.doctor.findings import Check, Finding, awaited, guarded, summary
from shared.doctor.plan import Corpora, Facts, Load, Weights, weight_file
from shared.errors import UserError
from shared.files import write_text

BLOCK = 1 << 24  # bytes hashed at a time


def examine(
    corpora: Corpora,
    load: Load,
    weights: Sequence[Weights] = (),
    *,
    device: str = 'cpu',
    full: bool = False,
) -> list[Finding]:
    """Shows each finding as it comes, on rank 0, and writes them down; every rank calls it.

    Args:
        corpora: the data of the run.
        load: what it asks of the machine.
        weights: what it begins with.
        device: of this process, such as 'cuda:1'.
        full: open every file of audio, not some of each folder.

    Returns:
        The findings, on rank 0.

    Raises:
        SystemExit: with status 1, on every rank, where one of them is an error.
    """
    began = time.monotonic()
    corpora = replace(corpora, read_train=_read_by_all(corpora.read_train))
    link = dist.new_group(backend='gloo', timeout=ddp.TIMEOUT) if ddp.world_size() > 1 else None
    findings = _of_ranks(load, device, link)
    bad = False
    if ddp.is_main():
        for finding in findings:
            tqdm.write(finding.line())
        bar = tqdm(desc='doctor', unit='finding', leave=False, disable=None)
        with bar:
            for finding in _of_data(corpora, load, weights, full):
                tqdm.write(finding.line())
                findings.append(finding)
                bar.update()
        bad = any(finding.level == 'error' for finding in findings)
        _conclude(findings, Path(load.path_log) / 'doctor.txt', time.monotonic() - began)
    if link is not None:
        box = [bad]
        dist.broadcast_object_list(box, src=0, group=link)
        bad = box[0]
    if bad:
        raise SystemExit(1)
    return findings


def _of_ranks(load: Load, device: str, link: Any) -> list[Finding]:
    """What each process finds out about itself, and the first of each machine about that."""
    own = [*machine.talk(device)] if ddp.is_main() else []
    if not ddp.is_main():
        list(machine.talk(device))
    own += machine.gpu(device)
    if ddp.local_rank() == 0:
        own += guarded('machine', machine.machine(load))
    if link is None:
        return own
    everyone: list = [None] * ddp.world_size()
    dist.all_gather_object(everyone, own, group=link)
    return [finding for found in everyone for finding in found]


def _read_by_all(read: Callable[[], Utterances] | None) -> Callable[[], Utterances] | None:
    """The same, for rank 0 alone: every rank reads now, as the reader may wait for all of them."""
    if read is None:
        return None
    try:
        found = read()
    except (UserError, OSError) as error:
        return partial(_fail, error)
    return lambda: found


def _fail(error: Exception) -> Utterances:
    raise error


def _of_data(corpora: Corpora, load: Load, weights: Sequence[Weights], full: bool) -> Check[None]:
    named = {one.name for one in weights}  # which say themselves that they are missing
    needed = {name: path for name, path in corpora.needed.items() if name not in named}
    corpora = replace(corpora, needed=needed)
    facts = yield from look_at_data(corpora, full)
    yield from machine.batches(load, facts)
    yield from guarded('disk', machine.disks(load, facts))
    for one in weights:
        yield from guarded(one.name, look_at_weights(one, facts))


def look_at_weights(weights: Weights, facts: Facts) -> Check[None]:
    """Whether the file is there, can be read, fits, and which one it is."""
    file = weight_file(weights.path)
    if file is None:
        yield Finding('error', weights.name, f'{weights.path} is not there', weights.origin)
        return
    found = awaited(f'{weights.name}: {file}', partial(weights.read, weights.path))
    if weights.fits is not None and (complaint := weights.fits(found, facts)):
        yield Finding('error', weights.name, f'{weights.path}: {complaint}', weights.origin)
    del found  # up to a gigabyte
    digest = sha256(file)
    said = f'{file}: can be read, SHA-256 {digest}'
    if digest in weights.digests:
        yield Finding('ok', weights.name, f'{said}: {weights.digests[digest]}')
    elif weights.digests:
        yield Finding(
            'warning',
            weights.name,
            f'{said}, which is not {" or ".join(weights.digests.values())}',
            f'if it is meant to be: {weights.origin}',
        )
    else:
        yield Finding('ok', weights.name, said)


def sha256(file: Path) -> str:
    """The digest of a file, read in blocks."""
    digest, size = hashlib.sha256(), file.stat().st_size
    bar = tqdm(
        total=size,
        desc=f'SHA-256 of {file.name}',
        unit='B',
        unit_scale=True,
        leave=False,
        disable=None,
    )
    with open(file, 'rb') as content, bar:
        while block := content.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _conclude(findings: Sequence[Finding], report: Path, seconds: float) -> None:
    """Shows and writes the last line."""
    last = f'doctor: {summary(findings)}, in {seconds:.0f} s'
    try:
        write_text(report, '\n'.join([*(finding.line() for finding in findings), last]) + '\n')
        tqdm.write(f'{last}; written to {report}')
    except UserError as error:  # the disk is among the findings
        tqdm.write(f'{last}; {error}')
