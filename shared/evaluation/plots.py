"""Pictures of an evaluation: DET curves of systems, histogram of scores, errors over a condition.

Figures are made without pyplot, so nothing global changes and threads do not meet. Colours are the
eight of Okabe and Ito, told apart under every common colour blindness; lines also differ in dashes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import ndtr, ndtri

from shared.evaluation.metrics import DetCurve, det_curve
from shared.files import replacing

BLUE, ORANGE = '#0072B2', '#D55E00'
COLOURS = (BLUE, ORANGE, '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000')
DASHES = ('-', '--', '-.', (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
TICKS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 40, 60, 80)  # percent
MARKERS = ('s', '^', 'D', 'v')  # minDCF points, one per p_target
INK, GRID = '#222222', '#DDDDDD'


@dataclass(frozen=True)
class System:
    """One curve of a DET plot: name, scores (M,) and labels (M,), 1 for a target trial."""

    name: str
    scores: np.ndarray
    labels: np.ndarray


def draw_det(
    path: str | Path,
    systems: Sequence[System],
    *,
    p_targets: Sequence[float] = (0.01, 0.05),
    title: str = '',
) -> None:
    """Writes a PNG of miss against false alarm rate on normal-deviate axes (Martin et al., 1997).

    A circle marks the interpolated EER, another symbol the minDCF point of each of `p_targets`
    (none where rejecting every trial is best); the values stand in the legend. A rate of zero
    would lie at infinity and is drawn as half an error. Rates over 90 % are cut off.

    Raises:
        ValueError: no system, more p_targets than symbols, or as `det_curve`.
    """
    if not systems or len(p_targets) > len(MARKERS):
        raise ValueError(f'{len(systems)} systems and {len(p_targets)} p_targets: cannot be drawn')
    height = 7.8 + 0.22 * len(systems)  # inches: one legend line a system
    figure = Figure(figsize=(7.2, height), dpi=150, layout='constrained')
    axes = figure.add_subplot()
    marked = [0.4]  # rates that should be inside the axes
    for number, system in enumerate(systems):
        curve = det_curve(system.scores, system.labels)
        colour = COLOURS[number % len(COLOURS)]
        dashes = DASHES[number % len(DASHES)]
        label = _describe(system.name, curve, p_targets)
        axes.plot(*_thinned(curve), color=colour, linestyle=dashes, lw=1.8, label=label)
        marked += _mark_points(axes, curve, p_targets=p_targets, colour=colour)
    _normal_deviate_axes(axes, max(0.6 * min(marked), 1e-5), min(1.15 * max(marked), 0.9))
    axes.add_artist(_symbol_key(axes, p_targets))
    figure.legend(*axes.get_legend_handles_labels(), loc='outside lower center', frameon=False)
    axes.set_title(title, color=INK)
    save_figure(figure, path)


def draw_histogram(
    path: str | Path,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    title: str = '',
    score_name: str = 'cosine score',
) -> None:
    """Writes a PNG of the score densities of target and non-target trials, and the EER threshold.

    Each density has area 1, whatever the number of its trials. scores (M,), labels (M,).

    Raises:
        ValueError: as `det_curve`.
    """
    scores, is_target = np.asarray(scores), np.asarray(labels).astype(bool)
    curve = det_curve(scores, is_target)
    value, threshold = curve.eer()
    low, high = float(scores.min()), float(scores.max())
    margin = 0.5 if low == high else 0.0
    bins = np.linspace(low - margin, high + margin, 81)
    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout='constrained')
    axes = figure.add_subplot()
    for chosen, name, colour in (
        (~is_target, f'different speakers ({curve.nontargets:,})', ORANGE),
        (is_target, f'same speaker ({curve.targets:,})', BLUE),
    ):
        height = np.histogram(scores[chosen], bins=bins, density=True)[0]
        axes.stairs(height, bins, fill=True, color=colour, alpha=0.25)
        axes.stairs(height, bins, color=colour, lw=1.6, label=name)
    axes.axvline(
        threshold, color=INK, linestyle='--', lw=1.2, label=f'EER {value:.2f} % at {threshold:.3f}'
    )
    axes.set_xlim(bins[0], bins[-1])
    axes.set_ylim(0, 1.04 * axes.get_ylim()[1])
    axes.set_xlabel(score_name)
    axes.set_ylabel('density')
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title(title, color=INK)
    save_figure(figure, path)


@dataclass(frozen=True)
class Line:
    """One line of a plot: y (K,) over x (K,), in the panel of this title.

    Lines of one name look alike in every panel. `reference` is a level to compare with.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    panel: str = ''
    reference: float | None = None


