"""Clustering a training set: processor time and peak memory over growing N, against scikit-learn.

    python benchmarks/clustering.py            about five minutes
    python benchmarks/clustering.py --quick    smaller tables

Synthetic unit embeddings of 512 numbers in the proportions of VoxCeleb2 (1,092,009 utterances,
50,000 centroids, 7,500 clusters): 180 utterances a speaker in sessions of 8, 22 a centroid; for Ward
6.7 points a cluster. Each measurement is a process of its own on one thread; memory is the highest
while it works less what it held before, the table itself. scikit-learn's k-means is given our
start, which we are timed with. Lines with ~ extrapolate to the full size: time of k-means as
N x centroids for as many passes, of Ward as N^2; memory along the line through the last two sizes,
of scikit-learn's Ward as N^2.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from table import add_json, hand_over, met, row

THREADS = {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}
DIM, PER_CENTROID, PER_CLUSTER = 512, 22, 20 / 3
LATENT = 48  # dimensions that embeddings of speakers really fill, about
FULL = {'k-means': 1_092_009, 'Ward': 50_000}
SIZES = {'k-means': (11_000, 33_000, 66_000), 'Ward': (2_500, 5_000, 10_000)}
QUICK = {'k-means': (11_000, 33_000), 'Ward': (4_200, 6_000)}  # from which buffers stop growing
LIMIT = 24.0  # GiB of host memory at full size, issue 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true')
    add_json(parser)
    parser.add_argument('--measure', nargs=3, help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    if args.measure:
        method, way, rows = args.measure
        print(json.dumps(measure(method, way, int(rows))))
        return 0
    sizes = QUICK if args.quick else SIZES
    found = [table(method, sizes[method]) for method in FULL]
    hand_over([one for rows in found for one in rows], args.json)
    fine = [met(one) for rows in found for one in rows]
    print(f'\nfaster than scikit-learn, within {LIMIT:g} GiB at full size: ', end='')
    print('yes' if all(fine) else 'NO')
    return 0 if all(fine) else 1


def table(method: str, sizes: tuple[int, ...]) -> list[dict]:
    """Prints a method's lines; the rows of its time and memory at full size."""
    heads = ('rows', 'clusters', 'ours', 'memory', 'scikit-learn', 'memory', 'agreement')
    print(f'\n{method}\n{{:>10}}{{:>10}}{{:>11}}{{:>12}}{{:>14}}{{:>12}}{{:>11}}'.format(*heads))
    runs: dict[str, list[dict]] = {'ours': [], 'scikit-learn': []}
    for rows in sizes:
        for way, done in runs.items():
            done.append(in_own_process(method, way, rows))
        labels = [done[-1].pop('labels') for done in runs.values()]
        print(line(method, rows, *(done[-1] for done in runs.values())), agreement(*labels))
    ours, theirs = (at_full_size(method, way, sizes, done) for way, done in runs.items())
    print(line(method, FULL[method], ours, theirs, mark='~'))
    held = FULL[method] * DIM * 4 / 2**30
    print(f'with the table of {held:.1f} GiB: {ours["gib"] + held:.1f} GiB', end=', ')
    faster = theirs['seconds'] / ours['seconds']
    print(f'{faster:.1f} times as fast as scikit-learn')
    what = f'{method}, {FULL[method]:,} x {DIM}, ~; other: scikit-learn'
    return [
        row(f'{what}, time', ours['seconds'], theirs['seconds'], unit='s', target='>= 1x'),
        row(
            f'{what}, memory with the table',
            ours['gib'] + held,
            theirs['gib'] + held,
            unit='GiB',
            target=f'< {LIMIT:g} GiB',
        ),
    ]


def line(method: str, rows: int, ours: dict, theirs: dict, mark: str = ' ') -> str:
    text = f'{rows:>10,}{clusters_of(method, rows):>10,}'
    for one, width in ((ours, 8), (theirs, 11)):
        text += f'{one["seconds"]:>{width},.1f} s{mark}{one["gib"]:>7.2f} GiB{mark}'
    return text


def agreement(labels, others) -> str:
    """Adjusted Rand index of two clusterings."""
    from shared.clustering.metrics import ari

    return f'{ari(labels, others):>8.2f} %'


def at_full_size(method: str, way: str, sizes: tuple[int, ...], done: list[dict]) -> dict:
    """Seconds and GiB at the size of VoxCeleb2, as the head of this file says."""
    grown = FULL[method] / sizes[-1]
    seconds = done[-1]['seconds'] * grown**2  # clusters grow with the rows
    if (method, way) == ('Ward', 'scikit-learn'):
        return {'seconds': seconds, 'gib': done[-1]['gib'] * grown**2}
    slope = (done[-1]['gib'] - done[-2]['gib']) / (sizes[-1] - sizes[-2])
    return {'seconds': seconds, 'gib': done[-1]['gib'] + slope * (FULL[method] - sizes[-1])}


def clusters_of(method: str, rows: int) -> int:
    return int(rows / (PER_CENTROID if method == 'k-means' else PER_CLUSTER))


def in_own_process(method: str, way: str, rows: int) -> dict:
    """What `measure` returns in a fresh process with one thread."""
    command = [sys.executable, __file__, '--measure', method, way, str(rows)]
    output = subprocess.run(
        command, env={**os.environ, **THREADS}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(output.stdout)


def measure(method: str, way: str, rows: int) -> dict:
    """Seconds of processor time, GiB more than before, labels."""
    clusters = clusters_of(method, rows)
    points = synthetic(rows, 180 if method == 'k-means' else PER_CLUSTER)
    work = by_us if way == 'ours' else by_scikit_learn
    work(method, points[:500], 20)()  # imports
    call = work(method, points, clusters)
    Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    before, start = memory('VmRSS'), time.process_time()
    labels = call()
    seconds = time.process_time() - start
    return {
        'seconds': seconds,
        'gib': memory('VmHWM') - before,
        'labels': [int(label) for label in labels],
    }


def memory(name: str) -> float:
    """GiB of this process: VmRSS now, VmHWM at most."""
    text = Path('/proc/self/status').read_text()
    return int(text.split(name + ':')[1].split()[0]) / 2**20


def by_us(method: str, points, clusters: int):
    from shared.clustering.ahc import ward
    from shared.clustering.kmeans import kmeans_euclidean

    if method == 'Ward':
        return lambda: ward(points, clusters)
    return lambda: kmeans_euclidean(points, clusters)[0]


def by_scikit_learn(method: str, points, clusters: int):
    from sklearn.cluster import AgglomerativeClustering, KMeans

    from shared.clustering.kmeans import kmeans_euclidean

    if method == 'Ward':
        return lambda: AgglomerativeClustering(clusters, linkage='ward').fit(points).labels_
    start = kmeans_euclidean(points, clusters, iterations=0)[1]
    model = KMeans(clusters, init=start, n_init=1, max_iter=300, tol=1e-4, algorithm='lloyd')
    return lambda: model.fit(points).labels_


def synthetic(rows: int, per_speaker: float):
    """Unit rows (N, DIM) float32 of speaker, session of 8 and rest, in LATENT dimensions."""
    import numpy as np

    rng = np.random.default_rng(0)
    number = np.arange(rows)
    points = rng.standard_normal((rows, LATENT), dtype=np.float32)
    for part, every in ((1.0, 8), (1.3, per_speaker)):
        owner = (number / every).astype(int)
        points += part * rng.standard_normal((owner[-1] + 1, LATENT), dtype=np.float32)[owner]
    points = points @ rng.standard_normal((LATENT, DIM), dtype=np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


if __name__ == '__main__':
    sys.exit(main())
