"""Frames of one audio file from any position on: PCM-16 wav by a plain read, the rest by libsndfile.

VoxCeleb, MUSAN and RIRS_NOISES are PCM-16 wavs. Reading those bytes directly costs a third of a
crop through libsndfile and gives the same values; whatever else there is goes to libsndfile.
A path may lead into a packed folder (packed.py).
"""

import os
from io import BytesIO, FileIO
from pathlib import Path

import numpy as np
import soundfile

from shared.datasets.file_parts import open_bytes
from shared.datasets.headers import HEADER, UNKNOWN_SIZES, pcm16_layout
from shared.datasets.items import DataError
from shared.datasets.outer_files import FilePart

PCM16_SCALE = np.float32(1 / 32768)  # full scale is [-1, 1), as libsndfile has it
AT_ONCE = 1 << 20  # bytes; smaller parts are read whole, since libsndfile asks for little pieces

Opened = FileIO | FilePart | BytesIO


class AudioError(DataError):
    """An audio file that cannot be used; one line, `path: what`."""


class Pcm16Wav:
    """A plain PCM-16 wav, its data chunk found."""

    def __init__(self, path: str | Path, file: Opened, layout: tuple[int, int, int, int]):
        self.path, self.file = path, file
        self.samplerate, self.channels, self.offset, said = layout
        found = file.seek(0, os.SEEK_END) - self.offset
        if said in UNKNOWN_SIZES:
            said = found
        if said > found:
            file.close()
            raise AudioError(f'{path}: cut short, {found} of {said} bytes of audio are there')
        self.frames = said // (2 * self.channels)

    def read(self, start: int, frames: int, channel: int | None) -> np.ndarray:
        """Frames [start, start + frames) as float32 (frames,): one channel, or the mean of all."""
        values = np.empty((frames, self.channels), dtype='<i2')
        try:
            self.file.seek(self.offset + 2 * self.channels * start)
            found = self.file.readinto(values.data)
        except OSError as error:
            raise AudioError(f'{self.path}: cannot be read ({error.strerror})') from None
        if found != values.nbytes:
            raise AudioError(f'{self.path}: became shorter while it was read')
        return _one_channel(np.multiply(values, PCM16_SCALE, dtype=np.float32), channel)

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


class _Reader(soundfile.SoundFile):
    """Stays where a read has ended; soundfile seeks there, a fifth of the time of a crop of FLAC."""

    def seekable(self) -> bool:
        """What soundfile asks before it looks where it is and goes where it should be already."""
        return False


class SoundFile:
    """Any other file that libsndfile can open: FLAC, float wavs, ..."""

    def __init__(self, path: str | Path, part: FilePart | BytesIO | None = None):
        self.path, self.part = path, part  # libsndfile does not close what it did not open
        try:
            self.file = _Reader(part or path)
        except (soundfile.LibsndfileError, OSError) as error:
            if part:
                part.close()
            what = getattr(error, 'error_string', str(error)).strip()  # libsndfile's own words
            raise AudioError(f'{path}: cannot be opened as audio ({what})') from None
        self.samplerate, self.channels = self.file.samplerate, self.file.channels
        self.frames = self.file.frames
        if cut := _bytes_missing(self.file.extra_info):
            self.close()
            raise AudioError(f'{path}: cut short, {cut[1]} of {cut[0]} bytes of audio are there')

    def read(self, start: int, frames: int, channel: int | None) -> np.ndarray:
        """As `Pcm16Wav.read`; a file without its end (FLAC) shows it here, not on opening."""
        try:
            self.file.seek(start)
            values = self.file.read(frames, dtype='float32', always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f'{self.path}: cannot be read at sample {start} ({error}); cut short or damaged?'
            ) from None
        if len(values) < frames:
            raise AudioError(
                f'{self.path}: cut short, ends at sample {start + len(values)} '
                f'where its header says {self.frames}'
            )
        if not np.isfinite(values).all():
            raise AudioError(f'{self.path}: holds NaN or infinite samples')
        return _one_channel(values, channel)

    def close(self) -> None:
        """Closes the file."""
        self.file.close()
        if self.part:
            self.part.close()


def open_file(path: str | Path) -> Pcm16Wav | SoundFile:
    """An open audio file with samplerate, channels, frames, `read` and `close`.

    Raises:
        AudioError: missing, unreadable, or a wav with less audio than its header says.
    """
    try:
        file = open_bytes(path)
        layout = pcm16_layout(file.read(HEADER))
    except OSError as error:
        raise AudioError(f'{path}: cannot be opened as audio ({error.strerror})') from None
    if layout:
        return Pcm16Wav(path, file, layout)
    if isinstance(file, FileIO):
        file.close()
        return SoundFile(path)
    file.seek(0)
    if isinstance(file, FilePart) and file.size <= AT_ONCE:
        file = BytesIO(file.read())
    return SoundFile(path, file)


def _one_channel(values: np.ndarray, channel: int | None) -> np.ndarray:
    if values.shape[1] == 1:
        return values[:, 0]
    return values.mean(axis=1) if channel is None else values[:, channel].copy()


def _bytes_missing(info: str) -> tuple[int, int] | None:
    """(said, found) bytes of a wav whose data chunk is longer than the file, from libsndfile's log.

    libsndfile quietly takes such a file as shorter; its log line is `data : 100 (should be 60)`.
    """
    before, _, after = info.rpartition(' (should be ')
    said = before.rpartition('\n')[2].removeprefix('data : ')
    found = after.partition(')')[0]
    if not (said.isdecimal() and found.isdecimal()) or int(said) <= int(found):
        return None
    return None if int(said) in UNKNOWN_SIZES else (int(said), int(found))
