"""The README's table names tests that are there, and its lines of Python work."""

import ast
import re
from pathlib import Path

import torch

from shared.datasets.items import Sample, collate
from shared.weight_files import write

README = Path(__file__).with_name('README.md')
LINK = re.compile(r'\[([^]]+)\]\(([^)]+)\)')
ASKED_FOR = re.compile(r"skipif\(\s*'(SV_\w+)' not in os\.environ|os\.environ\.get\('(SV_\w+)'")


def rows():
    """The cells of each fault."""
    lines = [line for line in README.read_text().splitlines() if line.startswith('| ')]
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[1:]]
    return [row for row in cells if not row[0].startswith('**')]


def names_in(path):
    """name -> line of the functions at the top of a file."""
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_names_tests_that_are_there():
    assert len(rows()) > 25
    for fault, provoked, happens, _ in rows():
        links = LINK.findall(provoked)
        assert links and happens, fault
        for name, target in links:
            path = (README.parent / target).resolve()
            assert path.is_file(), f'{fault}: {target}'
            if 'test_' in name:
                assert name.strip('*') in names_in(path), f'{fault}: {name} is not in {target}'


def test_tests_that_must_be_asked_for_are_marked_and_the_variable_told():
    text = README.read_text()
    for _, provoked, _, _ in rows():
        for name, target in LINK.findall(provoked):
            source = (README.parent / target).read_text()
            asked = ASKED_FOR.search(source.partition('def ')[0])
            assert name.startswith('*') == bool(asked), name
            if asked:
                assert f'{asked[1] or asked[2]}=' in text, name


def test_lines_for_a_bad_batch_show_what_is_in_it(tmp_path, python):
    wave = torch.full((1, 40), 0.25).numpy()
    wave[0, 3] = float('nan')
    state = {
        'step': 7,
        'files': [['/data/a.wav']],
        'values': {6: {'loss': 1.5}, 7: {'loss': float('inf')}},
        'batch': collate([Sample(wave, label=0, index=0)]),
    }
    write(state, tmp_path / 'bad_batch.pt')
    [lines] = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)
    shown = python('-c', lines.replace("'bad_batch.pt'", repr(str(tmp_path / 'bad_batch.pt'))))
    assert shown.returncode == 0, shown.stderr
    expected = ['7', "[['/data/a.wav']]", "(6, {'loss': 1.5})", "(7, {'loss': inf})"]
    assert shown.stdout.splitlines()[:4] == expected
    assert 'nan' in shown.stdout.splitlines()[4]
