"""How well clusters match true classes, and how large they are."""

import numpy as np


def nmi(classes: np.ndarray, labels: np.ndarray) -> float:
    """Normalised mutual information, percent, over the arithmetic mean of both entropies.

    Args:
        classes: (N,) true classes.
        labels: (N,) clusters.
    """
    from sklearn.metrics import normalized_mutual_info_score

    return 100 * float(normalized_mutual_info_score(classes, labels))


def ari(classes: np.ndarray, labels: np.ndarray) -> float:
    """Adjusted Rand index, percent: agreement about pairs, 0 for labels drawn at random.

    Args:
        classes: (N,) true classes.
        labels: (N,) clusters.
    """
    from sklearn.metrics import adjusted_rand_score

    return 100 * float(adjusted_rand_score(classes, labels))


def purity(classes: np.ndarray, labels: np.ndarray) -> float:
    """Percent of the N samples that belong to the most frequent class of their cluster.

    Args:
        classes: (N,) true classes.
        labels: (N,) clusters.
    """
    from sklearn.metrics.cluster import contingency_matrix

    counts = contingency_matrix(classes, labels, sparse=True).tocsc()  # (classes, clusters)
    return 100 * float(counts.max(axis=0).sum()) / len(labels)


def cluster_sizes(labels: np.ndarray, clusters: int) -> dict[str, float]:
    """Samples per cluster: smallest, median and largest non-empty one, and the number of empty.

    Args:
        labels: (N,) int in [0, clusters).
        clusters: number of clusters asked for.
    """
    counts = np.bincount(labels, minlength=clusters)
    used = counts[counts > 0]
    return {
        'empty': int(clusters - len(used)),
        'smallest': int(used.min()),
        'median': float(np.median(used)),
        'largest': int(used.max()),
    }
