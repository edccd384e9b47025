"""What the tests of the benchmarks share."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def bench(monkeypatch):
    """`bench('cost')`: a script of benchmarks/, imported by its plain name as its siblings do."""
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if str(FOLDER) in str(getattr(module, '__file__', '')):
            del sys.modules[name]
