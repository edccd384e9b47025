"""One set of weights from those of several epochs."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from shared import weight_files
from shared.errors import UserError


def average(sources: Iterable[str | Path | Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The arithmetic mean of every tensor of several states (spec enskd 5.4).

    Summed in float64 and returned on the CPU, of the first state's types; integers (counters of
    batches) become the rounded mean as int64, where the reference leaves fractions. Besides the
    sums one state is in memory at a time when files are given.

    Args:
        sources: files of weights alone (`epoch_NNNN.pt`), or states; they are not changed.

    Raises:
        UserError: nothing to average; a file that is missing, damaged or not of weights alone; names
            or shapes other than the first one's.
    """
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    first, count = '', 0
    for source in sources:
        count += 1
        name = str(source) if isinstance(source, str | Path) else f'state {count}'
        first = first or name
        _add(source, name, first, sums, dtypes)
    if not count:
        raise UserError('no checkpoints to average')
    return {key: _mean(sums.pop(key), count, dtype) for key, dtype in dtypes.items()}


def _add(
    source: str | Path | Mapping[str, Tensor],
    name: str,
    first: str,
    sums: dict[str, Tensor],
    dtypes: dict[str, torch.dtype],
) -> None:
    """Adds one state to the sums; it is freed on return."""
    state = weight_files.read(source) if isinstance(source, str | Path) else source
    if not isinstance(state, Mapping) or not state or not all(map(_real, state.values())):
        raise UserError(f'{name}: not a set of weights (named tensors)')
    if not sums:
        dtypes.update({key: value.dtype for key, value in state.items()})
        sums.update({key: _wide(value) for key, value in state.items()})
        return
    shapes = {key: tuple(value.shape) for key, value in sums.items()}
    weight_files.check_entries(dict(state), shapes, f'{name}: not of the model of {first}')
    for key, value in state.items():
        sums[key] += _wide(value)


def _real(value: object) -> bool:
    return torch.is_tensor(value) and not value.is_complex()


def _wide(value: Tensor) -> Tensor:
    """A copy, on the CPU, in which a sum of float32 or of counters loses nothing."""
    return value.detach().to('cpu', torch.float64, copy=True)


def _mean(total: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    mean = total / count
    return mean.to(dtype) if dtype.is_floating_point else mean.round().long()
