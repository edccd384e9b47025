"""Reads weight files that other programs made, without running anything that is in them.

fairseq stores its settings as objects of its own classes beside the weights. `torch.load` with
`weights_only=True` refuses such files. Here every class and function that it does not know is
stood in for by `Inert`, which keeps what it is given and does nothing, so the weights come out.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shared.errors import UserError

STAND_INS = 1000  # more foreign names than this: no checkpoint
DEPTH = 8  # of nested settings; objects of a file may refer to each other in circles


class Inert:
    """Stands in for any class or function that a file names: takes everything, does nothing."""

    state: Any = None

    def __init__(self, *values: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _no_items(*values: Any) -> dict:
    """Stands in for `collections.defaultdict`: torch fills in items of plain dicts only."""
    return {}


def read_torch_file(path: str | Path) -> Any:
    """What `torch.save` put into a file, old and new format, on the CPU, foreign objects `Inert`.

    Raises:
        UserError: missing, damaged, no weight file at all, or naming functions of the operating
            system, which torch blocks.
    """
    check_is_weights(path)
    names = _foreign_names(path)
    while True:
        stand_ins: list[Callable | tuple[Callable, str]] = [
            (_stand_in(name), name) for name in sorted(names)
        ]
        try:
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(path, map_location='cpu', weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            name = _refused_name(error)
            if name is None or name in names or len(names) >= STAND_INS:
                raise UserError(f'{path}: not a readable weight file ({_reason(error)})') from None
            names.add(name)


def check_is_weights(path: str | Path) -> None:
    """Tells what a file is that was saved under the name of a weight file by mistake.

    Raises:
        UserError: missing or empty, a web page, a git-LFS pointer.
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from None
    if not head:
        raise UserError(f'{path}: an empty file; download it again')
    if head.startswith(b'version https://git-lfs'):
        raise UserError(
            f'{path}: a git-LFS pointer, not the weights; run `git lfs pull` where it was cloned, '
            'or download the file itself'
        )
    if re.match(rb'(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml)', head, re.IGNORECASE):
        raise UserError(f'{path}: a web page, not the weights; download the file itself')


def plain_settings(item: Any, depth: int = DEPTH) -> Any:
    """Settings of a file as dicts, lists and plain values; what cannot be understood is None.

    `Inert` objects become the dict of their attributes (argparse), or their content (omegaconf).
    """
    if depth == 0:
        return None
    if isinstance(item, Inert):
        state = item.state if isinstance(item.state, dict) else {}
        for content in ('_content', '_val'):  # of omegaconf's containers and leaves
            if content in state:
                return plain_settings(state[content], depth - 1)
        return plain_settings(state, depth - 1)
    if isinstance(item, dict):
        return {key: plain_settings(value, depth - 1) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [plain_settings(value, depth - 1) for value in item]
    return item if isinstance(item, bool | int | float | str) else None


def _stand_in(name: str) -> Callable:
    return _no_items if name == 'collections.defaultdict' else Inert


def _foreign_names(path: str | Path) -> set[str]:
    """The names torch would refuse, in one pass where it can list them (new format only)."""
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # the old format, or damaged: loading says what is wrong
        return set()


def _refused_name(error: Exception) -> str | None:
    found = re.search(r'GLOBAL (\S+) was not an allowed global', str(error))
    if found is None:
        return None
    return found[1] if '.' in found[1] else f'builtins.{found[1]}'  # torch leaves that out


def _reason(error: Exception) -> str:
    """One line; torch's own goes on to advise opening the file nonetheless."""
    found = re.search(r'(Trying to \w+ .*|Unsupported \w+.*|Can only .*)', str(error))
    lines = str(error).strip().splitlines() or [repr(error)]
    return (found[1] if found else lines[0])[:200]
