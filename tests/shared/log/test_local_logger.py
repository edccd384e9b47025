import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import shared
from shared import log
from shared.errors import UserError
from shared.log import files, provenance
from shared.log.local_logger import LocalLogger

MARKER = 'c0ffee' * 6 + 'beef'  # 40 hex digits: looks like a key


@pytest.fixture
def recipe(tmp_path):
    folder = tmp_path / 'recipe'
    (folder / '__pycache__').mkdir(parents=True)
    (folder / 'main.py').write_text('lr = 1\n')
    (folder / '__pycache__' / 'main.py').write_text('')
    (folder / 'notes.txt').write_text('not source')
    return folder


def start(path, recipe, **args):
    return LocalLogger(path, recipe, {'name': 'n', 'project': 'p', 'tags': [], 'args': args})


def test_metrics_are_on_disk_before_the_logger_ends(tmp_path, recipe):
    logger = start(tmp_path / 'run', recipe)
    logger.log_metrics({'train/loss': 1.5, 'train/lr': 0.1}, 3)
    lines = [json.loads(x) for x in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
    assert [(x['name'], x['value'], x['step']) for x in lines] == [
        ('train/loss', 1.5, 3),
        ('train/lr', 0.1, 3),
    ]
    assert lines[0]['time'] > 1e9


def test_metrics_survive_a_kill_and_continue_after_a_torn_line(tmp_path, recipe):
    run = tmp_path / 'run'
    code = (
        'import os, sys\n'
        'from shared.log.local_logger import LocalLogger\n'
        f'logger = LocalLogger({str(run)!r}, {str(recipe)!r}, {{}})\n'
        'for step in range(3): logger.log_metrics({"a/b": step}, step)\n'
        'os.kill(os.getpid(), 9)\n'
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == -9
    with open(run / 'metrics.jsonl', 'a') as file:
        file.write('{"name": "a/b", "val')
    assert log.read_metrics(run)['a/b'][1].tolist() == [0, 1, 2]
    logger = start(run, recipe)
    logger.log_metrics({'a/b': 9.0}, 2)  # the step is repeated after the resume
    logger.log_metrics({'a/b': 3.0}, 3)
    steps, values = log.read_metrics(run / 'metrics.jsonl')['a/b']
    assert steps.tolist() == [0, 1, 2, 3] and values.tolist() == [0, 1, 9, 3]


def test_metrics_that_are_not_finite_are_kept_and_stay_strict_json(tmp_path, recipe):
    logger = start(tmp_path / 'run', recipe)
    logger.log_metrics({'x': float('nan'), 'y': float('-inf')})

    def refuse(name):
        raise AssertionError(name)

    for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    metrics = log.read_metrics(tmp_path / 'run')
    assert np.isnan(metrics['x'][1][0]) and metrics['y'][1][0] == -np.inf
    logger.finish()  # and they can be drawn


def test_metrics_without_a_step_are_counted_also_after_a_resume(tmp_path, recipe):
    for _ in range(2):
        logger = start(tmp_path / 'run', recipe)
        logger.log_metrics({'a': 1.0})
        logger.log_metrics({'a': 2.0})
        logger.finish()
    steps, values = log.read_metrics(tmp_path / 'run')['a']
    assert steps.tolist() == [0, 1, 2, 3] and values.tolist() == [1, 2, 1, 2]


def test_source_copy_has_the_recipe_and_shared_unchanged(tmp_path, recipe):
    start(tmp_path / 'run', recipe)
    copied = {p.relative_to(tmp_path / 'run/scripts') for p in (tmp_path / 'run').rglob('*.py')}
    package = Path(next(iter(shared.__path__)))
    originals = {p.relative_to(package.parent) for p in package.rglob('*.py')}
    originals = {p for p in originals if '__pycache__' not in p.parts}
    assert copied == originals | {Path('main.py')}
    for path in originals:
        assert (tmp_path / 'run/scripts' / path).read_bytes() == (
            package.parent / path
        ).read_bytes()


def test_same_start_adds_no_file_and_another_source_is_kept_beside(tmp_path, recipe):
    run = tmp_path / 'run'
    start(run, recipe).finish()
    before = sorted(p.name for p in run.iterdir())
    start(run, recipe).finish()
    assert sorted(p.name for p in run.iterdir()) == before
    (recipe / 'main.py').write_text('lr = 2\n')
    start(run, recipe, lr=2).finish()
    assert (run / 'scripts/main.py').read_text() == 'lr = 1\n'
    assert (run / 'scripts-2/main.py').read_text() == 'lr = 2\n'
    assert json.loads((run / 'run-2.json').read_text())['args'] == {'lr': 2}
    assert json.loads((run / 'status.json').read_text())['starts'] == 3


def test_nothing_in_the_folder_is_deleted(tmp_path, recipe):
    run = tmp_path / 'run'
    (run / 'images').mkdir(parents=True)
    (run / 'images/mine.png').write_bytes(b'mine')
    (run / 'precious.txt').write_text('mine')
    logger = start(run, recipe)
    logger.log_image('other', b'png')
    logger.finish()
    assert (run / 'images/mine.png').read_bytes() == b'mine'
    assert (run / 'precious.txt').read_text() == 'mine'
    assert not list(run.rglob('*.tmp'))


def test_commit_file_names_the_commit_and_keeps_changes(tmp_path, recipe):
    def git(*words):
        who = ['-c', 'user.name=a', '-c', 'user.email=a@b']
        done = subprocess.run(['git', '-C', recipe, *who, *words], capture_output=True, check=True)
        return done.stdout.decode().strip()

    git('init')
    git('add', 'main.py')
    git('commit', '-m', 'x')
    (recipe / 'main.py').write_text(f"lr = 2\nwandb_api_key = '{MARKER}'\n")
    start(tmp_path / 'run', recipe)
    text = (tmp_path / 'run/commit.txt').read_text()
    assert text.startswith(git('rev-parse', 'HEAD')) and 'dirty: 1 files' in text
    patch = (tmp_path / 'run/diff.patch').read_text()
    assert '+lr = 2' in patch and MARKER not in patch


@pytest.mark.parametrize('revision, text', [('', 'no git commit'), ('abc', 'abc (image)')])
def test_commit_file_is_written_without_git(revision, text, tmp_path, recipe, monkeypatch):
    monkeypatch.setenv('SV_REVISION', revision)
    monkeypatch.setenv('PATH', '')
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path))
    start(tmp_path / 'run', recipe)
    assert text in (tmp_path / 'run/commit.txt').read_text()
    assert not (tmp_path / 'run/diff.patch').exists()


