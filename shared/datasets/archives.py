"""Archives unpacked: zip, also in parts, and tar; every file whole or absent, continued when killed.

Names that lead out of the folder, links and devices are refused. The archive stays as it is.
"""

import bz2
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from shared.datasets.archive_parts import BLOCK, JoinedFile, all_parts, archive_name, check_md5
from shared.datasets.items import DataError
from shared.datasets.tars import COMPRESSED, safe_name
from shared.errors import UserError

OPENERS: dict[str, Callable[..., Any]] = {'gzip': gzip.open, 'bzip2': bz2.open, 'xz': lzma.open}
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, tarfile.TarError, OSError)
SPARE = 1 << 30  # bytes that stay free on the disk
AHEAD = 4096  # members handed to the threads at a time
TAR_BLOCK = 512


@dataclass(frozen=True)
class Unpacked:
    """What is below `folder` now: `files` of the archive, of which `written` are new.

    `checked` says what was compared with a list of MD5s; '' where there was none.
    """

    folder: Path
    files: int
    written: int
    checked: str = ''


def unpack(
    paths: Sequence[str | Path],
    out: str | Path,
    md5_path: str | Path | None = None,
    workers: int = 8,
) -> Unpacked:
    """Unpacks one archive; a call that was killed is continued by the next.

    Files that are there with the content that the archive says are kept, others are replaced.

    Args:
        paths: a zip or tar (also gzip, bzip2, xz), or the parts of one; of a single part those
            beside it are taken too.
        out: folder, new or not.
        md5_path: list of MD5s, checked before anything is written; see `check_md5`.
        workers: threads, which unpack a zip; a tar is a stream.

    Raises:
        DataError: a part is missing, damage, a name or link that leads out of the folder.
        UserError: too little space on the disk.
    """
    parts, out = all_parts(paths), Path(out)
    with JoinedFile(parts) as joined:
        what, name = _kind(joined), archive_name(parts)
        checked = check_md5(joined, md5_path) if md5_path else ''
        try:
            if what == 'zip':
                files, written = _unpack_zip(joined, name, out, workers)
            else:
                files, written = _unpack_tar(joined, what, name, out)
        except DAMAGE as error:
            raise DataError(
                f'{parts[0].parent / name}: damaged or cut short ({error}); is a part missing? '
                'download it again and give --md5'
            ) from None
    return Unpacked(out, files, written, checked)


def _kind(joined: JoinedFile) -> str:
    """'zip', 'tar', or the compression of a tar."""
    if zipfile.is_zipfile(joined):
        return 'zip'
    joined.seek(0)
    head = joined.read(TAR_BLOCK)
    joined.seek(0)
    for magic, name in COMPRESSED.items():
        if head.startswith(magic) and name in OPENERS:
            return name
    if head[257:262] == b'ustar':
        return 'tar'
    what = 'is no zip or tar'
    if head.startswith(b'PK'):
        what = 'is a zip without its end: it is cut short, or its last part is missing'
    elif b'<html' in head.lower() or b'<!doctype' in head.lower():
        what = 'is a web page, not an archive: was a password asked for?'
    raise DataError(f'{joined.paths[0]}: {what}; download it again')


def _unpack_zip(joined: JoinedFile, name: str, out: Path, workers: int) -> tuple[int, int]:
    """Members in threads, which a zip's index allows; damaged ones are told of at the end."""
    with zipfile.ZipFile(joined) as archive:
        members = {}
        for info in archive.infolist():
            if not info.is_dir():
                target = _checked(info, name)
                if target in members:
                    raise DataError(f'{name}: holds {target} twice: unpack it by hand')
                members[target] = info
        _require_space(out, sum(i.file_size for t, i in members.items() if not _fits(out / t, i)))

        def make(target: str) -> tuple[str, bool, str]:
            try:
                return target, _make_zipped(archive, members[target], out / target), ''
            except DAMAGE as error:
                return target, False, str(error)

        written, damaged = 0, {}
        with tqdm(total=len(members), desc='unpacking', unit='file', disable=None) as bar:
            for target, new, why in _in_threads(make, members, workers):
                bar.update()
                written += new
                if why:
                    damaged[target] = why
    if damaged:
        first = next(iter(damaged))
        part = joined.part_at(members[first].header_offset)
        raise DataError(
            f'{name}: {len(damaged)} of {len(members)} files are damaged, the first: {first} '
            f'({damaged[first]}), in {part.name}; the others are unpacked: download that part '
            'again, then run the same command again'
        )
    return len(members), written


