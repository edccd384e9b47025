"""Faster arithmetic, the same in every paper: mixed precision and compilation.

Wherever code here says "in fp32" it is stored and summed in fp32; on a GPU the factors of its matrix
products and convolutions are rounded to TF32, 10 bits of mantissa, where a run allows it (`tf32`, which
`ranks.launch` sets).
"""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from shared.errors import UserError

BACKEND = 'inductor'  # of torch.compile


def autocast(device: str, amp: bool) -> torch.autocast:
    """bf16 where `amp` asks for it; losses and pooling statistics stay fp32 by their own means.

    Args:
        device: such as 'cuda:1'.
        amp: False changes nothing.
    """
    return torch.autocast(device.split(':')[0], torch.bfloat16, enabled=amp)


def compile_methods(module: nn.Module, *names: str) -> None:
    """Compiles methods of this one module, when they are first called; each must be one graph.

    Parameters, buffers and their names stay, so checkpoints do not tell whether it was compiled.
    Each shape is compiled for itself: in training they are few. Where they are many, call it under
    `torch.compiler.set_stance('force_eager')`. A copy of the module would still call the methods of
    the original, so `copy.deepcopy` of it raises.

    Args:
        module: already what it shall be; its device and `requires_grad` may still change.
        names: of methods; 'forward' is what a call of the module runs.
    """
    for name in names:
        setattr(module, name, _Compiled(getattr(module, name)))


def is_compiled(module: nn.Module) -> bool:
    """Whether a method of this one module is compiled."""
    return any(isinstance(item, _Compiled) for item in vars(module).values())


class _Compiled:
    """A compiled method; when it cannot be compiled, one line says so."""

    def __init__(self, method: Any):
        self._name = f'{type(method.__self__).__name__}.{method.__name__}'
        self._method = torch.compile(
            _with_own_code(method), fullgraph=True, dynamic=False, backend=BACKEND
        )

    def __call__(self, *args: Any, **named: Any) -> Any:
        """As the method.

        Raises:
            UserError: no compiler, or nothing it can compile.
        """
        exc = torch._dynamo.exc
        try:
            return self._method(*args, **named)
        except (exc.TorchDynamoException, exc.FailOnRecompileLimitHit) as error:
            reason = str(getattr(error, 'inner_exception', error)).strip() or repr(error)
            if isinstance(error, exc.FailOnRecompileLimitHit):
                reason = 'inputs of too many shapes or kinds'
            raise UserError(
                f'{self._name}: torch.compile failed ({reason.splitlines()[0]}); '
                'run with --compile false'
            ) from error

    def __deepcopy__(self, memo: dict) -> '_Compiled':
        raise TypeError(f'{self._name} is compiled for one module: copy it before')


def _with_own_code(method: Any) -> Callable:
    """A copy of a method that shares no code object with those of other modules.

    What torch compiles it keeps, and counts up to a limit, on the code object: the student of every
    seed, and its teacher, would share it, and none would ever be freed.
    """
    old = method.__func__
    code = old.__code__.replace()
    new = types.FunctionType(code, old.__globals__, old.__name__, old.__defaults__, old.__closure__)
    new.__kwdefaults__ = old.__kwdefaults__
    return types.MethodType(new, method.__self__)
