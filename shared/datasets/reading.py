"""Crops read by seek: an audio file is opened once and only what is needed is decoded."""

import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from shared import ddp
from shared.datasets.decoding import AudioError, open_file
from shared.datasets.headers import HEADER, form
from shared.datasets.items import Paths
from shared.datasets.packed import packed_folder

ONE = Fraction(1)
FILTER_REACH = 10  # resample_poly's filter spans +-10 * max(up, down) at the higher rate
BLOCK = 64  # chunks of files between two looks at how fast the disk is
AT_ONCE_SECONDS = 75e-6  # a file; what it takes when the system has it in memory, twice over
AT_ONCE = 64  # files looked into at a time: network file systems and object stores answer slowly
CHUNK = 256  # files that a thread is handed at a time


class AudioFile(Protocol):
    """What is needed of an open file: see `decoding.Pcm16Wav`."""

    samplerate: int
    channels: int
    frames: int

    def read(self, start: int, frames: int, channel: int | None) -> np.ndarray: ...
    def close(self) -> None: ...


class AudioReader:
    """Opens audio files as float32 at one sampling rate, one channel.

    Args:
        rate: samples per second of everything returned.
        convert: files of another rate are resampled and several channels averaged, each counted in
            `converted`; False refuses them.
    """

    def __init__(self, rate: int = 16000, convert: bool = True):
        self.rate, self.convert = rate, convert
        self.converted: Counter = Counter()

    def open(self, path: str | Path, channel: int | None = None, speed: Fraction = ONE) -> 'Audio':
        """An open file, to be used in a `with` statement.

        Args:
            path: wav or FLAC file.
            channel: the one to take of several (not counted as converted); None: their mean.
            speed: how much faster it plays, its pitch moving along, as sox `speed` and `rate` do
                (spec enskd 2.3, item 6); a ratio of small integers.

        Raises:
            AudioError: missing, unreadable, empty or cut short, or refused by `convert=False`.
        """
        return Audio(self, path, channel, speed)

    def source(self, path: str | Path) -> AudioFile:
        """Where the samples of a file are read from; `decoding.open_file`, whose errors it raises."""
        return open_file(path)

    def crop(
        self, path: str | Path, length: int, rng: np.random.Generator, speed: Fraction = ONE
    ) -> np.ndarray:
        """`length` samples of a file, float32 (length,), their start uniform over all there are.

        A shorter file is repeated from its first sample on. `speed` as in `open`.

        Raises:
            AudioError: as `open` and `Audio.read`.
        """
        with self.open(path, speed=speed) as audio:
            start = int(rng.integers(max(audio.length - length, 0) + 1))
            return audio.read(start, length)

    def take_converted(self) -> Counter:
        """What was converted since the last call, by kind; the count starts again."""
        taken, self.converted = self.converted, Counter()
        return taken


