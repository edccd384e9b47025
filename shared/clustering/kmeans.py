"""k-means over embeddings: by inner product with faiss, by Euclidean distance with torch."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from tqdm import tqdm

BLOCK = 1 << 27  # bytes of scores that one step holds
START_ROUNDS = 8  # draws of a scalable k-means++ start


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


def kmeans_euclidean(
    embeddings: np.ndarray,
    clusters: int,
    *,
    iterations: int = 300,
    tolerance: float = 1e-4,
    seed: int = 1234,
    device: str = 'cpu',
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters embeddings by squared Euclidean distance, exactly, at any number of clusters.

    Source: spec wavlm_ssl 5 and 10 (19), Lloyd's algorithm from a scalable k-means++ start. A pass
    compares each row only with the centroids that moved since the last one, as long as a bound shows
    that no other can be the nearest (`_Lloyd.assign`); the result is the one of full passes. A
    cluster that loses its last row takes the row that lies farthest from its centroid. The same seed
    gives the same labels on the same device. Memory on the device: twice the embeddings, a few times
    the centroids, about 30 numbers a row and three times BLOCK bytes.

    Args:
        embeddings: (N, D) float32.
        clusters: number of clusters, at most N.
        iterations: passes at most; 0 returns the start.
        tolerance: stops when the squared moves of all centroids sum to no more than this part of
            the embeddings' variance per dimension.
        seed: of the draw of the first centroids, which are rows.
        device: of torch, such as 'cpu' or 'cuda:0'.

    Returns:
        Labels (N,) int64 in [0, clusters) and the centroids (clusters, D) float32 they belong to.

    Raises:
        ValueError: fewer rows than clusters, or rows that are not finite.
    """
    _check(embeddings, clusters)
    rows = torch.from_numpy(np.ascontiguousarray(embeddings, dtype=np.float32)).to(device)
    centre = rows.mean(dim=0)
    rows = rows - centre  # products of small numbers keep more digits of their differences
    smallest = tolerance * float(rows.norm()) ** 2 / rows.numel()
    with _full_precision():
        lloyd = _Lloyd(rows, rows[_start(rows, clusters, seed)])
        lloyd.assign(None)
        bar = tqdm(range(iterations), desc='k-means', unit='pass', leave=False, disable=None)
        for _ in bar:
            moved, distance = lloyd.update()
            if not len(moved):
                break
            bar.set_postfix_str(f'{len(moved)} centroids move', refresh=False)
            lloyd.assign(moved)
            if distance <= smallest:
                break
        bar.close()
    return lloyd.labels.cpu().numpy(), (lloyd.centroids + centre).cpu().numpy()


def _start(rows: torch.Tensor, clusters: int, seed: int) -> torch.Tensor:
    """Numbers (clusters,) of different rows, drawn in a few rounds.

    A round draws with probabilities proportional to the squared distance from what was drawn before
    (k-means||, without its candidates in excess); Gumbel noise on the logarithms draws without
    replacement.
    """
    generator = torch.Generator().manual_seed(seed)
    squares = rows.norm(dim=1).square()  # no second table
    distance = torch.ones_like(squares)
    drawn = torch.empty(0, dtype=torch.int64, device=rows.device)
    for part in np.array_split(np.arange(clusters), min(START_ROUNDS, clusters)):
        uniform = torch.rand(len(rows), generator=generator, dtype=torch.float64).to(rows.device)
        chance = distance.double().clamp(min=1e-30).log() - (-uniform.log()).log()
        chance[drawn] = -torch.inf
        new = chance.topk(len(part)).indices
        nearest = squares - 2 * _two_best(rows, None, rows[new])[0][:, 0]
        distance = torch.minimum(distance, nearest) if len(drawn) else nearest
        drawn = torch.cat([drawn, new])
    return drawn


