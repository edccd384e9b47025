"""Plots: what is drawn where, files written whole."""

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.special import ndtr

from shared.errors import UserError
from shared.evaluation import plots
from shared.evaluation.metrics import det_curve, eer
from shared.evaluation.plots import Line, System, draw_det, draw_histogram, draw_lines


def gaussian_trials(size=3000, distance=2.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random(size) < 0.5
    return rng.standard_normal(size) + distance * labels, labels


@pytest.fixture
def figure(monkeypatch):
    """The figure of the last plot, looked at instead of being saved."""
    kept = []
    monkeypatch.setattr(plots, 'save_figure', lambda drawn, path: kept.append(drawn))
    return kept


def test_plots_are_png_files_of_report_width(tmp_path):
    trials = gaussian_trials()
    draw_det(tmp_path / 'new' / 'det.png', [System('a', *trials)], title='title')
    draw_histogram(tmp_path / 'scores.png', *trials)
    assert sorted(path.name for path in tmp_path.rglob('*.*')) == ['det.png', 'scores.png']
    for path in tmp_path.rglob('*.png'):
        picture = imread(path)
        assert picture.shape[1] == 1080
        assert picture[..., :3].std() > 0.05  # something was drawn


def test_an_older_picture_stays_when_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / 'det.png'
    path.write_bytes(b'older')

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(plots.FigureCanvasAgg, 'print_png', full)
    with pytest.raises(UserError, match='No space'):
        draw_det(path, [System('a', *gaussian_trials())])
    assert path.read_bytes() == b'older'


def test_det_curve_passes_through_the_operating_points(figure):
    scores, labels = gaussian_trials()
    draw_det('unused', [System('Stage I', scores, labels)], p_targets=(0.05,))
    line, eer_point, dcf_point = figure[0].axes[0].lines[:3]
    curve = det_curve(scores, labels)
    false_alarm, miss = ndtr(line.get_xdata()), ndtr(line.get_ydata())
    at_two_percent = miss[np.searchsorted(-false_alarm, -0.02)]
    assert at_two_percent == pytest.approx(curve.fnr[np.argmax(curve.fpr <= 0.02)], abs=0.003)
    value = eer(scores, labels).value / 100
    assert ndtr(eer_point.get_xdata()) == pytest.approx(value)
    assert ndtr(eer_point.get_ydata()) == pytest.approx(value)
    best = np.argmin(0.05 * curve.fnr + 0.95 * curve.fpr)
    assert ndtr(dcf_point.get_xdata()) == pytest.approx(curve.fpr[best])
    assert ndtr(dcf_point.get_ydata()) == pytest.approx(curve.fnr[best])


def test_det_legend_tells_systems_and_numbers(figure):
    strong, weak = gaussian_trials(distance=3), gaussian_trials(distance=0.5)
    draw_det('unused', [System('strong', *strong), System('weak', *weak)])
    texts = [text.get_text() for text in figure[0].legends[0].get_texts()]
    for text, name, trials in zip(texts, ('strong', 'weak'), (strong, weak)):
        curve = det_curve(*trials)
        assert text == (
            f'{name}: EER {curve.eer().value:.2f} %, minDCF {curve.min_dcf(0.01).value:.3f} '
            f'(p = 0.01), {curve.min_dcf(0.05).value:.3f} (p = 0.05)'
        )
    key = [text.get_text() for text in figure[0].axes[0].artists[0].get_texts()]
    assert key == ['EER', 'minDCF, p = 0.01', 'minDCF, p = 0.05']


def test_det_of_many_trials_is_drawn_with_few_points(figure):
    draw_det('unused', [System('a', *gaussian_trials(size=200_000))])
    assert len(figure[0].axes[0].lines[0].get_xdata()) < 10_000


def test_systems_differ_in_colour_and_dashes(figure):
    draw_det('unused', [System(str(i), *gaussian_trials(100, seed=i)) for i in range(7)])
    lines = [line for line in figure[0].axes[0].lines if not line.get_label().startswith('_')]
    assert len({line.get_color() for line in lines}) == 7
    assert all(a.get_linestyle() != b.get_linestyle() for a, b in zip(lines[:3], lines[1:4]))


@pytest.mark.parametrize('distance', [0.0, 1.0])
def test_extreme_systems_can_be_drawn(figure, distance):
    labels = np.arange(10) % 2
    draw_det('unused', [System('useless or perfect', distance * labels, labels)])
    draw_histogram('unused', distance * labels, labels)
    axes = figure[0].axes[0]
    assert axes.get_xlim()[0] < axes.get_xlim()[1]
    drawn = np.concatenate([line.get_xydata() for line in axes.lines if len(line.get_xdata())])
    assert np.isfinite(drawn).all()


def test_a_system_best_rejected_has_no_min_dcf_point(figure):
    labels = np.arange(10) % 2
    draw_det('unused', [System('useless', 0.0 * labels, labels)])
    assert [line.get_marker() for line in figure[0].axes[0].lines[1:]].count('o') == 1
    assert not {'s', '^'} & {line.get_marker() for line in figure[0].axes[0].lines}


def test_det_refuses_what_it_cannot_draw(tmp_path):
    with pytest.raises(ValueError, match='0 systems'):
        draw_det(tmp_path / 'det.png', [])
    with pytest.raises(ValueError, match='both classes'):
        draw_det(tmp_path / 'det.png', [System('a', np.zeros(3), np.ones(3))])
    assert not list(tmp_path.iterdir())


def test_histogram_densities_have_area_one_and_a_threshold(figure):
    scores, labels = gaussian_trials()
    draw_histogram('unused', scores, labels)
    axes = figure[0].axes[0]
    outlines = [patch.get_data() for patch in axes.patches if patch.get_label()]
    assert len(outlines) == 2
    for heights, edges, _ in outlines:
        assert np.sum(heights * np.diff(edges)) == pytest.approx(1.0)
    value, threshold = eer(scores, labels)
    assert axes.lines[0].get_xdata()[0] == threshold
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts[2] == f'EER {value:.2f} % at {threshold:.3f}'
    assert texts[1] == f'same speaker ({labels.sum():,})'


# --- errors over a condition

SNR = (0, 5, 10)


def noisy_lines():
    """Two systems in three panels, the second of them clean at 2 and 1 %."""
    return [
        Line(name, SNR, [scale * y for y in (8, 4, 3)], panel, reference=scale * 2)
        for panel in ('noise', 'speech', 'music')
        for name, scale in (('alone', 1.0), ('warmed up', 0.5))
    ]


def test_lines_are_a_png_of_report_width(tmp_path):
    draw_lines(tmp_path / 'new' / 'snr.png', noisy_lines(), xlabel='SNR (dB)', ylabel='EER (%)')
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['snr.png']
    picture = imread(tmp_path / 'new' / 'snr.png')
    assert picture.shape[1] == 1080 and picture[..., :3].std() > 0.05


def test_each_panel_shows_its_lines_and_their_references(figure):
    lines = noisy_lines()
    draw_lines('unused', lines, xlabel='SNR (dB)', ylabel='EER (%)', title='Vox1-O')
    panels = [axes for axes in figure[0].axes if axes.axison]
    assert [axes.get_title() for axes in panels] == ['noise', 'speech', 'music']
    assert figure[0].get_suptitle() == 'Vox1-O'
    for axes, two in zip(panels, (lines[0:2], lines[2:4], lines[4:6])):
        drawn = {line.get_label(): line for line in axes.lines}
        for line in two:
            assert list(drawn[line.name].get_xdata()) == list(line.x)
            assert list(drawn[line.name].get_ydata()) == list(line.y)
            levels = [
                other.get_ydata()[0]
                for other in axes.lines
                if other.get_linestyle() == ':'
                and other.get_color() == drawn[line.name].get_color()
            ]
            assert levels == [line.reference]
        assert [text.get_text() for text in axes.texts] == ['8.00', '1.50']


def test_panels_share_axes_from_zero_and_hold_every_value(figure):
    lines = [*noisy_lines(), Line('alone', (0, 20), (1.0, 30.0), 'unseen')]
    draw_lines('unused', lines, xlabel='SNR (dB)', ylabel='EER (%)')
    ends = {axes.get_ylim() for axes in figure[0].axes}
    assert len(ends) == 1 and ends.pop() == (0, pytest.approx(33.6))
    assert len({axes.get_xlim() for axes in figure[0].axes}) == 1
    low, high = figure[0].axes[0].get_xlim()
    assert low < 0 and high > 20
    assert [axes.get_ylabel() for axes in figure[0].axes] == ['EER (%)', '', 'EER (%)', '']
    assert [axes.get_xlabel() for axes in figure[0].axes] == ['', '', 'SNR (dB)', 'SNR (dB)']


def test_panel_above_an_empty_place_has_its_own_axis_numbers(figure):
    draw_lines('unused', noisy_lines(), xlabel='SNR (dB)', ylabel='EER (%)')
    assert [axes.get_xlabel() for axes in figure[0].axes[:3]] == ['', 'SNR (dB)', 'SNR (dB)']
    shown = [axes.xaxis.get_tick_params()['labelbottom'] for axes in figure[0].axes[:3]]
    assert shown == [False, True, True]


def test_a_system_looks_alike_in_every_panel_and_stands_once_in_the_legend(figure):
    lines = noisy_lines()[1:]  # the first panel lacks the first system
    draw_lines('unused', lines, xlabel='', ylabel='', reference_name='clean')
    looks = {}
    for axes in figure[0].axes:
        for line in axes.lines:
            if not line.get_label().startswith('_'):
                look = line.get_color(), line.get_linestyle(), line.get_marker()
                looks.setdefault(line.get_label(), set()).add(look)
    assert looks.keys() == {'alone', 'warmed up'} and all(len(x) == 1 for x in looks.values())
    assert looks['alone'] != looks['warmed up']
    texts = [text.get_text() for text in figure[0].legends[0].get_texts()]
    assert texts == ['warmed up', 'alone', 'clean']


def test_legend_of_lines_without_reference_names_none_and_lies_outside(figure):
    draw_lines('unused', [Line('one', SNR, (3, 2, 1))], xlabel='SNR (dB)', ylabel='EER (%)')
    assert [text.get_text() for text in figure[0].legends[0].get_texts()] == ['one']
    plots.FigureCanvasAgg(figure[0]).draw()
    (axes,) = figure[0].axes
    assert axes.get_tightbbox().y0 >= figure[0].legends[0].get_window_extent().y1


def test_lines_refuse_what_they_cannot_draw(tmp_path):
    for lines, message in (
        ([], 'no line'),
        ([Line('a', (), ())], 'a: 0 x, 0 y'),
        ([Line('a', (1, 2), (3,))], 'a: 2 x, 1 y'),
        ([Line('a', (1,), (float('nan'),))], 'a: .*not finite'),
        ([Line('a', (1,), (1,), reference=float('inf'))], 'a: .*not finite'),
    ):
        with pytest.raises(ValueError, match=message):
            draw_lines(tmp_path / 'a.png', lines, xlabel='', ylabel='')
    assert not list(tmp_path.iterdir())
