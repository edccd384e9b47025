"""benchmarks/scale.py on a small tree: its files are audio, its steps work, a miss is status 1."""

import json
import sys

import numpy as np
import pytest

from shared.datasets.lists import sizes_below
from shared.datasets.reading import AudioReader
from shared.datasets.voxceleb import read_list, read_trials


@pytest.fixture
def scale(bench, monkeypatch):
    module = bench('scale')
    monkeypatch.setattr(module, 'TRIALS', 500)
    monkeypatch.setattr(module, 'BATCH', 8)
    return module


@pytest.fixture
def tree(scale, tmp_path):
    scale.make_tree(tmp_path / 'vox', 2000)
    (tmp_path / 'lists').mkdir()
    return tmp_path / 'vox', tmp_path / 'lists'


def test_the_tree_has_as_many_files_as_asked_all_of_them_audio(tree):
    names, sizes = sizes_below(tree[0])
    parts = np.array([name.split(b'/') for name in names.tolist()])
    assert len(names) == 2000 and len(set(parts[:, 0])) == 10
    assert len({(speaker, video) for speaker, video, _ in parts.tolist()}) == 263
    assert 4 * 32000 < sizes.min() and sizes.max() < 14 * 32000 + 44
    with AudioReader(convert=False).open(tree[0] / names[7].decode()) as audio:
        assert audio.length == (sizes[7] - 44) // 2
        assert not audio.read(audio.length - 5, 5).any()


def test_the_steps_work_on_what_the_ones_before_left(scale, tree, monkeypatch):
    root, lists = tree
    scale.folder(root, lists)
    train = read_list(lists / 'train.txt', root)
    assert len(train) == 2000 and len(train.speaker_ids) == 10
    assert train.seconds.min() >= 4 and train.seconds.max() < 14
    scale.start(root, lists)
    monkeypatch.setattr(scale.trial_files, 'VALID_TRIALS', 30)
    scale.draw(root, lists)
    assert len(read_trials(lists / 'valid.txt', root)) == 60
    scale.long_list(root, lists)
    scale.trials(root, lists)
    assert len(read_trials(lists / 'long.txt')) == 500
    scale.doctor(root, lists)
    assert '2,000' in (lists / 'run' / 'doctor.txt').read_text()


@pytest.mark.slow
def test_a_step_is_measured_in_a_process_of_its_own(scale, tree):
    seconds, processor, peak = scale.run_step('folder', *tree)
    assert (tree[1] / 'train.txt').exists()
    assert seconds > 0 and processor > 0 and 10 < peak < 10_000  # MiB


def test_a_step_that_fails_ends_the_benchmark(scale, tmp_path, monkeypatch):
    monkeypatch.setattr(scale.sys, 'executable', 'false')
    with pytest.raises(SystemExit, match='error: start ended with status 1'):
        scale.run_step('start', tmp_path / 'vox', tmp_path / 'lists')


@pytest.mark.parametrize(
    'measured, status', [((29.0, 9.0, 900.0), 0), ((31.0, 9.0, 900.0), 1), ((9.0, 9.0, 2100.0), 1)]
)
def test_a_missed_target_is_status_one(bench, scale, tmp_path, monkeypatch, measured, status):
    monkeypatch.setattr(scale, 'run_step', lambda *step: measured)
    rows = tmp_path / 'rows.json'
    arguments = ['--files', '20', '--folder', str(tmp_path), '--json', str(rows)]
    monkeypatch.setattr(sys, 'argv', ['scale.py', *arguments])
    assert scale.main() == status
    found = json.loads(rows.read_text())
    assert len(found) == 2 * len(scale.STEPS) and found[0]['ours'] == measured[0]
    assert [path.name for path in tmp_path.iterdir()] == ['rows.json']  # the tree is gone
    assert bench('table').read_rows(rows) == found


def test_a_disk_too_small_is_said_before_anything_is_made(scale, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, 'argv', ['scale.py', '--files', str(10**12), '--folder', str(tmp_path)]
    )
    with pytest.raises(SystemExit, match='2'):
        scale.main()
    assert 'needs 5000000.0 GB' in capsys.readouterr().err and not list(tmp_path.iterdir())
