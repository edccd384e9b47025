"""The rows of the benchmarks and the table of them."""

import json

import pytest

from shared.errors import UserError


@pytest.fixture
def table(bench):
    return bench('table')


def test_ratio_says_how_many_times_better_ours_is(table):
    assert table.row('x', 2.0, 6.0, unit='s')['ratio'] == 3
    assert table.row('x', 6.0, 2.0, unit='files/s')['ratio'] == 3
    assert table.row('x', 6.0, unit='s')['ratio'] is None


@pytest.mark.parametrize(
    'target, unit, ours, other, expected',
    [
        ('>= 3x', 's', 2.0, 6.0, True),
        ('>= 3x', 's', 2.0, 5.9, False),
        ('>= 3x', 's', 2.0, float('nan'), False),
        ('< 2 s', 's', 1.9, None, True),
        ('< 2 s', 's', 2.0, None, False),
        ('> 9 MB/s', 'MB/s', 9.5, None, True),
        (None, 's', 1.0, 2.0, None),
        ('>= 3x', 's', None, None, None),
    ],
)
def test_target_is_met_or_missed(table, target, unit, ours, other, expected):
    one = table.row('x', ours, other, unit=unit, target=target)
    table.check_target(one)
    assert table.met(one) is expected


@pytest.mark.parametrize(
    'change, expected',
    [
        ({'target': '3x'}, "write '>= 5x' or '< 2 s'"),
        ({'target': '< 2 ms'}, 'is not in its unit, s'),
        ({'target': '>= 3x', 'ratio': None}, 'nothing to compare with'),
        ({'colour': 'red'}, 'needs exactly what, ours'),
    ],
)
def test_wrong_row_is_refused(table, tmp_path, change, expected):
    file = tmp_path / 'rows.json'
    file.write_text(json.dumps([{**table.row('x', 1.0, 2.0, unit='s'), **change}]))
    with pytest.raises(UserError, match=expected):
        table.read_rows(file)


def test_rows_survive_the_way_through_a_file(table, tmp_path):
    rows = [table.row('x', 1.5, 3.0, unit='s', target='>= 2x'), table.row('y', None, unit='s')]
    table.hand_over(rows, str(tmp_path / 'rows.json'))
    table.hand_over(rows, None)  # nobody asked
    assert table.read_rows(tmp_path / 'rows.json') == rows
    with pytest.raises(UserError, match='nothing.json: no rows'):
        table.read_rows(tmp_path / 'nothing.json')


def test_table_names_what_was_missed_and_what_was_not_measured(table):
    rows = [
        table.row('met', 1.0, 5.0, unit='s', target='>= 5x'),
        table.row('slow', 2.0, unit='s', target='< 2 s'),
        table.row('on a GPU', None, unit='s', target='>= 20x', device='GPU'),
    ]
    lines = table.markdown(rows).splitlines()[2:]
    assert lines[0] == '| met | 1.00 s | 5.00 s | 5.00x | >= 5x, met | CPU, 1 thread |'
    assert '< 2 s, **MISSED**' in lines[1]
    assert lines[2] == '| on a GPU | not measured |  |  | >= 20x | GPU |'


@pytest.mark.parametrize(
    'value, expected',
    [
        (0, '0'),
        (0.01234, '0.0123'),
        (1.005, '1.00'),
        (98.76, '98.8'),
        (1234.5, '1,230'),
        (float('inf'), 'inf'),
    ],
)
def test_figure_has_three_digits(table, value, expected):
    assert table.figure(value) == expected


def test_part_between_markers_is_replaced_and_the_rest_stays(table):
    begin, end = (mark.format('table') for mark in (table.BEGIN, table.END))
    text = f'before\n{begin}\nold\n{end}\nafter\n'
    once = table.replace_part(text, 'table', 'new\n', 'README.md')
    assert once == f'before\n{begin}\nnew\n{end}\nafter\n'
    assert table.replace_part(once, 'table', 'new', 'README.md') == once
    for broken in ('nothing', f'{end}\n{begin}', text + text):
        with pytest.raises(UserError, match=r'README\.md: needs one line'):
            table.replace_part(broken, 'table', 'new', 'README.md')
