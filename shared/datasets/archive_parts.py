"""An archive that comes in parts as one seekable file, and what is known of it: its MD5.

VoxCeleb is handed out as `vox2_dev_aac_partaa`, `...partab`, ...: a zip cut in pieces, which need
not be joined on the disk.
"""

import hashlib
import io
import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from tqdm import tqdm

from shared.datasets.items import DataError
from shared.datasets.lists import lines

PART = re.compile(r'(?P<base>.+?)(?P<mark>[._-]?part|\.)(?P<place>[a-z]{2}|\d{1,3})')
NUMBERED = re.compile(r'.+\.(zip|tar|tgz|gz|bz2|xz)\.(\d{3}|a[a-z])')  # where a dot is enough
DIGEST = re.compile(r'[0-9a-f]{32}')
ENDINGS = ('', '.zip', '.tar', '.tar.gz', '.tgz')  # of the joined archive, as MD5 lists name it
BLOCK = 1 << 20  # bytes read at once


class JoinedFile(io.RawIOBase):
    """Files one after the other, as one file to read.

    Args:
        paths: in their order.

    Raises:
        DataError: one is missing, unreadable or empty.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths, self._files, sizes, self._at = tuple(paths), [], [], 0
        try:
            for path in paths:
                self._files.append(io.FileIO(path))
                sizes.append(os.fstat(self._files[-1].fileno()).st_size)
        except OSError as error:
            self.close()
            raise DataError(f'{path}: cannot be read ({error.strerror}): name an archive') from None
        for path, size in zip(paths, sizes):
            if not size:
                self.close()
                raise DataError(f'{path}: is empty: download it again')
        self._starts = [0, *accumulate(sizes)]
        self.size = self._starts[-1]

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Bytes from the beginning of the first part."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As `io.IOBase.seek`."""
        at = offset + (0, self._at, self.size)[whence]
        if at < 0:
            raise OSError(22, 'before the beginning')  # as files do; zipfile relies on it
        self._at = at
        return at

    def readinto(self, buffer) -> int:
        """Fills the buffer, also from several parts, unless the end comes first; bytes filled."""
        view, filled = memoryview(buffer).cast('B'), 0
        while filled < len(view) and self._at < self.size:
            part = bisect_right(self._starts, self._at) - 1
            room = view[filled : filled + self._starts[part + 1] - self._at]
            found = os.preadv(self._files[part].fileno(), [room], self._at - self._starts[part])
            if not found:
                raise OSError(5, 'became shorter while it was read', str(self.paths[part]))
            self._at += found
            filled += found
        return filled

    def part_at(self, offset: int) -> Path:
        """The part that holds this byte."""
        return self.paths[min(bisect_right(self._starts, offset) - 1, len(self.paths) - 1)]

    def close(self) -> None:
        """Closes every part."""
        for file in self._files:
            file.close()
        super().close()


def all_parts(paths: Sequence[str | Path]) -> list[Path]:
    """The parts of one archive in their order; of one that is given, also those beside it.

    A file that is no part stands for itself.

    Raises:
        DataError: nothing there, parts of several archives, or one missing in the sequence.
    """
    given = sorted({Path(path) for path in paths})
    for path in given:
        if not path.is_file():
            raise DataError(f'{path}: no such file: name an archive, or its parts')
    matches = [_part(path.name) for path in given]
    if len(given) == 1 and matches[0] is None:
        return given
    names = {(path.parent, match and match['base']) for path, match in zip(given, matches)}
    if len(names) > 1 or matches[0] is None:
        few = ', '.join(path.name for path in given[:3])
        raise DataError(f'{few}: are not parts of one archive: give one archive a call')
    folder, base = given[0].parent, matches[0]['base']
    beside = {path.name: _part(path.name) for path in folder.iterdir() if path.is_file()}
    stem = base + matches[0]['mark']
    found = [m['place'] for m in beside.values() if m and m['base'] + m['mark'] == stem]
    places = sorted(found, key=lambda place: (len(place), place))
    _require_sequence(folder / stem, places)
    return [folder / f'{stem}{place}' for place in places]


