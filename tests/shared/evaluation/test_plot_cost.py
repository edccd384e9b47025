"""The trade-off plot: where circles are, how large, and that no name covers another."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread

from shared.evaluation import plot_cost
from shared.evaluation.plot_cost import Point, draw_tradeoff

POINTS = [
    Point('teacher, fine-tuned', 0.31, 3.2, 94.7),
    Point('student without KD', 0.0967, 6.4, 24.0),
    Point('KD, then FT', 0.0967, 5.4, 24.0),
    Point('both at once', 0.0967, 5.3, 24.0),
]
LABELS = {'xlabel': 's/s', 'ylabel': 'EER, %', 'size_name': 'parameters, M'}


@pytest.fixture
def drawn(monkeypatch):
    """`drawn(points)`: the figure, looked at instead of being saved."""
    kept = []
    monkeypatch.setattr(plot_cost, 'save_figure', lambda figure, path: kept.append(figure))

    def draw(points):
        draw_tradeoff('unused', points, **LABELS)
        return kept[-1]

    return draw


def boxes(figure):
    """Those of the names, in pixels, by their text, and those of the circles."""
    renderer, axes = FigureCanvasAgg(figure).get_renderer(), figure.axes[0]
    names = {text.get_text(): text.get_window_extent(renderer) for text in axes.texts}
    circles = []
    for circle in axes.collections:
        centre = axes.transData.transform(circle.get_offsets()[0])
        reach = np.sqrt(circle.get_sizes()[0]) / 2 * figure.dpi / 72
        circles.append((centre - reach, centre + reach))
    return names, circles


def overlap(low, high, other_low, other_high):
    return bool(np.all(np.minimum(high, other_high) - np.maximum(low, other_low) > 1))


@pytest.mark.parametrize(
    'points',
    [
        POINTS,
        [Point(f'system number {i}', 0.1, 5.0, 20.0) for i in range(8)],  # all at one place
        [Point(f'a rather long name of system {i}', 1 + 0.01 * i, 5, 9) for i in range(8)],
    ],
    ids=['two close', 'one place', 'a row'],
)
def test_names_cover_neither_each_other_nor_circles_and_stay_inside(drawn, points):
    figure = drawn(points)
    names, circles = boxes(figure)
    assert list(names) == [point.name for point in points]
    inside = figure.axes[0].get_window_extent()
    for name, box in names.items():
        others = [(b.min, b.max) for other, b in names.items() if other != name]
        assert not any(overlap(box.min, box.max, *other) for other in others + circles)
        assert (box.min >= inside.min).all() and (box.max <= inside.max).all()


def test_names_far_from_their_circles_have_lines_to_them(drawn):
    lines = [line for line in drawn(POINTS).axes[0].lines if len(line.get_xdata()) == 2]
    assert not lines
    figure = drawn([Point(f'number {i}', 0.1, 5.0, 20.0) for i in range(12)])
    assert any(len(line.get_xdata()) == 2 for line in figure.axes[0].lines)


def test_circles_are_at_their_points_with_areas_in_proportion(drawn):
    axes = drawn(POINTS).axes[0]
    assert [tuple(c.get_offsets()[0]) for c in axes.collections] == [(p.x, p.y) for p in POINTS]
    areas = [circle.get_sizes()[0] for circle in axes.collections]
    np.testing.assert_allclose(np.divide(areas, areas[0]), [p.size / 94.7 for p in POINTS])


def test_legend_shows_round_sizes_in_the_same_proportion(drawn):
    figure = drawn(POINTS)
    (legend,) = figure.legends
    assert legend.get_title().get_text() == 'parameters, M'
    assert [text.get_text() for text in legend.get_texts()] == ['2', '10', '50']
    largest = figure.axes[0].collections[0].get_sizes()[0]
    for handle, size in zip(legend.legend_handles, (2, 10, 50)):
        assert handle.get_markersize() ** 2 / largest == pytest.approx(size / 94.7)


@pytest.mark.parametrize('size', [0.03, 1.0, 1.999, 4.0, 5.0, 94.7, 324.8, 1000.0])
def test_round_sizes_fit_whatever_the_largest_is(size):
    sizes = plot_cost._round_sizes(size)
    assert sizes == sorted(sizes) and sizes[-1] <= size < 2.6 * sizes[-1]


def test_x_is_logarithmic_from_a_ratio_of_ten(drawn):
    far = [*POINTS, Point('far', 3.2, 2.0, 9.0)]
    for points, scale in (
        (POINTS, 'linear'),
        (far, 'log'),
        ([*far, Point('0', 0, 1, 1)], 'linear'),
    ):
        axes = drawn(points).axes[0]
        assert axes.get_xscale() == scale
        low, high = axes.get_xlim()
        assert low <= min(p.x for p in points) and max(p.x for p in points) < high
        assert low > 0 or scale == 'linear'


def test_picture_is_a_png_of_report_width(tmp_path):
    draw_tradeoff(tmp_path / 'new' / 'cost.png', POINTS[:1], **LABELS, title='title')
    picture = imread(tmp_path / 'new' / 'cost.png')
    assert picture.shape[1] == 1080 and picture[..., :3].std() > 0.03


@pytest.mark.parametrize(
    'points, message',
    [
        ([], 'no point'),
        ([Point('a', 1.0, float('nan'), 1.0)], "'a'.*cannot be drawn"),
        ([Point('a', 1.0, 1.0, 0.0)], "'a'.*size above 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(points, message):
    with pytest.raises(ValueError, match=message):
        draw_tradeoff('unused', points, **LABELS)
