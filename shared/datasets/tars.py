"""The files in a plain tar and where their bytes are, from the headers alone; nothing is unpacked.

Written against the layouts of POSIX ustar and pax, and of GNU tar; Python's tarfile knows them too,
but needs three times the time and takes a damaged header for the end of the tar.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from shared.datasets.items import DataError
from shared.datasets.outer_files import LocalFile, Window

BLOCK = 512  # bytes; headers and contents begin at its multiples
COMPRESSED = {
    b'\x1f\x8b': 'gzip',
    b'BZh': 'bzip2',
    b'\xfd7zXZ': 'xz',
    b'\x28\xb5\x2f\xfd': 'zstd',
}
FILE, FOLDER, CONTIGUOUS = (b'0', b'\0'), b'5', b'7'
LONG_NAME, LONG_LINK, MORE, MORE_FOR_ALL = b'L', b'K', b'x', b'g'  # GNU, GNU, pax, pax
LONGEST = 1 << 20  # bytes of a name or of pax records; more is damage


class Member(NamedTuple):
    """A file in a tar: its bytes are [offset, offset + size)."""

    name: str
    offset: int
    size: int


def members(file: LocalFile | Window, path: str | Path) -> Iterator[Member]:
    """Every file of an open tar, in its order; `path` is for messages.

    Raises:
        DataError: compressed, no tar, damaged, cut short (also when only the end mark is missing),
            a link or device, or a name that is not a relative path without `..`.
    """
    at, name, size = 0, '', None  # a name and a size that came before the header they belong to
    while True:
        block = file.pread(BLOCK, at)
        if len(block) < BLOCK and at:
            raise DataError(f'{path}: cut short, its end mark is missing')
        if block == bytes(BLOCK):
            return
        kind, own_name, own_size = _header(block, path, at)
        if kind not in (LONG_NAME, LONG_LINK, MORE, MORE_FOR_ALL):
            own_name, own_size = name or own_name, own_size if size is None else size
        at += BLOCK
        if at + own_size > file.size:
            raise DataError(
                f'{path}: cut short, {own_name!r} needs {own_size} bytes where {file.size - at} are left'
            )
        if kind == LONG_NAME:
            name = os.fsdecode(_content(file, at, own_size, path).rstrip(b'\0'))
        elif kind == MORE:
            name, size = _pax(_content(file, at, own_size, path), name, size, path)
        elif kind not in (LONG_LINK, MORE_FOR_ALL):
            if kind in FILE or kind == CONTIGUOUS:
                yield Member(safe_name(own_name.removeprefix('./'), path), at, own_size)
            elif kind != FOLDER:
                raise DataError(f'{path}: {own_name!r} is a link or device: pack plain files')
            name, size = '', None
        at += -(-own_size // BLOCK) * BLOCK


def safe_name(name: str, path: str | Path) -> str:
    """The name, when it is a relative path that stays below its folder.

    Raises:
        DataError: it is empty or absolute, goes up with `..`, or holds control characters.
    """
    parts = name.split('/')
    if '' in parts or '..' in parts or '.' in parts or not name.isprintable():
        raise DataError(f'{path}: member {name!r} has an unsafe name: use plain relative paths')
    return name


def _header(block: bytes, path: str | Path, at: int) -> tuple[bytes, str, int]:
    """(kind, name, size) of a header; its checksum must be right."""
    try:
        said = int(block[148:156].rstrip(b'\0 '), 8)
        size = int(block[124:136].rstrip(b'\0 '), 8)  # sizes from 8 GiB on are written otherwise
    except ValueError:
        said = size = -1
    if len(block) < BLOCK or size < 0 or said != sum(block) - sum(block[148:156]) + 8 * ord(' '):
        if at:
            raise DataError(f'{path}: damaged at byte {at}, where a header should be')
        how = next((name for magic, name in COMPRESSED.items() if block.startswith(magic)), '')
        what = f'is compressed ({how}): unpack it, files are read from its middle' if how else ''
        raise DataError(f'{path}: {what or "is no tar: give plain tar files"}')
    name = block[:100].partition(b'\0')[0]
    if block[257:263] == b'ustar\0' and block[345]:  # POSIX; GNU keeps other things there
        name = block[345:500].partition(b'\0')[0] + b'/' + name
    return block[156:157], os.fsdecode(name), size


def _content(file: LocalFile | Window, at: int, size: int, path: str | Path) -> bytes:
    if size > LONGEST:
        raise DataError(f'{path}: damaged at byte {at}, a name of {size} bytes')
    return file.pread(size, at)


def _pax(content: bytes, name: str, size: int | None, path: str | Path) -> tuple[str, int | None]:
    """Name and size after the records `length key=value\\n`; the given ones where they say none."""
    try:
        while content:
            length = int(content.partition(b' ')[0])
            key, _, value = content[:length].partition(b' ')[2][:-1].partition(b'=')
            if length < 5 or (key == b'size' and not value.isdigit()):
                raise ValueError('no such record')
            if key == b'path':
                name = os.fsdecode(value)
            elif key == b'size':
                size = int(value)
            content = content[length:]
    except ValueError:
        raise DataError(f'{path}: damaged, unreadable pax records') from None
    return name, size