def test_environment_names_versions_and_hides_secrets(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['main.py', '--wandb_api_key', 'abc123', '--lr', '1'])
    start(tmp_path / 'run', recipe)
    text = (tmp_path / 'run/environment.json').read_text()
    environment = json.loads(text)
    assert environment['torch'] == torch.__version__
    assert environment['packages']['numpy'] == np.__version__
    assert environment['command'][-2:] == ['--lr', '1'] and 'abc123' not in text


def test_arguments_are_written_once_and_not_over_others(tmp_path, recipe):
    logger = start(tmp_path / 'run', recipe)
    logger.log_arguments({'lr': 0.1, 'size': (1, 2)})
    logger.log_arguments({'lr': 0.1, 'size': (1, 2)})
    assert not (tmp_path / 'run/arguments-2.json').exists()
    logger.log_arguments({'lr': 0.1, 'size': (1, 2), 'epoch': 3})
    assert json.loads((tmp_path / 'run/arguments.json').read_text()) == {'lr': 0.1, 'size': [1, 2]}
    assert json.loads((tmp_path / 'run/arguments-2.json').read_text())['epoch'] == 3


def test_check_same_run_names_keys_and_both_values(tmp_path, recipe):
    log.check_same_run(tmp_path / 'run', {'lr': 1})  # no folder yet
    start(tmp_path / 'run', recipe).log_arguments({'lr': 0.1, 'size': (1, 2), 'epoch': 3, 'old': 1})
    same = {'lr': 0.1, 'size': (1, 2), 'epoch': 9, 'old': 1}
    log.check_same_run(tmp_path / 'run', same, ignore=('epoch',))
    with pytest.raises(UserError) as error:
        log.check_same_run(tmp_path / 'run', {'lr': 0.2, 'size': (1, 2), 'epoch': 3, 'new': 'x'})
    message = str(error.value)
    assert 'lr 0.1 -> 0.2' in message and 'change `name`' in message and '\n' not in message
    assert 'old 1 -> absent' in message and 'new absent -> "x"' in message
    assert 'size' not in message and 'epoch' not in message


