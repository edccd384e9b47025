import numpy as np
import pytest
import torch

import shared.clustering.kmeans as module
from shared.clustering.kmeans import kmeans, kmeans_euclidean


def words(seed):
    """Raw 32-bit outputs of the mt19937 of a seed."""
    state = np.random.RandomState(seed)
    while True:
        yield int(state.randint(0, 2**32, dtype=np.uint32))


def oracle(x, clusters, iterations, spherical=False):
    """Spec lgl 6.3, 'exact reproduction without faiss', with seed 1234."""
    count, dim = x.shape
    order, draw = np.arange(count), words(1235)
    for i in range(count - 1):
        j = i + next(draw) % (count - i)
        order[i], order[j] = order[j], order[i]
    unit = _unit if spherical else (lambda c: c)
    centroids = unit(x[order[:clusters]].astype(np.float64))
    splits = 0
    for _ in range(iterations):
        labels = (x @ centroids.T).argmax(1)
        sizes = np.bincount(labels, minlength=clusters).astype(np.float64)
        for c in np.flatnonzero(sizes):
            centroids[c] = x[labels == c].mean(0, dtype=np.float64)
        splits += _split_empty(centroids, sizes, count)
        centroids = unit(centroids)
    return centroids, splits


def _unit(centroids):
    return centroids / np.linalg.norm(centroids, axis=1, keepdims=True)


def _split_empty(centroids, sizes, count):
    """Moves each empty cluster next to a large one; returns how many were moved."""
    draw, clusters, splits = words(1234), len(centroids), 0
    for empty in range(clusters):
        if sizes[empty]:
            continue
        donor = 0
        while next(draw) / (2**32 - 1) >= (sizes[donor] - 1) / (count - clusters):
            donor = (donor + 1) % clusters
        sign = np.where(np.arange(centroids.shape[1]) % 2 == 0, 1, -1) / 1024
        centroids[empty] = centroids[donor] * (1 + sign)
        centroids[donor] = centroids[donor] * (1 - sign)
        sizes[empty] = sizes[donor] / 2
        sizes[donor] -= sizes[empty]
        splits += 1
    return splits


def embeddings(count=600, dim=8, groups=12, noise=0.25, seed=0):
    """Unit rows around `groups` directions, float32."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, dim))
    x = centres[rng.integers(0, groups, count)] + noise * rng.normal(size=(count, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize('spherical', [False, True])
def test_kmeans_equals_the_algorithm_written_in_numpy(spherical):
    x = embeddings()
    labels, centroids = kmeans(x, 20, iterations=10, spherical=spherical, device='cpu')
    expected, _ = oracle(x, 20, 10, spherical)
    np.testing.assert_allclose(centroids, expected, atol=1e-6)
    np.testing.assert_array_equal(labels, (x @ expected.T).argmax(1))


def test_kmeans_fills_empty_clusters_as_the_algorithm_written_in_numpy():
    x = embeddings(count=300, dim=6)
    # rows of very different lengths: the longest centroids take the rows of the shortest
    x *= np.random.default_rng(1).uniform(0.1, 2, (300, 1)).astype(np.float32)
    labels, centroids = kmeans(x, 40, iterations=12, device='cpu')
    expected, splits = oracle(x, 40, 12)
    assert splits > 0
    np.testing.assert_allclose(centroids, expected, atol=1e-6)
    assert labels.min() >= 0 and labels.max() < 40


def test_kmeans_in_single_passes_equals_faiss_in_one_call():
    import faiss

    x = embeddings(count=2000)  # more than 256 a cluster: faiss trains on a sample
    settings = faiss.ClusteringParameters()
    reference = faiss.Clustering(8, 6, settings)
    reference.train(x, faiss.IndexFlatIP(8))
    expected = faiss.vector_to_array(reference.centroids).reshape(6, 8)
    _, centroids = kmeans(x, 6, device='cpu')
    np.testing.assert_array_equal(centroids, expected)


def test_kmeans_centroids_are_unit_only_when_spherical():
    x = embeddings()
    plain = np.linalg.norm(kmeans(x, 10, device='cpu')[1], axis=1)
    unit = np.linalg.norm(kmeans(x, 10, spherical=True, device='cpu')[1], axis=1)
    assert (plain < 0.999).all()
    np.testing.assert_allclose(unit, 1, atol=1e-5)


def test_kmeans_draws_with_its_seed():
    x = embeddings()
    first, again = (kmeans(x, 10, seed=5, device='cpu')[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (kmeans(x, 10, seed=6, device='cpu')[0] != first).any()


def test_kmeans_takes_as_many_clusters_as_rows_and_equal_rows():
    x = np.ones((7, 3), dtype=np.float32)
    labels, centroids = kmeans(x, 7, device='cpu')
    assert labels.shape == (7,) and np.isfinite(centroids).all()


def test_kmeans_refuses_too_few_rows_and_rows_that_are_not_finite():
    x = embeddings(count=20)
    with pytest.raises(ValueError, match='20 embeddings cannot make 21 clusters'):
        kmeans(x, 21, device='cpu')
    x[[4, 9], 2] = np.nan
    with pytest.raises(ValueError, match='2 of 20 embeddings are not finite, the first is row 4'):
        kmeans(x, 5, device='cpu')


def lloyd(x, centroids, iterations):
    """Whole passes of Lloyd's algorithm in float64; an empty cluster takes the farthest row."""
    x, centroids, filled = x.astype(np.float64), centroids.astype(np.float64), 0
    for _ in range(iterations):
        labels = nearest(x, centroids)
        distance = ((x - centroids[labels]) ** 2).sum(1)
        for row in np.argsort(-distance, kind='stable'):
            empty = np.setdiff1d(np.arange(len(centroids)), labels)
            if not len(empty):
                break
            if (labels == labels[row]).sum() > 1:
                labels[row] = empty[0]
                filled += 1
        new = np.stack([x[labels == c].mean(0) for c in range(len(centroids))])
        if (new == centroids).all():
            break
        centroids = new
    return centroids, filled


