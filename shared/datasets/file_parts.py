"""The bytes of an audio file, wherever it is: alone, or in the shard of a packed folder."""

import contextlib
from io import BytesIO, FileIO
from pathlib import Path

from shared.datasets.outer_files import FilePart
from shared.datasets.packed import find


def open_bytes(path: str | Path) -> FileIO | FilePart | BytesIO:
    """A file, or a member of a packed folder, opened for reading without a buffer.

    Folders that are known to be packed are looked at first; so nothing is lost on ordinary ones,
    and nothing is asked of the disk in vain for packed ones.

    Raises:
        OSError: it does not open.
        DataError: its shard cannot be read or has changed.
    """
    if found := find(path, known=True):
        with contextlib.suppress(FileNotFoundError):
            return found[0].open(found[1])
    try:
        return FileIO(path)
    except (FileNotFoundError, NotADirectoryError):
        if found := find(path):
            return found[0].open(found[1])
        raise
