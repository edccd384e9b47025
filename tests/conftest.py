"""What the tests share: quiet services, several processes at once, a paper's modules."""

import importlib
import inspect
import multiprocessing
import os
import pickle
import runpy
import subprocess
import sys
import time
import types
from multiprocessing.connection import wait
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Set before any test imports what reads them. Files of tests stay out of the user's folders.
os.environ.update(WANDB_MODE='offline', WANDB_SILENT='true', MPLBACKEND='Agg')
os.environ.setdefault('OMP_NUM_THREADS', '1')
RANKS_SECONDS = 120  # a rank that has not answered by then hangs


@pytest.fixture
def run_ranks(tmp_path):
    """`run_ranks(function, *arguments, ranks=2)`: a top-level function on N gloo processes.

    Returns each rank's result, in rank order; they are pickled, and so are the arguments. A rank
    that raises fails the test with its traceback.
    """
    # One clean process imports torch once; the ranks are forked from it in no time. DDP and
    # optimizers would import the last of these in every rank, for seconds.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['torch', 'torch.distributed', 'torch._dynamo'])
    calls = iter(range(1000))

    def run(function, *arguments, ranks=2):
        job = {
            'file': inspect.getsourcefile(function),
            'function': function.__name__,
            'arguments': arguments,
            'store': str(tmp_path / f'.store{next(calls)}'),
            'ranks': ranks,
        }
        answers, processes = [], []
        for rank in range(ranks):
            answer, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=runpy.run_path,
                args=(str(ROOT / 'tests' / 'ranks.py'),),
                kwargs={'init_globals': {'JOB': {**job, 'rank': rank, 'answer': theirs}}},
                daemon=True,
            )
            process.start()
            theirs.close()
            answers.append(answer)
            processes.append(process)
        try:
            return _collect(answers)
        finally:
            for process in processes:
                process.join(5)
                process.kill()

    return run


def _collect(answers):
    """The result of each connection, or the first failure."""
    results, deadline = {}, time.monotonic() + RANKS_SECONDS
    while len(results) < len(answers):
        left = deadline - time.monotonic()
        ready = wait([a for i, a in enumerate(answers) if i not in results], max(left, 0))
        if not ready:
            pytest.fail(f'ranks still at work after {RANKS_SECONDS} s: {len(results)} answered')
        for answer in ready:
            rank = answers.index(answer)
            try:
                results[rank], failure = pickle.loads(answer.recv_bytes())
            except EOFError:
                failure = 'ended without an answer'
            if failure:
                pytest.fail(f'rank {rank}: {failure}')
    return [results[rank] for rank in range(len(answers))]


@pytest.fixture
def paper(monkeypatch):
    """`paper('lgl').models`: the modules of a paper, imported by their plain names as it does.

    Two papers call their files alike, so the names are free again after the test.
    """
    seen = dict(sys.modules)

    def load(name):
        folder = ROOT / 'papers' / name
        siblings = [path.stem for path in folder.glob('*.py')]
        for sibling in siblings:
            sys.modules.pop(sibling, None)
        monkeypatch.syspath_prepend(folder)
        return types.SimpleNamespace(**{s: importlib.import_module(s) for s in siblings})

    yield load
    for name, module in list(sys.modules.items()):
        if str(ROOT / 'papers') in str(getattr(module, '__file__', '')):
            del sys.modules[name]
    sys.modules.update({name: module for name, module in seen.items() if name not in sys.modules})


@pytest.fixture
def python():
    """`python('-c', text, **environment)`: another Python in the repository, its end awaited."""

    def run(*command, seconds=60, **environment):
        return subprocess.run(
            [sys.executable, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=ROOT,
            env={**os.environ, 'CUDA_VISIBLE_DEVICES': '', **environment},
        )

    return run
