"""From a system to its error rates in every condition: table, matrix, plots, report."""

import numpy as np

from shared import ddp
from shared.evaluation import plots
from shared.evaluation.results import ScoredSystem, compared, with_seed, write_evaluation
from shared.evaluation.tables import mean_row, text_table
from shared.files import write_text
from train import validate


def score(system, seed, student, head, tests, folder, args):
    """Scores one system in every condition: JSON-able; the clean scores stay in the folder."""
    records = []
    for name, (files, noise, snr) in tests.items():
        resamples, full = 0 if noise else 1000, args['full_noisy'] or not noise
        found, scores = validate(student, head, files, args, resamples=resamples, full=full)
        if name == 'clean' and ddp.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / 'clean_scores.npy', scores)
        where = {'system': system, 'seed': seed, 'condition': name, 'noise': noise, 'snr': snr}
        records += [{**where, **record, 'converted': files.converted} for record in found.values()]
    return {'system': system, 'seed': seed, 'records': records}


def results(scored, tests, folder, args):
    """Prints and draws what `score` found for each system; writes results.json and report.html.

    Each of `scored` also names the 'folder' of its scores: a run may have been moved.
    """
    if not ddp.is_main():
        return
    table = [summary(one, label(one, scored)) for one in scored]
    for system in dict.fromkeys(one['system'] for one in scored):
        rows = [row for row, one in zip(table, scored) if one['system'] == system]
        if len(rows) > 1:
            table.append(mean_row(rows, system=f'{system}, mean of {len(rows)} seeds'))
    matrix = text_table(by_condition(scored))
    write_text(folder / 'text' / 'conditions.txt', matrix + '\n')
    draw_snr(folder / 'plots' / 'eer_over_snr.png', scored)
    print(f'EER % in every condition, {args["num_seg"]} crops (TTA):\n{matrix}\n')
    print(write_evaluation(folder, table, evaluations(scored, tests)), flush=True)


def summary(one, name):
    """A row of the table: clean, the mean over the SNRs of each noise, mean of the noisy sets."""
    eers = {(r['condition'], r['crop']): r['eer'] for r in one['records']}
    row = {
        'system': name,
        'clean EER %': eers['clean', 'full+tta'],
        'clean, TTA EER %': eers['clean', 'tta'],
    }
    known = []  # MUSAN's kinds; nonspeech is the unseen noise
    for noise in dict.fromkeys(r['noise'] for r in noisy(one)):
        values = [r['eer'] for r in noisy(one) if r['noise'] == noise]
        row[f'{noise} EER %'] = float(np.mean(values))
        known += values if noise != 'nonspeech' else []
    row[f'mean of {len(known)} noisy EER %'] = float(np.mean(known))
    # the published headline of VoxCeleb2 also counts the clean score (spec 6)
    row['with clean EER %'] = float(np.mean([*known, eers['clean', 'full+tta']]))
    return row


def noisy(one):
    """The records of a system in noise, by crops alone, as published (Q25)."""
    return [r for r in one['records'] if r['noise'] and r['crop'] == 'tta']


def by_condition(scored):
    """Rows of the published logs' kind: a condition, and the EER of each system."""
    rows = {}
    for one in scored:
        for r in one['records']:
            if r['crop'] == 'tta':
                row = rows.setdefault(r['condition'], {'condition': r['condition']})
                row[label(one, scored)] = r['eer']
    return list(rows.values())


def label(one, scored):
    """A system's name, with its seed where there are several."""
    return with_seed(one['system'], one['seed'], (other['seed'] for other in scored))


def draw_snr(path, scored):
    """EER over SNR, a panel for each noise, each system's mean over its seeds."""
    lines = []
    for system in dict.fromkeys(one['system'] for one in scored):
        group = [one for one in scored if one['system'] == system]
        clean = np.mean([summary(one, '')['clean, TTA EER %'] for one in group])
        found = [r for one in group for r in noisy(one)]
        for noise in dict.fromkeys(r['noise'] for r in found):
            snrs = sorted({r['snr'] for r in found})
            eers = [
                np.mean([r['eer'] for r in found if (r['noise'], r['snr']) == (noise, snr)])
                for snr in snrs
            ]
            lines.append(plots.Line(system, snrs, eers, noise, reference=clean))
    plots.draw_lines(
        path, lines, xlabel='SNR, dB', ylabel='EER, %', reference_name='clean', title='EER in noise'
    )


def evaluations(scored, tests):
    """Each system on each clean list; scores and curves of all on the first."""
    systems = []
    for one in scored:
        shown = [r for r in one['records'] if r['crop'] == 'full+tta' and not r['noise']]
        systems.append(ScoredSystem(label(one, scored), one['folder'] / 'clean_scores.npy', shown))
    return compared(systems, tests['clean'].files.trials.labels)
