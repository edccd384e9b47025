"""The gradients of a batch: in one pass, or part after part where it does not fit into memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shared.errors import UserError

SMALLEST = 1e-12  # of a sum of weights: where no part has any, all gradients are 0 and stay it


class Gradients:
    """Forward and backward of a batch, in one pass or in equal parts, one after another.

    A mean over rows is the mean of those of equal parts. Where parts do not count alike (means over
    what a gate lets pass), forward tells how much this one does: gradients are multiplied by it and
    at last divided by the sum. They meet those of other ranks once, with the last part.

    Rows that meet inside the networks meet those of their part only: batch norm takes its statistics
    from each part, and moves its running ones with each. Losses over pairs of rows cannot be divided.

    Args:
        parallel: a framework or its DDP wrapper. Forward returns name -> mean over its rows (no
            dimension), among them 'loss'; or a tuple of that and of tensors of its rows, plain or in
            named tuples. An entry 'weights', which is taken out, has name -> weight of this part's
            mean, the same on every rank; 1 where there is none.
        optimizer: of the gradients, which are replaced; the step is the caller's.
        precision: context of forward, such as `autocast`.
        parts: of this rank's share of a batch.
    """

    def __init__(
        self,
        parallel: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: AbstractContextManager,
        parts: int = 1,
    ):
        self.parallel, self.optimizer = parallel, optimizer
        self.precision, self.parts = precision, parts

    def __call__(self, *inputs: Any) -> Any:
        """What forward returns for the whole batch, without gradient.

        Args:
            inputs: of forward. Tensors (B, ...) are divided; all else, tensors without dimension
                too, goes to every part.

        Raises:
            ValueError: B rows make no equal parts.
        """
        self.optimizer.zero_grad(set_to_none=True)
        means: list[dict[str, Tensor]] = []
        weights: list[Mapping[str, Any]] = []
        rows = []
        for given in _divided(inputs, self.parts):
            last = len(means) == self.parts - 1
            with nullcontext() if last else _without_exchange(self.parallel):
                with self.precision:
                    found = self.parallel(*given)
                found, *more = found if isinstance(found, tuple) else (found,)
                weights.append(found.pop('weights', {}))
                weight = 1.0 if self.parts == 1 else weights[-1].get('loss', 1.0)
                (weight * found['loss']).backward()
            means.append({name: value.detach() for name, value in found.items()})
            rows.append([_detached(item) for item in more])
        if self.parts > 1:
            total = _total([weight.get('loss', 1.0) for weight in weights])
            grads = [x.grad for x in self.parallel.parameters() if x.grad is not None]
            torch._foreach_div_(grads, total)
        mean = {
            name: _mean([part[name] for part in means], [part.get(name, 1.0) for part in weights])
            for name in means[0]
        }
        return (mean, *map(_joined, zip(*rows))) if rows[0] else mean


def check_batches(batches: Mapping[str, tuple[int, int]], processes: int) -> None:
    """Looks whether every process can take its share of each batch, in equal parts.

    Args:
        batches: name of the argument -> utterances over all processes, parts of each one's share.
        processes: of the run.

    Raises:
        UserError: a batch does not divide; names one near it that does.
    """
    for name, (size, parts) in batches.items():
        step = parts * processes
        if size % step:
            shares = f' of accumulate {parts} parts each' if parts > 1 else ''
            raise UserError(
                f'{name} {size} does not divide among {processes} processes{shares}: use a '
                f'multiple of {step}, such as {max(round(size / step), 1) * step}'
            )


def _divided(inputs: Sequence[Any], parts: int) -> Iterator[Sequence[Any]]:
    """The inputs of each part."""
    if parts == 1:
        yield inputs
        return
    counts = {len(x) for x in inputs if _has_rows(x)}
    if len(counts) != 1 or min(counts) % parts:
        raise ValueError(f'{sorted(counts)} rows cannot be divided into {parts} equal parts')
    size = counts.pop() // parts
    for first in range(0, parts * size, size):
        yield [x[first : first + size] if _has_rows(x) else x for x in inputs]


def _has_rows(item: Any) -> bool:
    return isinstance(item, Tensor) and item.ndim > 0


def _without_exchange(parallel: nn.Module) -> AbstractContextManager:
    """Inside, backward adds to the gradients of this rank and tells no other."""
    return parallel.no_sync() if isinstance(parallel, DistributedDataParallel) else nullcontext()


def _total(weights: Sequence[Any]) -> Any:
    """Their sum, which may divide."""
    total = sum(weights)
    return total.clamp(min=SMALLEST) if isinstance(total, Tensor) else total


def _mean(values: Sequence[Tensor], weights: Sequence[Any]) -> Tensor:
    if len(values) == 1:
        return values[0]
    return sum(w * value for w, value in zip(weights, values)) / _total(weights)


def _detached(item: Any) -> Any:
    if isinstance(item, tuple):
        return type(item)(*map(_detached, item))
    return item.detach() if isinstance(item, Tensor) else item


def _joined(parts: Sequence[Any]) -> Any:
    """The rows of all parts, in their order."""
    if len(parts) == 1 or parts[0] is None:
        return parts[0]
    if isinstance(parts[0], tuple):
        return type(parts[0])(*map(_joined, zip(*parts)))
    return torch.cat(list(parts))
