"""Faults of a whole `main.py`, as a user meets them.

A minute of runs, so it is asked for; the same faults of a small loop are in the default tests:

    SV_FAULTS=1 python -m pytest tests/faults/test_commands.py
"""

import os
import resource

import pytest
from lgl_recipe import LGL
from recipes import logged, same, small_corpus, weights

from shared.augmentations.augment import augment
from shared.weight_files import read

SETTINGS = {'phase': 'contrastive', 'contrastive_epoch': 3}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif('SV_FAULTS' not in os.environ, reason='SV_FAULTS=1 asks for it'),
]


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp('corpus') / 'demo')


@pytest.fixture(scope='module')
def undisturbed(corpus, tmp_path_factory):
    return LGL.run(corpus, tmp_path_factory.mktemp('undisturbed'), **SETTINGS)[0]


@pytest.mark.parametrize('minutes, file', [(1e-6, 'contrastive/last.pt'), (60, 'metrics.jsonl')])
def test_disk_that_fills_up_in_mid_run_costs_one_line_and_no_result(
    minutes, file, corpus, undisturbed, tmp_path
):
    settings, folder = {**SETTINGS, 'save_minutes': minutes}, tmp_path / 'LGL' / 'run'
    status, errors = LGL.disturbed(
        corpus,
        tmp_path,
        (folder / 'contrastive' / 'best.pt').exists,  # the last file of an epoch
        lambda run: resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY)),
        **settings,
    )
    last = [line for line in errors.splitlines() if line.strip()][-1]
    assert status == 1 and 'Traceback' not in errors, errors
    assert last.startswith(f'error: {folder / file}: ') and 'File too large' in last
    assert not [path for path in folder.rglob('*') if path.name.endswith('.tmp')]
    position = read(folder / 'contrastive' / 'last.pt')['position']
    assert position['epoch'] < 4
    LGL.run(corpus, tmp_path, **settings)
    best = [weights(run / 'contrastive' / 'best.pt') for run in (folder, undisturbed)]
    assert same(*best) and logged(folder) == logged(undisturbed)
    for name in ('results.json', 'scores'):
        assert (folder / name).exists()


def test_learning_rate_that_is_far_too_high_leaves_the_batch_and_one_line(corpus, tmp_path):
    line = LGL.refused(corpus, tmp_path, **SETTINGS, contrastive_lr=1e30)
    file = tmp_path / 'LGL' / 'run' / 'contrastive' / 'bad_batch.pt'
    assert line.startswith('error: contrastive 1: loss is nan') and str(file) in line
    bad = read(file)
    assert augment(bad['batch']).isfinite().all()  # so it is not the data
    assert all((corpus.train / path).exists() for (path,) in bad['files'])
    assert bad['step'] in bad['values'] and not (file.parent / 'last.pt').exists()
