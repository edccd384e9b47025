"""From a system to its error rates: mean, cohort, table, plots, report."""

import numpy as np
import torch

from plots import draw_losses
from shared import ddp
from shared.errors import UserError
from shared.evaluation.extraction import extract
from shared.evaluation.results import ScoredSystem, compared, with_seed, write_evaluation
from shared.evaluation.scoring import speaker_means
from shared.evaluation.tables import mean_row, text_table
from shared.files import write_text
from train import validate

NAMES = {
    'teacher': 'teacher',
    'xvector': 'x-vector',
    'resnet34': 'ResNet34',
    'campplus': 'CAM++',
    '': '',
    'none': 'no KD',
    'cosine': 'cosine KD',
    'kl': 'KL KD',
    'decoupled': 'TCKD + NCKD',
    'enskd': 'EnSKD',
}


def score(pair, seed, system, tests, corpus, folder, args):
    """Scores one system on every list: JSON-able; its scores stay in the folder.

    `pair` is the student and its loss; with AS-norm the corpus gives mean and cohort.
    """
    norm = mean_and_cohort(system, corpus, args) if args['as_norm'] else {}
    records = []
    for files in tests:
        found, scores = validate(system, files, args, resamples=1000, **norm)
        if files is tests[0] and ddp.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / 'scores.npy', scores)
        records += found
    parameters = sum(p.numel() for p in system.parameters())
    return {
        'pair': list(pair),
        'seed': seed,
        'records': records,
        'parameters': parameters,
    }


def mean_and_cohort(system, corpus, args):
    """Mean embedding of the training set and of each of its speakers (spec 6.2, 6.3).

    Raises:
        UserError: no file has a finite embedding.
    """
    system.to(args['device']).eval()
    count = len(corpus.train)
    whole = args['cohort'] == 'whole'
    loader = corpus.whole_loader() if whole else corpus.clean_loader(np.arange(count))
    embeddings = extract(system, loader, count, args['device'])
    known = torch.isfinite(embeddings).all(1)
    if not known.any():
        raise UserError('no training file has a finite embedding: check the weights')
    speakers = np.unique(corpus.train.speakers[known.numpy()], return_inverse=True)[1]
    return {
        'mean': embeddings[known].mean(0),
        'cohort': speaker_means(embeddings[known], speakers, unit=False),
        'cohort_name': f'{corpus.train.root.name}: {args["cohort"]}, mean of each speaker',
    }


def results(scored, tests, folder, args):
    """Prints and draws what `score` found; writes results.json, text/losses.txt and report.html.

    Each of `scored` also names the 'folder' of its scores: a run may have been moved.
    """
    if not ddp.is_main():
        return
    groups = {}
    for one in scored:
        groups.setdefault(tuple(one['pair']), []).append(summary(one, label(one, scored)))
    table = [row for group in groups.values() for row in group]
    means = {pair: mean_row(group, system=title(pair)) for pair, group in groups.items()}
    if len(table) > len(groups):
        for pair, group in groups.items():
            if len(group) > 1:
                table.append({**means[pair], 'system': f'{title(pair)}, mean of {len(group)}'})
    students = {student for student, loss in groups if loss}
    if len(groups) > 1 and students:
        matrix = text_table(by_loss(means))
        write_text(folder / 'text' / 'losses.txt', matrix + '\n')
        draw_losses(folder / 'plots' / 'losses.png', groups, NAMES)
        print(f'EER %\n{matrix}\n')
    print(write_evaluation(folder, table, evaluations(scored, tests)), flush=True)


def by_loss(means):
    """The paper's table: a row for each student, a column for each loss, EER in percent."""
    rows = {}
    for (student, loss), mean in means.items():
        if loss:
            rows.setdefault(student, {'student': NAMES[student]})[NAMES[loss]] = mean['EER %']
    return list(rows.values())


def summary(one, name):
    """A row of the table, of the first list; the headline is AS-norm where it was computed."""
    first = one['records'][0]['sha256']
    plain, *normed = [r for r in one['records'] if r['sha256'] == first]
    headline = normed[0] if normed else plain
    row = {'system': name, 'parameters, M': one['parameters'] / 1e6, 'EER %': headline['eer']}
    row |= {f'minDCF {p}': value for p, value in headline['min_dcf'].items()}
    return row | ({'EER % without AS-norm': plain['eer']} if normed else {})


def title(pair):
    """A system's name: student and loss."""
    return ', '.join(NAMES[name] for name in pair if name)


def label(one, scored):
    """A system's name, with its seed where there are several."""
    seeds = (other['seed'] for other in scored if other['pair'] == one['pair'])
    return with_seed(title(one['pair']), one['seed'], seeds)


def evaluations(scored, tests):
    """Each system on each list; scores and curves of all on the first."""
    systems = []
    for one in scored:
        shown = [r for r in one['records'] if r['crop'] == one['records'][-1]['crop']]
        systems.append(ScoredSystem(label(one, scored), one['folder'] / 'scores.npy', shown))
    return compared(systems, tests[0].trials.labels)
