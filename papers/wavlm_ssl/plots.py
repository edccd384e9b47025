"""What to look at to trust a run: the loss gate of an epoch, its course, the steps of the recipe.

Write them into folders called `plots`: the report shows those. Shares and precisions are percent.
"""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from losses import SMALLEST
from shared.evaluation.plots import BLUE, COLOURS, GRID, INK, ORANGE, save_figure

GREEN, PURPLE = COLOURS[2:4]
WIDTH = 7.2  # inches, of every picture
OPEN = 100.0  # a threshold from here on lets everything pass; the first is infinite
SHARES = (('kept %', BLUE, 'o-'), ('corrected %', ORANGE, 's--'))
PRECISIONS = (
    ('precision of all %', INK, 'D:'),
    ('precision of kept %', BLUE, 'o-'),
    ('precision of corrected %', ORANGE, 's--'),
)


def right_labels(labels, speakers):
    """(N,) bool: the speaker is the most frequent one among the utterances with the same label.

    labels (N,) int, below 0 for utterances without one, which are never right; speakers (N,).
    """
    labels, speakers = np.asarray(labels), np.unique(speakers, return_inverse=True)[1]
    speaker_of = majority(labels, speakers, 1 + labels.max(initial=0))
    return (labels >= 0) & (speaker_of[labels] == speakers)


def precisions(labels, speakers, kept, corrected):
    """How many percent of labels are right, when a label stands for its most frequent speaker.

    labels (N,) pseudo-labels, -1 for none; speakers (N,); kept (N,) bool; corrected (N,) the new
    labels, -1 for none. 'before' is of the samples corrected, under their old labels. NaN: of none.
    """
    labels, kept, corrected = np.asarray(labels), np.asarray(kept, bool), np.asarray(corrected)
    speakers, new = np.unique(speakers, return_inverse=True)[1], corrected >= 0
    right = right_labels(labels, speakers)
    speaker_of = majority(labels, speakers, 1 + max(labels.max(), corrected.max()))
    return {
        'precision of all %': percent(right[labels >= 0]),
        'precision of kept %': percent(right[kept]),
        'precision of corrected %': percent(speaker_of[corrected[new]] == speakers[new]),
        'precision of corrected before %': percent(right[new]),
    }


def majority(labels, speakers, count):
    """(count,) the most frequent speaker (of equals, the first) of each label, -1 if unused."""
    used = labels >= 0
    pairs = labels[used].astype(np.int64) * (1 + speakers.max()) + speakers[used]
    pairs, sizes = np.unique(pairs, return_counts=True)
    label, speaker = np.divmod(pairs, 1 + speakers.max())
    order = np.lexsort((-speaker, sizes))  # of each label, the most frequent is the last to be set
    speaker_of = np.full(count, -1)
    speaker_of[label[order]] = speaker[order]
    return speaker_of


def percent(flags):
    return 100 * float(np.mean(flags)) if len(flags) else math.nan


def draw_gate(path, log_losses, gate, title, *, threshold=None, right=None):
    """Histogram of an epoch's log losses, the mixture fitted to them, and the gate (spec 4.2).

    log_losses (N,), NaN where unseen. gate: weights (2,), means (2,), deviations (2,) of the
    mixture, of which a component without width is left out, and the threshold where they cross;
    None: not fitted. `threshold` is the one in force in the epoch; None: everything passed. right
    (N,) bool, where true speakers are known: is the pseudo-label right?
    """
    seen = ~np.isnan(log_losses)
    losses = np.clip(np.asarray(log_losses, np.float64)[seen], math.log(SMALLEST), OPEN)
    threshold = OPEN if threshold is None else threshold
    low, high = span(losses)
    figure = Figure(figsize=(WIDTH, 4.8), dpi=150, layout='constrained')
    axes = figure.add_subplot()
    top = draw_losses(axes, losses, None if right is None else right[seen], threshold, low, high)
    if gate is not None:
        draw_mixture(axes, gate, np.union1d(np.linspace(low, high, 1000), gate.means))
        if gate.threshold is not None:
            name = f'crossing of the components: {gate.threshold:.2f}'
            axes.axvline(gate.threshold, color=INK, ls=':', lw=1.4, label=name)
    passed = share_kept(losses, threshold)
    if threshold < OPEN:
        axes.axvline(threshold, color=INK, ls='--', lw=1.4, label=f'gate {threshold:.2f}: {passed}')
    else:
        axes.plot([], [], ' ', label=f'gate open: {passed}')
    # a very narrow component may leave the picture
    axes.set(xlim=(low, high), ylim=(0, min(axes.get_ylim()[1], 1.6 * top)))
    axes.set(xlabel='log of the loss', ylabel='density')
    axes.set_title(title, color=INK)
    axes.spines[['top', 'right']].set_visible(False)
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc='outside lower center', frameon=False, ncols=2)
    save_figure(figure, path)


def span(losses):
    """Ends of the axis; a thousandth of the losses on either side may lie outside."""
    low, high = np.quantile(losses, (0.001, 0.999)) if len(losses) else (-0.5, 0.5)
    margin = 0.03 * (high - low) or 0.5
    return low - margin, high + margin


def draw_losses(axes, losses, right, threshold, low, high):
    """The histogram, of area 1, wrong labels on top of right ones; returns its height.

    Losses outside are in the first and the last bin.
    """
    groups = [(f'all {len(losses):,} losses', BLUE, losses)]
    if right is not None:
        groups = [('right labels', BLUE, losses[right]), ('wrong labels', ORANGE, losses[~right])]
    bins = np.linspace(low, high, 81)
    below = np.zeros(len(bins) - 1)
    for name, colour, group in groups:
        counts = np.histogram(np.clip(group, low, high), bins)[0]
        height = below + counts / (max(len(losses), 1) * (bins[1] - bins[0]))
        if right is not None:
            name = f'{name} ({len(group):,}): {share_kept(group, threshold)}'
        axes.stairs(height, bins, baseline=below, fill=True, color=colour, alpha=0.35, label=name)
        below = height
    return max(below.max(), 1e-3)


