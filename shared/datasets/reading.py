"""Crops read by seek: an audio file is opened once and only what is needed is decoded."""

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly
from tqdm import tqdm

from shared import ddp
from shared.datasets.decoding import AudioError, open_file

ONE = Fraction(1)
FILTER_REACH = 10  # resample_poly's filter spans +-10 * max(up, down) at the higher rate


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
        self.file = open_file(path)
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
        wave = resample_poly(wave, self.up, self.down)
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


def durations(paths: Sequence[Path], reader: AudioReader, workers: int = 8) -> np.ndarray:
    """Seconds of every file, from the headers alone, (N,) float64; NaN for one that does not open.

    A thread pool of `workers`, because this waits for the disk; a progress bar on the main process.
    """

    def seconds(path: Path) -> float:
        try:
            with reader.open(path) as audio:
                return audio.length / reader.rate
        except AudioError:
            return math.nan

    found = np.full(len(paths), math.nan)
    chunk = 4096  # jobs waiting at a time, whatever the size of the corpus
    bar = tqdm(total=len(paths), desc='durations', unit='file', disable=not ddp.is_main() or None)
    with ThreadPoolExecutor(max(workers, 1)) as pool, bar:
        for first in range(0, len(paths), chunk):
            rows = range(first, min(first + chunk, len(paths)))
            found[rows.start : rows.stop] = list(pool.map(lambda i: seconds(paths[i]), rows))
            bar.update(len(rows))
    return found
