"""MUSAN and room responses in memory: read once a machine, mapped by all its ranks and workers.

Their 16-bit samples lie in an anonymous file of the kernel (memfd): it needs no room in /dev/shm,
and is gone with the last process that maps it, however that ends. Samples are the same from there
as from the disk, bit for bit; what is not there is read from the disk.

A sample of 3 s with room and noise took a worker 0.41 ms instead of 0.49 from a local disk that the
system caches, hardly worth the memory; where opening a file takes 2 ms, as on network disks
(simulated), 3.5 ms instead of 8.4 (measured once; benchmarks/loader.py has a row of the former).
Filling takes about 1.5 s of processor time a GiB.
"""

import contextlib
import mmap
import os
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from shared import ddp
from shared.datasets.decoding import PCM16_SCALE, AudioError
from shared.datasets.items import Paths
from shared.datasets.machine import free_memory
from shared.datasets.musan import Musan
from shared.datasets.reading import AudioFile, AudioReader
from shared.datasets.rirs import Rirs

GIB = 2**30
SHARE = 0.5  # of the free memory, at most
THREADS, AHEAD = 16, 32  # reading at a time, as they wait for the disk; files read ahead
PIECE = 1 << 16  # samples looked at a time, so that they stay in the processor's cache
ORDER = ('noise', 'speech', 'music')  # after the responses; the long files last


def keep_in_memory(gib: float, musan: Musan | None, rirs: Rirs | None) -> str:
    """Reads responses, noise, speech and music into memory, in this order, as far as they fit.

    From now on `musan` and `rirs` draw from there. Every rank calls it; the first of each machine
    reads, 0 GiB reads nothing. Files that are not 16-bit samples at the reader's rate stay on disk.

    Args:
        gib: limit, on each machine; half of its free memory at most.
        musan: or None.
        rirs: or None.

    Returns:
        One line: what is in memory, on the machine of rank 0.
    """
    groups = [] if rirs is None else [Group('RIRs', rirs.root, rirs.files, rirs.reader, 0)]
    if musan is not None:
        files = musan.files
        groups += [Group(name, musan.root, files[name], musan.reader, None) for name in ORDER]
    if gib <= 0 or not groups:
        return 'read from disk'
    block, said = _share(groups, int(gib * GIB))
    if rirs is not None:
        rirs.reader = MemoryReader(rirs.reader, block)
    if musan is not None:
        musan.reader = MemoryReader(musan.reader, block)
    return said


class Group:
    """Files of one kind: `name`, their `paths` as the corpus opens them, and how."""

    def __init__(
        self,
        name: str,
        root: Path,
        files: np.ndarray,
        reader: AudioReader,
        channel: int | None,
    ):
        self.name, self.paths, self.channel = name, Paths(root, files), channel
        self.strict = AudioReader(reader.rate, convert=False)

    def samples(self, number: int) -> np.ndarray | None:
        """A file as int16 (length,); None where that would not be its samples, or none can be read."""
        try:
            with self.strict.open(self.paths[number], self.channel) as audio:
                values = np.empty(audio.length, np.int16)
                for start in range(0, len(values), PIECE):
                    piece = values[start : start + PIECE]
                    wave = audio.read(start, len(piece))
                    wave *= 1 / PCM16_SCALE
                    piece[:] = wave
                    if not np.array_equal(piece, wave):
                        return None
        except AudioError:  # will be said when it is drawn
            return None
        return values


class Kept:
    """A file in memory, one channel of it, in the place of an open file (decoding.py)."""

    channels = 1

    def __init__(self, values: np.ndarray, samplerate: int):
        self.values, self.samplerate, self.frames = values, samplerate, len(values)

    def read(self, start: int, frames: int, channel: int | None) -> np.ndarray:
        """As `Pcm16Wav.read`."""
        return np.multiply(self.values[start : start + frames], PCM16_SCALE, dtype=np.float32)

    def close(self) -> None:
        """There is nothing to close."""


class Block:
    """Samples of many files, int16, one after the other; `places`: path -> (first, behind the last)."""

    def __init__(self, samples: np.ndarray, places: dict[str, tuple[int, int]]):
        self.samples, self.places = samples, places

    def file(self, path: str | Path) -> np.ndarray | None:
        """The samples of a file; None where it is on disk."""
        place = self.places.get(os.fspath(path))
        return None if place is None else self.samples[slice(*place)]