def share_kept(losses, threshold):
    return f'{percent(losses <= threshold):.1f} % kept' if len(losses) else 'none seen'


def draw_mixture(axes, gate, x):
    """Both weighted densities, and their sum."""
    total = np.zeros_like(x)
    styles = ((GREEN, '-.'), (PURPLE, (0, (1, 1))))
    for weight, mean, deviation, (colour, dashes) in zip(
        gate.weights, gate.means, gate.deviations, styles
    ):
        if not deviation > 0:  # of equal losses
            continue
        scale = float(weight) / (float(deviation) * math.sqrt(2 * math.pi))
        part = scale * np.exp(-(((x - float(mean)) / float(deviation)) ** 2) / 2)
        name = f'component: mean {mean:.2f}, weight {weight:.2f}'
        axes.plot(x, part, color=colour, ls=dashes, lw=1.8, label=name)
        total += part
    if total.any():
        axes.plot(x, total, color=INK, lw=1.0, label='both components')


def draw_shares(path, history, title=''):
    """Over the epochs: what the gate lets pass, how right that is, and where the gate stands.

    history: dicts of 'epoch', 'kept %', 'corrected %', 'threshold' and those of `precisions`; what
    is missing, None or NaN is left out, and so is a threshold that lets everything pass.
    """
    epochs, gates = column(history, 'epoch'), column(history, 'threshold')
    panels = {
        'share, %': [(*style, column(history, style[0])) for style in SHARES],
        'precision, %': [(*style, column(history, style[0])) for style in PRECISIONS],
        'gate, log loss': [('threshold', GREEN, '^-', np.where(gates < OPEN, gates, math.nan))],
    }
    panels = {
        name: lines
        for name, lines in panels.items()
        if any(np.isfinite(values).any() for *_, values in lines)
    }
    figure, grid = stacked(len(panels))
    for axes, (name, lines) in zip(grid, panels.items()):
        for label, colour, style, values in lines:
            label = label.removeprefix('precision of ').removesuffix(' %')
            axes.plot(epochs, values, style, color=colour, mfc='white', ms=5, lw=1.8, label=label)
        axes.set_ylabel(name)
        if name == 'share, %':
            axes.set_ylim(-4, 104)
        if len(lines) > 1:
            axes.legend(loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    grid[-1].set_xlabel('epoch')
    grid[-1].set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
    grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.suptitle(title, color=INK)
    save_figure(figure, path)


def draw_steps(path, rows, title=''):
    """EER and NMI over the steps of the recipe: a thin line for each seed, a thick one their mean.

    rows: dicts of 'seed', 'step', 'EER %' and, where the step made labels, 'NMI %'; steps in order
    of appearance.
    """
    steps = list(dict.fromkeys(row['step'] for row in rows))
    seeds = list(dict.fromkeys(row['seed'] for row in rows))
    tables = {}
    for name in ('EER %', 'NMI %'):
        found = {(row['seed'], row['step']): number(row.get(name)) for row in rows}
        table = np.array([[found.get((seed, step), math.nan) for step in steps] for seed in seeds])
        if np.isfinite(table).any():
            tables[name] = table
    figure, grid = stacked(len(tables))
    for axes, (name, table), colour in zip(grid, tables.items(), (BLUE, ORANGE)):
        draw_seeds(axes, table, colour)
        axes.set_ylabel(name.replace(' %', ', %'))
    grid[-1].set_xticks(range(len(steps)), steps)
    if len(seeds) > 1:
        handles = [Line2D([], [], color=INK, lw=w) for w in (0.8, 2.0)]
        names = [f'{len(seeds)} seeds', 'mean']
        figure.legend(handles, names, loc='outside lower center', frameon=False, ncols=2)
    figure.suptitle(title, color=INK)
    save_figure(figure, path)


def draw_seeds(axes, table, colour):
    """Lines (seeds, steps) and their mean, in figures, over the steps that some seed has."""
    has = np.flatnonzero(np.isfinite(table).any(axis=0))
    mean = np.nanmean(table[:, has], axis=0)
    if len(table) > 1:
        axes.plot(has, table[:, has].T, 'o-', color=colour, lw=0.8, ms=2.5, alpha=0.6)
    axes.plot(has, mean, 'o-', color=colour, lw=2.0, ms=6, mfc='white')
    top = np.nanmax(table[:, has], axis=0)  # the figure stands above every line
    for x, y, value in zip(has, top, mean):
        axes.annotate(
            f'{value:.2f}',
            (x, y),
            xytext=(0, 9),
            textcoords='offset points',
            ha='center',
            fontsize='small',
            color=INK,
            bbox={'fc': 'white', 'ec': 'none', 'pad': 0.8, 'alpha': 0.8},
        )
    axes.margins(x=0.09, y=0.18)  # room for the figures


def stacked(count):
    """A figure of so many panels above each other, at least one, over the same quantity."""
    count = max(count, 1)
    figure = Figure(figsize=(WIDTH, 1.2 + 2.2 * count), dpi=150, layout='constrained')
    grid = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    for axes in grid:
        axes.grid(color=GRID, lw=0.6)
        axes.spines[['top', 'right']].set_visible(False)
    return figure, grid


def column(history, name):
    """(epochs,) numbers, NaN where there is none."""
    return np.array([number(row.get(name)) for row in history], np.float64)


def number(value):
    return math.nan if value is None else float(value)
