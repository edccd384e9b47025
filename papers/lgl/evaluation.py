"""The rows of LGL's results table, and the evaluation at the end."""

from pathlib import Path

import numpy as np

from shared import ddp
from shared.evaluation.plots import System
from shared.evaluation.results import Evaluation, write_evaluation
from train import validate


def score(phase, encoder, corpus, args):
    """A row of the table: EER (percent) and minDCF on the first test list.

    The scores stay in the run folder, for the DET plot of all phases.
    """
    record, scores = validate(encoder, corpus.tests[0], args)
    if ddp.is_main():
        folder = Path(args['path_log']) / 'scores'
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f'{phase}.npy', scores)
    costs = {f'minDCF {p}': value for p, value in record['min_dcf'].items()}
    return {'phase': phase, 'EER %': record['eer'], **costs}


def evaluate(encoder, tests, folder, table, args):
    """Scores the test lists with intervals; writes results.json, plots and report.html."""
    evaluations = []
    for files in tests:
        record, scores = validate(encoder, files, args, resamples=1000)
        labels = files.trials.labels
        systems = () if evaluations else phase_systems(labels, table, args)
        evaluations.append(Evaluation(files.trials.name, record, scores, labels, systems))
    if ddp.is_main():
        print(write_evaluation(folder, table, evaluations), flush=True)


def phase_systems(labels, table, args):
    """One DET curve for each phase of the recipe, from the scores that rank 0 kept."""
    stored = Path(args['path_log']) / 'scores'
    phases = [row['phase'] for row in table if ddp.is_main()]
    return [System(phase, np.load(stored / f'{phase}.npy'), labels) for phase in phases]
