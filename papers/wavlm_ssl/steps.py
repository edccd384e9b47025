"""The steps between two trainings: embeddings of the training set, and pseudo-labels of them."""

from pathlib import Path

import train
from labels import make_labels, quality
from shared import ddp
from shared.datasets.embeddings import (
    coverage,
    key,
    labels_for,
    read_embeddings,
    read_labels,
    write_embeddings,
    write_labels,
)
from shared.errors import UserError
from shared.seed import set_seed
from systems import dino_system, system_of

COVERED = 0.5  # of the training list at least; below, the files are of another corpus


def embed(newest, output, seed, corpus, logger, args):
    """Step 1: embeddings of the training files, by DINO's teacher or the last round's model."""
    set_seed(seed + 1000 * ddp.rank(), args['deterministic'])  # for the dropout of quirk 4
    of_dino = newest.parent.name == 'dino'
    whole = {**args, 'longest': None}  # `longest` is of the evaluation (spec 5, 7)
    system = dino_system(newest, args) if of_dino else system_of(newest, whole)
    noisy = args['noisy_embeddings'] and not of_dino
    table = train.embeddings_of(system, corpus, args, noisy)
    if ddp.is_main():
        known = table.isfinite().all(1).nonzero().flatten().tolist()
        write_embeddings(output, [corpus.train.name(i) for i in known], table[known].numpy())
        if len(known) < len(table):
            print(f'{output}: {len(table) - len(known)} files could not be read: no embedding')


def cluster(source, output, seed, corpus, logger, args):
    """Step 2: embeddings to pseudo-labels; a given list of labels is taken as it is."""
    if not ddp.is_main():
        return
    given = args['labels'] and source == Path(args['labels'])
    names, found = read_labels(source) if given else read_embeddings(source)
    check_coverage(source, names, corpus.train)
    labels = found if given else make_labels(found, args)
    write_labels(output, names, labels)
    found = quality(labels_for(corpus.train, names, labels), corpus.train.speakers)
    parts = [f'{len(names)} utterances', *(f'{name} {value:.2f}' for name, value in found.items())]
    print(f'{output}: {", ".join(parts)}', flush=True)


def check_coverage(source, names, train):
    """Says how much of the training list a file names.

    Raises:
        UserError: less than half of it.
    """
    found, foreign = coverage(train, names)
    said = (
        f'{source}: names {found} of {len(train)} training utterances, '
        f'{foreign} keys are not in the train list'
    )
    if found < COVERED * len(train):
        raise UserError(
            f'{said}: too few; files are named like {key(train.name(0))}, keys like {names[0]}. '
            'Give the file of this corpus, or correct it, and run the same command again'
        )
    print(said, flush=True)


def quality_of(file, corpus):
    """NMI and purity of a list of pseudo-labels: only to be looked at."""
    return quality(labels_for(corpus.train, *read_labels(file)), corpus.train.speakers)