def archive_name(parts: Sequence[Path]) -> str:
    """What the joined archive is called."""
    match = _part(parts[0].name)
    return match['base'] if match else parts[0].name


def check_md5(joined: JoinedFile, md5_path: str | Path) -> str:
    """Checks the archive, or those of its parts that the list names; returns what was checked.

    Args:
        joined: read from its beginning to its end.
        md5_path: lines with an MD5 and a name in any order; further columns (an address) may hold
            the name as well.

    Raises:
        DataError: another MD5; or the list names neither the archive nor a part of it.
    """
    listed = _listed(md5_path)
    base = archive_name(joined.paths)
    name = next((base + end for end in ENDINGS if base + end in listed), None)
    parts = [path for path in joined.paths if path.name in listed] if name is None else []
    if name is None and not parts:
        few = ', '.join(list(listed)[:5])
        raise DataError(f'{md5_path}: does not name {base} or a part of it; it names {few}')
    whole, found = hashlib.md5(usedforsecurity=False), {}
    with tqdm(total=joined.size, desc='MD5', unit='B', unit_scale=True, disable=None) as bar:
        for path in joined.paths if name else parts:
            one = hashlib.md5(usedforsecurity=False)
            with open(path, 'rb', buffering=0) as file:
                while block := file.read(BLOCK):
                    (whole if name else one).update(block)
                    bar.update(len(block))
            found[path.name] = one.hexdigest()
    if name:
        found = {name: whole.hexdigest()}
    for part, digest in found.items():
        if digest != listed[part]:
            which = (
                'one of its parts is damaged or missing' if name and len(joined.paths) > 1 else ''
            )
            raise DataError(
                f'{joined.paths[0].parent / part}: MD5 is {digest}, {md5_path} says {listed[part]}: '
                f'{which or "it is damaged"}, download it again'
            )
    return f'MD5 of {name}' if name else f'MD5 of {len(parts)} of {len(joined.paths)} parts'


def _part(name: str) -> re.Match[str] | None:
    match = PART.fullmatch(name)
    return match if match and (match['mark'] != '.' or NUMBERED.fullmatch(name)) else None


def _require_sequence(stem: Path, places: list[str]) -> None:
    """Parts are named aa, ab, ... or counted from 0 or 1 on, none left out."""
    if places[0].isdecimal():
        numbers = [int(place) if place.isdecimal() else -1 for place in places]
        first = min(numbers[0], 1)
    else:
        numbers = [26 * (ord(place[0]) - 97) + ord(place[-1]) - 97 for place in places]
        first = 0
    for number, expected in zip(numbers, range(first, first + len(numbers))):
        if number != expected:
            name = chr(97 + expected // 26) + chr(97 + expected % 26)
            name = str(expected).zfill(len(places[0])) if places[0].isdecimal() else name
            raise DataError(
                f'{stem}{name}: is missing, but {stem.name}{places[-1]} is there: '
                'download all parts into one folder'
            )


def _listed(md5_path: str | Path) -> dict[str, str]:
    """Name -> MD5."""
    listed: dict[str, str] = {}
    for number, fields in lines(md5_path):
        digests = [field.lower() for field in fields if DIGEST.fullmatch(field.lower())]
        names = [field for field in fields if field.lower() not in digests]
        if len(digests) != 1 or not names:
            if fields[0].startswith('#'):
                continue
            raise DataError(f'{md5_path}: line {number} must hold an MD5 and a name: {fields}')
        listed |= {name.lstrip('*').rpartition('/')[2]: digests[0] for name in names}
    if not listed:
        raise DataError(f'{md5_path}: is empty; lines must be `MD5 name` or `name MD5`')
    return listed
