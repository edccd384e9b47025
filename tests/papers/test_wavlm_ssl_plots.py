"""Label precisions and the pictures of papers/wavlm_ssl (spec wavlm_ssl 4.2)."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread

from shared.clustering.metrics import purity
from shared.evaluation.report import write_report

GATE = SimpleNamespace(weights=(0.8, 0.2), means=(-1.6, 3.0), deviations=(2.5, 0.12), threshold=2.7)
pytestmark = pytest.mark.filterwarnings('error')


@pytest.fixture
def modules(paper):
    return paper('wavlm_ssl')


@pytest.fixture
def plots(modules):
    return modules.plots


@pytest.fixture
def figures(plots, monkeypatch):
    """The figures, looked at instead of being saved, in the order they were drawn."""
    kept = []
    monkeypatch.setattr(plots, 'save_figure', lambda figure, path: kept.append(figure))
    return kept


def losses(count=4000):
    """(count,) log losses of the mixture of `GATE`, and whether each is of the lower component."""
    rng = np.random.default_rng(0)
    lower = rng.random(count) < 0.8
    return np.where(lower, rng.normal(-1.6, 2.5, count), rng.normal(3.0, 0.12, count)), lower


def labelling(seed, count=300):
    """Labels, speakers, kept and corrected, at random."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 12, count)
    speakers = np.array([f'id{n}' for n in rng.integers(0, 7, count)])
    speakers[labels == 3] = 'id3'
    kept = (rng.random(count) < 0.6) & (labels >= 0)
    corrected = np.where(~kept & (rng.random(count) < 0.5), rng.integers(0, 12, count), -1)
    return labels, speakers, kept, corrected


def stairs(axes):
    """Bars of the histogram above their baselines, by group, and the width of a bar."""
    data = [patch.get_data() for patch in axes.patches]
    return [d.values - d.baseline for d in data], np.diff(data[0].edges)


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def line(axes, label):
    return next(one for one in axes.lines if one.get_label() == label)


@pytest.mark.parametrize('seed', range(4))
def test_precisions_equal_a_loop_over_samples(plots, seed):
    labels, speakers, kept, corrected = labelling(seed)
    speaker_of = {}
    for label in set(labels) - {-1}:
        counts = Counter(speakers[labels == label])
        speaker_of[label] = min(counts, key=lambda name: (-counts[name], name))

    def share(chosen, labels):
        hits = [speaker_of.get(labels[i]) == speakers[i] for i in chosen]
        return 100 * sum(hits) / len(hits)

    new = [i for i in range(len(labels)) if corrected[i] >= 0]
    assert plots.precisions(labels, speakers, kept, corrected) == pytest.approx(
        {
            'precision of all %': share(np.flatnonzero(labels >= 0), labels),
            'precision of kept %': share(np.flatnonzero(kept), labels),
            'precision of corrected %': share(new, corrected),
            'precision of corrected before %': share(new, labels),
        }
    )


def test_precision_of_all_is_the_purity_and_right_labels_say_which(plots):
    labels, speakers, kept, corrected = labelling(5)
    labelled = labels >= 0
    found = plots.precisions(labels, speakers, kept, corrected)['precision of all %']
    assert found == pytest.approx(purity(speakers[labelled], labels[labelled]))
    right = plots.right_labels(labels, speakers)
    assert found == pytest.approx(100 * right[labelled].mean()) and not right[~labelled].any()


def test_precision_of_nothing_is_nan_and_an_unused_new_label_is_wrong(plots):
    labels, speakers = np.array([0, 0, 1, -1]), np.array([5, 5, 7, 7])
    none = np.full(4, -1)
    found = plots.precisions(labels, speakers, np.zeros(4), none)
    assert found['precision of all %'] == 100
    assert all(math.isnan(found[f'precision of {name} %']) for name in ('kept', 'corrected'))
    corrected = np.array([-1, 9, 0, 1])  # 9 stands for nobody, 0 for speaker 5, 1 for speaker 7
    found = plots.precisions(labels, speakers, labels == 0, corrected)
    assert found['precision of corrected %'] == pytest.approx(100 / 3)
    assert found['precision of corrected before %'] == pytest.approx(200 / 3)


