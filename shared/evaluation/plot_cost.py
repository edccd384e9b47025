"""Picture of a trade-off: error over cost of several systems, each as large as its network."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from shared.evaluation.plots import COLOURS, GRID, INK, save_figure

LARGEST = 900.0  # points^2 of the marker of the largest system: 0.42 inches across
LOG_FROM = 10.0  # largest x over smallest, from where the axis is logarithmic
MARGIN = 0.22  # of the range of an axis, on both sides: room for circles and names
GAP = 3.0  # points from a circle to its name
DIRECTIONS = ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))


@dataclass(frozen=True)
class Point:
    """A system: what it costs (x), its error (y), and `size`, such as parameters in millions."""

    name: str
    x: float
    y: float
    size: float


def draw_tradeoff(
    path: str | Path,
    points: Sequence[Point],
    *,
    xlabel: str,
    ylabel: str,
    size_name: str,
    title: str = '',
) -> None:
    """Writes a PNG of systems as circles with areas proportional to their sizes, named beside them.

    Names keep clear of circles and of each other where there is room, with a line to the circle
    from further off. x is logarithmic from a ratio of ten.

    Args:
        path: of the file.
        points: the systems.
        xlabel: with its unit.
        ylabel: with its unit.
        size_name: what the area means, with its unit, for the legend.
        title: above the picture.

    Raises:
        ValueError: no point, a value that is not finite, or a size that is not positive.
    """
    if not points:
        raise ValueError('no point to draw')
    for point in points:
        if not np.isfinite([point.x, point.y, point.size]).all() or point.size <= 0:
            raise ValueError(f'{point}: cannot be drawn; numbers, and a size above 0')
    largest = max(point.size for point in points)
    figure = Figure(figsize=(7.2, 5.4), dpi=150, layout='constrained')
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    for number, point in enumerate(points):
        colour = COLOURS[number % len(COLOURS)]
        area = LARGEST * point.size / largest
        axes.scatter(point.x, point.y, s=area, color=colour, alpha=0.45, lw=0, zorder=2)
        axes.plot(point.x, point.y, 'o', ms=2.5, color=colour, zorder=3)  # seen however small
    _set_x(axes, [point.x for point in points])
    axes.set_ylim(_limits([point.y for point in points]))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(color=GRID, lw=0.6, zorder=0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_title(title, color=INK)
    _add_size_key(figure, largest, size_name)
    figure.draw_without_rendering()  # the layout is final: places of names can be found
    figure.set_layout_engine('none')
    _add_names(axes, points, [_radius(point.size, largest) for point in points], canvas)
    save_figure(figure, path)


def _radius(size: float, largest: float) -> float:
    """Points, of the circle of a size."""
    return math.sqrt(LARGEST * size / largest) / 2


def _set_x(axes: Axes, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    if low <= 0 or high / low < LOG_FROM:
        axes.set_xlim(_limits(values))
        return
    axes.set_xscale('log')
    room = (high / low) ** MARGIN
    axes.set_xlim(low / room, high * room)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of a linear axis, not below 0 where no value is."""
    low, high = min(values), max(values)
    room = MARGIN * (high - low) or 0.2 * abs(high) or 1.0
    return (max(low - room, 0.0) if low >= 0 else low - room), high + room


def _add_size_key(figure: Figure, largest: float, size_name: str) -> None:
    """The legend of areas: up to three round sizes, the largest not above the largest system."""
    sizes = _round_sizes(largest)
    handles = [
        Line2D([], [], ls='', marker='o', ms=2 * _radius(size, largest), mfc=GRID, mec=INK, mew=0.6)
        for size in sizes
    ]
    figure.legend(
        handles,
        [f'{size:g}' for size in sizes],
        title=size_name,
        loc='outside lower center',
        ncols=len(sizes),
        frameon=False,
        handletextpad=1.0,
        columnspacing=3.0,
        borderpad=0.8,
    )


def _round_sizes(largest: float) -> list[float]:
    """1, 2 or 5 times a power of ten: the largest that fits, and those near a fifth and a 25th."""
    steps = [m * 10.0 ** math.floor(math.log10(largest)) for m in (5, 2, 1, 0.5, 0.2, 0.1, 0.05)]
    top = next(index for index, step in enumerate(steps) if step <= largest)
    return [steps[index] for index in (top + 4, top + 2, top)]


def _add_names(
    axes: Axes, points: Sequence[Point], radii: Sequence[float], canvas: FigureCanvasAgg
) -> None:
    """Writes each name at the first place that is free, else where it covers least."""
    renderer, pixels = canvas.get_renderer(), axes.figure.dpi / 72  # pixels of a point
    centres = axes.transData.transform([(point.x, point.y) for point in points])
    taken = [
        Bbox([centre - radius * pixels, centre + radius * pixels])
        for centre, radius in zip(centres, radii)
    ]
    inside = axes.get_window_extent(renderer)
    for point, centre, radius in zip(points, centres, radii):
        name = axes.annotate(
            point.name,
            (point.x, point.y),
            xytext=(0, 0),
            textcoords='offset points',
            color=INK,
            fontsize='small',
            zorder=4,
        )

        def covered(place: Place, name=name) -> float:
            """Pixels of the name on others or outside."""
            name.set(position=place.offset, ha=place.ha, va=place.va)
            box = name.get_window_extent(renderer)
            outside = box.width * box.height - _overlap(box, inside)
            return outside + sum(_overlap(box, other) for other in taken)

        place = min(_places(radius), key=covered)  # the first of equals
        name.set(position=place.offset, ha=place.ha, va=place.va)
        taken.append(name.get_window_extent(renderer))
        if place.far:
            _lead(axes, centre, radius * pixels, taken[-1])


class Place(NamedTuple):
    """Where a name may stand: offset from the centre in points, and alignment."""

    far: bool
    offset: tuple[float, float]
    ha: str
    va: str


def _places(radius: float) -> Iterator[Place]:
    """The places of a name, the best first: beside, at corners, above, below, further off."""
    for ring in range(6):
        reach = radius + GAP + 14.0 * ring
        for x, y in DIRECTIONS:
            ha, va = ('center', 'left', 'right')[x], ('center', 'bottom', 'top')[y]
            yield Place(ring > 0, (reach * x, reach * y), ha, va)


def _lead(axes: Axes, centre: np.ndarray, radius: float, box: Bbox) -> None:
    """A thin line from the rim of a circle to the nearest point of its name (pixels)."""
    end = np.clip(centre, box.min, box.max)
    away = (end - centre) / max(float(np.hypot(*(end - centre))), 1e-9)
    line = axes.transData.inverted().transform([centre + radius * away, end])
    limits = axes.get_xlim(), axes.get_ylim()
    axes.plot(*line.T, color=INK, lw=0.6, zorder=3)
    axes.set(xlim=limits[0], ylim=limits[1])


def _overlap(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)
