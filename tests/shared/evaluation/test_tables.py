"""Rows of seeds averaged, and tables as text."""

from shared.evaluation.tables import mean_row, text_table


def test_mean_row_averages_the_columns_that_all_rows_have_behind_the_named_ones():
    rows = [
        {'step': 'dino', 'seed': 1, 'EER %': 30.0, 'NMI %': 70.0},
        {'step': 'dino', 'seed': 2, 'EER %': 31.0},
        {'step': 'dino', 'seed': 5, 'EER %': 35.0, 'NMI %': 72.0},
    ]
    found = mean_row(rows, step='dino', seed='mean of 3')
    assert found == {'step': 'dino', 'seed': 'mean of 3', 'EER %': 32.0}
    assert list(found) == ['step', 'seed', 'EER %']


def test_text_table_aligns_numbers_right_and_shows_what_is_missing():
    rows = [{'name': 'a', 'EER %': 12.25}, {'name': 'long', 'EER %': None, 'share': 0.5}]
    assert text_table(rows).splitlines() == [
        'name  EER %  share',
        '----  -----  -----',
        'a     12.25      -',
        'long      -  0.500',
    ]
