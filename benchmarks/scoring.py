"""Scoring speed: 579,818 trials from embeddings to EER and minDCF, against one trial at a time.

    python benchmarks/scoring.py

Synthetic embeddings of the sizes of VoxCeleb1-O and -E; 2 threads; every time is the best of five
runs. The straightforward ways, one trial after the other with numpy or with scikit-learn's
cosine_similarity (common in toolkits), are timed on a part of the trials in the same run and
scaled to all of them (marked ~): they are linear in the number of trials.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics.pairwise import cosine_similarity
from table import add_json, hand_over, row

from shared.evaluation.metrics import bootstrap, det_curve
from shared.evaluation.scoring import as_norm, cohort_statistics, cosine

TRIALS = 579_818  # VoxCeleb1-E cleaned
COHORT = 5_994  # speakers of VoxCeleb2 dev
LIMIT = 2.0  # seconds from embeddings to EER and minDCF, issue 2
PART = 4_000  # trials that the per-trial loops score
NORM_PART = 20  # trials that the per-trial AS-norm scores
DEVICE = 'CPU, 2 threads'
SIZES = (  # name, files, speakers, embedding size
    ('4,708 files (O), 192-d', 4_708, 40, 192),
    ('4,708 files (O), 256-d', 4_708, 40, 256),
    ('145,375 files (E), 192-d', 145_375, 1_251, 192),
    ('145,375 files (E), 256-d', 145_375, 1_251, 256),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(2)
    print(f'{TRIALS:,} trials, {torch.get_num_threads()} threads, torch {torch.__version__}\n')
    heads = ('embeddings', 'scores', 'EER, minDCF', 'total', 'numpy, each', 'scikit-learn, each')
    print('{:<26}{:>9}{:>13}{:>9}{:>21}{:>22}'.format(*heads))
    rows = [scoring_row(*size) for size in SIZES]
    print()
    rows += [normalisation(), intervals()]
    hand_over(rows, options.json)
    within = max(one['ours'] for one in rows[:-1]) < LIMIT
    print(f'\nall under {LIMIT:g} s from embeddings, AS-norm too: {"yes" if within else "NO"}')
    return 0 if within else 1


def scoring_row(name: str, files: int, speakers: int, dim: int) -> dict:
    """Prints one line of the table; returns the row of the seconds from embeddings to errors."""
    embeddings, enrol, test, speaker = synthetic(files, speakers, dim)
    labels = speaker[enrol] == speaker[test]
    scoring, scores = best_of(5, lambda: cosine(embeddings, enrol, test).numpy())
    errors, _ = best_of(5, lambda: all_errors(scores, labels))
    total = scoring + errors
    line = f'{name:<26}{scoring:>7.2f} s{errors:>11.2f} s{total:>7.2f} s'
    for way, width in ((by_numpy, 12), (by_scikit_learn, 13)):
        seconds, expected = best_of(1, lambda: each(way, embeddings, enrol, test))  # noqa: B023
        np.testing.assert_allclose(scores[:PART], expected, atol=1e-5)
        seconds *= TRIALS / PART
        line += f'{seconds:>{width}.1f}~s {seconds / total:>4.0f}x'
    print(line)
    what = f'scoring, EER and minDCF of {TRIALS:,} trials, {name}; other: scikit-learn, each, ~'
    return row(what, total, seconds, unit='s', target=f'< {LIMIT:g} s', device=DEVICE)


def synthetic(files: int, speakers: int, dim: int):
    """Embeddings (N, D), trials (M,) and (M,), half of them targets, and speakers (N,)."""
    rng = np.random.default_rng(0)
    speaker = np.sort(rng.integers(speakers, size=files))
    centres = rng.standard_normal((speakers, dim), dtype=np.float32)
    embeddings = centres[speaker] + 1.3 * rng.standard_normal((files, dim), dtype=np.float32)
    enrol, test = rng.integers(files, size=(2, TRIALS))
    start = np.searchsorted(speaker, np.arange(speakers))
    size = np.bincount(speaker, minlength=speakers)
    own = start[speaker[enrol]] + rng.integers(1 << 30, size=TRIALS) % size[speaker[enrol]]
    test = np.where(np.arange(TRIALS) % 2 == 0, own, test)
    return torch.from_numpy(embeddings), enrol, test, speaker


def all_errors(scores, labels):
    curve = det_curve(scores, labels)
    return curve.eer(), curve.eer('max'), curve.min_dcf(0.01), curve.min_dcf(0.05)


def each(way: Callable, embeddings: torch.Tensor, enrol, test) -> np.ndarray:
    """The straightforward way: for every trial, fetch two vectors and compare them."""
    rows = embeddings.numpy()
    return np.array([way(rows[enrol[i]], rows[test[i]]) for i in range(PART)])


def by_numpy(a: np.ndarray, b: np.ndarray) -> float:
    return np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))


def by_scikit_learn(a: np.ndarray, b: np.ndarray) -> float:
    return cosine_similarity(a.reshape(1, -1), b.reshape(1, -1))[0, 0]


def normalisation() -> dict:
    """AS-norm, top 300: statistics once a file, against once a side of every trial."""
    embeddings, enrol, test, _ = synthetic(files=4_708, speakers=40, dim=192)
    units = torch.nn.functional.normalize(embeddings)
    cohort = torch.randn(COHORT, 192, generator=torch.Generator().manual_seed(1))
    scores = cosine(embeddings, enrol, test)

    def per_file():
        return as_norm(scores, enrol, test, *cohort_statistics(units, cohort, top_k=300))

    def per_trial():
        unit_cohort, result = torch.nn.functional.normalize(cohort), []
        for i in range(NORM_PART):
            parts = []
            for file in (enrol[i], test[i]):
                best = (unit_cohort @ units[file]).sort(descending=True).values[:300]
                parts.append((scores[i] - best.mean()) / best.std(correction=0))
            result.append(sum(parts) / 2)
        return torch.stack(result)

    seconds, normalised = best_of(5, per_file)
    naive, expected = best_of(1, per_trial)
    torch.testing.assert_close(normalised[:NORM_PART], expected, rtol=1e-3, atol=1e-3)
    naive *= TRIALS / NORM_PART
    print(
        f'AS-norm, 4,708 files x cohort of {COHORT:,}, 192-d, top 300: {seconds:.2f} s; '
        f'each trial by itself {naive:.0f}~s, {naive / seconds:.0f}x'
    )
    what = f'AS-norm, 4,708 files x cohort of {COHORT:,}, top 300; other: each trial by itself, ~'
    return row(what, seconds, naive, unit='s', target=f'< {LIMIT:g} s', device=DEVICE)


def intervals() -> dict:
    """95 % intervals of EER and minDCF at two priors, by bootstrap over speakers."""
    embeddings, enrol, test, speaker = synthetic(files=4_708, speakers=1_251, dim=192)
    scores = cosine(embeddings, enrol, test).numpy()
    sides = speaker[enrol], speaker[test]
    labels = sides[0] == sides[1]
    seconds, _ = best_of(1, lambda: bootstrap(scores, labels, *sides, resamples=50))
    print(f'bootstrap over 1,251 speakers: {20 * seconds:.1f}~s for 1,000 resamples')
    what = '95 % intervals, 1,000 resamples of 1,251 speakers, ~'
    return row(what, 20 * seconds, unit='s', device=DEVICE)


def best_of(times: int, call: Callable) -> tuple:
    """(seconds of the fastest call, its result)."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        result = call()
        taken.append(time.perf_counter() - start)
    return min(taken), result


if __name__ == '__main__':
    raise SystemExit(main())