def test_gate_shows_histogram_of_area_one_mixture_and_threshold(plots, figures):
    x, _ = losses()
    plots.draw_gate('unused', np.append(x, [np.nan, np.nan]), GATE, 'epoch 7', threshold=1.5)
    axes = figures[0].axes[0]
    (bars,), width = stairs(axes)
    assert (bars * width).sum() == pytest.approx(1)
    components = [one for one in axes.lines if one.get_label().startswith('component')]
    for one, weight, mean, deviation in zip(components, GATE.weights, GATE.means, GATE.deviations):
        peak = weight / deviation / math.sqrt(2 * math.pi)
        assert one.get_ydata().max() == pytest.approx(peak, rel=1e-6)
        assert one.get_xdata()[one.get_ydata().argmax()] == mean
        beside = np.interp(mean + deviation, one.get_xdata(), one.get_ydata())
        assert beside == pytest.approx(peak * math.exp(-0.5), rel=0.01)
    both = sum(one.get_ydata() for one in components)
    np.testing.assert_allclose(line(axes, 'both components').get_ydata(), both)
    kept = f'gate 1.50: {100 * np.mean(x <= 1.5):.1f} % kept'
    assert line(axes, kept).get_xdata()[0] == 1.5  # in force, before this fit
    assert line(axes, 'crossing of the components: 2.70').get_xdata()[0] == 2.7
    assert {'all 4,000 losses', kept} <= set(legend(figures[0]))


def test_gate_splits_right_and_wrong_labels_on_top_of_each_other(plots, figures):
    x, right = losses()
    x[:7] = np.nan
    plots.draw_gate('unused', x, GATE, 'whole')
    plots.draw_gate('unused', x, GATE, 'split', threshold=2.7, right=right)
    (whole,), width = stairs(figures[0].axes[0])
    parts, _ = stairs(figures[1].axes[0])
    np.testing.assert_allclose(sum(parts), whole, atol=1e-12)
    assert (parts[0] * width).sum() == pytest.approx(right[7:].mean())
    wrong = x[7:][~right[7:]]
    expected = f'wrong labels ({len(wrong):,}): {100 * np.mean(wrong <= 2.7):.1f} % kept'
    assert expected in legend(figures[1])


def test_gate_without_a_crossing_shows_the_threshold_in_force_alone(plots, figures):
    x, _ = losses()
    gate = SimpleNamespace(**{**vars(GATE), 'threshold': None})
    plots.draw_gate('unused', x, gate, 'old', threshold=1.5)
    assert f'gate 1.50: {100 * np.mean(x <= 1.5):.1f} % kept' in legend(figures[0])
    assert not any('crossing' in text for text in legend(figures[0]))


@pytest.mark.parametrize('gate', [None, GATE], ids=['not fitted', 'fitted'])
@pytest.mark.parametrize('threshold', [None, 1e6])
def test_open_gate_keeps_all_whatever_the_fit_says(plots, figures, gate, threshold):
    plots.draw_gate('unused', losses()[0], gate, 'epoch 1', threshold=threshold)
    assert 'gate open: 100.0 % kept' in legend(figures[0])
    verticals = [one for one in figures[0].axes[0].lines if np.size(one.get_xdata()) == 2]
    assert [one.get_xdata()[0] for one in verticals] == ([2.7] if gate else [])  # the crossing


@pytest.mark.parametrize(
    'x',
    [
        np.zeros(50),
        np.full(50, -np.inf),
        np.array([-np.inf, 0.3, np.inf]),
        np.array([1.0]),
        np.full(5, np.nan),
        np.zeros(0),
    ],
    ids=['constant', 'zero loss', 'not finite', 'one', 'none seen', 'empty'],
)
@pytest.mark.parametrize('fitted', ['no gate', 'a gate', 'its own gate'])
def test_gate_of_degenerate_losses_is_drawn(modules, tmp_path, x, fitted):
    gate = {'no gate': None, 'a gate': GATE, 'its own gate': modules.gate.fit_gate(np.exp(x))}
    path = tmp_path / 'gate.png'
    modules.plots.draw_gate(path, x, gate[fitted], 'degenerate', right=np.zeros(len(x), bool))
    assert imread(path).std() > 0


