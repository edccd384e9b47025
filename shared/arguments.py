"""Dataclasses on the page, plain dicts at the door, `--key value` in between.

A paper's `arguments.py` holds two flat dataclasses, `SystemArgs` (where things are) and
`ExperimentArgs` (what the run is). `build` turns them and the command line into the three dicts
of the family's contract. Precedence: file < `--preset NAME` < `--demo` < `--key value`.
"""

import argparse
import dataclasses
import difflib
import inspect
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from shared.errors import UserError

SECRET_NAME = re.compile(r'(^|_)(key|token|secret|password)$')
SECRET_VALUE = re.compile(r'^([0-9a-f]{40}|hf_\w{30,}|eyJ[\w-]{40,}=*)$')


class ArgumentError(UserError):
    """A wrong argument, in one line: what, where, what to do."""


def check(condition: bool, message: str) -> None:
    """Raises `ArgumentError(message)` unless `condition` holds; for `__post_init__`."""
    if not condition:
        raise ArgumentError(message)


def build(
    system_type: type,
    experiment_type: type,
    folder: str | Path,
    argv: Sequence[str] | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    demo: Mapping[str, Any] | None = None,
) -> tuple[dict, dict, dict]:
    """Returns `(args, system_args, experiment_args)`, three plain dicts.

    `args` is the union of the other two plus `path_scripts` (the paper's folder), `preset` and
    `demo`; `path_log` becomes `<path_log>/<project>/<name>`, relative paths being taken from the
    repository (two folders above the paper).

    Args:
        system_type: dataclass; nothing in it changes a result.
        experiment_type: dataclass; everything in it may change a result.
        folder: the paper's folder.
        argv: the command line without the program; None reads `sys.argv` and turns a wrong
            argument into exit status 2 with its one line.
        presets: name -> values that replace those of the file.
        demo: values that replace those of the file under `--demo`.

    Raises:
        ArgumentError: unknown or abbreviated key, wrong type, value outside its choices, a key
            in both dataclasses, a secret. Nothing has been built by then.
    """
    if argv is not None:
        return _build(system_type, experiment_type, Path(folder), argv, presets or {}, demo)
    try:
        return _build(system_type, experiment_type, Path(folder), sys.argv[1:], presets or {}, demo)
    except ArgumentError as error:
        print(f'arguments: {error}', file=sys.stderr)
        raise SystemExit(2) from None


def _build(system_type, experiment_type, folder, argv, presets, demo):
    fields = _fields(system_type, experiment_type)
    parser = _parser(fields, (system_type, experiment_type), presets, demo is not None)
    given = vars(_parse(parser, argv, fields))
    preset, use_demo = given.pop('preset', None), given.pop('demo', False)

    values: dict[str, Any] = {}
    for source in (presets.get(preset, {}), demo if use_demo else {}, given):
        for key in source:
            check(key in fields, f'a preset sets {key!r}, which is no argument of this paper')
        values.update(source)

    groups = []
    for group in (system_type, experiment_type):
        names = [field.name for field in dataclasses.fields(group)]
        instance = group(**{name: values[name] for name in names if name in values})
        groups.append({name: getattr(instance, name) for name in names})
        for name in names:
            _check_value(name, groups[-1][name], fields[name])
    system_args, experiment_args = groups

    root = folder.resolve().parent.parent
    if 'path_log' in system_args:
        place = Path(system_args['path_log']).expanduser()
        system_args['path_log'] = str(root / place / system_args['project'] / system_args['name'])
    args = {
        **system_args,
        **experiment_args,
        'path_scripts': str(folder.resolve()),
        'preset': preset,
        'demo': use_demo,
    }
    return args, system_args, experiment_args


def _fields(*groups: type) -> dict[str, Any]:
    """Name -> type over all groups."""
    hints: dict[str, Any] = {}
    for group in groups:
        for name, hint in get_type_hints(group).items():
            check(name not in hints, f'{name!r} is defined in both dataclasses')
            hints[name] = hint
    return hints


