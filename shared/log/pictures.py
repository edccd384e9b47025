"""PNG bytes from whatever a caller has, and learning curves; no window, no global plot state."""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Series = Mapping[str, tuple[np.ndarray, np.ndarray]]  # quantity -> (steps, values)

COLOUR = '#1f5fa8'
DPI = 120
SMOOTH_FROM = 200  # points; a longer curve gets a running mean over its raw values
MOST_POINTS = 4000  # drawn in one panel; more only makes the file larger
COLUMNS = 3
# Inches. Fixed places, because a layout engine lays every text out four times: seconds a picture
# of forty panels.
PANEL = (4.4, 2.9)
LEFT, RIGHT, ABOVE, BELOW, HEADING = 0.75, 0.2, 0.45, 0.55, 0.4


def as_png(image: Any) -> bytes:
    """PNG bytes of a matplotlib figure, a PNG file's path, PNG bytes, or an array or tensor.

    Arrays are (H, W) grey or (H, W, 3) or (H, W, 4) colour; uint8, or floats from 0 to 1.

    Raises:
        ValueError: the image is none of these.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, Path)):
        return Path(image).read_bytes()
    buffer = io.BytesIO()
    if hasattr(image, 'savefig'):
        image.savefig(buffer, format='png', dpi=DPI, bbox_inches='tight')
        return buffer.getvalue()
    array = np.asarray(image.detach().cpu() if hasattr(image, 'detach') else image)
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ValueError(f'image: shape {array.shape} is neither (H, W) nor (H, W, 3 or 4)')
    if array.dtype != np.uint8:
        array = (np.nan_to_num(array.astype(np.float64)).clip(0, 1) * 255).round().astype(np.uint8)
    from PIL import Image  # comes with matplotlib; loaded when a picture is made

    Image.fromarray(array).save(buffer, format='PNG')
    return buffer.getvalue()


def group_of(name: str) -> str:
    """What a quantity is of: its name up to the last '/', such as 'seed1/dino'; 'run' without one."""
    return name.rpartition('/')[0] or 'run'


def curves_png(title: str, metrics: Series) -> bytes:
    """A picture with a panel for each quantity, against its own steps; one at least."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    width, height = PANEL[0] * columns, PANEL[1] * rows + HEADING
    figure = Figure(figsize=(width, height), dpi=DPI)
    for number, (name, (steps, values)) in enumerate(metrics.items()):
        row, column = divmod(number, columns)
        left, bottom = PANEL[0] * column + LEFT, PANEL[1] * (rows - 1 - row) + BELOW
        inner = (PANEL[0] - LEFT - RIGHT, PANEL[1] - ABOVE - BELOW)
        place = (left / width, bottom / height, inner[0] / width, inner[1] / height)
        _draw(figure.add_axes(place), name.removeprefix(f'{title}/'), steps, values)
    figure.suptitle(title, y=1 - 0.1 / height, va='top', fontsize=13, fontweight='bold')
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def _draw(panel, name: str, steps: np.ndarray, values: np.ndarray) -> None:
    kept = slice(None, None, max(1, len(values) // MOST_POINTS))
    smooth = len(values) >= SMOOTH_FROM
    style = '-' if len(values) > 40 else 'o-'
    panel.plot(
        steps[kept],
        values[kept],
        style,
        color=COLOUR,
        alpha=0.3 if smooth else 1.0,
        linewidth=0.8 if smooth else 1.5,
        markersize=3.5,
    )
    if smooth:
        centre, mean = _running_mean(steps, values, max(5, len(values) // 50))
        panel.plot(centre, mean, color=COLOUR, linewidth=1.6)
    panel.set_title(name, fontsize=10, loc='left', y=1.0, pad=15)  # above a factor of the ticks
    panel.set_xlabel('step', fontsize=8)
    panel.tick_params(labelsize=8)
    panel.locator_params(axis='x', nbins=5, integer=True)
    panel.locator_params(axis='y', nbins=6)
    panel.grid(alpha=0.3)
    for side in ('top', 'right'):
        panel.spines[side].set_visible(False)
    if len(values) and np.isfinite(values[-1]):
        panel.annotate(
            f'{values[-1]:.4g}',
            xy=(1, 1),
            xycoords='axes fraction',
            ha='right',
            va='bottom',
            fontsize=9,
            color=COLOUR,
        )


def _running_mean(steps, values, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over `width` neighbours, at their middle; a value that is not finite has no say."""
    finite = np.isfinite(values)
    kernel = np.ones(width)
    total = np.convolve(np.where(finite, values, 0), kernel, mode='valid')
    count = np.convolve(finite, kernel, mode='valid')
    mean = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0.5)
    offset = (width - 1) // 2
    return steps[offset : offset + len(mean)], mean
