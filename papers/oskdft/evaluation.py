"""From a system to its error rates and its cost: table, plots, report."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from shared import ddp
from shared.evaluation.cost import measure_cost
from shared.evaluation.crops import embed_cohort
from shared.evaluation.plot_cost import Point, draw_tradeoff
from shared.evaluation.results import ScoredSystem, compared, with_seed, write_evaluation
from shared.evaluation.tables import mean_row
from train import validate

NAMES = {
    'teacher': 'teacher, fine-tuned',
    'student': 'student without KD',
    'two_steps': 'KD, then fine-tuned',
    'oskdft': 'OS-KDFT',
}
COST_SECONDS = 3.0  # of audio, as spec 3.2 counts


def score(row, seed, system, tests, corpus, folder, args):
    """Scores one system on every list, and what it costs: JSON-able; its scores stay in the folder."""
    cohort = cohort_of(system, corpus, args) if args['as_norm'] else None
    records = []
    for files in tests:
        found, scores = validate(system, files, args, resamples=1000, cohort=cohort)
        if files is tests[0] and ddp.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / 'scores.npy', scores)
        records += found.values()
    costs = []
    if ddp.is_main():  # the ranks would disturb each other
        for device in dict.fromkeys(('cpu', args['device'])):
            costs.append(asdict(measure_cost(system, seconds=COST_SECONDS, device=device)))
    costs = ddp.broadcast_object(costs)
    return {'row': row, 'seed': seed, 'records': records, 'costs': costs}


def cohort_of(system, corpus, args):
    """The mean embeddings of some training speakers (spec 6)."""
    utterances = corpus.cohort(args['cohort_speakers'], args['seeds'][0])
    loader = corpus.whole_loader(utterances)
    return embed_cohort(system, loader, utterances.speakers, args['device'])


def results(scored, tests, folder, args):
    """Prints and draws what `score` found for each system; writes results.json and report.html.

    Each of `scored` also names the 'folder' of its scores: a run may have been moved.
    """
    if not ddp.is_main():
        return
    scored, rows = same_times(scored), {}
    for one in scored:
        rows.setdefault(one['row'], []).append(summary(one, label(one, scored)))
    table = [row for group in rows.values() for row in group]
    means = {
        row: mean_row(group, system=f'{NAMES[row]}, mean of {len(group)} seeds')
        for row, group in rows.items()
    }
    if len(table) > len(means):
        table += means.values()
    draw_costs(folder, means)
    print(write_evaluation(folder, table, evaluations(scored, tests)), flush=True)


def same_times(scored):
    """Gives systems that are the same network the median of the times measured of them."""
    times = {}
    for one in scored:
        for cost in one['costs']:
            times.setdefault(network_of(cost), []).append(cost['seconds_per_second'])
    return [
        {
            **one,
            'costs': [
                {**cost, 'seconds_per_second': float(np.median(times[network_of(cost)]))}
                for cost in one['costs']
            ],
        }
        for one in scored
    ]


def network_of(cost):
    """What tells two networks apart here, on a device."""
    return cost['parameters'], cost['macs'], cost['device']


def summary(one, name):
    """A row of the table: cost, then error rates on the first list."""
    cpu, *gpu = one['costs']
    first = one['records'][0]['sha256']
    records = {r['crop']: r for r in one['records'] if r['sha256'] == first}
    headline = records['full+tta']
    row = {
        'system': name,
        'parameters, M': cpu['parameters'] / 1e6,
        'GMAC / s': cpu['macs'] / cpu['seconds'] / 1e9,
        'CPU ms / s': 1e3 * cpu['seconds_per_second'],
    }
    if gpu:
        row['GPU ms / s'] = 1e3 * gpu[0]['seconds_per_second']
    row['EER %'] = headline['eer']
    row |= {f'minDCF {p}': value for p, value in headline['min_dcf'].items()}
    row |= {f'{crop} EER %': r['eer'] for crop, r in records.items() if r is not headline}
    return row


def label(one, scored):
    """A system's name, with its seed where there are several."""
    return with_seed(NAMES[one['row']], one['seed'], (other['seed'] for other in scored))


def draw_costs(folder, means):
    """EER over inference time, on each device it was measured on; a circle as large as the network."""
    for device in ('CPU', 'GPU'):
        column = f'{device} ms / s'
        points = [
            Point(NAMES[row], mean[column], mean['EER %'], mean['parameters, M'])
            for row, mean in means.items()
            if column in mean
        ]
        if len(points) > 1:
            draw_tradeoff(
                Path(folder) / 'plots' / f'eer_over_{device.lower()}_time.png',
                points,
                xlabel=f'{device} time, ms for a second of audio, one utterance at a time',
                ylabel='EER, %',
                size_name='parameters, millions',
                title='Error and cost',
            )


def evaluations(scored, tests):
    """Each system on each list; scores and curves of all on the first."""
    systems = []
    for one in scored:
        shown = [r for r in one['records'] if r['crop'] in ('full+tta', 'full, AS-norm')]
        systems.append(ScoredSystem(label(one, scored), one['folder'] / 'scores.npy', shown))
    return compared(systems, tests[0].trials.labels)
