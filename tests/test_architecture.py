"""The house rules a linter does not know: who imports whom, what is named how, what is never used.

Every check takes the root of a checkout and returns one line per violation. The first test runs
them on this repository, the others on planted violations, so that a check that went blind fails.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Units of shared/ and what they may import of it (design 2.2); `errors` and `files` are open to all, and the
# files of one sub-package to each other. A unit that is not listed may import nothing.
MAY_IMPORT = {
    'datasets': {'augmentations', 'ddp'},
    'doctor': {'datasets', 'ddp', 'optim'},
    'losses': {'ddp'},
    'evaluation': {'ddp'},
    'framework': {'ddp', 'precision'},
    'checkpoint': {'ddp', 'seed', 'weight_files'},
    'ranks': {'ddp', 'meeting'},
    'meeting': {'ddp'},
    'heartbeat': {'ddp', 'ranks'},
    'averaging': {'weight_files'},
    'models': {'weight_files'},
    'log': {'ddp'},
    'loop': {'ddp', 'checkpoint', 'heartbeat', 'meters', 'datasets', 'weight_files'},
    'published': {'weight_files', 'models'},  # files of other programs, read strictly
    'demo_ssl': {  # a small pre-training, from corpus to record
        'datasets',
        'models',
        'clustering',
        'evaluation',
        'optim',
        'seed',
        'ddp',
        'checkpoint',
        'meters',
        'loop',
    },
}
MAY_PRINT = {  # file and function: why
    ('shared/arguments.py', 'build'): 'a wrong argument: its one line, then exit status 2',
    ('shared/ranks.py', 'spawn'): 'a rank was killed: the parent says so, no logger is left',
    ('shared/ranks.py', '_say_once'): 'why a run ended, once for all ranks',
}
MAY_EDIT_PATH = {  # file: why
    'tests/papers/test_lgl_runs.py': 'a rank started by a test must stand where main.py stands',
    'tests/papers/test_wavlm_ssl_runs.py': 'a rank started by a test must stand where main.py stands',
    'tests/papers/test_oskdft_runs.py': 'a rank started by a test must stand where main.py stands',
    'tests/papers/test_enskd_runs.py': 'a rank started by a test must stand where main.py stands',
    'tests/papers/test_nawsv_runs.py': 'a rank started by a test must stand where main.py stands',
}
PAPERS = r'lgl|enskd|os[-_]?kdft|naw[-_]?sv|wavlm[-_]ssl'
NO_HOMES = {'utils', 'util', 'misc', 'common', 'helpers', 'core', 'base'}
UNSAFE_MODULES = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'marshal', 'shelve', 'joblib'}
UNSAFE_CALLS = {'exec', 'eval', '__import__', 'os.system', 'os.popen'}
UNSAFE_OPTIONS = {'shell', 'allow_pickle'}
RECIPE = ('main.py', 'train.py', 'framework.py', 'losses.py')
RECIPE_LINES, SHARED_LINES = 450, 300
TRACKED = 500_000  # bytes


def sources(root: Path, *folders: str) -> Iterator[tuple[Path, str, ast.Module]]:
    """(path, path relative to root, tree) of the Python files of top-level folders."""
    for folder in folders:
        for path in sorted((root / folder).rglob('*.py')):
            yield path, path.relative_to(root).as_posix(), ast.parse(path.read_text())


def imports(path: Path, root: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything imported, at any depth, relative ones resolved."""
    package = path.relative_to(root).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = '.'.join((*above, *filter(None, [node.module])))
            yield from ((node.lineno, f'{module}.{alias.name}') for alias in node.names)


def dotted(node: ast.AST) -> str:
    """`a.b` of the expression a.b, '' of anything that is not a chain of names."""
    if isinstance(node, ast.Attribute):
        return f'{dotted(node.value)}.{node.attr}'
    return node.id if isinstance(node, ast.Name) else ''


def shared_imports(root: Path) -> list[str]:
    """Inside shared/, imports follow MAY_IMPORT and never reach papers or tests."""
    found = []
    for path, where, tree in sources(root, 'shared'):
        unit = path.relative_to(root / 'shared').with_suffix('').parts[0]
        allowed = MAY_IMPORT.get(unit, set()) | {unit, 'errors', 'files'}
        for line, name in imports(path, root, tree):
            top, _, rest = name.partition('.')
            if top in ('papers', 'tests', 'benchmarks'):
                found.append(f'{where}:{line}: shared imports {name}')
            elif top == 'shared' and rest and rest.split('.')[0] not in allowed:
                found.append(f'{where}:{line}: {unit} may not import {name}')
    return found


