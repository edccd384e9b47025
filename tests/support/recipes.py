"""Runs a paper's `main.py` as a user does: from the command line, in a process of its own."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shared.datasets import demo
from shared.models.ssl_checkpoints import write_ssl
from shared.models.ssl_config import SslConfig
from shared.models.ssl_encoder import SslEncoder

ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')

TINY_WAVLM = SslConfig(
    'wavlm',
    layers=2,
    width=16,
    heads=2,
    ffn_width=32,
    conv_channels=(8,) * 7,
    position_kernel=8,
    position_groups=2,
)
QUIET_WAVLM = replace(  # what several processes would draw, each for itself
    TINY_WAVLM, dropout=0.0, attention_dropout=0.0, projection_dropout=0.0, layer_drop=0.0
)


def small_corpus(folder):
    """A demo corpus of twelve speakers with four utterances each."""
    return demo.make(
        folder,
        train_speakers=6,
        valid_speakers=3,
        test_speakers=3,
        videos=2,
        utterances_per_video=2,
        seconds=(1.2, 2.0),
        trials=40,
        musan_files=(4, 9, 4),
        rooms=3,
    )


def small_ssl_corpus(folder):
    """`small_corpus`, and beside it a pre-trained WavLM of random weights."""
    made = small_corpus(folder)
    pretrained(TINY_WAVLM, folder / 'wavlm')
    return made


def pretrained(config, folder):
    """Writes an SSL encoder of random weights as a pre-trained one; returns its folder."""
    torch.manual_seed(0)
    write_ssl(config, SslEncoder(config).state_dict(), folder)
    return folder


def ssl_paths(corpus):
    """The arguments that name what is in a `small_ssl_corpus`."""
    return {
        'path_ssl': corpus.root / 'wavlm',
        'path_train': corpus.train,
        'list_train': corpus.train_list,
        'path_test': corpus.vox1,
        'trials_test': corpus.trials['O'],
        'path_musan': corpus.musan,
        'path_rir': corpus.rirs,
    }


@dataclass
class Recipe:
    """A paper with small settings on a small corpus.

    `paths` gives the arguments that depend on the corpus, `settings` all others.
    """

    paper: str  # its folder
    project: str  # its name in the log folder
    settings: dict[str, Any]
    paths: Callable[[Any], dict[str, Any]]

    @property
    def main(self):
        """The paper's main.py."""
        return ROOT / 'papers' / self.paper / 'main.py'

    def command(self, corpus, path_log, **changes):
        """The command line of a run, without the interpreter."""
        values = {'path_log': path_log, 'name': 'run', **self.paths(corpus), **self.settings}
        values |= changes
        words = [str(word) for key in values for word in (f'--{key}', values[key])]
        return [str(self.main), *words]

    def run(self, corpus, path_log, launcher=(sys.executable,), status=0, **changes):
        """Runs to the end; returns the run folder and what was printed."""
        done = subprocess.run(
            [*launcher, *self.command(corpus, path_log, **changes)],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
        )
        assert done.returncode == status, done.stdout[-2000:] + done.stderr[-3000:]
        folder = Path(path_log) / self.project / changes.get('name', 'run')
        return folder, done.stdout + done.stderr

    def refused(self, corpus, path_log, launcher=(sys.executable,), status=1, **changes):
        """The last line printed by a run that must fail, and fail without a traceback."""
        _, printed = self.run(corpus, path_log, launcher, status, **changes)
        assert 'Traceback' not in printed
        return [line for line in printed.splitlines() if line.strip()][-1]

    def stopped(self, corpus, path_log, moment, kind=signal.SIGKILL, **changes):
        """Starts a run and stops it at a moment; returns its exit status and error output."""
        return self.disturbed(
            corpus, path_log, moment, lambda run: run.send_signal(kind), **changes
        )

    def disturbed(self, corpus, path_log, moment, act, **changes):
        """As `stopped`, of what `act` does to the process."""
        process = subprocess.Popen(
            [sys.executable, *self.command(corpus, path_log, **changes)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        end = time.monotonic() + 120
        while not moment():
            assert process.poll() is None and time.monotonic() < end, 'the run ended too early'
            time.sleep(0.005)
        act(process)
        _, errors = process.communicate(timeout=120)
        return process.returncode, errors


def same(first, second):
    """Whether two states are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def weights(path):
    """The state in a file."""
    return torch.load(path, weights_only=True)


def table_of(folder):
    """The rows of the results table."""
    return json.loads((folder / 'results.json').read_text())['table']


def logged(folder):
    """(name, step) -> value, the last line of a step winning; speeds differ between runs."""
    values = {}
    for line in (folder / 'metrics.jsonl').read_text().splitlines():
        entry = json.loads(line)
        if not re.search('second|wait', entry['name']):
            values[entry['name'], entry['step']] = entry['value']
    return values
