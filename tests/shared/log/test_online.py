"""wandb and neptune for real: offline, and against an address where nobody answers."""

import base64
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shared import log
from shared.log import neptune as neptune_sink

WANDB_SECRET = 'ba5eba11' * 5  # the form of a W&B key
MARKER = 'this is no secret'
NOBODY = 'http://127.0.0.1:9'  # the discard port: refused at once


def neptune_token(address):
    text = json.dumps({'api_address': address, 'api_url': address, 'api_key': 'planted-in-neptune'})
    return base64.b64encode(text.encode()).decode()


SCRIPT = """
import sys, warnings
import numpy as np
from shared import log
from shared.log import wandb, neptune
wandb.INIT_SECONDS = 3.0; wandb.FINISH_SECONDS = 3.0; neptune.INIT_SECONDS = 3.0

if __name__ == '__main__':
    path, recipe, service, key = sys.argv[1:5]
    args = {'path_log': path, 'rank': 0, 'api_key': key}
    builder = log.LoggerList.Builder('name', 'project', ['tag'], 'about', recipe, args)
    builder.use_local_logger(path)
    if service == 'wandb':
        builder.use_wandb_logger(None, group='group', api_key=key or None)
    else:
        builder.use_neptune_logger('user', token=key or None)
    logger = builder.build()
    print('sinks', len(logger))
    logger.log_arguments({'lr': 0.125, 'size': (1, 2), 'none': None, 'token': key, 'note': MARKER})
    for step in (5, 6, 2):
        logger.log_metrics({'train/loss': 1.0 / step, 'valid/eer': 5.0}, step)
    logger.log_text('note', f'a text with {key} in it')
    logger.log_image('valid/det', np.zeros((4, 5, 3), np.uint8), 1)
    logger.save_model('student', {})
    logger.curves()
    logger.finish()
    print('finished')
"""


def execute(tmp_path, service, key='', **environment):
    """Runs SCRIPT in its own process and home; returns its output, warnings included."""
    recipe, home = tmp_path / 'recipe', tmp_path / 'home'
    for folder in (recipe, home):
        folder.mkdir(exist_ok=True)
    script = recipe / 'main.py'
    script.write_text(SCRIPT.replace('MARKER', repr(MARKER)))
    hidden = ('WANDB_', 'NEPTUNE_', 'NETRC')
    env = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    env.update(HOME=str(home), PYTHONPATH=str(Path(log.__file__).parents[2]), **environment)
    words = [sys.executable, str(script), str(tmp_path / 'run'), str(recipe), service, key]
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'finished' in done.stdout
    return done.stdout + done.stderr


def files_with(text, folder):
    """Every file below `folder` whose bytes hold `text`, plainly or in base64."""
    plain = text.encode()
    coded = base64.b64encode(plain)[:-4]
    paths = [p for p in folder.rglob('*') if p.is_file()]
    return [p for p in paths if plain in p.read_bytes() or coded in p.read_bytes()]


def test_wandb_offline_writes_a_run_and_no_secret(tmp_path):
    said = execute(
        tmp_path, 'wandb', WANDB_SECRET, WANDB_MODE='offline', WANDB_API_KEY=WANDB_SECRET[::-1]
    )
    assert 'sinks 2' in said and 'RuntimeWarning' not in said
    run = next((tmp_path / 'run/wandb').glob('offline-run-*/*.wandb'))
    content = run.read_bytes()
    for logged in (b'train/loss', b'valid/eer', b'0.125', MARKER.encode()):
        assert logged in content  # so the search for secrets below can find things
    assert list((tmp_path / 'run/wandb').rglob('*.png'))
    assert not files_with(WANDB_SECRET, tmp_path)
    assert not files_with(WANDB_SECRET[::-1], tmp_path)


def test_wandb_resumes_under_the_same_id(tmp_path, monkeypatch):
    import wandb

    ids = []

    class Run:
        def define_metric(self, *args, **kwargs):
            pass

    def init(**known):
        ids.append(known['id'])
        return Run()

    monkeypatch.setattr(wandb, 'init', init)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    for folder in ('a', 'a', 'b'):
        (tmp_path / folder).mkdir(exist_ok=True)
        build(tmp_path / folder, lambda b: b.use_wandb_logger('me'))
    assert ids[0] == ids[1] != ids[2]
    assert (tmp_path / 'a/run/wandb_id.txt').read_text().strip() == ids[0]