def nearest(x, centroids):
    """Number of the nearest centroid, by each distance."""
    return np.array([((row - centroids) ** 2).sum(1).argmin() for row in x])


@pytest.mark.parametrize('iterations', [1, 3, 300])
@pytest.mark.parametrize('clusters', [1, 2, 40])
def test_euclidean_passes_equal_whole_passes_in_float64(clusters, iterations):
    x = embeddings(noise=0.5) + 3  # far from the origin, where products lose digits
    start = kmeans_euclidean(x, clusters, iterations=0)[1]
    labels, centroids = kmeans_euclidean(x, clusters, iterations=iterations, tolerance=0)
    expected, filled = lloyd(x, start, iterations)
    assert filled == 0
    np.testing.assert_allclose(centroids, expected, atol=2e-6)
    np.testing.assert_array_equal(labels, nearest(x, expected))


def test_euclidean_result_does_not_depend_on_the_size_of_blocks(monkeypatch):
    x = embeddings()
    expected = kmeans_euclidean(x, 30)
    monkeypatch.setattr(module, 'BLOCK', 1000)  # 8 rows of scores, 15 rows of sums
    labels, centroids = kmeans_euclidean(x, 30)
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_allclose(centroids, expected[1], atol=1e-6)


def test_euclidean_start_draws_different_rows_far_from_each_other():
    x = np.repeat(np.eye(8, dtype=np.float32), [1000, 1, 1, 1, 1, 1, 1, 1], axis=0)
    for seed in range(5):  # by chance alone nearly all would be the first row
        _, start = kmeans_euclidean(x, 8, seed=seed, iterations=0)
        np.testing.assert_allclose(np.sort(start.argmax(1)), np.arange(8))
        np.testing.assert_allclose(start.max(1), 1, atol=1e-6)
        assert sorted(module._start(torch.ones(20, 3), 20, seed).tolist()) == list(range(20))


def test_euclidean_start_draws_in_proportion_to_the_squared_distance(monkeypatch):
    monkeypatch.setattr(module, 'START_ROUNDS', 2)
    x = torch.tensor([[0.0, 0], [1, 0], [0, 2]])
    drawn = [tuple(module._start(x, 2, seed).tolist()) for seed in range(800)]
    assert {len(set(pair)) for pair in drawn} == {2}
    after = [second for first, second in drawn if first == 0]
    assert len(after) / 800 == pytest.approx(1 / 3, abs=0.05)
    assert after.count(2) / len(after) == pytest.approx(4 / 5, abs=0.07)


