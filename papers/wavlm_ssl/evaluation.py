"""From a system to its error rates: the table of the recipe's steps, plots, report."""

from pathlib import Path

import numpy as np

import plots
from shared import ddp
from shared.evaluation.plots import System
from shared.evaluation.results import Evaluation, write_evaluation
from shared.evaluation.tables import mean_row
from train import validate


def score(step, seed, embed, tests, folder, args):
    """Scores one system on every list: JSON-able; its scores on the first stay in the folder."""
    records = []
    for files in tests:
        found, scores = validate(embed, files, args, resamples=1000)
        if files is tests[0] and ddp.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / 'scores.npy', scores)
        records += found.values()
    return {'step': step, 'seed': seed, 'folder': str(folder), 'records': records}


def results(scored, tests, folder, args):
    """Prints and draws what `score` found for each step; writes results.json and report.html."""
    if not ddp.is_main():
        return
    rows = [summary(one) for one in scored]
    steps = list(dict.fromkeys(row['step'] for row in rows))
    groups = {step: [row for row in rows if row['step'] == step] for step in steps}
    table = [row for group in groups.values() for row in group]
    if len(table) > len(groups):
        table += [mean_row(g, step=step, seed=f'mean of {len(g)}') for step, g in groups.items()]
    if len(steps) > 1:
        plots.draw_steps(Path(folder) / 'plots' / 'steps.png', rows, 'error over the recipe')
    print(write_evaluation(folder, table, evaluations(scored, tests)), flush=True)


def summary(one):
    """A row of the table: error rates on the first list, and the quality of the step's labels.

    The headline is the mean score of crops and whole files (spec 7).
    """
    first = one['records'][0]['sha256']
    records = {r['crop']: r for r in one['records'] if r['sha256'] == first}
    headline = records['full+tta']
    costs = {f'minDCF {p}': value for p, value in headline['min_dcf'].items()}
    parts = {'crops EER %': records['tta']['eer'], 'full EER %': records['full']['eer']}
    row = {'step': one['step'], 'seed': one['seed'], 'EER %': headline['eer'], **costs, **parts}
    return {**row, **one.get('quality', {})}


def evaluations(scored, tests):
    """Each step on each list; scores and curves of all on the first."""
    labels = tests[0].trials.labels
    several = len({one['seed'] for one in scored}) > 1
    names = [f'{one["step"]}, seed {one["seed"]}' if several else one['step'] for one in scored]
    systems = [
        System(name, np.load(Path(one['folder']) / 'scores.npy'), labels)
        for name, one in zip(names, scored)
    ]
    found = []
    for one, system in zip(scored, systems):
        for r in one['records']:
            if r['crop'] == 'full+tta':
                pictures = (system.scores, labels, systems) if not found else (None, None, ())
                found.append(Evaluation(f'{system.name}, {r["name"]}', r, *pictures))
    return found
