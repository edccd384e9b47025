"""From an encoder to rows of the results table, plots and the report."""

from pathlib import Path

import numpy as np

from shared import ddp
from shared.evaluation import plots
from shared.evaluation.report import write_report
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


def evaluate(encoder, tests, folder, table, args):
    """Scores the test lists with intervals; writes results.json, plots and report.html."""
    records = []
    for number, trial_list in enumerate(tests):
        trials, name = trial_list.trials, Path(trial_list.trials.name).stem
        record, scores = validate(encoder, trial_list, args, resamples=1000)
        records.append({'list': name, **record})
        if not ddp.is_main():
            continue
        title = f'{record["known_name"] or name}: {len(scores):,} trials'
        histogram = folder / 'plots' / f'scores_{name}.png'
        plots.draw_histogram(histogram, scores, trials.labels, title=title)
        systems = [plots.System('this encoder', scores, trials.labels)]
        if number == 0:
            systems = phase_systems(trials.labels, table, args) or systems
        plots.draw_det(folder / 'plots' / f'det_{name}.png', systems, title=title)
    if not ddp.is_main():
        return
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
    print('\n\n'.join(text_table(rows) for rows in (table, summary) if rows))
    print(f'\nreport: {write_report(folder)}', flush=True)


def phase_systems(labels, table, args):
    """One DET curve for each phase of the recipe, from the scores it left."""
    stored = Path(args['path_log']) / 'scores'
    return [
        plots.System(row['phase'], np.load(stored / f'{row["phase"]}.npy'), labels) for row in table
    ]