def draw_lines(
    path: str | Path,
    lines: Sequence[Line],
    *,
    xlabel: str,
    ylabel: str,
    title: str = '',
    reference_name: str = 'reference',
) -> None:
    """Writes a PNG of lines over one quantity, such as EER over SNR, a panel for each condition.

    Panels share both axes, y from 0. The highest and the lowest value of a panel are written at
    their points; references are thin dotted lines in the colour of their system.

    Raises:
        ValueError: no line, or one without points, with x and y of different lengths, or with
            values that are not finite.
    """
    _check_lines(lines)
    names = list(dict.fromkeys(line.name for line in lines))
    panels = list(dict.fromkeys(line.panel for line in lines))
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    size = 7.2, 1.1 + 2.7 * rows + 0.22 * len(names)  # inches: one legend line a system
    figure = Figure(figsize=size, dpi=150, layout='constrained')
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for number, (axes, panel) in enumerate(zip(grid.flat, panels)):
        _panel(axes, [line for line in lines if line.panel == panel], names)
        axes.set_title(panel, color=INK, fontsize='medium')
        axes.set_ylabel(ylabel if number % columns == 0 else '')
        if number + columns >= len(panels):  # nothing below
            axes.set_xlabel(xlabel)
            axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    top = max(value for line in lines for value in (*line.y, line.reference or 0.0))
    grid[0, 0].set_ylim(0, 1.12 * top or 1.0)
    grid[0, 0].set_xticks(sorted({float(x) for line in lines for x in line.x}))
    handles = [Line2D([], [], label=name, **_style(n)) for n, name in enumerate(names)]
    if any(line.reference is not None for line in lines):
        handles.append(Line2D([], [], color=INK, linestyle=':', lw=1.1, label=reference_name))
    figure.legend(handles=handles, loc='outside lower center', frameon=False, handlelength=3.5)
    figure.suptitle(title, color=INK)
    save_figure(figure, path)


def _thinned(curve: DetCurve) -> tuple[np.ndarray, np.ndarray]:
    """The curve in normal deviates from its last point without misses to its first without false
    alarms, less the points that the eye cannot tell apart."""
    ends = sorted((np.flatnonzero(curve.misses == 0)[-1], np.argmin(curve.false_alarms)))
    inside = slice(ends[0], ends[1] + 1)
    x, y = _deviates(curve.fpr[inside], curve.fnr[inside], curve)
    pixels = np.round(np.stack((x, y)) * 400).astype(np.int64)  # an axis has some 200 a unit
    moved = np.any(np.diff(pixels, axis=1), axis=0)
    keep = np.concatenate(([True], moved))
    keep[:-1] |= moved  # both ends of a long step
    return x[keep], y[keep]


def _deviates(fpr, fnr, curve: DetCurve) -> tuple[np.ndarray, np.ndarray]:
    half_alarm, half_miss = 0.5 / curve.nontargets, 0.5 / curve.targets
    return (
        ndtri(np.clip(fpr, half_alarm, 1 - half_alarm)),
        ndtri(np.clip(fnr, half_miss, 1 - half_miss)),
    )