def paper_imports(root: Path) -> list[str]:
    """A paper imports its own files and shared, never another paper, tests or benchmarks."""
    papers = {path.name for path in (root / 'papers').iterdir() if path.is_dir()}
    found = []
    for path, where, tree in sources(root, 'papers'):
        own = path.relative_to(root / 'papers').parts[0]
        outside = (papers - {own}) | {'tests', 'benchmarks', 'papers'}
        for line, name in imports(path, root, tree):
            if name.split('.')[0] in outside:
                found.append(f'{where}:{line}: imports {name}; siblings go by their plain name')
    return found


def path_edits(root: Path) -> list[str]:
    """Nobody touches sys.path: `shared` is installed, siblings are in the folder of main.py."""
    found = []
    for path, where, tree in sources(root, 'shared', 'papers', 'benchmarks', 'tests'):
        lines = [line for line, name in imports(path, root, tree) if name == 'sys.path']
        for node in ast.walk(tree):
            if dotted(node) in ('sys.path', 'site.addsitedir'):
                lines.append(node.lineno)
        if where not in MAY_EDIT_PATH:
            found += [f'{where}:{line}: sys.path' for line in lines]
    return found


def paper_names(root: Path) -> list[str]:
    """shared/ knows no paper; docstrings and comments may cite one as their source."""
    word = re.compile(rf'(?<![a-z0-9])({PAPERS})(?![a-z0-9])')
    found = []
    for path, where, tree in sources(root, 'shared'):
        cited = {  # strings that stand alone: docstrings
            id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)
        }
        words = [(1, path.relative_to(root).as_posix()), *imports(path, root, tree)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words += [(node.lineno, node.value)] if id(node) not in cited else []
            for field in ('id', 'attr', 'name', 'arg', 'asname'):
                if isinstance(getattr(node, field, None), str):
                    words.append((getattr(node, 'lineno', 1), getattr(node, field)))
        for line, text in words:
            text = re.sub('([A-Z]+)([A-Z][a-z])', r'\1_\2', text)  # LGLLoss -> LGL_Loss
            text = re.sub('([a-z0-9])([A-Z])', r'\1_\2', text)  # LossOfLgl -> Loss_Of_Lgl
            if match := word.search(text.lower()):
                found.append(f'{where}:{line}: names the paper {match[1]}')
    return found


def sizes(root: Path) -> list[str]:
    """Files of shared/ stay short, and a paper's algorithm can be read in one sitting."""
    found = []
    for path, where, _ in sources(root, 'shared'):
        lines = len(path.read_text().splitlines())
        if lines > SHARED_LINES:
            found.append(f'{where}: {lines} lines, more than {SHARED_LINES}')
    for paper in sorted((root / 'papers').iterdir()):
        files = [paper / name for name in RECIPE if (paper / name).exists()]
        lines = sum(len(path.read_text().splitlines()) for path in files)
        if lines > RECIPE_LINES:
            names = ', '.join(path.name for path in files)
            found.append(f'papers/{paper.name}: {lines} lines in {names}, over {RECIPE_LINES}')
    return found


def names(root: Path) -> list[str]:
    """No folder or file without a real name, nothing pytest would collect, no busy __init__."""
    found = []
    for path, where, tree in sources(root, 'shared', 'papers'):
        vague = NO_HOMES & set(path.relative_to(root).with_suffix('').parts)
        found += [f'{where}: {name} is no name for a home' for name in sorted(vague)]
        if not where.startswith('shared/'):
            continue
        defined = [node.name for node in ast.walk(tree) if hasattr(node, 'name') and node.name]
        found += [
            f'{where}: {name} starts with test_, pytest collects it where it is imported'
            for name in [path.name, *defined]
            if str(name).startswith('test_')
        ]
        if path.name == '__init__.py' and path.parent != root / 'shared/log' and tree.body:
            found.append(f'{where}: must be empty')
    return found


def shadows(root: Path) -> list[str]:
    """`python main.py` puts its folder first on the path: no file there hides a real module."""
    real = set(metadata.packages_distributions()) | set(sys.stdlib_module_names) | {'shared'}
    return [
        f'{where}: hides the installed module {path.stem}'
        for path, where, _ in sources(root, 'papers')
        if path.stem in real
    ]


def prints(root: Path) -> list[str]:
    """shared never prints, but for MAY_PRINT and `main` of a file that is also a command."""
    return [
        f'{where}:{line}: print in {function}'
        for where, function, line in prints_by_function(root)
        if function != 'main' and (where, function) not in MAY_PRINT
    ]


def prints_by_function(root: Path) -> list[tuple[str, str, int]]:
    found = []
    for _, where, tree in sources(root, 'shared'):
        outer = {'': tree} | {
            node.name: node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        owner = {}  # line -> innermost function around it, as ast.walk goes from outside in
        for name, node in outer.items():
            for inner in ast.walk(node):
                if isinstance(inner, ast.Call) and dotted(inner.func) == 'print':
                    owner[inner.lineno] = name
        found += [(where, name, line) for line, name in sorted(owner.items())]
    return found


def unsafe(root: Path) -> list[str]:
    """Nothing read from a file is ever executed, and no string reaches a shell."""
    found = []
    for path, where, tree in sources(root, 'shared', 'papers', 'benchmarks'):
        for line, name in imports(path, root, tree):
            if name.split('.')[0] in UNSAFE_MODULES or name in UNSAFE_CALLS | {'torch.load'}:
                found.append(f'{where}:{line}: imports {name}')
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            options = {word.arg: getattr(word.value, 'value', None) for word in node.keywords}
            call = dotted(node.func)
            if call == 'torch.load' and options.get('weights_only') is not True:
                found.append(f'{where}:{node.lineno}: torch.load without weights_only=True')
            bad = [f'{name}=' for name in UNSAFE_OPTIONS & options.keys() if options[name]]
            bad += [call] if call in UNSAFE_CALLS else []
            found += [f'{where}:{node.lineno}: {name}' for name in bad]
    return found


CHECKS = [
    shared_imports,
    paper_imports,
    path_edits,
    paper_names,
    sizes,
    names,
    shadows,
    prints,
    unsafe,
]


@pytest.mark.parametrize('check', CHECKS, ids=lambda check: check.__name__)
def test_repository_keeps_the_rule(check):
    assert check(ROOT) == []


def large_files(root: Path) -> list[str]:
    """What git follows, or would take, of more than 500 kB: weights, audio, wheels."""
    command = ['git', 'ls-files', '-co', '--exclude-standard', '-z']
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split('\0') if name and (root / name).is_file()]
    return [name for name in names if (root / name).stat().st_size > TRACKED]


@pytest.mark.skipif(not (ROOT / '.git').exists(), reason='a copy without git follows nothing')
def test_git_follows_no_large_file():
    assert large_files(ROOT) == []


def test_large_file_is_found(tmp_path):
    subprocess.run(['git', 'init', '-q', tmp_path], check=True)
    for name, size in (('x.whl', TRACKED + 1), ('y', TRACKED), ('ignored', TRACKED + 1)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / '.gitignore').write_text('ignored')
    assert large_files(tmp_path) == ['x.whl']


def test_every_exception_to_no_print_is_still_needed():
    used = {(where, function) for where, function, _ in prints_by_function(ROOT)}
    assert set(MAY_PRINT) <= used


def plant(root: Path, files: dict[str, str]) -> Path:
    (root / 'papers' / 'lgl').mkdir(parents=True)
    (root / 'papers' / 'nawsv').mkdir()
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


PLANTED = [
    (shared_imports, 'shared/models/x.py', 'from shared.losses import y'),
    (shared_imports, 'shared/models/x.py', 'from shared import ddp'),
    (shared_imports, 'shared/models/x.py', 'from ..datasets.items import Trials'),
    (shared_imports, 'shared/losses/x.py', 'def f():\n    import shared.models.y'),
    (shared_imports, 'shared/ddp.py', 'from . import checkpoint'),
    (shared_imports, 'shared/brand_new/x.py', 'from shared import ddp'),
    (shared_imports, 'shared/evaluation/x.py', 'from shared.datasets.items import Trials'),
    (shared_imports, 'shared/loop.py', 'from shared.evaluation.extraction import extract'),
    (shared_imports, 'shared/datasets/x.py', 'from shared import demo_ssl'),
    (shared_imports, 'shared/demo_ssl.py', 'from shared import log'),
    (shared_imports, 'shared/seed.py', 'import papers.lgl.train'),
    (shared_imports, 'shared/seed.py', 'from ..papers import lgl'),
    (paper_imports, 'papers/lgl/main.py', 'from papers.nawsv import losses'),
    (paper_imports, 'papers/lgl/main.py', 'from ..nawsv import losses'),
    (paper_imports, 'papers/lgl/main.py', 'import nawsv.losses'),
    (paper_imports, 'papers/lgl/main.py', 'import papers.lgl.losses'),
    (paper_imports, 'papers/lgl/main.py', 'from tests import anything'),
    (path_edits, 'papers/lgl/main.py', 'import sys\nsys.path.append("..")'),
    (path_edits, 'benchmarks/x.py', 'import sys\nsys.path[:0] = ["."]'),
    (path_edits, 'tests/x.py', 'from sys import path'),
    (path_edits, 'shared/x.py', 'import site\nsite.addsitedir(".")'),
    (paper_names, 'shared/losses/x.py', 'class LGLLoss:\n    pass'),
    (paper_names, 'shared/losses/x.py', 'def loss_of_lgl():\n    pass'),
    (paper_names, 'shared/losses/x.py', 'f(lgl=True)'),
    (paper_names, 'shared/losses/x.py', 'def f(mode):\n    return mode == "nawsv"'),
    (paper_names, 'shared/losses/x.py', 'def f(run):\n    raise ValueError(f"{run}: no OS-KDFT")'),
    (paper_names, 'shared/losses/x.py', 'import wavlm_ssl'),
    (paper_names, 'shared/losses/enskd.py', ''),
    (sizes, 'shared/x.py', 'x = 1\n' * 301),
    (sizes, 'papers/lgl/main.py', 'x = 1\n' * 451),
    (names, 'shared/x.py', 'def test_error_rate():\n    pass'),
    (names, 'shared/test_x.py', ''),
    (names, 'shared/models/__init__.py', 'from shared.models.x import X'),
    (names, 'shared/utils/x.py', ''),
    (names, 'papers/lgl/common/x.py', ''),
    (names, 'shared/misc.py', ''),
    (shadows, 'papers/lgl/logging.py', ''),
    (shadows, 'papers/lgl/torchaudio.py', ''),
    (prints, 'shared/x.py', 'print("here")'),
    (prints, 'shared/x.py', 'def build():\n    print("not the build that may")'),
    (prints, 'shared/arguments.py', 'def other():\n    print("not the function that may")'),
    (unsafe, 'papers/lgl/x.py', 'import torch\ntorch.load(path)'),
    (unsafe, 'shared/x.py', 'import torch\ntorch.load(path, weights_only=False)'),
    (unsafe, 'shared/x.py', 'from torch import load'),
    (unsafe, 'shared/x.py', 'from pickle import loads'),
    (unsafe, 'shared/x.py', 'exec(text)'),
    (unsafe, 'papers/lgl/x.py', 'import subprocess\nsubprocess.run("ls", shell=True)'),
    (unsafe, 'benchmarks/x.py', 'import numpy as np\nnp.load(path, allow_pickle=True)'),
]


def planted_name(value):
    """The same in every process that collects the tests."""
    return value.__name__ if callable(value) else str(value)[:40]


@pytest.mark.parametrize('check, file, text', PLANTED, ids=planted_name)
def test_check_sees_a_planted_violation(check, file, text, tmp_path):
    found = check(plant(tmp_path, {file: text}))
    assert len(found) >= 1 and all(line.startswith(file.split('/')[0]) for line in found)


def test_checks_accept_what_the_rules_allow(tmp_path):
    root = plant(
        tmp_path,
        {
            'shared/errors.py': 'class UserError(Exception):\n    """Spec lgl 2.4 (NAW-SV too)."""',
            'shared/arguments.py': 'def build():\n    print("wrong")',
            'shared/loop.py': 'from shared import checkpoint, datasets, ddp, meters',
            'shared/demo_ssl.py': 'from shared import clustering, datasets, loop, models, optim',
            'shared/datasets/x.py': 'from shared.augmentations.noise import y\nfrom . import items',
            'shared/datasets/items.py': 'def main():\n    print("a command")\n# as lgl does',
            'shared/models/x.py': 'from shared.errors import UserError\nfrom shared.models import y',
            'shared/log/__init__.py': 'from shared.log.files import now',
            'shared/x.py': 'import torch\ntorch.load(path, weights_only=True)\nsigla = "illegal"',
            'papers/lgl/main.py': 'import train\nfrom shared import ddp\nprint("recipes may")',
            'papers/lgl/train.py': 'x = 1\n' * 400,
            'papers/nawsv/train.py': 'x = 1\n' * 400,
        },
    )
    assert [line for check in CHECKS for line in check(root)] == []
