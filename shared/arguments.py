"""Dataclasses on the page, plain dicts at the door, `--key value` in between.

A paper's `arguments.py` holds two flat dataclasses, `SystemArgs` (where things are) and
`ExperimentArgs` (what the run is). `build` turns them and the command line into the three dicts
of the family's contract. Precedence: file < `--preset NAME` < `--demo` < `--key value`.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import io
import re
import sys
import textwrap
import tokenize
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from shared.errors import UserError

SECRET_NAME = re.compile(r'(^|_)(key|token|secret|password)$')
# W&B (old and new form), Hugging Face, GitHub, Neptune
SECRET_VALUE = re.compile(
    r'[0-9a-f]{40}|wandb_v\d_[\w-]{20,}|hf_\w{20,}|gh[pousr]_\w{30,}|eyJ[\w+/.-]{30,}=*'
)
SWITCH = {'true': True, 'false': False}


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
        ArgumentError: unknown, abbreviated or repeated key, wrong type, value outside its
            choices, a key in both dataclasses, a secret. Nothing has been built by then.
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
    options = ['help', *fields, *(['preset'] if presets else []), *(['demo'] if demo else [])]
    given = vars(parser.parse_args(_joined(argv, options)))
    preset, use_demo = given.pop('preset', None), given.pop('demo', False)

    values: dict[str, Any] = {}
    for source in (presets.get(preset, {}), demo if use_demo else {}, given):
        for key in source:
            check(key in fields, f'a preset sets {key!r}, which is no argument of this paper')
        values.update(source)
    system_args = _group(system_type, values, fields)
    experiment_args = _group(experiment_type, values, fields)

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


def _group(group: type, values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """One dataclass as a dict; types are checked first, so `__post_init__` can rely on them."""
    chosen = {}
    for field in dataclasses.fields(group):
        value = values.get(field.name, field.default)
        check(value is not dataclasses.MISSING, f'{field.name} needs a value in arguments.py')
        _refuse_secret(field.name, value)
        hint = fields[field.name]
        check(_fits(value, hint), f'{field.name} = {value!r}: expected {_describe(hint)}')
        chosen[field.name] = value
    instance = group(**chosen)
    return {name: getattr(instance, name) for name in chosen}


def _refuse_secret(name: str, value: Any) -> None:
    """The message names the argument and never repeats the value."""
    texts = [x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, str)]
    if any(SECRET_VALUE.fullmatch(x) or (x and SECRET_NAME.search(name)) for x in texts):
        raise ArgumentError(
            f'{name} looks like a secret; keys come from the environment '
            '(WANDB_API_KEY, NEPTUNE_API_TOKEN), never from arguments'
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ArgumentError(message)


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
        _add(parser, 'demo', bool, 'small settings on the built-in synthetic corpus')
    for group in groups:
        section = parser.add_argument_group((group.__doc__ or group.__name__).strip(' .'))
        comments = _comments(group)
        for field in dataclasses.fields(group):
            text = f'{comments.get(field.name, "")} [{_written(field.default)}]'
            _add(section, field.name, fields[field.name], text)
    return parser


def _add(section: argparse._ActionsContainer, name: str, hint: Any, text: str) -> None:
    switch = hint is bool  # `--eval` alone means true
    section.add_argument(
        f'--{name}',
        type=_converter(name, hint),
        metavar=_describe(hint),
        help=text.strip().replace('%', '%%'),
        nargs='?' if switch else None,
        const=True if switch else None,
    )


def _joined(argv: Sequence[str], options: Sequence[str]) -> list[str]:
    """The command line as `--key=value` tokens, each of a known key and given once.

    argparse alone would take the value of `--rir_gain -7,3` for another option.
    """
    tokens: list[str] = []
    for token in argv:
        name, _, value = token.partition('=')
        if name.startswith('--'):
            name = name[2:]
            _refuse_secret(name, value)
            check(name in options, f'unknown argument --{name}{_hint(name, options)}')
            check(name not in (seen[2:].split('=')[0] for seen in tokens), f'--{name} given twice')
            tokens.append(token)
        elif token == '-h':
            tokens.append('--help')
        else:
            before = tokens.pop() if tokens else '='
            _refuse_secret(before[2:].split('=')[0] or 'the command line', token)
            check('=' not in before, f'{token!r} belongs to no argument; write --key value')
            tokens.append(f'{before}={token}')
    return tokens


def _hint(name: str, options: Sequence[str]) -> str:
    """The nearest option, or the first that an abbreviation stands for."""
    near = difflib.get_close_matches(name, options, n=1)
    near += [option for option in options if name and option.startswith(name)]
    return f'; did you mean --{near[0]}?' if near else '; --help lists all'


def _converter(name: str, hint: Any) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return _convert(text, hint)
        except (KeyError, ValueError):
            raise ArgumentError(f'--{name} {text}: expected {_describe(hint)}') from None

    return convert


def _convert(text: str, hint: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if text.lower() == 'none':
            return None
        return _convert(text, next(kind for kind in inner if kind is not type(None)))
    if origin is Literal:
        return {str(choice): choice for choice in inner}[text]
    if origin is tuple:
        parts = [part.strip() for part in text.split(',') if part.strip()]
        return tuple(map(_convert, parts, _kinds(inner, len(parts))))
    return SWITCH[text.lower()] if hint is bool else hint(text)


def _kinds(inner: tuple, length: int) -> list:
    """The types of a tuple's members.

    Raises:
        ValueError: the annotation asks for another length.
    """
    kinds = [inner[0]] * length if inner[-1] is Ellipsis else list(inner)
    if len(kinds) != length:
        raise ValueError(length)
    return kinds


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


def _written(value: Any) -> str:
    """A value as one writes it on the command line."""
    if isinstance(value, tuple):
        return ','.join(map(_written, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of the file, a preset or the command line has its declared type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        many = inner[-1] is Ellipsis
        if not isinstance(value, tuple) or not (many or len(value) == len(inner)):
            return False
        return all(map(_fits, value, _kinds(inner, len(value))))
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is float:
        return isinstance(value, int | float) and value == value  # NaN is no setting
    return isinstance(value, hint)


def _comments(group: type) -> dict[str, str]:
    """Name -> the comment on the line, or the lines, of its definition."""
    source = textwrap.dedent(inspect.getsource(group))
    texts = {  # line -> its comment
        token.start[0]: token.string.lstrip('# ')
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    comments = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            comments[node.target.id] = ' '.join(texts[line] for line in lines if line in texts)
    return comments
