"""From an encoder to rows of the results table, plots and the report."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from shared import ddp
from shared.datasets.voxceleb import known_name
from shared.evaluation import plots
from shared.evaluation.tables import text_table
from shared.evaluation.verification import write_results
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


def evaluate(encoder, corpus, folder, table, args):
    """Scores every test list, with intervals; writes results.json and the plots."""
    records = []
    for trial_list in corpus.tests:
        name = Path(trial_list.trials.name).stem
        known = known_name(len(trial_list.trials))
        record, scores = validate(encoder, trial_list, args, resamples=1000, known_name=known)
        records.append({'list': name, **record})
        if ddp.is_main():
            plots.draw_histogram(
                folder / 'plots' / f'scores_{name}.png',
                scores,
                trial_list.trials.labels,
                title=f'{known or name}: {len(scores):,} trials',
            )
    if not ddp.is_main():
        return
    draw_det_of_phases(corpus.tests[0].trials, folder, table, args)
    write_results(folder / 'results.json', table, records)
    summary = [
        {
            'list': record['list'],
            'EER %': record['eer'],
            '95 %': '{:.2f} to {:.2f}'.format(*record['eer_interval'] or (0, 100)),
            **{f'minDCF {p}': value for p, value in record['min_dcf'].items()},
            'trials': record['trials'],
        }
        for record in records
    ]
    tqdm.write('\n\n'.join(text_table(rows) for rows in (table, summary) if rows))


def draw_det_of_phases(trials, folder, table, args):
    """One DET curve for each phase of the recipe that has one."""
    stored = Path(args['path_log']) / 'scores'
    systems = [
        plots.System(row['phase'], np.load(stored / f'{row["phase"]}.npy'), trials.labels)
        for row in table
        if (stored / f'{row["phase"]}.npy').exists()
    ]
    if systems:
        plots.draw_det(folder / 'plots' / 'det.png', systems, title=trials.name)
