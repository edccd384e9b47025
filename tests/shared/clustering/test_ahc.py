import numpy as np
import pytest
import torch
from sklearn.cluster import AgglomerativeClustering

import shared.clustering.ahc as module
from shared.clustering.ahc import ward


def same_partition(a, b):
    """Each cluster of one is a cluster of the other."""
    return len(set(zip(a, b))) == len(set(a)) == len(set(b))


def points(count=300, dim=8, groups=25, noise=0.4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(groups, dim))[rng.integers(0, groups, count)]
    return (x + noise * rng.normal(size=(count, dim))).astype(np.float32)


@pytest.mark.parametrize('clusters', [1, 2, 13, 120, 299, 300])
@pytest.mark.parametrize('seed', range(3))
def test_ward_equals_scikit_learn(clusters, seed):
    x = points(seed=seed, dim=8 if seed else 100)
    expected = AgglomerativeClustering(clusters, linkage='ward').fit_predict(x)
    assert same_partition(ward(x, clusters), expected)


def test_ward_merges_one_pair_after_the_other_as_the_definition_says():
    x = points(count=30, dim=3, noise=1.0).astype(np.float64)
    groups = [[i] for i in range(30)]
    spread = lambda rows: ((x[rows] - x[rows].mean(0)) ** 2).sum()  # noqa: E731
    while len(groups) > 5:
        added = {
            (i, j): spread(a + b) - spread(a) - spread(b)
            for i, a in enumerate(groups)
            for j, b in enumerate(groups[:i])
        }
        i, j = min(added, key=added.get)
        groups[j] += groups.pop(i)
    expected = np.empty(30, dtype=int)
    for number, rows in enumerate(groups):
        expected[rows] = number
    assert same_partition(ward(x, 5), expected)


def test_ward_heights_are_those_of_scikit_learn():
    x = points()
    _, _, heights = module._merges(x, 'cpu')
    tree = AgglomerativeClustering(None, distance_threshold=0, linkage='ward').fit(x)
    np.testing.assert_allclose(np.sqrt(2 * np.sort(heights)), tree.distances_, rtol=1e-5)


def test_ward_finds_its_way_among_equal_points_and_equal_distances():
    twins = np.repeat(points(count=40), 4, axis=0)
    labels = ward(twins, 40)
    assert same_partition(labels, np.arange(160) // 4)
    expected = AgglomerativeClustering(9, linkage='ward').fit_predict(twins)
    assert same_partition(ward(twins, 9), expected)
    assert sorted(ward(np.ones((6, 2)), 4)) == [0, 0, 0, 1, 2, 3]  # any three pairs will do
    often = np.random.default_rng(1).integers(1, 12, 40)  # the heavier, the later it is merged
    heavy = np.repeat(points(count=40), often, axis=0)
    for clusters in (5, 20):
        expected = AgglomerativeClustering(clusters, linkage='ward').fit_predict(heavy)
        assert same_partition(ward(heavy, clusters), expected)
        light = ward(points(count=40), clusters).repeat(often)
        assert not same_partition(light, expected)
    assert ward(np.ones((6, 2)), 1).tolist() == [0] * 6
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(-1, 2)
    assert len(set(ward(grid, 16))) == 16
    assert np.bincount(ward(grid, 16)).tolist() == [4] * 16


def test_ward_merges_the_nearest_pair_where_no_two_are_mutual():
    forest = module._Forest(
        torch.tensor([[0.0], [1], [3]]).double(), np.ones(3), np.arange(3), 'cpu'
    )
    forest.nearest = torch.tensor([1, 2, 0])  # as rounding of equal distances could leave it
    forest.distance = torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)
    first, second, height = forest.merge()
    assert (first.tolist(), second.tolist(), height.tolist()) == ([1], [2], [0.25])
    assert len(forest.nearest) == 2


def test_ward_numbers_clusters_by_their_first_point():
    labels = ward(points(), 30)
    seen = list(dict.fromkeys(labels.tolist()))
    assert labels.dtype == np.int64 and seen == list(range(30))


def test_ward_needs_no_table_of_all_pairs(monkeypatch):
    x = points()
    expected = ward(x, 20)
    monkeypatch.setattr(module, 'BLOCK', 8 * 300 * 7)  # seven rows at once
    largest = []
    addmm = torch.addmm
    monkeypatch.setattr(
        torch, 'addmm', lambda *a, out, **k: largest.append(out.numel()) or addmm(*a, out=out, **k)
    )
    np.testing.assert_array_equal(ward(x, 20), expected)
    assert max(largest) <= 7 * 300


def test_ward_refuses_too_few_points_and_points_that_are_not_finite():
    with pytest.raises(ValueError, match=r'points \(5, 2\) cannot make 6 clusters'):
        ward(np.ones((5, 2)), 6)
    with pytest.raises(ValueError, match='cannot make 0 clusters'):
        ward(np.ones((5, 2)), 0)
    with pytest.raises(ValueError, match='not finite'):
        ward(np.full((5, 2), np.nan), 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_ward_on_the_gpu_equals_the_cpu():
    x = points(count=2000, dim=64)
    np.testing.assert_array_equal(ward(x, 150, device='cuda'), ward(x, 150))
