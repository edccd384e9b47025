"""Files that hold others, such as tars, on disk or at a URL: ranges of their bytes.

They have no position that could be shared: a range is read by its place, so threads and forked
loader workers may use the same open file.
"""

import os
import re
import resource
import stat
import time
import zlib
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO, RawIOBase
from pathlib import Path
from typing import TypeVar

import fsspec

from shared.datasets.items import DataError

FILE_URL = 'file://'
PASSWORD = re.compile(r'://[^/:@]*:[^/@]*@')  # of a URL
WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before a request is made again
OPEN_SHARE, MOST_OPEN = 4, 4096  # one in so many of a process's files, and never more
CHANGES = ('ETag', 'LastModified', 'Last-Modified', 'mtime', 'updated', 'created')  # by file system
DRIVERS = {'s3': 's3fs', 's3a': 's3fs', 'gs': 'gcsfs', 'gcs': 'gcsfs', 'http': 'aiohttp'}
DRIVERS |= {'https': 'aiohttp', 'abfs': 'adlfs', 'az': 'adlfs', 'oci': 'ocifs', 'sftp': 'paramiko'}
FOUND = TypeVar('FOUND')
Stamp = tuple[int, int]  # bytes of a file, and its time of change or a digest of what tells it


class LocalFile:
    """An open file; it is closed when nothing refers to it any more.

    Raises:
        DataError: it does not open.
    """

    def __init__(self, path: str | Path):
        self.path, self._file = str(path), -1
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            found = os.fstat(self._file)
        except OSError as error:
            raise DataError(f'{path}: shard cannot be read ({error.strerror})') from None
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f'{path}: is no file: give plain tar files')
        self.size, self.stamp = found.st_size, (found.st_size, found.st_mtime_ns)

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from byte `offset` on."""
        return os.pread(self._file, size, offset)

    def readinto(self, view: memoryview, offset: int) -> int:
        """Fills the view from byte `offset` on; the number of bytes."""
        return os.preadv(self._file, [view], offset)

    def part(self, offset: int, size: int) -> 'FilePart':
        """The bytes [offset, offset + size) as a file, read when they are asked for."""
        return FilePart(self, offset, size)


class RemoteFile:
    """A file at a URL of fsspec; to be used by the process that made it alone.

    Raises:
        DataError: no driver for such URLs, no such file, or it cannot be reached.
    """

    def __init__(self, url: str):
        self.path = url
        try:
            self._system, self._name = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            driver = DRIVERS.get(url.partition('://')[0])
            fix = f'pip install {driver}' if driver else 'give a URL that fsspec knows'
            raise DataError(f'{url}: cannot be opened ({_words(error)}): {fix}') from None
        found = _patiently(url, lambda: self._system.info(self._name))
        self.size = int(found['size'] or 0)
        change = next((str(found[name]) for name in CHANGES if found.get(name)), '')
        self.stamp = self.size, zlib.crc32(change.encode())

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from byte `offset` on, in one request."""
        end = min(offset + size, self.size)
        if offset >= end:
            return b''
        return _patiently(
            self.path, lambda: self._system.cat_file(self._name, start=offset, end=end)
        )

    def part(self, offset: int, size: int) -> BytesIO:
        """The bytes [offset, offset + size), fetched at once."""
        found = self.pread(size, offset)
        if len(found) < size:
            raise DataError(f'{self.path}: sent {len(found)} of {size} bytes from byte {offset} on')
        return BytesIO(found)


