"""From a system to its error rates: the table of the recipe's steps, plots, report."""

from functools import partial
from pathlib import Path

import numpy as np

import plots
from data import Corpus
from paths import labels_of, models_of
from shared import ddp
from shared.checkpoint import once
from shared.datasets.embeddings import labels_for, read_labels
from shared.evaluation.crops import embed_cohort
from shared.evaluation.results import ScoredSystem, compared, with_seed, write_evaluation
from shared.evaluation.tables import mean_row
from steps import quality_of
from systems import dino_system, system_of
from train import validate, validate_whole

RESAMPLES = 1000  # of the bootstrap


def measured(seed, corpus, tests, args):
    """Scores of every model that a seed has so far, each measured once for the test lists."""
    lists, found = [files.trials.sha256 for files in tests], []
    for file in models_of(seed, args):
        measure = partial(measure_step, file, seed, corpus, tests, args)
        one = once(file.with_name('scores.json'), measure, key=lists)
        found.append({**one, 'folder': file.parent})
    return found


def measure_step(file, seed, corpus, tests, args):
    """Scores of a step's model; of a round also how good its labels are."""
    step = file.parent.name
    system = (dino_system if step == 'dino' else system_of)(file, args)
    cohort = None
    if args['as_norm'] and step != 'dino':
        cohort = cohort_of(system, file, corpus, args)
    found = score(step, seed, system, tests, file.parent, args, cohort)
    if step.startswith('round'):
        labels = file.parents[1] / 'labels' / f'{step.removeprefix("round")}.txt'
        found['quality'] = quality_of(labels, corpus)
    return found


def cohort_of(embed, file, corpus, args):
    """Mean embedding of each pseudo-speaker that the model of a file has learnt."""
    labels = labels_for(corpus.train, *read_labels(labels_of(file, args)))
    rows = np.flatnonzero(labels >= 0)
    loader = corpus.whole_loader(corpus.train.select(rows))
    return embed_cohort(embed, loader, labels[rows], args['device'])


def evaluate(file, tests, args):
    """Scores a file of a run or of the authors, in a folder of its own."""
    name = '_'.join(Path(file).resolve().with_suffix('').parts[-3:])
    folder = Path(args['path_log']) / 'evaluation' / name
    system, cohort = system_of(file, args), None
    if args['as_norm']:
        cohort = cohort_of(system, file, Corpus(args, tests[0]), args)
    scored = score(name, args['seeds'][-1], system, tests, folder, args, cohort)
    results([{**scored, 'folder': folder}], tests, folder, args)


def score(step, seed, embed, tests, folder, args, cohort=None):
    """Scores one system on every list: JSON-able; its scores on the first stay in the folder."""
    records = []
    for files in tests:
        if step == 'dino':
            record, scores = validate_whole(embed, files, args, RESAMPLES)
            found = {'full': record}
        else:
            found, scores = validate(embed, files, args, RESAMPLES, cohort=cohort)
        if files is tests[0] and ddp.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / 'scores.npy', scores)
        records += found.values()
    return {'step': step, 'seed': seed, 'records': records}


def results(scored, tests, folder, args):
    """Prints and draws what `score` found for each step; writes results.json and report.html.

    Each of `scored` also names the 'folder' of its scores: a run may have been moved.
    """
    if not scored or not ddp.is_main():
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

    The headline is as published: the mean score of crops and whole files (spec 7), of DINO that of
    whole files alone (8.2).
    """
    first = one['records'][0]['sha256']
    records = {r['crop']: r for r in one['records'] if r['sha256'] == first}
    record = records[headline(one)]
    costs = {f'minDCF {p}': value for p, value in record['min_dcf'].items()}
    names = {'tta': 'crops EER %', 'full': 'full EER %', 'full, AS-norm': 'AS-norm EER %'}
    parts = {name: records[crop]['eer'] for crop, name in names.items() if crop in records}
    row = {'step': one['step'], 'seed': one['seed'], 'EER %': record['eer'], **costs, **parts}
    return {**row, **one.get('quality', {})}


def headline(one):
    """The record of a system that counts, by what was scored."""
    return 'full' if one['step'] == 'dino' else 'full+tta'


def evaluations(scored, tests):
    """Each step on each list; scores and curves of all on the first."""
    systems = []
    for one in scored:
        name = with_seed(one['step'], one['seed'], (other['seed'] for other in scored))
        shown = [r for r in one['records'] if r['crop'] == headline(one)]
        systems.append(ScoredSystem(name, one['folder'] / 'scores.npy', shown))
    return compared(systems, tests[0].trials.labels)
