"""Writing into a run folder: whole files or none, never over something that differs."""

import contextlib
import json
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import UserError
from shared.files import replacing
from shared.log.redaction import redact


def as_json(item: Any) -> bytes:
    """Redacted and indented; what JSON does not know is written as text."""
    text = json.dumps(redact(item), indent=2, default=_as_text, ensure_ascii=False)
    return f'{text}\n'.encode()


def _as_text(item: Any) -> str:
    return redact(str(item))


def read_json(path: Path) -> Any:
    """None when there is no readable file."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None


def write_json(path: Path, item: Any) -> None:
    """`as_json` into a file."""
    write_atomically(path, as_json(item))


def write_atomically(path: Path, content: bytes) -> None:
    """All of it or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _numbered(path: Path) -> Iterator[Path]:
    """path, path-2, path-3, ... with the suffix kept."""
    yield path
    number = 2
    while True:
        yield path.with_name(f'{path.stem}-{number}{path.suffix}')
        number += 1


def write_beside(path: Path, content: bytes) -> None:
    """Writes to the first free number, unless the last one taken holds the same content."""
    last = None
    for candidate in _numbered(path):
        if not candidate.exists():
            break
        last = candidate
    if last is None or last.read_bytes() != content:
        write_atomically(candidate, content)


def write_folder_beside(path: Path, found: dict[str, bytes]) -> None:
    """`write_beside` for a folder: files by relative path."""
    last = None
    for candidate in _numbered(path):
        if not candidate.exists():
            break
        last = candidate
    if not found or (last is not None and _files_of(last) == found):
        return
    with replacing(candidate) as temporary:
        for name, content in found.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)


def _files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def kept_id(path: Path) -> str:
    """The identity that services know this run folder by, drawn once."""
    if not path.exists():
        write_atomically(path, f'{secrets.token_hex(8)}\n'.encode())
    return path.read_text().strip()


def file_name(name: str) -> str:
    """'valid/eer' -> 'valid-eer': one name inside its folder, whatever it was."""
    return re.sub(r'[^\w.\-]+', '-', name).strip('.-') or 'unnamed'


def now() -> str:
    """Local time with its offset, to the second."""
    return time.strftime('%Y-%m-%d %H:%M:%S %z')


@contextlib.contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """A full disk or a forbidden folder in one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f'{error.filename or path}: cannot be written ({reason})') from error
