"""The paper's comparison as a picture: the error of each student with each loss."""

import numpy as np
from matplotlib.figure import Figure

from shared.evaluation.plots import COLOURS, GRID, INK, save_figure


def draw_losses(path, groups, names):
    """EER of every student (a colour) with every loss (a place); a dot a seed, a bar their mean.

    groups: (student, loss) -> rows of the table, one a seed; a pair without a loss, the teacher,
    is a line over all.
    """
    losses = list(dict.fromkeys(loss for _, loss in groups if loss))
    students = list(dict.fromkeys(student for student, loss in groups if loss))
    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout='constrained')
    axes = figure.add_subplot()
    width = 0.8 / len(students)
    for number, student in enumerate(students):
        colour, shift = COLOURS[number % len(COLOURS)], (number - (len(students) - 1) / 2) * width
        for place, loss in enumerate(losses):
            eers = [row['EER %'] for row in groups.get((student, loss), ())]
            if not eers:
                continue
            x = place + shift
            axes.bar(x, np.mean(eers), width * 0.9, color=colour, alpha=0.35)
            axes.plot([x] * len(eers), eers, 'o', color=colour, ms=5)
            axes.annotate(
                f'{np.mean(eers):.2f}',
                (x, max(eers)),
                xytext=(0, 5),
                textcoords='offset points',
                ha='center',
                color=INK,
                fontsize=8,
            )
        axes.plot([], [], 'o', color=colour, label=names[student])
    for (student, loss), rows in groups.items():
        if not loss:
            mean = np.mean([row['EER %'] for row in rows])
            axes.axhline(mean, color=INK, ls='--', lw=1.2, label=f'{names[student]} {mean:.2f}')
    axes.set_xticks(range(len(losses)), [names[loss] for loss in losses])
    axes.set(ylabel='EER, %', ylim=(0, None))
    axes.margins(y=0.12)
    axes.set_title('The same student, another loss; dots are seeds', color=INK)
    axes.grid(axis='y', color=GRID)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(), loc='outside lower center', frameon=False, ncols=4
    )
    save_figure(figure, path)
