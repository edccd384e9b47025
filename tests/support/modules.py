"""A file of a paper as a module, without all that its main.py imports."""

import importlib.util
from pathlib import Path

PAPERS = Path(__file__).parents[2] / 'papers'


def load(paper, name):
    """A file that imports none of its siblings; in the ranks of `run_ranks` too."""
    spec = importlib.util.spec_from_file_location(f'{paper}_{name}', PAPERS / paper / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