class Audio:
    """One open file; `length` is in samples at the reader's rate."""

    def __init__(
        self,
        reader: AudioReader,
        path: str | Path,
        channel: int | None = None,
        speed: Fraction = ONE,
    ):
        self.reader, self.path, self.channel = reader, path, channel
        self.file = reader.source(path)
        try:
            self._check()
        except AudioError:
            self.file.close()
            raise
        ratio = Fraction(reader.rate, self.file.samplerate) / speed
        self.up, self.down = ratio.numerator, ratio.denominator
        self.length = -(-self.file.frames * self.up // self.down)
        self.counted = False

    def __enter__(self) -> 'Audio':
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def _check(self) -> None:
        file, reader = self.file, self.reader
        if file.frames < 1:
            raise AudioError(f'{self.path}: holds no samples')
        if self.channel is not None and self.channel >= file.channels:
            raise AudioError(f'{self.path}: has no channel {self.channel}')
        if reader.convert:
            return
        if file.samplerate != reader.rate:
            raise AudioError(f'{self.path}: is at {file.samplerate} Hz, not {reader.rate} Hz')
        if file.channels > 1 and self.channel is None:
            raise AudioError(f'{self.path}: has {file.channels} channels, not one')

    def read(self, start: int, length: int) -> np.ndarray:
        """Samples [start, start + length) of the file repeated without end.

        Returns float32 (length,). Only the crop is decoded. A file of another rate gives what the
        resampled whole file has there.

        Raises:
            AudioError: the file ends early or does not decode, or holds NaN or infinite samples.
        """
        self._count()
        start %= self.length
        if start + length <= self.length:
            return self._resampled(start, length)
        if length >= self.length:
            whole = self._resampled(0, self.length)
            return np.take(whole, np.arange(start, start + length), mode='wrap')
        tail = self._resampled(start, self.length - start)
        return np.concatenate([tail, self._resampled(0, length - len(tail))])

    def _resampled(self, start: int, length: int) -> np.ndarray:
        if self.up == self.down:
            return self.file.read(start, length, self.channel)
        # Output sample k * up lies on input sample k * down, so crops begin at such a block, some
        # blocks early for the filter to reach back; then the filter's phase is the whole file's.
        margin = 1 + FILTER_REACH * max(self.up, self.down) // (self.up * self.down)
        first = max(start // self.up - margin, 0)
        last = -(-(start + length) // self.up) + margin
        frames = min(last * self.down, self.file.frames) - first * self.down
        wave = self.file.read(first * self.down, frames, self.channel)
        wave = _resample_poly(wave, self.up, self.down)
        skip = start - first * self.up
        return wave[skip : skip + length].astype(np.float32)

    @property
    def conversions(self) -> list[str]:
        """What `read` does to the samples of this file, by kind."""
        kinds = ['resampled'] if self.file.samplerate != self.reader.rate else []
        return kinds + ['mixed to mono'] * (self.file.channels > 1 and self.channel is None)

    def _count(self) -> None:
        """Counts a converted file once, when it is first read."""
        if not self.counted:
            self.counted = True
            self.reader.converted.update(self.conversions)


def _resample_poly(wave: np.ndarray, up: int, down: int) -> np.ndarray:
    from scipy.signal import resample_poly  # here: it takes a second that most runs do not need

    return resample_poly(wave, up, down)


def durations(paths: Sequence[Path], reader: AudioReader, workers: int = AT_ONCE) -> np.ndarray:
    """Seconds of every file, from the headers alone, (N,) float64; NaN for one that does not open.

    Args:
        paths: any sequence of paths; `Paths` holds no object a file.
        reader: what would read them.
        workers: files looked into at a time.

    Raises:
        DataError: a shard of a packed folder cannot be read.
    """
    if not (isinstance(paths, Paths) and reader.convert and (folder := packed_folder(paths.root))):
        return seconds_of(file_forms(paths, workers), reader)
    rows = folder.rows(paths.names)  # its index tells
    seconds = np.where(rows < 0, math.nan, folder.seconds(reader.rate)[rows])
    unknown = np.flatnonzero(np.isnan(seconds))
    rest = Paths(paths.root, paths.names[unknown])
    seconds[unknown] = seconds_of(file_forms(rest, workers), reader)
    return seconds


def seconds_of(forms: np.ndarray, reader: AudioReader) -> np.ndarray:
    """Seconds that a reader gives of files of these forms (N, 3), (N,); NaN for what it refuses."""
    frames, rates, channels = forms.T
    usable = frames > 0
    if not reader.convert:
        usable &= (rates == reader.rate) & (channels == 1)
    lengths = -(-frames * reader.rate // np.where(usable, rates, 1))
    return np.where(usable, lengths / reader.rate, math.nan)


def file_forms(paths: Sequence[Path], workers: int = AT_ONCE) -> np.ndarray:
    """Samples of a channel, samples per second and channels of every file, (N, 3) int64.

    Zeros for a file that does not open. With a progress bar on the main process.

    Args:
        paths: any sequence of paths.
        workers: files looked into at a time.

    Raises:
        DataError: a shard of a packed folder cannot be read.
    """
    found = np.zeros((len(paths), 3), dtype=np.int64)
    starts = range(0, len(paths), CHUNK)
    bar = tqdm(total=len(paths), desc='headers', unit='file', disable=not ddp.is_main() or None)
    with ThreadPoolExecutor(max(workers, 1)) as pool, bar:
        for first in range(0, len(starts), BLOCK):
            for start, part in _looked(paths, starts[first : first + BLOCK], pool):
                found[start : start + len(part)] = part
                bar.update(len(part))
    return found


def _looked(
    paths: Sequence[Path], starts: Sequence[int], pool: ThreadPoolExecutor
) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """(start, forms) of chunks; where the first shows that the disk answers at once, without threads.

    Which would then only wait for each other.
    """

    def look(start: int) -> tuple[int, list[tuple[int, int, int]]]:
        return start, _forms(paths[start : start + CHUNK])

    began = time.perf_counter()
    probe = look(starts[0])
    quick = time.perf_counter() - began < AT_ONCE_SECONDS * len(probe[1])
    yield probe
    yield from (map if quick else pool.map)(look, starts[1:])


def _forms(paths: Sequence[Path]) -> list[tuple[int, int, int]]:
    """Of each file: samples of a channel, samples per second, channels."""
    if isinstance(paths, Paths):  # joined as bytes: a tenth of the time
        root = os.fsencode(paths.root)
        return [_form(os.path.join(root, os.fsencode(name))) for name in paths.names.tolist()]
    return [_form(os.fsencode(path)) for path in paths]


def _form(path: bytes) -> tuple[int, int, int]:
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            if hasattr(os, 'posix_fadvise'):  # no read-ahead: one page in place of four
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            head, size = os.pread(file, HEADER, 0), os.lseek(file, 0, os.SEEK_END)
        finally:
            os.close(file)
    except OSError:  # among them files inside a shard
        head, size = b'', 0
    if (found := form(head, size))[0]:
        return found
    try:
        opened = open_file(os.fsdecode(path))
    except AudioError:
        return 0, 0, 0
    opened.close()
    return opened.frames, opened.samplerate, opened.channels
