"""The steps between two trainings: embeddings of the training set, and pseudo-labels of them."""

from pathlib import Path

import train
from labels import make_labels, quality
from shared import ddp
from shared.datasets.embeddings import (
    labels_for,
    read_embeddings,
    read_labels,
    write_embeddings,
    write_labels,
)
from systems import dino_system, system_of


def embed(output, newest, seed, corpus, logger, args):
    """Step 1: embeddings of the training files, by DINO's teacher or the last round's model."""
    of_dino = newest.parent.name == 'dino'
    system = (dino_system if of_dino else system_of)(newest, args)
    noisy = args['noisy_embeddings'] and not of_dino
    table = train.embeddings_of(system, corpus, args, noisy)
    if ddp.is_main():
        known = table.isfinite().all(1).nonzero().flatten().tolist()
        write_embeddings(output, [corpus.train.name(i) for i in known], table[known].numpy())
        if len(known) < len(table):
            print(f'{output}: {len(table) - len(known)} files could not be read: no embedding')


def cluster(output, source, seed, corpus, logger, args):
    """Step 2: embeddings to pseudo-labels; a given list of labels is taken as it is."""
    if not ddp.is_main():
        return
    if args['labels'] and source == Path(args['labels']):
        names, labels = read_labels(source)
    else:
        names, table = read_embeddings(source)
        labels = make_labels(table, args)
    write_labels(output, names, labels)
    found = quality(labels_for(corpus.train, names, labels), corpus.train.speakers)
    parts = [f'{len(names)} utterances', *(f'{name} {value:.2f}' for name, value in found.items())]
    print(f'{output}: {", ".join(parts)}', flush=True)


def quality_of(file, corpus):
    """NMI and purity of a list of pseudo-labels: only to be looked at."""
    return quality(labels_for(corpus.train, *read_labels(file)), corpus.train.speakers)
