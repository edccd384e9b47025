"""All benchmarks in one table: they go on after a miss, and the status tells of it."""

import json
import re

import pytest

SCRIPT = """
import sys
import table
table.hand_over([table.row('{name}', {ours}, 4.0, unit='s', target='>= 2x')], sys.argv[-1])
sys.exit({status})
"""


@pytest.fixture
def run(bench, tmp_path, monkeypatch):
    """The module, on a folder of three benchmarks of our own."""
    module = bench('run')
    monkeypatch.setattr(module, 'HERE', tmp_path)
    monkeypatch.setattr(module, 'README', tmp_path / 'README.md')
    monkeypatch.setattr(module, 'KEPT', tmp_path / 'rows.json')
    monkeypatch.setattr(module, 'SCRIPTS', {'good': True, 'slow': True, 'broken': False})
    monkeypatch.setenv('PYTHONPATH', str(module.table.__file__).rpartition('/')[0])
    (tmp_path / 'good.py').write_text(SCRIPT.format(name='good row', ours=1.0, status=0))
    (tmp_path / 'slow.py').write_text(SCRIPT.format(name='slow row', ours=3.0, status=1))
    (tmp_path / 'broken.py').write_text('raise SystemExit(3)')
    begin, end = (mark.format('table') for mark in (module.table.BEGIN, module.table.END))
    (tmp_path / 'README.md').write_text(f'# Ours\n{begin}\n{end}\nexplained\n')
    return module


def command(run, monkeypatch, *words):
    monkeypatch.setattr('sys.argv', ['run.py', *words])
    return run.main()


def test_miss_and_failure_are_named_after_all_have_run(run, tmp_path, monkeypatch, capfd):
    assert command(run, monkeypatch) == 1
    printed = capfd.readouterr().out
    assert 'slow: missed slow row' in printed and 'broken: status 3' in printed
    text = (tmp_path / 'README.md').read_text()
    assert text.startswith('# Ours\n') and text.endswith('explained\n')
    assert 'good row | 1.00 s | 4.00 s | 4.00x | >= 2x, met' in text
    assert '- not measured: broken' in text and re.search(r'- good, slow: \d{4}-.*commit', text)


def test_one_alone_leaves_the_rows_of_the_others(run, tmp_path, monkeypatch):
    command(run, monkeypatch)
    (tmp_path / 'good.py').write_text(SCRIPT.format(name='good row', ours=0.5, status=0))
    assert command(run, monkeypatch, '--only', 'good') == 0
    text = (tmp_path / 'README.md').read_text()
    assert 'slow row' in text and '| 8.00x |' in text and '| 4.00x |' not in text
    assert list(json.loads((tmp_path / 'rows.json').read_text())) == ['good', 'slow', 'broken']


def test_quick_run_writes_nothing(run, tmp_path, monkeypatch):
    before = (tmp_path / 'README.md').read_text()
    assert command(run, monkeypatch, '--quick', '--only', 'good') == 0
    assert (tmp_path / 'README.md').read_text() == before and not run.KEPT.exists()


def test_every_benchmark_takes_the_options_that_run_gives_it(bench):
    run = bench('run')
    for name, quick in run.SCRIPTS.items():
        source = (run.HERE / f'{name}.py').read_text()
        assert 'add_json(' in source and 'hand_over(' in source, name
        assert ("'--quick'" in source) == quick, name
        for option in run.QUICKER.get(name, ())[:1]:
            assert repr(option) in source, name


def test_readme_shows_the_rows_that_are_kept(bench):
    run = bench('run')
    text = run.README.read_text()
    assert run.table.replace_part(text, 'table', run.generated(run.read_kept()), '') == text


def test_unknown_benchmark_is_refused(run, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        command(run, monkeypatch, '--only', 'nothing')
    assert 'nothing' in capsys.readouterr().err
