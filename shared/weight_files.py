"""Files of tensors: written whole, read without running anything in them, checked by name and shape."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shared.errors import UserError
from shared.files import replacing


def write(state: Any, path: Path) -> None:
    """`torch.save` through `replacing`, whose error it raises.

    Tensors are stored as those of the CPU: other programs can read them where there is no GPU.
    """
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        torch.save(_on_cpu(state), file)


def read(path: str | Path, device: str = 'cpu') -> Any:
    """`torch.load` of tensors and plain values only: nothing in the file is executed.

    Raises:
        UserError: missing, damaged, or holding anything but tensors and plain values.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f'{path}: no such checkpoint file') from None
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = (str(error).strip().splitlines() or [repr(error)])[0][:200]
        if reason.startswith('Weights only'):  # torch goes on to advise opening it nonetheless
            found = re.search(r'GLOBAL (\S+)', str(error))
            reason = f'it holds {found[1] if found else "more"} besides tensors and plain values'
        raise UserError(f'{path}: not a readable checkpoint ({reason})') from None


def load_weights(module: torch.nn.Module, state: dict[str, Any], source: str) -> None:
    """Strict `load_state_dict` whose one-line error names what does not fit.

    Raises:
        UserError: missing, unexpected or differently shaped entries, or no entries at all.
    """
    if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
        raise UserError(f'{source}: not a set of weights (named tensors)')
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    check_entries(state, shapes, f'{source}: checkpoint of another model')
    module.load_state_dict(state)


def check_entries(
    entries: Mapping[str, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    complaint: str,
    **more: list[str],
) -> None:
    """Raises one line that names everything wrong with the entries of a file.

    Args:
        entries: what was read.
        shapes: of the entries that should be there.
        complaint: how the line begins: file, and what it is not.
        more: kind of a further fault -> the entries that have it; underscores become blanks.

    Raises:
        UserError: missing, unexpected or differently shaped entries, or `more`.
    """
    common = sorted(entries.keys() & shapes.keys())
    problems = {
        'missing': sorted(shapes.keys() - entries.keys()),
        'unexpected': sorted(entries.keys() - shapes.keys()),
        'of another shape': [
            f'{name} {tuple(entries[name].shape)} instead of {shapes[name]}'
            for name in common
            if tuple(entries[name].shape) != shapes[name]
        ],
        **{kind.replace('_', ' '): names for kind, names in more.items()},
    }
    found = [
        f'{len(names)} {kind} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'
        for kind, names in problems.items()
        if names
    ]
    if found:
        raise UserError(f'{complaint}: {"; ".join(found)}')


def _on_cpu(item: Any) -> Any:
    """The same with its tensors on the CPU; what a dict carries besides its items stays."""
    if isinstance(item, torch.Tensor):
        return item.cpu()
    if isinstance(item, dict):
        moved = copy.copy(item)
        for key, value in item.items():
            moved[key] = _on_cpu(value)
        return moved
    if type(item) in (list, tuple):
        return type(item)(map(_on_cpu, item))
    return item
