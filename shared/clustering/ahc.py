"""Agglomerative clustering with Ward's criterion, in memory that grows with N rather than N x N."""

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

BLOCK = 1 << 27  # bytes of distances that one step holds


def ward(points: np.ndarray, clusters: int, *, device: str = 'cpu') -> np.ndarray:
    """Merges points until `clusters` are left, each time the pair that adds the least variance.

    Source: spec wavlm_ssl 5 (3), scikit-learn's AgglomerativeClustering(linkage='ward'); the same
    partition up to equal distances. Every pair of clusters that are each other's nearest is merged
    at once, and only clusters whose nearest is gone look for a new one. Both are exact for Ward's
    distance: a merged cluster is never nearer to a third than the nearer of its two parts. Distances are
    float64 and computed from the centroids, so memory is a few times (N, D) and 3 BLOCK bytes, not
    N (N - 1) / 2.

    Args:
        points: (N, D), all of the same weight.
        clusters: clusters to leave, at most N.
        device: of torch, such as 'cpu' or 'cuda:0'.

    Returns:
        Labels (N,) int64 in [0, clusters), numbered by the first point of each cluster.

    Raises:
        ValueError: fewer points than clusters, or points that are not finite.
    """
    count = len(points)
    if points.ndim != 2 or not 0 < clusters <= count:
        raise ValueError(f'points {points.shape} cannot make {clusters} clusters')
    if not np.isfinite(points).all():
        raise ValueError('points that are not finite cannot be clustered')
    first, second, heights = _merges(points, device)
    lowest = np.argsort(heights, kind='stable')[: count - clusters]
    edges = (np.ones(len(lowest), dtype=bool), (first[lowest], second[lowest]))
    labels = connected_components(coo_array(edges, shape=(count, count)), directed=False)[1]
    _, first_point, labels = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first_point))
    return rank[labels].astype(np.int64)


def _merges(points: np.ndarray, device: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The N - 1 merges: a point of either cluster (N - 1,), (N - 1,) and heights (N - 1,)."""
    unique, one, which, sizes = np.unique(
        points, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    which = which.reshape(-1)
    twins = np.flatnonzero(one[which] != np.arange(len(points)))  # equal points merge first, at 0
    found = [
        (torch.from_numpy(one[which[twins]]), torch.from_numpy(twins), torch.zeros(len(twins)))
    ]
    forest = _Forest(torch.from_numpy(unique.astype(np.float64)), sizes, one, device)
    bar = tqdm(total=len(unique) - 1, desc='Ward', unit='merge', leave=False, disable=None)
    while len(forest.centroids) > 1:
        found.append(forest.merge())
        bar.update(len(found[-1][0]))
    bar.close()
    first, second, heights = (torch.cat([part.cpu() for part in parts]) for parts in zip(*found))
    return first.numpy(), second.numpy(), heights.double().numpy()


class _Forest:
    """The C clusters of one moment: centroids (C, D), sizes (C,), one point of each (C,).

    `nearest` (C,) and `distance` (C,) are each cluster's nearest other one and the sum of squares that
    merging the two would add.
    """

    def __init__(self, points: torch.Tensor, sizes: np.ndarray, members: np.ndarray, device: str):
        self.centroids = (points - points.mean(dim=0)).to(device)  # centred: less cancellation
        self.sizes = torch.from_numpy(sizes.astype(np.float64)).to(device)
        self.members = torch.from_numpy(members).to(device)
        self.nearest = torch.zeros_like(self.members)
        self.distance = torch.zeros_like(self.sizes)
        if len(points) > 1:
            self._search(torch.arange(len(points), device=device))

    def merge(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Merges all pairs of mutually nearest clusters: a member of each side, heights."""
        every = torch.arange(len(self.nearest), device=self.nearest.device)
        mutual = (self.nearest[self.nearest] == every) & (every < self.nearest)
        first = torch.nonzero(mutual)[:, 0]
        if not len(first):  # rounding made equal distances disagree: the smallest of all
            first = self.distance.argmin()[None]
        second = self.nearest[first]
        merged = self.members[first], self.members[second], self.distance[first]
        a, b = self.sizes[first, None], self.sizes[second, None]
        self.centroids[first] = (a * self.centroids[first] + b * self.centroids[second]) / (a + b)
        self.sizes[first] += self.sizes[second]

        gone = torch.zeros_like(mutual)
        gone[second] = True
        touched = gone.clone()
        touched[first] = True
        stale = (touched | touched[self.nearest])[~gone]
        place = torch.cumsum(~gone, dim=0) - 1  # number of each cluster among those that stay
        self.nearest = place[self.nearest[~gone]]
        self.centroids, self.sizes = self.centroids[~gone], self.sizes[~gone]
        self.members, self.distance = self.members[~gone], self.distance[~gone]
        if len(self.members) > 1:
            self._search(torch.nonzero(stale)[:, 0])
        return merged

    def _search(self, rows: torch.Tensor) -> None:
        """Finds the nearest of some clusters (R,) among all: |a - b|^2 / (1 / |A| + 1 / |B|)."""
        squares, inverse = self.centroids.square().sum(dim=1), 1 / self.sizes
        step = max(BLOCK // (8 * len(squares)), 1)
        buffer = squares.new_empty((min(step, len(rows)), len(squares)))
        for part in rows.split(step):
            table = buffer[: len(part)]
            torch.addmm(squares, self.centroids[part], self.centroids.T, alpha=-2, out=table)
            table += squares[part, None]
            table /= inverse[part, None] + inverse
            table[torch.arange(len(part), device=part.device), part] = torch.inf
            self.distance[part], self.nearest[part] = table.min(dim=1)