def test_euclidean_gives_empty_clusters_the_farthest_rows():
    x = np.array([[0.0], [1], [10], [11], [12], [30]], dtype=np.float32)
    model = module._Lloyd(torch.from_numpy(x), torch.tensor([[0.5], [90.0], [12.0], [-80.0]]))
    model.assign(None)
    assert model.labels.tolist() == [0, 0, 2, 2, 2, 2]
    moved, _ = model.update()  # 30, then 10, leave the third cluster
    assert model.labels.tolist() == [0, 0, 3, 2, 2, 1]
    assert moved.tolist() == [1, 2, 3]
    np.testing.assert_allclose(model.centroids[:, 0], [0.5, 30, 11.5, 10])
    model.assign(moved)
    assert model.labels.tolist() == [0, 0, 3, 2, 2, 1]


def test_euclidean_never_empties_the_cluster_that_gives():
    x = torch.tensor([[-9.0], [9], [0], [0]])
    model = module._Lloyd(x, torch.tensor([[-5.0], [5.0], [0.0], [90.0]]))
    model.assign(None)
    model.update()  # the rows at 9 are farthest, but alone
    assert torch.bincount(model.labels).tolist() == [1, 1, 1, 1]


def test_euclidean_leaves_no_cluster_empty():
    rng = np.random.default_rng(0)
    for seed in range(4):
        x = embeddings(count=300, dim=6, seed=seed) * rng.uniform(0.1, 2, (300, 1))
        labels, centroids = kmeans_euclidean(x.astype(np.float32), 150, seed=seed)
        assert (np.bincount(labels, minlength=150) > 0).all()
    labels, centroids = kmeans_euclidean(np.ones((7, 3), dtype=np.float32), 7)
    assert np.isfinite(centroids).all() and labels.max() < 7


def test_euclidean_stops_at_its_tolerance():
    x = embeddings(noise=0.6)
    start = kmeans_euclidean(x, 40, iterations=0)[1]
    moves, centroids = [], start.astype(np.float64)
    for _ in range(30):
        new, _ = lloyd(x, centroids, 1)
        moves.append(((new - centroids) ** 2).sum() / x.var(axis=0).mean())
        centroids = new
    assert moves[3] < 0.99 * moves[2] < 0.99 * moves[1]
    tolerance = (moves[2] + moves[3]) / 2
    found = kmeans_euclidean(x, 40, tolerance=tolerance)[1]
    np.testing.assert_allclose(found, lloyd(x, start, 4)[0], atol=2e-6)


def test_euclidean_draws_with_its_seed_and_leaves_other_draws_alone():
    x = embeddings()
    before, kept = torch.get_rng_state(), x.copy()
    first, again = (kmeans_euclidean(x, 10, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (kmeans_euclidean(x, 10, seed=6)[0] != first[0]).any()
    assert torch.equal(before, torch.get_rng_state()) and np.array_equal(x, kept)


def test_euclidean_refuses_too_few_rows_and_rows_that_are_not_finite():
    x = embeddings(count=20)
    with pytest.raises(ValueError, match='20 embeddings cannot make 21 clusters'):
        kmeans_euclidean(x, 21)
    x[4, 2] = np.inf
    with pytest.raises(ValueError, match='1 of 20 embeddings are not finite, the first is row 4'):
        kmeans_euclidean(x, 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_euclidean_on_the_gpu_equals_whole_passes_twice():
    x = embeddings(count=3000, noise=0.5)
    start = kmeans_euclidean(x, 40, iterations=0, device='cuda')[1]
    labels, centroids = kmeans_euclidean(x, 40, tolerance=0, device='cuda')
    np.testing.assert_array_equal(labels, nearest(x, lloyd(x, start, 300)[0]))
    again = kmeans_euclidean(x, 40, tolerance=0, device='cuda')
    np.testing.assert_array_equal(centroids, again[1])