def history():
    """Four epochs: open, fitted, rejecting everything, correcting."""
    return [
        {'epoch': 1, 'threshold': 1e6, 'kept %': 100.0, 'precision of all %': 80.0},
        {'epoch': 2, 'threshold': 0.3, 'kept %': 70.0, 'corrected %': None},
        {'epoch': 3, 'threshold': -9.0, 'kept %': 0.0, 'precision of kept %': math.nan},
        {'epoch': 4, 'threshold': 2.7, 'kept %': 90.0, 'corrected %': 4.0},
    ]


def test_shares_are_drawn_over_their_epochs_and_gaps_stay_gaps(plots, figures):
    plots.draw_shares('unused', history(), 'round 1')
    share, precision, gate = figures[0].axes
    nan = math.nan
    for axes, label, expected in [
        (share, 'kept', [100, 70, 0, 90]),
        (share, 'corrected', [nan, nan, nan, 4]),
        (precision, 'all', [80, nan, nan, nan]),
        (gate, 'threshold', [nan, 0.3, -9, 2.7]),
    ]:
        np.testing.assert_array_equal(line(axes, label).get_xdata(), [1, 2, 3, 4])
        np.testing.assert_array_equal(line(axes, label).get_ydata(), expected)


def test_shares_without_true_speakers_or_with_one_epoch_leave_panels_out(plots, figures):
    plots.draw_shares('unused', [{'epoch': 1, 'threshold': None, 'kept %': 100.0}])
    assert [axes.get_ylabel() for axes in figures[0].axes] == ['share, %']
    plots.draw_shares('unused', [{'epoch': 1, 'threshold': 1.0, 'kept %': 50.0}])
    assert [axes.get_ylabel() for axes in figures[1].axes] == ['share, %', 'gate, log loss']
    plots.draw_shares('unused', [{'epoch': 1}])  # nothing to show is no reason to stop a run
    assert len(figures[2].axes) == 1


def steps():
    """Two seeds; the second stopped before the last step, which makes no labels."""
    rows = [('DINO', 12.0, 80.0), ('round 0', 8.0, 88.0), ('LMFT', 6.0, None)]
    first = [{'seed': 0, 'step': s, 'EER %': e, 'NMI %': n} for s, e, n in rows]
    return first + [
        {'seed': 1, 'step': s, 'EER %': e + 1, 'NMI %': n and n + 2} for s, e, n in rows[:2]
    ]


def test_steps_show_each_seed_and_the_mean_of_those_that_got_there(plots, figures):
    plots.draw_steps('unused', steps(), 'demo')
    eer, nmi = figures[0].axes
    seeds = [list(one.get_ydata()) for one in eer.lines[:-1]]
    np.testing.assert_array_equal(seeds, [[12, 8, 6], [13, 9, math.nan]])
    assert list(eer.lines[-1].get_ydata()) == [12.5, 8.5, 6.0]
    assert list(nmi.lines[-1].get_xdata()) == [0, 1]
    assert list(nmi.lines[-1].get_ydata()) == [81.0, 89.0]
    assert [text.get_text() for text in eer.texts] == ['12.50', '8.50', '6.00']
    assert [text.get_text() for text in nmi.get_xticklabels()] == ['DINO', 'round 0', 'LMFT']


def test_steps_of_one_seed_without_labels_are_one_line(plots, figures):
    plots.draw_steps('unused', [{'seed': 3, 'step': 'DINO', 'EER %': 12.0}])
    (axes,) = figures[0].axes
    assert len(axes.lines) == 1 and not figures[0].legends


def test_report_shows_the_pictures(plots, tmp_path):
    plots.draw_gate(tmp_path / 'round_1' / 'plots' / 'gate_epoch_07.png', losses()[0], GATE, 'e 7')
    plots.draw_shares(tmp_path / 'round_1' / 'plots' / 'shares.png', history())
    plots.draw_steps(tmp_path / 'plots' / 'steps.png', steps())
    page = write_report(tmp_path).read_text()
    for caption in ('round_1 / gate epoch 07', 'round_1 / shares', 'steps'):
        assert f'<figcaption>{caption}</figcaption>' in page
