"""Reads and writes weight files in the layout of other programs, strictly.

Such a file is the bare state of a module, each key perhaps behind `module.`. What it holds is told
by its keys, and how large it is by its shapes, so narrow models of a trial run are read alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared import weight_files
from shared.errors import UserError
from shared.models.ssl_config import SslConfig
from shared.models.ssl_config_files import PUBLISHED_CONVS

NEW_NORM = '.parametrizations.weight.original'  # 0 and 1 of today's weight norm: the old g and v
Entries = dict[str, Tensor]


@dataclass(frozen=True)
class Form:
    """The layout of one module: how its file is told, and what its entries are called."""

    kind: str  # of file; two forms may share it
    called: str  # in messages
    marks: tuple[str, ...]  # dotted names; an entry of every such file is, or begins with, one
    sizes: Callable[[Entries], dict[str, Any]]  # of their entries: keyword arguments of `make`
    make: Callable[..., nn.Module]  # the module that takes the state
    name: Callable[[str], str]  # from a name in that state to theirs, without `module.`
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # theirs, by our names
    own: str = ''  # part of a name in that state which tells the forms of a kind apart

    def read(self, entries: Entries, source: str | Path) -> 'Published':
        """The state in entries as `plain_entries` returns them; `source` is named in errors.

        Raises:
            UserError: entries are missing, unexpected, of another shape or not finite.
        """
        complaint = f'{source}: not {self.called} as published'
        try:
            sizes = self.sizes(entries)
            with torch.device('meta'):
                expected = self.make(**sizes).state_dict()
        except (ArithmeticError, RuntimeError, ValueError, UserError) as error:  # do not fit
            reason = (str(error).splitlines() or [repr(error)])[0]
            raise UserError(f'{complaint} ({reason})') from None
        keys = {name: self.name(name) for name in expected}
        shapes = {keys[name]: tuple(self._theirs(name, x).shape) for name, x in expected.items()}
        broken = sorted(key for key, value in entries.items() if not value.isfinite().all())
        weight_files.check_entries(entries, shapes, complaint, not_finite=broken)
        state = {name: entries[key].reshape(expected[name].shape) for name, key in keys.items()}
        return Published(self, sizes, state)

    def write(self, state: Mapping[str, Tensor]) -> Entries:
        """The state of our module as the authors store it, each key behind `module.`."""
        return {f'module.{self.name(name)}': self._theirs(name, x) for name, x in state.items()}

    def _theirs(self, name: str, value: Tensor) -> Tensor:
        return value.reshape(self.shapes[name]) if name in self.shapes else value


@dataclass(frozen=True)
class Published:
    """What a file holds, under the names of our modules."""

    form: Form
    sizes: dict[str, Any]  # keyword arguments of the module that takes the state
    state: dict[str, Tensor]
    beside: dict[str, 'Published'] = field(default_factory=dict)  # other parts of a file, by kind

    @property
    def kind(self) -> str:
        """What the file holds: the kind of its form."""
        return self.form.kind

    def module(self, config: SslConfig | None = None) -> nn.Module:
        """The module with these weights, in eval mode.

        What has no weights, such as strides, a student takes from `config`, that of the encoder it
        was made from, of which it may have fewer layers; None: from the model its form names.

        Raises:
            UserError: a student that does not fit `config`, or needs one.
        """
        sizes, own = dict(self.sizes), self.sizes.get('config')
        if own and config is not None:
            sizes['config'] = replace(config, layers=own.layers)
        elif own and own.conv_kernels != PUBLISHED_CONVS[0]:
            raise UserError('a student without the convolutions of a Base model needs its config')
        module = self.form.make(**sizes)
        weight_files.load_weights(module, self.state, self.form.called)
        return module.eval()


@dataclass(frozen=True)
class Layout:
    """The forms of one paper's files.

    Args:
        forms: the first that a file has a mark of is taken.
        hint: what a file that is of none of them is told besides.
    """

    forms: tuple[Form, ...]
    hint: str = ''

    def read(self, path: str | Path) -> Published:
        """Reads a file strictly, with or without `module.`, in either spelling of weight norm.

        Raises:
            UserError: the file cannot be read, or its entries are of no form, or not all of it.
        """
        return self.from_published(weight_files.read(path), path)

    def from_published(self, entries: Any, source: str | Path) -> Published:
        """The inverse of `to_published`; `source` is named in errors.

        Raises:
            UserError: as `read`.
        """
        plain = plain_entries(entries, source)
        return self.form_of(plain, source).read(plain, source)

    def to_published(self, kind: str, state: Mapping[str, Tensor]) -> Entries:
        """The state of our module of a kind as the authors store it.

        Raises:
            ValueError: no form of this kind has such names.
        """
        for form in self.forms:
            if form.kind == kind and any(form.own in name for name in state):
                return form.write(state)
        raise ValueError(f'{kind}: no form for entries such as {", ".join(sorted(state)[:3])}')

    def form_of(self, entries: Entries, source: str | Path) -> Form:
        """The form of plain entries.

        Raises:
            UserError: none.
        """
        for form in self.forms:
            if has(entries, *form.marks):
                return form
        hint = f' ({self.hint})' if self.hint else ''
        raise UserError(
            f'{source}: no file of this paper{hint}; its '
            f'{len(entries)} entries begin with {", ".join(sorted(entries)[:3])}'
        )


def plain_entries(entries: Any, source: str | Path) -> Entries:
    """Named tensors without `module.`, in the old spelling of weight norm.

    Raises:
        UserError: not named tensors, none, or one of them twice.
    """
    named = isinstance(entries, dict) and all(isinstance(key, str) for key in entries)
    if not named or not entries or not all(isinstance(x, Tensor) for x in entries.values()):
        raise UserError(f'{source}: holds no bare state of named tensors')
    plain = {old_spelling(key.removeprefix('module.')): x for key, x in entries.items()}
    if len(plain) < len(entries):
        raise UserError(f'{source}: holds entries twice, in two spellings')
    return plain


def old_spelling(name: str) -> str:
    """A name as the weight norm of torch before 2.1 has it."""
    return name.replace(f'{NEW_NORM}0', '.weight_g').replace(f'{NEW_NORM}1', '.weight_v')


def has(entries: Entries, *parts: str) -> bool:
    """Whether a key is, or begins with, one of the dotted names."""
    return any(f'{key}.'.startswith(f'{part}.') for key in entries for part in parts)


def axis(entries: Entries, key: str, number: int, published: int) -> int:
    """Size of an axis; the published one where the entry is missing, which is said later."""
    value = entries.get(key)
    return value.shape[number] if value is not None and value.ndim > number else published
