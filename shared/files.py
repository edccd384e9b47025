"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from shared.errors import UserError

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), 'free some space'),
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM), 'make it writable or name another folder'
    ),
    **dict.fromkeys(  # what network file systems answer when they are ill
        (errno.EIO, errno.ESTALE, errno.EBUSY, errno.EXDEV, errno.ETIMEDOUT),
        'look after the disk or network share it lies on',
    ),
}


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path, of a file or folder to write, that becomes `path` when the block ends well.

    Until then the old file stays. The temporary name begins with a dot and lies beside the target;
    what a killed process leaves of it goes by `remove_unfinished`.

    Raises:
        UserError: the disk is full, not writable or ill; nothing was lost.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_file():
            with open(temporary, 'rb') as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        what = advice(error) or 'free some space or mend the folder'
        raise UserError(
            f'{path}: could not be saved ({_cause(error)}); the previous file is untouched; '
            f'{what}, then run the same command again'
        ) from error
    finally:
        with contextlib.suppress(OSError):
            _remove(temporary)  # ours, and unfinished


def advice(error: BaseException) -> str | None:
    """What to do about a disk that is full, forbidden or ill; None for any other error."""
    return _ADVICE.get(getattr(_cause(error), 'errno', None) or 0)


def _cause(error: BaseException) -> BaseException:
    """The error of the disk that made torch raise one of its own, or the error itself."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found or error


def remove_unfinished(folder: str | Path) -> list[Path]:
    """Removes what killed processes left of `replacing` in a folder and below; returns its paths.

    What another process that lives on this machine may be writing is left alone, but those of
    other machines are not known: give folders that one run alone writes into.
    """
    removed = []
    for path in sorted(Path(folder).rglob('.*.tmp')):
        number = re.fullmatch(r'\..+\.(\d+)\.tmp', path.name)
        if number is None or _lives(int(number[1])):
            continue
        with contextlib.suppress(OSError):
            _remove(path)
            removed.append(path)
    return removed


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    if process == os.getpid():  # in a container a run often gets the number of the one before
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OverflowError:  # no number of a process
        return False
    except PermissionError:  # of another user
        pass
    return True


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file through `replacing`, whose error it raises."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def require_paths(paths: Mapping[str, str | Path | Sequence[str | Path] | None]) -> None:
    """Checks that every path of these arguments is there, before anything is built.

    Args:
        paths: name of the argument -> its path, or several; None is skipped.

    Raises:
        UserError: all that are missing, in one line.
    """
    missing = []
    for name, value in paths.items():
        several = [value] if isinstance(value, str | Path) else value or ()
        missing += [f'{name} {path}' for path in several if not Path(path).exists()]
    if missing:
        raise UserError(
            f'not found: {"; ".join(missing)}. Edit arguments.py, or try `--demo` first'
        )