def _parser(fields, groups, presets, has_demo) -> argparse.ArgumentParser:
    parser = _Parser(
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='python main.py [--key value ...]',
        description='Every argument of arguments.py with its value there. '
        'Order: file < --preset < --demo < --key value.',
    )
    if presets:
        parser.add_argument('--preset', choices=sorted(presets), help='a named set of values')
    if has_demo:
        parser.add_argument(
            '--demo', action='store_true', help='small settings on the built-in synthetic corpus'
        )
    for group in groups:
        section = parser.add_argument_group((group.__doc__ or group.__name__).strip())
        comments = _comments(group)
        for field in dataclasses.fields(group):
            hint = fields[field.name]
            boolean = {'nargs': '?', 'const': True} if hint is bool else {}
            section.add_argument(
                f'--{field.name}',
                type=_converter(field.name, hint),
                metavar=_describe(hint),
                help=f'{comments.get(field.name, "")} [{field.default}]'.replace('%', '%%'),
                **boolean,
            )
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ArgumentError(message)


def _parse(parser, argv, fields) -> argparse.Namespace:
    keys = [token.split('=')[0] for token in argv if token.startswith('--')]
    known = {option for action in parser._actions for option in action.option_strings}
    for key in keys:
        check(keys.count(key) == 1, f'{key} is given twice')
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1) or [
                option for option in sorted(known) if option.startswith(key)
            ]
            hint = f'; did you mean {near[0]}?' if near else '; --help lists all'
            raise ArgumentError(f'unknown argument {key}{hint}')
    return parser.parse_args(list(argv))


def _converter(name: str, hint: Any) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return _convert(text, hint)
        except ValueError:
            raise ArgumentError(f'--{name} {text}: expected {_describe(hint)}') from None

    return convert


def _convert(text: str, hint: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if text.lower() == 'none':
            return None
        return _convert(text, next(kind for kind in inner if kind is not type(None)))
    if origin is Literal:
        for choice in inner:
            if str(choice) == text:
                return choice
        raise ValueError(text)
    if origin is tuple:
        parts = [part.strip() for part in text.split(',') if part.strip()]
        if inner[-1] is not Ellipsis and len(parts) != len(inner):
            raise ValueError(text)
        return tuple(_convert(part, inner[0]) for part in parts)
    if hint is bool:
        return {'true': True, 'false': False}[text.lower()] if text.lower() in _BOOLS else _bad()
    return hint(text)


_BOOLS = ('true', 'false')


def _bad():
    raise ValueError


def _describe(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return '|'.join('none' if kind is type(None) else _describe(kind) for kind in inner)
    if origin is Literal:
        return '{' + ','.join(map(str, inner)) + '}'
    if origin is tuple:
        many = inner[-1] is Ellipsis
        return f'{_describe(inner[0])},...' if many else ','.join(map(_describe, inner))
    return 'true|false' if hint is bool else hint.__name__


def _check_value(name: str, value: Any, hint: Any) -> None:
    """The types of the file itself: a default edited to the wrong type stops here."""
    check(_fits(value, hint), f'{name} = {value!r}: expected {_describe(hint)}')
    if isinstance(value, str) and value:
        secret = SECRET_NAME.search(name) or SECRET_VALUE.match(value)
        check(
            not secret,
            f'{name} looks like a secret; keys come from the environment '
            '(WANDB_API_KEY, NEPTUNE_API_TOKEN), never from arguments',
        )


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _comments(group: type) -> dict[str, str]:
    """Name -> the comment at the end of its line (and on the comment lines right below it)."""
    comments: dict[str, str] = {}
    name = None
    for line in inspect.getsource(group).splitlines():
        field = re.match(r'\s+(\w+): [^#]*?(?:#\s*(.*))?$', line)
        more = re.match(r'\s{12,}#\s*(.*)$', line)
        if field and field.group(1) in group.__annotations__:
            name = field.group(1)
            comments[name] = field.group(2) or ''
        elif more and name:
            comments[name] += ' ' + more.group(1)
        else:
            name = None
    return comments