class Window:
    """Another file whose last `width` bytes read are kept, for headers that lie close together."""

    def __init__(self, outer: LocalFile | RemoteFile, width: int):
        self.outer, self.size, self.width = outer, outer.size, width
        self._from, self._kept = 0, b''

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from byte `offset` on."""
        at = offset - self._from
        if not 0 <= at <= at + size <= len(self._kept):
            self._from, at = offset, 0
            self._kept = self.outer.pread(max(size, self.width), offset)
        return self._kept[at : at + size]


class FilePart(RawIOBase):
    """Bytes [offset, offset + size) of an open file, with a position of their own."""

    def __init__(self, outer: LocalFile, offset: int, size: int):
        self.size, self._outer, self._offset, self._at = size, outer, offset, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes from the beginning of the part."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves as `io.IOBase.seek` does, where the part's end is the end.

        Never before its beginning: damaged audio makes libsndfile try, and through it an error
        could not pass.
        """
        self._at = max(offset + (0, self._at, self.size)[whence], 0)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes, by default all that are left."""
        left = max(self.size - self._at, 0)
        size = left if size is None or size < 0 else min(size, left)
        found = self._outer.pread(size, self._offset + self._at)
        self._at += len(found)
        return found

    def readinto(self, buffer) -> int:
        """Fills the buffer as far as the part reaches; the number of bytes."""
        view = memoryview(buffer).cast('B')
        left = max(self.size - self._at, 0)
        if left < len(view):
            view = view[:left]
        found = self._outer.readinto(view, self._offset + self._at)
        self._at += found
        return found


def is_url(place: str) -> bool:
    """Whether it is a URL, and no path."""
    return '://' in place


def place_of(line: str, root: str | Path, source: str | Path) -> str:
    """Path or URL that a line of a list names; relative paths start from `root`.

    Args:
        line: of the list.
        root: a folder.
        source: the list, for messages.

    Raises:
        DataError: the line is empty or holds control characters, or a password, which would end up in
            an index and in messages.
    """
    if not line or not line.isprintable():
        raise DataError(f'{source}: {line!r} is no path or URL of a tar')
    if PASSWORD.search(line):
        raise DataError(
            f'{source}: a URL {line.partition("://")[0]}://... has a password in it: leave it to the '
            'environment or the configuration of fsspec (~/.config/fsspec)'
        )
    line = line.removeprefix(FILE_URL)
    return line if is_url(line) else os.path.abspath(os.path.join(root, line))


def _most_open() -> int:
    """Shards that a process keeps open."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return MOST_OPEN
    return min(allowed // OPEN_SHARE + 1, MOST_OPEN)


def open_outer(place: str, stamp: Stamp | None = None) -> LocalFile | RemoteFile:
    """An open file, kept open for the next time; `stamp` is what it has to have.

    Of a local file its size alone counts: copying a packed folder changes the times of its shards.

    Raises:
        DataError: as `LocalFile` and `RemoteFile`, or it is not as the stamp says.
    """
    if stamp is None:
        return RemoteFile(place) if is_url(place) else LocalFile(place)
    # Connections do not survive a fork; descriptors do.
    return _kept_open(place, stamp, os.getpid() if is_url(place) else 0)


@lru_cache(_most_open())
def _kept_open(place: str, stamp: Stamp, _process: int) -> LocalFile | RemoteFile:
    outer = open_outer(place)
    if outer.stamp != stamp if is_url(place) else outer.size != stamp[0]:
        raise DataError(
            f'{place}: has changed since its index was made: make it again '
            '(python -m shared.datasets.prepare index, or start the run again)'
        )
    return outer


def _patiently(url: str, request: Callable[[], FOUND]) -> FOUND:
    """The answer, asked for again after a while where the network fails."""
    for wait in (*WAITS, None):
        try:
            return request()
        except FileNotFoundError:
            raise DataError(f'{url}: shard cannot be read (no such file)') from None
        except Exception as error:  # drivers let through whatever their libraries raise
            if wait is None or isinstance(error, PermissionError | NotImplementedError):
                raise DataError(
                    f'{url}: cannot be read ({_words(error)}): check the network and what may '
                    'read it'
                ) from None
        time.sleep(wait)
    raise AssertionError('unreachable')


def _words(error: Exception) -> str:
    return ' '.join(str(error).split())[:200] or type(error).__name__