def _mark_points(axes, curve: DetCurve, *, p_targets: Sequence[float], colour: str) -> list[float]:
    """Draws EER and minDCF points; returns the rates that they are at."""
    rate = curve.eer().value / 100
    points = [('o', rate, rate)]
    for marker, p_target in zip(MARKERS, p_targets):
        at = int(np.searchsorted(curve.thresholds, curve.min_dcf(p_target).threshold))
        if at < len(curve.thresholds) - 1:
            points.append((marker, curve.fpr[at], curve.fnr[at]))
    places = [(marker, *_deviates(fpr, fnr, curve)) for marker, fpr, fnr in points]
    for marker, x, y in places:
        axes.plot(x, y, marker, ms=7, mfc='white', mec=colour, mew=1.6, zorder=3)
    return [float(ndtr(deviate)) for _, x, y in places for deviate in (x, y)]


def _describe(name: str, curve: DetCurve, p_targets: Sequence[float]) -> str:
    costs = ', '.join(f'{curve.min_dcf(p).value:.3f} (p = {p:g})' for p in p_targets)
    return f'{name}: EER {curve.eer().value:.2f} %' + (f', minDCF {costs}' if costs else '')


def _normal_deviate_axes(axes, low: float, high: float) -> None:
    ends = ndtri(low), ndtri(high)
    percents = [p for p in TICKS if low <= p / 100 <= high]
    places, names = ndtri(np.array(percents) / 100), [f'{p:g}' for p in percents]
    axes.axline((0, 0), slope=1, color=GRID, lw=1, zorder=0)
    axes.set(xlim=ends, ylim=ends, aspect='equal')
    axes.set_xticks(places, names)
    axes.set_yticks(places, names)
    axes.grid(color=GRID, lw=0.6)
    axes.set_xlabel('false alarm rate (%)')
    axes.set_ylabel('miss rate (%)')


def _symbol_key(axes, p_targets: Sequence[float]):
    """The small legend inside the axes: what the symbols stand for."""
    names = ['EER'] + [f'minDCF, p = {p:g}' for p in p_targets]
    handles = [
        Line2D([], [], linestyle='', marker=marker, ms=7, mfc='white', mec=INK, mew=1.4)
        for marker in ('o', *MARKERS[: len(p_targets)])
    ]
    return axes.legend(handles, names, loc='upper right', framealpha=1, edgecolor=GRID)


def _check_lines(lines: Sequence[Line]) -> None:
    if not lines:
        raise ValueError('no line to draw')
    for line in lines:
        if len(line.x) != len(line.y) or not len(line.x):
            raise ValueError(f'{line.name}: {len(line.x)} x, {len(line.y)} y: cannot be drawn')
        if not np.isfinite([*line.x, *line.y, line.reference or 0.0]).all():
            raise ValueError(f'{line.name}: a value is not finite: cannot be drawn')


def _style(number: int) -> dict:
    """Colour, dashes and marker of the n-th system."""
    return {
        'color': COLOURS[number % len(COLOURS)],
        'linestyle': DASHES[number % len(DASHES)],
        'marker': ('o', *MARKERS)[number % (1 + len(MARKERS))],
        'ms': 5,
        'mfc': 'white',
        'lw': 1.8,
    }


def _panel(axes, lines: Sequence[Line], names: Sequence[str]) -> None:
    """The lines of one panel, with its extremes in figures."""
    for line in lines:
        style = _style(names.index(line.name))
        axes.plot(line.x, line.y, label=line.name, **style)
        if line.reference is not None:
            axes.axhline(line.reference, color=style['color'], linestyle=':', lw=1.1, zorder=1)
    points = [(y, x) for line in lines for x, y in zip(line.x, line.y)]
    for (y, x), offset in ((max(points), 6), (min(points), -13)):
        axes.annotate(
            f'{y:.2f}',
            (x, y),
            xytext=(0, offset),
            textcoords='offset points',
            ha='center',
            fontsize='small',
            color=INK,
            bbox={'fc': 'white', 'ec': 'none', 'pad': 0.8, 'alpha': 0.8},
        )
    axes.margins(x=0.09)  # room for the numbers
    axes.grid(color=GRID, lw=0.6)
    axes.spines[['top', 'right']].set_visible(False)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes beside the target and renames, so that a reader sees the old picture or the new one."""
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
