"""k-means over embeddings with faiss."""

import numpy as np
from tqdm import tqdm


def kmeans(
    embeddings: np.ndarray,
    clusters: int,
    *,
    iterations: int = 25,
    seed: int = 1234,
    spherical: bool = False,
    device: str = 'auto',
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters embeddings by inner product with plain mean centroids.

    Source: spec lgl 6.3, faiss Clustering with its default parameters on a flat inner-product
    index. The centroids are not made unit length, which favours compact clusters; `spherical` does
    so. At most 256 rows per cluster take part in the training; all rows are labelled. Some
    clusters may end up empty.

    Args:
        embeddings: (N, D) float32, usually of unit length.
        clusters: number of clusters, at most N.
        iterations: passes over the rows.
        seed: of the draw of the initial centroids.
        spherical: normalise the centroids after each pass.
        device: 'auto' (a GPU when faiss sees one), 'cpu', or 'cuda:<number>'.

    Returns:
        Labels (N,) int64 in [0, clusters) and the centroids (clusters, D) they belong to.

    Raises:
        ValueError: fewer rows than clusters, or rows that are not finite.
    """
    _check(embeddings, clusters)
    import faiss  # here, so that only who clusters pays for its start

    embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
    dim = embeddings.shape[1]
    settings = faiss.ClusteringParameters()
    settings.niter = 1
    settings.seed = seed
    settings.spherical = spherical
    settings.min_points_per_centroid = 1  # only silences a warning
    clustering = faiss.Clustering(dim, clusters, settings)
    index = _flat_index(faiss, dim, device)
    # one pass at a time, each starting from the last centroids, equals all passes in one call:
    # faiss draws with the same seed in each pass
    for _ in tqdm(range(iterations), desc='k-means', unit='pass', leave=False, disable=None):
        clustering.train(embeddings, index)
    centroids = faiss.vector_to_array(clustering.centroids).reshape(clusters, dim)
    index.reset()
    index.add(centroids)
    _, labels = index.search(embeddings, 1)
    return labels[:, 0].astype(np.int64), centroids


def _check(embeddings: np.ndarray, clusters: int):
    if embeddings.ndim != 2:
        raise ValueError(f'embeddings must be (N, D), not {embeddings.shape}')
    if not 0 < clusters <= len(embeddings):
        raise ValueError(f'{len(embeddings)} embeddings cannot make {clusters} clusters')
    bad = np.flatnonzero(~np.isfinite(embeddings.sum(axis=1)))  # (N,), no (N, D) copy
    if len(bad):
        raise ValueError(
            f'{len(bad)} of {len(embeddings)} embeddings are not finite, the first is row {bad[0]}'
        )


def _flat_index(faiss, dim: int, device: str):
    """Exact inner-product index on the device."""
    if device == 'cpu' or (device == 'auto' and not faiss.get_num_gpus()):
        return faiss.IndexFlatIP(dim)
    config = faiss.GpuIndexFlatConfig()
    config.device = 0 if device == 'auto' else int(device.partition(':')[2] or 0)
    return faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), dim, config)