class MemoryReader(AudioReader):
    """An `AudioReader` that finds some files in memory.

    Args:
        disk: the reader whose place it takes.
        block: samples at the rate of that reader.
    """

    def __init__(self, disk: AudioReader, block: Block):
        super().__init__(disk.rate, disk.convert)
        self.block = block

    def source(self, path: str | Path) -> AudioFile:
        values = self.block.file(path)
        return super().source(path) if values is None else Kept(values, self.rate)


class Offer(NamedTuple):
    """What the first rank of a machine has filled, and where the others find it."""

    name: str
    process: int
    descriptor: int  # -1: nothing
    lengths: np.ndarray  # samples of each file, -1 where it stays on disk
    room: int  # bytes


def _share(groups: Sequence[Group], limit: int) -> tuple[Block, str]:
    """The block of this machine, which its first rank fills, and a line on it."""
    own = _filled(groups, limit) if ddp.local_rank() == 0 else None
    offers = ddp.gather_objects(own)
    offer = offers[ddp.rank() - ddp.local_rank()]  # the ranks of a machine are in a row
    samples = _mapped(offer)
    missing = ddp.gather_objects(samples is None)  # after it nobody needs the descriptor any more
    if own is not None and own.descriptor >= 0:
        os.close(own.descriptor)
    said = _describe(groups, offers[0], limit)
    if any(missing):
        said += f'; {sum(missing)} of {len(missing)} ranks cannot share it and read from disk'
    if samples is None:
        return Block(np.zeros(0, np.int16), {}), said
    return Block(samples, _places(groups, offer.lengths)), said


def _filled(groups: Sequence[Group], limit: int) -> Offer:
    name, room = f'samples-{secrets.token_hex(8)}', min(limit, int(SHARE * free_memory()))
    lengths, descriptor = np.full(sum(len(group.paths) for group in groups), -1), -1
    with contextlib.suppress(OSError, AttributeError):  # no such call here, or not for us; no space
        descriptor = os.memfd_create(name)
        _fill(descriptor, groups, room, lengths)
    return Offer(name, os.getpid(), descriptor, lengths, room)


def _fill(descriptor: int, groups: Sequence[Group], room: int, lengths: np.ndarray) -> None:
    """Writes file after file until one does not fit; `lengths`, in samples, of those that did.

    Raises:
        OSError: there is less memory than there seemed to be.
    """
    used = 0
    bar = tqdm(
        desc='reading MUSAN and RIRs into memory',
        total=len(lengths),
        unit='file',
        leave=False,
        disable=not ddp.is_main() or None,
    )
    with bar:
        for number, values in enumerate(_in_order(groups)):
            bar.update()
            if values is None:
                continue
            if (
                used + values.nbytes > room
                or os.pwrite(descriptor, values.data, used) < values.nbytes
            ):
                return
            used += values.nbytes
            lengths[number] = len(values)


def _in_order(groups: Sequence[Group]) -> Iterator[np.ndarray | None]:
    """The samples of every file; some are read ahead, side by side."""
    with ThreadPoolExecutor(THREADS) as pool:
        for group in groups:
            for start in range(0, len(group.paths), AHEAD):
                rows = range(start, min(start + AHEAD, len(group.paths)))
                yield from pool.map(group.samples, rows)


def _mapped(offer: Offer) -> np.ndarray | None:
    """All samples, int16; None where the descriptor cannot be looked into."""
    path = f'/proc/{offer.process}/fd/{offer.descriptor}'
    try:
        # in another container the process of that number is another one
        if not os.readlink(path).startswith(f'/memfd:{offer.name}'):
            return None
        with open(path, 'rb') as file:
            size = os.fstat(file.fileno()).st_size
            pages = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b''
    except OSError:
        return None
    return np.frombuffer(pages, np.int16)


def _places(groups: Sequence[Group], lengths: np.ndarray) -> dict[str, tuple[int, int]]:
    ends = np.cumsum(np.maximum(lengths, 0))
    paths = (path for group in groups for path in group.paths)
    return {
        os.fspath(path): (end - length, end)
        for path, length, end in zip(paths, lengths.tolist(), ends.tolist())
        if length >= 0
    }


def _describe(groups: Sequence[Group], offer: Offer, limit: int) -> str:
    """How many files of each kind are in memory, and their size."""
    parts, start = [], 0
    for group in groups:
        own = offer.lengths[start : start + len(group.paths)]
        parts.append(f'{(own >= 0).sum():,} of {len(own):,} {group.name}')
        start += len(own)
    size = 2 * np.maximum(offer.lengths, 0).sum() / GIB
    text = f'in memory: {", ".join(parts)}, {size:.2g} GiB'
    if offer.room < limit:
        text += f' (the limit is {offer.room / GIB:.2g} GiB, {SHARE:.0%} of what is free)'
    return text