def test_check_same_run_refuses_arguments_it_cannot_read(tmp_path):
    (tmp_path / 'arguments.json').write_text('{"lr": ')
    with pytest.raises(UserError, match='not readable'):
        log.check_same_run(tmp_path, {'lr': 1})


def test_curves_are_drawn_by_split_when_values_came_and_again_after_a_resume(tmp_path, recipe):
    logger = start(tmp_path / 'run', recipe)
    for step in range(300):
        logger.log_metrics({'train/loss': 1 / (step + 1), 'train/lr': 0.1}, step)
    logger.log_metrics({'seed1/dino/eer': 5.0, 'speed': 1.0}, 1)
    logger.curves()
    curves = tmp_path / 'run/curves'
    assert sorted(p.name for p in curves.iterdir()) == ['run.png', 'seed1-dino.png', 'train.png']
    for name in ('run', 'train'):
        (curves / f'{name}.png').write_bytes(b'old')
    logger.log_metrics({'speed': 1.0}, 2)
    logger.finish()
    assert (curves / 'run.png').read_bytes().startswith(b'\x89PNG')
    assert (curves / 'train.png').read_bytes() == b'old'  # nothing new to show
    start(tmp_path / 'run', recipe).finish()  # a killed one may have drawn less than it logged
    assert (curves / 'train.png').read_bytes().startswith(b'\x89PNG')


def test_curves_leave_no_global_plot_state(tmp_path, recipe):
    code = (
        'import sys\n'
        'from shared.log.pictures import curves_png\n'
        'import numpy as np\n'
        'x = np.arange(5)\n'
        'assert curves_png("train", {"train/a": (x, x)}).startswith(b"\\x89PNG")\n'
        'assert "matplotlib.pyplot" not in sys.modules\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_images_texts_and_models_are_files_of_their_name(tmp_path, recipe):
    logger = start(tmp_path / 'run', recipe)
    logger.log_image('valid/det', b'first', 3)
    logger.log_text('../escape', 'text')
    logger.save_model('student', {'w': torch.arange(3)})
    assert (tmp_path / 'run/images/valid-det_000003.png').read_bytes() == b'first'
    assert (tmp_path / 'run/text/escape.txt').read_text() == 'text'
    loaded = torch.load(tmp_path / 'run/models/student.pt', weights_only=True)
    assert loaded['w'].tolist() == [0, 1, 2]


def test_a_failed_write_leaves_the_old_file_and_one_line(tmp_path, recipe, monkeypatch):
    logger = start(tmp_path / 'run', recipe)
    logger.log_text('note', 'old')

    def full(self, content):
        raise OSError(28, 'No space left on device', str(self))

    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(UserError, match='No space left') as error:
        logger.log_text('note', 'new')
    assert '\n' not in str(error.value)
    assert (tmp_path / 'run/text/note.txt').read_text() == 'old'


def test_values_that_json_does_not_know_are_written_as_text_without_secrets(tmp_path):
    class Odd:
        def __str__(self):
            return f'odd {MARKER}'

    assert json.loads(files.as_json({'a': Odd(), 'p': Path('x')})) == {
        'a': 'odd <redacted>',
        'p': 'x',
    }


def test_provenance_survives_a_git_that_hangs(tmp_path, monkeypatch):
    def hang(*args, **kwargs):
        raise subprocess.TimeoutExpired('git', 1)

    monkeypatch.setattr(subprocess, 'run', hang)
    assert provenance.commit(tmp_path)[1] == ''
