"""PNG bytes from whatever a caller has, and learning curves; no window, no global plot state."""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Series = Mapping[str, tuple[np.ndarray, np.ndarray]]  # quantity -> (steps, values)

COLOUR = '#1f5fa8'
SMOOTH_FROM = 200  # points; a longer curve gets a running mean over its raw values
MOST_POINTS = 4000  # drawn in one panel; more only makes the file larger
COLUMNS = 3


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
        image.savefig(buffer, format='png', dpi=120, bbox_inches='tight')
        return buffer.getvalue()
    array = np.asarray(image.detach().cpu() if hasattr(image, 'detach') else image)
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ValueError(f'image: shape {array.shape} is neither (H, W) nor (H, W, 3 or 4)')
    if array.dtype != np.uint8:
        array = (np.nan_to_num(array.astype(np.float64)).clip(0, 1) * 255).round().astype(np.uint8)
    from PIL import Image  # comes with matplotlib; loaded when a picture is made

    Image.fromarray(array).save(buffer, format='PNG')
    return buffer.getvalue()


def groups_of(metrics: Series) -> dict[str, list[str]]:
    """Names by their part before the first '/', both in order of appearance; 'run' without one."""
    groups: dict[str, list[str]] = {}
    for name in metrics:
        groups.setdefault(name.split('/')[0] if '/' in name else 'run', []).append(name)
    return groups


def curve_figure(title: str, metrics: Series):
    """One figure with a panel for each quantity, against its own steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(4.4 * columns, 2.9 * rows), layout='constrained')
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (name, (steps, values)) in zip(panels, metrics.items()):
        _draw(panel, name.removeprefix(f'{title}/'), steps, values)
    for panel in panels[len(metrics) :]:
        panel.set_visible(False)
    figure.suptitle(title, fontsize=13, fontweight='bold')
    return figure


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
    panel.set_title(name, fontsize=10, loc='left')
    panel.set_xlabel('step', fontsize=8)
    panel.tick_params(labelsize=8)
    panel.locator_params(axis='x', nbins=5, integer=True)
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