def _checked(info: zipfile.ZipInfo, name: str) -> str:
    """The path of a member, when it is a plain file that can be read."""
    target = safe_name(info.filename.removeprefix('./'), name)
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise DataError(f'{name}: {target!r} is a link or device: unpack it by hand')
    if info.flag_bits & 1:
        raise DataError(f'{name}: {target!r} is encrypted: unpack it by hand')
    if info.compress_type not in METHODS:
        raise DataError(
            f'{name}: {target!r} is compressed by method {info.compress_type}: unpack it by hand'
        )
    return target


def _fits(path: Path, info: zipfile.ZipInfo) -> bool:
    """Whether the file is there with the right size."""
    try:
        return path.stat().st_size == info.file_size
    except OSError:
        return False


def _make_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bool:
    """Writes a member, unless it is there with the right size and CRC; whether it did."""
    if _fits(path, info) and _crc(path) == info.CRC:
        return False
    with archive.open(info) as source:
        _write(source, path)
    return True


def _crc(path: Path) -> int:
    crc = 0
    try:
        with open(path, 'rb', buffering=0) as file:
            while block := file.read(BLOCK):
                crc = zlib.crc32(block, crc)
    except OSError:
        return -1  # no one's CRC: it is written again
    return crc


def _in_threads(make, targets: Iterable[str], workers: int) -> Iterator[tuple[str, bool, str]]:
    """`make` of every target, few waiting at a time: each waits for the disk."""
    waiting = list(targets)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        for first in range(0, len(waiting), AHEAD):
            yield from pool.map(make, waiting[first : first + AHEAD])


def _unpack_tar(joined: JoinedFile, what: str, name: str, out: Path) -> tuple[int, int]:
    """Members one after the other, as they come out of the compression."""
    if not out.exists():  # else much of it may be there, and a tar tells its sizes only at its end
        _require_space(out, joined.size)
    stream = OPENERS[what](joined) if what in OPENERS else joined
    files = written = 0
    with tarfile.open(fileobj=stream, mode='r:') as archive:
        with tqdm(
            total=joined.size, desc='unpacking', unit='B', unit_scale=True, disable=None
        ) as bar:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps every one it saw
                bar.update(joined.tell() - bar.n)
                if member.isdir():
                    continue
                target = safe_name(member.name.removeprefix('./'), name)
                if not member.isreg():
                    raise DataError(f'{name}: {target!r} is a link or device: unpack it by hand')
                source = archive.extractfile(member)
                assert source is not None  # a regular file has bytes
                files += 1
                if not _same(source, out / target, member.size):
                    source.seek(0)
                    _write(source, out / target)
                    written += 1
        _require_end(stream, archive.offset, name)
    return files, written


def _same(source: IO[bytes], path: Path, size: int) -> bool:
    """Whether a file holds what the source does, which is read as far as they are equal."""
    try:
        with open(path, 'rb') as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
            while block := _read(source):
                if file.read(len(block)) != block:
                    return False
    except OSError:
        return False
    return True


def _require_end(stream: IO[bytes] | JoinedFile, offset: int, name: str) -> None:
    """Python's tarfile takes a damaged header for the end; a checksum follows the compressed end."""
    stream.seek(offset)
    block = stream.read(TAR_BLOCK)
    if block != bytes(TAR_BLOCK):
        what = 'damaged, a header is wrong' if block else 'cut short, its end mark is missing'
        raise DataError(f'{name}: {what} at byte {offset}; download it again')
    while stream.read(BLOCK):
        pass


def _write(source: IO[bytes], path: Path) -> None:
    """As `files.replacing`, without waiting until the disk has it.

    That would take hours for a million files; what a power cut leaves, the next call compares.
    """
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, 'wb') as file:
            while block := _read(source):
                file.write(block)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f'{path}: could not be written ({error.strerror}); free some space or mend the folder, '
            'then run the same command again to go on'
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def _read(source: IO[bytes]) -> bytes:
    """A block; what is wrong with the archive must not look like a full disk."""
    try:
        return source.read(BLOCK)
    except OSError as error:
        raise EOFError(str(error)) from None


def _require_space(out: Path, needed: int) -> None:
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed + SPARE > free:
        raise UserError(
            f'{out}: needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free (1 GiB is '
            'left alone); free some space or name another disk'
        )
