"""What an evaluation leaves in its folder and says on the screen."""

import json

import numpy as np
import pytest

from shared.evaluation import results
from shared.evaluation.plots import System
from shared.evaluation.results import (
    Evaluation,
    ScoredSystem,
    compared,
    with_seed,
    write_evaluation,
)


def record(eer, **changes):
    return {
        'name': 'list.txt',
        'known_name': None,
        'eer': eer,
        'eer_interval': None,
        'min_dcf': {'0.01': 0.25, '0.05': 0.125},
        'trials': 40,
        **changes,
    }


def evaluation(name, eer, systems=(), **changes):
    labels = np.arange(40) % 2 == 0
    scores = np.linspace(-1, 1, 40) + labels
    return Evaluation(name, record(eer, **changes), scores, labels, systems)


@pytest.fixture
def drawn(monkeypatch):
    """File names of the pictures and what they show, instead of pictures."""
    kept = {}
    monkeypatch.setattr(
        results.plots, 'draw_det', lambda path, systems, title: kept.update({path.name: systems})
    )
    monkeypatch.setattr(
        results.plots, 'draw_histogram', lambda path, *_, title: kept.update({path.name: title})
    )
    return kept


def test_evaluation_leaves_pictures_results_and_a_report_that_shows_them(tmp_path):
    folder = tmp_path / 'run' / 'evaluation'
    text = write_evaluation(folder, [{'phase': 'warm-up', 'EER %': 7.5}], [evaluation('O', 7.25)])
    assert sorted(path.name for path in (folder / 'plots').iterdir()) == [
        'det_O.png',
        'scores_O.png',
    ]
    kept = json.loads((folder / 'results.json').read_text())
    assert kept['table'] == [{'phase': 'warm-up', 'EER %': 7.5}]
    assert kept['evaluations'] == [{'list': 'O', **record(7.25)}]
    assert (folder / 'report.html').read_text().count('data:image/png') == 2
    assert text.endswith(f'\n\nreport: {folder / "report.html"}')


def test_text_holds_both_tables_with_the_columns_that_are_filled(tmp_path, drawn):
    evaluations = [
        evaluation('O', 7.25, eer_interval=[6.0, 8.504]),
        evaluation('E', 9.0, converted={'resampled': 2, 'mixed to mono': 1}),
    ]
    text = write_evaluation(tmp_path, [{'phase': 'one', 'EER %': 7.5}], evaluations)
    table, summary, _ = (part.splitlines() for part in text.split('\n\n'))
    assert table[0].split() == ['phase', 'EER', '%'] and table[2].split() == ['one', '7.50']
    assert summary[0].split('  ')[0] == 'list' and 'converted files' in summary[0]
    assert summary[2].split() == 'O 7.25 6.00 to 8.50 0.250 0.125 40 -'.split()
    assert summary[3].split() == 'E 9.00 - 0.250 0.125 40 2 resampled, 1 mixed to mono'.split()

    text = write_evaluation(tmp_path, [], [evaluation('O', 7.25, converted={})])
    assert 'converted' not in text and '95 %' not in text and text.startswith('list')


def test_evaluations_of_one_name_do_not_overwrite_each_other(tmp_path, drawn):
    names = ['O', 'O', 'O_2', 'O', 'a/b', 'a_b']
    write_evaluation(tmp_path, [], [evaluation(name, float(i)) for i, name in enumerate(names)])
    expected = ['O', 'O_3', 'O_2', 'O_4', 'a_b', 'a_b_2']
    assert list(drawn) == [f'{kind}_{name}.png' for name in expected for kind in ('scores', 'det')]
    kept = json.loads((tmp_path / 'results.json').read_text())['evaluations']
    assert [(entry['list'], entry['eer']) for entry in kept] == [
        (name, float(i)) for i, name in enumerate(expected)
    ]


def test_det_plot_shows_the_given_systems_or_this_one(tmp_path, drawn):
    first = evaluation('O', 7.0)
    systems = [System(name, first.scores, first.labels) for name in ('warm-up', 'fine-tuned')]
    named = evaluation('E', 7.0, systems, known_name='Vox1-E cleaned')
    write_evaluation(tmp_path, [], [first, named])
    assert drawn['det_E.png'] == systems
    (alone,) = drawn['det_O.png']
    assert np.array_equal(alone.scores, first.scores)
    assert drawn['scores_O.png'] == 'O: 40 trials'
    assert drawn['scores_E.png'] == 'Vox1-E cleaned: 40 trials'


def test_evaluation_without_scores_is_listed_but_not_drawn(tmp_path, drawn):
    text = write_evaluation(tmp_path, [], [Evaluation('noise 0 dB', record(12.5))])
    assert not drawn and 'noise 0 dB' in text


def test_other_ranks_write_and_say_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(results.ddp, 'is_main', lambda: False)
    assert write_evaluation(tmp_path / 'run', [], [evaluation('O', 7.0)]) == ''
    assert not list(tmp_path.iterdir())


def test_compared_systems_share_their_curves_on_the_first_list_alone(tmp_path):
    labels, systems = np.arange(6) % 2 == 0, []
    for number, name in enumerate(('a', 'b')):
        np.save(tmp_path / f'{name}.npy', np.arange(6.0) + number)
        records = [record(10.0 + number, crop='full'), record(20.0, name='E', crop='full')]
        systems.append(ScoredSystem(name, tmp_path / f'{name}.npy', records))
    found = compared(systems, labels)
    names = [f'{system}, {name}, full' for system in 'ab' for name in ('list.txt', 'E')]
    assert [one.name for one in found] == names
    assert [one.record['eer'] for one in found] == [10.0, 20.0, 11.0, 20.0]
    first, *others = found
    assert [curve.name for curve in first.systems] == ['a', 'b']
    np.testing.assert_array_equal(first.systems[1].scores, np.arange(6.0) + 1)
    np.testing.assert_array_equal(first.scores, np.arange(6.0))
    assert not any(len(one.systems) for one in others) and others[0].scores is None


def test_seed_is_in_the_name_where_there_are_several():
    assert with_seed('x', 1, (1, 1)) == 'x' and with_seed('x', 1, (1, 2)) == 'x, seed 1'
