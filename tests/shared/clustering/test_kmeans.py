import numpy as np
import pytest

from shared.clustering.kmeans import kmeans


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
