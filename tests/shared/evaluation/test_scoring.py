"""Scores against loops over trials, from the definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from shared.evaluation import scoring
from shared.evaluation.scoring import (
    as_norm,
    cohort_statistics,
    cosine,
    dot,
    segment_cosine,
    segment_mean,
    speaker_means,
)


def trial_set(files=7, dim=5, trials=23, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(files, dim, generator=generator)
    rng = np.random.default_rng(seed)
    return embeddings, rng.integers(files, size=trials), rng.integers(files, size=trials)


def naive_cosine(a, b):
    a, b = np.float64(a), np.float64(b)
    return a @ b / np.sqrt((a @ a) * (b @ b))


def naive_as_norm(embeddings, cohort, enrol, test, top_k):
    """One trial at a time: both cohort score lists sorted, mean and population deviation of top k."""
    scores = []
    for a, b in zip(enrol, test):
        score = naive_cosine(embeddings[a], embeddings[b])
        sides = []
        for file in (a, b):
            best = sorted((naive_cosine(embeddings[file], c) for c in cohort), reverse=True)[:top_k]
            sides.append((score - np.mean(best)) / np.std(best))
        scores.append(sum(sides) / 2)
    return np.array(scores)


def test_cosine_equals_a_loop_over_trials_across_block_borders(monkeypatch):
    monkeypatch.setattr(scoring, 'PAIRS', 4)  # 23 trials: five full blocks and a short one
    embeddings, enrol, test = trial_set()
    expected = [naive_cosine(embeddings[a], embeddings[b]) for a, b in zip(enrol, test)]
    np.testing.assert_allclose(cosine(embeddings, enrol, test), expected, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-3, 1e3), st.integers(0, 100))
def test_cosine_ignores_the_length_of_embeddings(scale, seed):
    embeddings, enrol, test = trial_set(seed=seed)
    scaled = cosine(scale * embeddings, enrol, test)
    torch.testing.assert_close(scaled, cosine(embeddings, enrol, test), atol=1e-6, rtol=1e-5)
    assert scaled.abs().max() <= 1 + 1e-6


def test_cosine_is_symmetric_and_one_with_itself():
    embeddings, enrol, test = trial_set()
    torch.testing.assert_close(cosine(embeddings, enrol, test), cosine(embeddings, test, enrol))
    torch.testing.assert_close(cosine(embeddings, [3], [3]), torch.ones(1))


def test_cosine_of_a_missing_row_is_nan_and_of_zeros_is_zero():
    embeddings, _, _ = trial_set()
    embeddings[1], embeddings[2] = torch.nan, 0
    scores = cosine(embeddings, [0, 0, 0], [1, 2, 3])
    assert scores.isnan().tolist() == [True, False, False]
    assert scores[1] == 0


def test_trials_outside_the_embeddings_are_refused():
    embeddings, _, _ = trial_set()
    with pytest.raises(ValueError, match=r'trial rows 0\.\.7 of 7 files'):
        cosine(embeddings, [0, 7], [1, 1])
    with pytest.raises(ValueError, match=r'trial rows -1\.\.0 of 7 files'):
        cosine(embeddings, [0, 1], [0, -1])
    with pytest.raises(ValueError, match='2 enrolment rows but 1 test rows'):
        dot(embeddings, [0, 1], [0])
    with pytest.raises(ValueError, match=r'must be \(N, D\)'):
        cosine(embeddings[None], [0], [0])


def test_segment_cosine_is_the_mean_over_all_pairs_of_segments():
    generator = torch.Generator().manual_seed(1)
    segments = torch.randn(6, 4, 5, generator=generator) * torch.rand(6, 4, 1, generator=generator)
    _, enrol, test = trial_set(files=6)
    expected = [
        np.mean([naive_cosine(x, y) for x in segments[a] for y in segments[b]])
        for a, b in zip(enrol, test)
    ]
    np.testing.assert_allclose(segment_cosine(segments, enrol, test), expected, atol=1e-6)


def test_segment_cosine_of_one_segment_is_the_cosine():
    embeddings, enrol, test = trial_set()
    torch.testing.assert_close(
        segment_cosine(embeddings[:, None], enrol, test), cosine(embeddings, enrol, test)
    )
    with pytest.raises(ValueError, match=r'must be \(N, S, D\)'):
        segment_mean(embeddings)


@pytest.mark.parametrize('top_k', [2, 5, None])
def test_as_norm_equals_a_loop_over_trials(top_k, monkeypatch):
    monkeypatch.setattr(scoring, 'ROWS', 3)
    embeddings, enrol, test = trial_set()
    cohort = 3 * torch.randn(11, 5, generator=torch.Generator().manual_seed(2))
    statistics = cohort_statistics(normalize(embeddings), cohort, top_k)
    found = as_norm(cosine(embeddings, enrol, test), enrol, test, *statistics)
    expected = naive_as_norm(embeddings, cohort, enrol, test, top_k)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_as_norm_is_symmetric_and_ignores_the_order_of_the_cohort():
    embeddings, enrol, test = trial_set()
    units = normalize(embeddings)
    cohort = torch.randn(11, 5, generator=torch.Generator().manual_seed(2))
    scores = dot(units, enrol, test)
    forward = as_norm(scores, enrol, test, *cohort_statistics(units, cohort, 4))
    swapped = as_norm(scores, test, enrol, *cohort_statistics(units, cohort.flip(0), 4))
    torch.testing.assert_close(forward, swapped)


def test_cohorts_that_cannot_normalise_are_refused():
    embeddings, _, _ = trial_set()
    cohort = torch.randn(4, 5, generator=torch.Generator().manual_seed(2))
    with pytest.raises(ValueError, match='2 <= top_k <= cohort size: 5, 4'):
        cohort_statistics(embeddings, cohort, top_k=5)
    with pytest.raises(ValueError, match=r'cohort \(4, 4\) does not fit'):
        cohort_statistics(embeddings, cohort[:, :4], top_k=2)
    with pytest.raises(ValueError, match='same score with the whole cohort'):
        cohort_statistics(embeddings, cohort[:1].repeat(4, 1), top_k=3)
    cohort[2, 0] = torch.nan
    with pytest.raises(ValueError, match='not finite'):
        cohort_statistics(embeddings, cohort, top_k=2)


@pytest.mark.parametrize('unit', [True, False])
def test_speaker_means_average_the_vectors_of_each_speaker(unit):
    embeddings, _, _ = trial_set(files=5)
    speakers = [1, 0, 1, 2, 0]
    own = normalize(embeddings) if unit else embeddings
    expected = torch.stack([(own[1] + own[4]) / 2, (own[0] + own[2]) / 2, own[3]])
    torch.testing.assert_close(speaker_means(embeddings, speakers, unit=unit), expected)
    with pytest.raises(ValueError, match='speaker 1 of the cohort has no embedding'):
        speaker_means(embeddings, [0, 0, 2, 2, 0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_scores_on_the_gpu_equal_those_on_the_cpu():
    embeddings, enrol, test = trial_set(files=50, trials=5000)
    on_gpu = cosine(embeddings.cuda(), enrol, test)
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), cosine(embeddings, enrol, test), atol=1e-5, rtol=1e-5)
