"""Files that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from shared.errors import UserError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path, of a file or folder to write, that becomes `path` when the block ends well.

    Until then the old file stays. The temporary name begins with a dot and lies beside the target.

    Raises:
        UserError: the disk is full or not writable; nothing was lost.
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
        raise UserError(
            f'{path}: could not be saved ({error}); the previous file is untouched. '
            'Free some space or mend the folder, then run the same command again'
        ) from error
    finally:
        with contextlib.suppress(OSError):
            if temporary.is_dir():
                shutil.rmtree(temporary)  # ours, and unfinished
            else:
                temporary.unlink(missing_ok=True)


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
