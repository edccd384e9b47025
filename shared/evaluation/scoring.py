"""Scores of trials from embeddings: cosine, segment-averaged cosine and AS-norm.

Everything runs on the device of the embeddings. Legend: N files, M trials, S segments of a file,
D embedding size, C cohort size. Trials are index pairs into the N rows.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PAIRS = 4096  # trials at a time: two gathered blocks of (4096, D), 4 MB each at 256-d
ROWS = 1024  # rows at a time against the cohort


def cosine(embeddings: Tensor, enrol: np.ndarray | Tensor, test: np.ndarray | Tensor) -> Tensor:
    """Cosine similarity of each trial, (M,) float32 (spec lgl section 7).

    embeddings (N, D); enrol and test (M,) row numbers. Lengths are taken once a file, rows gathered
    in blocks: O(M D) time and 8192 D extra floats, where the (N, N) matrix of all pairs takes as
    long for the 4,708 files of Vox1-O and 84 GB for the 145,375 of Vox1-E. A row with NaN gives
    NaN, a row of zeros gives 0.

    Raises:
        ValueError: embeddings not (N, D), different numbers of enrol and test, or a row out of
            range.
    """
    if embeddings.dim() != 2:
        raise ValueError(f'embeddings must be (N, D), not {tuple(embeddings.shape)}')
    embeddings = embeddings.float()
    scores = dot(embeddings, enrol, test)
    lengths = torch.linalg.vector_norm(embeddings, dim=-1).clamp(min=1e-12)
    return scores / (lengths[_row_numbers(enrol, lengths)] * lengths[_row_numbers(test, lengths)])


def segment_cosine(
    segments: Tensor, enrol: np.ndarray | Tensor, test: np.ndarray | Tensor
) -> Tensor:
    """Mean of the S x S cosines between the segments of two files, (M,) float32.

    segments (N, S, D). The dot product is linear in each side, so the mean over all S x S pairs is
    exactly the dot product of the two means of unit vectors, `segment_mean`: S x S times less work.

    Raises:
        ValueError: segments not (N, S, D), or as `cosine`.
    """
    return dot(segment_mean(segments), enrol, test)


def segment_mean(segments: Tensor) -> Tensor:
    """Mean of the unit-length segment embeddings, (N, S, D) -> (N, D); not of unit length itself.

    Raises:
        ValueError: segments not (N, S, D).
    """
    if segments.dim() != 3:
        raise ValueError(f'segments must be (N, S, D), not {tuple(segments.shape)}')
    return F.normalize(segments.float(), dim=-1).mean(dim=1)


@torch.no_grad()
def dot(vectors: Tensor, enrol: np.ndarray | Tensor, test: np.ndarray | Tensor) -> Tensor:
    """Dot product of two rows per trial: vectors (N, D), enrol and test (M,) -> (M,); no gradient.

    Raises:
        ValueError: different numbers of enrol and test, or a row out of range.
    """
    enrol = _row_numbers(enrol, vectors)
    test = _row_numbers(test, vectors)
    if enrol.shape != test.shape:
        raise ValueError(f'{len(enrol)} enrolment rows but {len(test)} test rows')
    scores = vectors.new_empty(len(enrol))
    # Two buffers for all blocks: fresh memory for each costs three times the arithmetic.
    left, right = vectors.new_empty(2, min(PAIRS, len(enrol)), vectors.shape[1])
    for start in range(0, len(enrol), PAIRS):
        block = slice(start, start + PAIRS)
        size = len(enrol[block])
        torch.index_select(vectors, 0, enrol[block], out=left[:size])
        torch.index_select(vectors, 0, test[block], out=right[:size])
        torch.sum(left[:size].mul_(right[:size]), dim=1, out=scores[block])
    return scores


def speaker_means(
    embeddings: Tensor, speakers: np.ndarray | Tensor, *, unit: bool = True
) -> Tensor:
    """Cohort of one vector a speaker: mean of its embeddings, (N, D), (N,) 0..C-1 -> (C, D).

    With `unit` each embedding counts by its direction alone, else the long ones count more.

    Raises:
        ValueError: different numbers of rows and speakers, or a speaker without embedding.
    """
    speakers = torch.as_tensor(speakers, device=embeddings.device).long()
    if len(speakers) != len(embeddings):
        raise ValueError(f'{len(embeddings)} embeddings but {len(speakers)} speakers')
    counts = torch.bincount(speakers)
    if int(counts.min()) == 0:
        raise ValueError(f'speaker {int(counts.argmin())} of the cohort has no embedding')
    vectors = F.normalize(embeddings.float(), dim=-1) if unit else embeddings.float()
    sums = vectors.new_zeros(len(counts), vectors.shape[1]).index_add_(0, speakers, vectors)
    return sums / counts[:, None]


def cohort_statistics(
    vectors: Tensor, cohort: Tensor, top_k: int | None = 300
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each file's highest cohort scores, (N,) and (N,).

    vectors (N, D) are the vectors that are scored (unit embeddings, or `segment_mean`s), cohort
    (C, D) is normalised here. `top_k` highest of the C scores, None for all of them (S-norm).
    The deviation is the population one (divisor k), as in the common numpy implementations; the
    sample one (divisor k - 1) is 0.17 % larger at k = 300, and has the same effect on every file.
    Memory: 1024 C floats at a time.

    Raises:
        ValueError: sizes that do not fit, fewer than 2 scores, NaN in the cohort, or a file whose
            cohort scores are all the same.
    """
    if cohort.dim() != 2 or cohort.shape[1] != vectors.shape[1]:
        raise ValueError(
            f'cohort {tuple(cohort.shape)} does not fit vectors {tuple(vectors.shape)}'
        )
    if not torch.isfinite(cohort).all():
        raise ValueError('the cohort holds embeddings that are not finite')
    k = len(cohort) if top_k is None else top_k
    if not 2 <= k <= len(cohort):
        raise ValueError(f'AS-norm needs 2 <= top_k <= cohort size: {k}, {len(cohort)}')
    cohort = F.normalize(cohort.to(vectors), dim=-1)
    mean, deviation = vectors.new_empty(len(vectors)), vectors.new_empty(len(vectors))
    for start in range(0, len(vectors), ROWS):
        block = slice(start, start + ROWS)
        scores = vectors[block] @ cohort.T  # (rows, C)
        if k < len(cohort):
            scores = scores.topk(k, dim=1, sorted=False).values
        deviation[block], mean[block] = torch.std_mean(scores, dim=1, correction=0)
    flat = (deviation <= 1e-6 * mean.abs()).nonzero()  # float32 noise: nothing to divide by
    if len(flat):
        raise ValueError(f'file {int(flat[0])} has the same score with the whole cohort')
    return mean, deviation


def as_norm(
    scores: Tensor,
    enrol: np.ndarray | Tensor,
    test: np.ndarray | Tensor,
    mean: Tensor,
    deviation: Tensor,
) -> Tensor:
    """Adaptive symmetric normalisation (Matejka et al., Interspeech 2017, 'AS-norm1'), (M,).

    Half the sum of (score - mean) / deviation with the statistics of the enrolment file and with
    those of the test file, each over its own nearest cohort members. scores, enrol, test (M,);
    mean and deviation (N,) from `cohort_statistics`, so that the cost per trial is four look-ups.
    """
    enrol, test = _row_numbers(enrol, mean), _row_numbers(test, mean)
    by_enrol = (scores - mean[enrol]) / deviation[enrol]
    by_test = (scores - mean[test]) / deviation[test]
    return 0.5 * (by_enrol + by_test)


def _row_numbers(index: np.ndarray | Tensor, table: Tensor) -> Tensor:
    rows = torch.as_tensor(index, device=table.device).long()
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(table):
        raise ValueError(f'trial rows {int(rows.min())}..{int(rows.max())} of {len(table)} files')
    return rows
