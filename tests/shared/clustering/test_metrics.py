import math
from collections import Counter

import numpy as np
import pytest

from shared.clustering.metrics import ari, cluster_sizes, nmi, purity


def labelled(seed=0):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 5, 300)
    labels = np.where(rng.random(300) < 0.6, classes, rng.integers(0, 8, 300))
    return classes, labels


def entropy(values):
    return -sum(n / len(values) * math.log(n / len(values)) for n in Counter(values).values())


def test_nmi_equals_its_definition_with_the_arithmetic_mean():
    classes, labels = (x.tolist() for x in labelled())
    information = entropy(classes) + entropy(labels) - entropy(list(zip(classes, labels)))
    expected = 100 * information / ((entropy(classes) + entropy(labels)) / 2)
    assert nmi(*labelled()) == pytest.approx(expected)
    assert 5 < expected < 95


def test_nmi_ignores_the_names_of_clusters():
    classes, labels = labelled()
    renamed = np.random.default_rng(1).permutation(8)[labels]
    assert nmi(classes, renamed) == pytest.approx(nmi(classes, labels))
    assert nmi(classes, classes + 3) == pytest.approx(100)


def test_ari_counts_pairs_that_stay_together():
    classes, labels = labelled()
    together = lambda x: np.equal.outer(x, x)[np.triu_indices(300, 1)]  # noqa: E731
    a, b = together(classes), together(labels)
    chance = a.mean() * b.sum()
    expected = ((a & b).sum() - chance) / ((a.sum() + b.sum()) / 2 - chance)
    assert ari(classes, labels) == pytest.approx(100 * expected)
    assert ari(classes, classes + 3) == pytest.approx(100)
    assert 5 < 100 * expected < 95


def test_purity_counts_the_majority_of_each_cluster():
    classes, labels = labelled()
    majority = 0
    for cluster in set(labels.tolist()):
        members = [c for c, k in zip(classes.tolist(), labels.tolist()) if k == cluster]
        majority += max(members.count(c) for c in members)
    assert purity(classes, labels) == pytest.approx(100 * majority / 300)
    assert purity(classes, np.arange(300)) == 100
    assert purity(np.array([0, 0, 0, 1]), np.zeros(4, int)) == 75


def test_cluster_sizes_leave_empty_clusters_out_of_the_smallest():
    labels = np.array([0, 0, 0, 2, 5, 5])
    sizes = cluster_sizes(labels, 7)
    assert sizes == {'empty': 4, 'smallest': 1, 'median': 2.0, 'largest': 3}
