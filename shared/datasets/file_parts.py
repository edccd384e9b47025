"""A file inside another, such as a member of a tar: its path, and its bytes as a file.

The path is `<outer file>/<first byte>+<bytes>/<name>`. A file stands where a folder should, so it
can never be the path of a real file, and whatever passes paths around passes these too.
"""

import contextlib
import os
import re
from io import FileIO, RawIOBase
from pathlib import Path

PLACE = re.compile(r'/(\d+)\+(\d+)(?=/)')  # behind the outer file


def part_name(outer: str, offset: int, size: int, name: str) -> str:
    """The path of `size` bytes from byte `offset` on; `name` is for people and may hold slashes."""
    return f'{outer}/{offset}+{size}/{name}'


def open_bytes(path: str | Path) -> 'FileIO | FilePart':
    """A file, or a part of one, opened for reading without a buffer.

    Raises:
        OSError: it does not open; a part is not looked at before it is read.
    """
    try:
        return FileIO(path)
    except NotADirectoryError:
        text = os.fspath(path)
        for place in PLACE.finditer(text):
            with contextlib.suppress(IsADirectoryError):  # a folder may be called 1+2
                file = FileIO(text[: place.start()])
                return FilePart(file, int(place[1]), int(place[2]))
        raise


class FilePart(RawIOBase):
    """Bytes [offset, offset + size) of an open file, which it closes when it is closed."""

    def __init__(self, file: FileIO, offset: int, size: int):
        self._file, self._offset, self._size, self._at = file, offset, size, 0

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
        self._at = max(offset + (0, self._at, self._size)[whence], 0)
        return self._at

    def readinto(self, buffer) -> int:
        """Fills the buffer as far as the part reaches; the number of bytes."""
        view = memoryview(buffer).cast('B')
        self._file.seek(self._offset + self._at)
        found = self._file.readinto(view[: max(self._size - self._at, 0)])
        self._at += found
        return found

    def close(self) -> None:
        """Closes the outer file."""
        self._file.close()
        super().close()
