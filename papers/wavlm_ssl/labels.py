"""Pseudo-labels: k-means over the embeddings, then Ward clustering of its centroids (spec 5)."""

from pathlib import Path

import numpy as np

from shared import ddp
from shared.clustering.ahc import ward
from shared.clustering.kmeans import kmeans_euclidean
from shared.clustering.metrics import ari, cluster_sizes, nmi, purity
from shared.datasets.embeddings import read_embeddings, write_labels
from shared.errors import UserError


def make_labels(table, args):
    """Clusters of embeddings (N, D): labels (N,), the Ward label of each one's centroid."""
    if args['centroids'] > len(table):
        raise UserError(
            f'{len(table)} embeddings cannot make {args["centroids"]} centroids: '
            'lower centroids (22 utterances each) and clusters (1.25 a speaker)'
        )
    if args['normalise']:  # quirk 18: the authors' k-means takes them as they are
        table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    nearest, centroids = kmeans_euclidean(
        table,
        args['centroids'],
        iterations=args['kmeans_iterations'],
        seed=args['cluster_seed'],
        device=args['device'],
    )
    if not args['clusters']:
        return nearest
    return ward(centroids, args['clusters'], device=args['device'])[nearest]


def quality(labels, speakers):
    """How well labels (N,) match the speakers (N,); -1 has no label; {} where all are one speaker."""
    labelled = labels >= 0
    labels, speakers = labels[labelled], speakers[labelled]
    if len(np.unique(speakers)) < 2:
        return {}
    return {
        'NMI %': nmi(speakers, labels),
        'purity %': purity(speakers, labels),
        'ARI %': ari(speakers, labels),
    }


def cluster_files(embeddings_path, labels_path, args):
    """A file of embeddings to a list of pseudo-labels; speakers, if named, are only compared.

    Raises:
        UserError: there is such a list already.
    """
    if not ddp.is_main():
        return
    if Path(labels_path).exists():
        raise UserError(f'labels {labels_path}: is there already; remove it or name another file')
    names, table = read_embeddings(embeddings_path)
    labels = make_labels(table, args)
    write_labels(labels_path, names, labels)
    speakers = np.unique([name.split('/')[0] for name in names], return_inverse=True)[1]
    sizes = cluster_sizes(labels, args['clusters'] or args['centroids'])
    kinds = len(np.unique(speakers))
    found = quality(labels, speakers) if kinds < len(names) else {}  # file names are no speakers
    print(
        f'{labels_path}: {len(names)} embeddings of {table.shape[1]} numbers, '
        f'{args["centroids"]} centroids, {labels.max() + 1} clusters of {sizes["smallest"]} to '
        f'{sizes["largest"]}' + ''.join(f', {name} {value:.2f}' for name, value in found.items())
    )