class _Lloyd:
    """Passes of Lloyd's algorithm over rows (N, D) with centroids (K, D), float32.

    Nearness is the score x.c - c.c / 2, the largest where the distance is the smallest. `own` (N,)
    is the score of each row's centroid, `rival` (N,) no less than that of any other centroid.
    """

    def __init__(self, rows: torch.Tensor, centroids: torch.Tensor):
        self.rows, self.centroids = rows, centroids
        self.labels = torch.full((len(rows),), -1, device=rows.device)
        self.own = torch.full((len(rows),), -torch.inf, device=rows.device)
        self.rival = torch.full_like(self.own, torch.inf)
        self.changed = torch.ones(len(centroids), dtype=torch.bool, device=rows.device)

    def assign(self, moved: torch.Tensor | None) -> None:
        """Labels every row by its nearest centroid; `moved` (M,) are those moved since (None: all).

        A score of a centroid that did not move is still true. So the best of the moved ones and the
        own one is the nearest of all unless it falls below `rival`; only such rows look at all K.
        """
        before = self.labels.clone()
        if moved is None:
            self._take(slice(None), *_two_best(self.rows, None, self.centroids))
        else:
            scores, labels = _two_best(self.rows, None, self.centroids[moved])  # (N, 2)
            labels = moved[labels]
            is_moved = torch.zeros_like(self.changed)
            is_moved[moved] = True
            own = self.own.masked_fill(is_moved[self.labels], -torch.inf)  # is among the moved
            scores, order = torch.cat([own[:, None], scores], dim=1).topk(2, dim=1)
            labels = torch.cat([self.labels[:, None], labels], dim=1).gather(1, order)
            scores[:, 1] = torch.maximum(scores[:, 1], self.rival)
            self._take(slice(None), scores, labels)
            if len(unsure := torch.nonzero(self.own < self.rival)[:, 0]):
                self._take(unsure, *_two_best(self.rows, unsure, self.centroids))
        differs = self.labels != before
        self.changed[:] = False
        self.changed[self.labels[differs]] = True
        self.changed[before[differs & (before >= 0)]] = True

    def update(self) -> tuple[torch.Tensor, float]:
        """Moves the centroids of changed clusters to their means; (M,) moved, squared distance."""
        count = torch.bincount(self.labels, minlength=len(self.centroids))
        if (count == 0).any():
            count = self._fill(count)
        changed = torch.nonzero(self.changed)[:, 0]
        members = torch.nonzero(self.changed[self.labels])[:, 0]
        members = members[torch.sort(self.labels[members], stable=True).indices]
        sums = self.rows.new_zeros((len(changed), self.rows.shape[1]), dtype=torch.float64)
        step = max(BLOCK // (8 * self.rows.shape[1]), 1)
        for part in members.split(step) if len(members) else ():
            # rows of one cluster stand together: summed without atomics, in a fixed order
            label, length = torch.unique_consecutive(self.labels[part], return_counts=True)
            total = torch.segment_reduce(self.rows[part].double(), 'sum', lengths=length)
            sums[torch.searchsorted(changed, label)] += total
        means = (sums / count[changed, None]).float()
        moves = (means - self.centroids[changed]).square().sum(dim=1, dtype=torch.float64)
        self.centroids[changed] = means
        return changed[moves > 0], float(moves.sum())

    def _fill(self, count: torch.Tensor) -> torch.Tensor:
        """Gives each empty cluster the farthest row that is not the last of its own; new counts."""
        distance = self.rows.norm(dim=1).square() - 2 * self.own
        farthest = torch.sort(distance, descending=True, stable=True).indices
        empty, sizes = torch.nonzero(count == 0)[:, 0].tolist(), count.cpu()
        for row in farthest.tolist():
            if not empty:
                break
            donor = int(self.labels[row])
            if sizes[donor] > 1:
                taker = empty.pop(0)
                self.labels[row] = taker
                sizes[donor] -= 1
                sizes[taker] = 1
                self.changed[[donor, taker]] = True
        return sizes.to(count.device)

    def _take(self, where, scores: torch.Tensor, labels: torch.Tensor) -> None:
        self.own[where], self.rival[where] = scores.unbind(dim=1)
        self.labels[where] = labels[:, 0]


def _two_best(
    rows: torch.Tensor, which: torch.Tensor | None, centroids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (R, 2) and numbers (R, 2) of the two nearest of the centroids (M, D).

    `which` (R,) of the rows; None: all. The second is -inf where M is 1.
    """
    count = len(rows) if which is None else len(which)
    half = -0.5 * centroids.square().sum(dim=1)
    scores = rows.new_full((count, 2), -torch.inf)
    labels = torch.zeros((count, 2), dtype=torch.int64, device=rows.device)
    step = max(BLOCK // (4 * len(centroids)), 1)
    buffer = rows.new_empty((min(step, count), len(centroids)))
    best = min(2, len(centroids))
    for start in range(0, count, step):
        part = slice(start, start + step)
        some = rows[part if which is None else which[part]]
        found = torch.addmm(half, some, centroids.T, out=buffer[: len(some)]).topk(best, dim=1)
        scores[part, :best], labels[part, :best] = found
    return scores, labels


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Products in true float32 on a GPU, whatever the training around it allows."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


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