def test_wandb_without_a_key_records_offline_with_one_warning(tmp_path):
    said = execute(tmp_path, 'wandb')
    assert said.count('RuntimeWarning') == 1 and 'recording offline' in said
    assert 'WANDB_API_KEY' in said and 'sinks 2' in said
    assert list((tmp_path / 'run/wandb').glob('offline-run-*'))


@pytest.mark.slow
def test_wandb_that_does_not_answer_falls_back_to_offline(tmp_path):
    said = execute(tmp_path, 'wandb', WANDB_SECRET, WANDB_BASE_URL=NOBODY)
    assert said.count('RuntimeWarning') == 1 and 'recording offline' in said
    run = next((tmp_path / 'run/wandb').glob('offline-run-*/*.wandb'))
    assert b'train/loss' in run.read_bytes()
    assert not files_with(WANDB_SECRET, tmp_path)
    assert not (tmp_path / 'home/.netrc').exists()
    assert WANDB_SECRET not in said


def test_neptune_offline_writes_a_run_and_no_secret(tmp_path):
    token = neptune_token('https://neptune.my-lab.example')
    said = execute(tmp_path, 'neptune', token, NEPTUNE_MODE='offline', NEPTUNE_API_TOKEN=token)
    assert 'sinks 2' in said and 'RuntimeWarning' not in said
    logs = list((tmp_path / 'run/neptune').rglob('*.log'))
    content = b''.join(path.read_bytes() for path in logs)
    for logged in (b'"loss"', b'0.125', MARKER.encode()):
        assert logged in content
    assert not files_with(token, tmp_path) and not files_with('planted-in-neptune', tmp_path)
    assert not (tmp_path / '.neptune').exists()


@pytest.mark.slow
def test_neptune_that_does_not_answer_costs_one_warning(tmp_path):
    token = neptune_token(NOBODY)
    said = execute(tmp_path, 'neptune', token)
    assert said.count('RuntimeWarning') == 1 and 'sinks 1' in said
    assert 'going on without it' in said and token not in said
    assert log.read_metrics(tmp_path / 'run')['train/loss'][0].tolist() == [2, 5, 6]
    assert not files_with(token, tmp_path) and not files_with('planted-in-neptune', tmp_path)


def build(tmp_path, add):
    builder = log.LoggerList.Builder('n', 'p', [], 'd', tmp_path, {'path_log': tmp_path / 'run'})
    add(builder)
    return builder.build()


@pytest.mark.parametrize(
    'token', [None, 'not a token', neptune_token('https://app.neptune.ai')], ids=str
)
def test_neptune_says_at_once_what_cannot_work(tmp_path, monkeypatch, token):
    monkeypatch.delenv('NEPTUNE_MODE', raising=False)
    monkeypatch.delenv('NEPTUNE_API_TOKEN', raising=False)
    reason = 'Neptune server makes' if token == 'not a token' else 'closed in March 2026'
    with pytest.warns(RuntimeWarning, match=reason):
        logger = build(tmp_path, lambda b: b.use_neptune_logger('user', token))
    assert len(logger) == 0
    assert not (tmp_path / 'run').exists() or not any((tmp_path / 'run').iterdir())


def test_neptune_start_is_abandoned_after_its_time():
    release = threading.Event()
    with pytest.raises(ConnectionError, match='no answer'):
        neptune_sink._in_time(release.wait, 0.01)
    release.set()


def test_wandb_whose_every_start_fails_is_left_out(tmp_path, monkeypatch):
    import wandb

    def broken(*args, **kwargs):
        raise RuntimeError('service exploded')

    monkeypatch.setattr(wandb, 'init', broken)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    with pytest.warns(RuntimeWarning, match='service exploded'):
        logger = build(tmp_path, lambda b: b.use_wandb_logger('me'))
    assert len(logger) == 0


def test_a_service_that_is_not_installed_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.warns(RuntimeWarning, match='wandb: not available'):
        assert len(build(tmp_path, lambda b: b.use_wandb_logger('me'))) == 0
