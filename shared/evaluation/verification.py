"""From embeddings to a number with its protocol: score trials, record how it was done.

Legend: N files, M trials, S segments of a file, D embedding size, C cohort size.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from shared.errors import UserError
from shared.evaluation import metrics, scoring
from shared.evaluation.extraction import first_few
from shared.files import write_text


class TrialList(Protocol):
    """What is needed of a trial list: `shared.datasets.items.Trials` in columns."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def files(self) -> Sequence[str]: ...  # N relative paths
    @property
    def enrol(self) -> np.ndarray: ...  # (M,) into files
    @property
    def test(self) -> np.ndarray: ...  # (M,) into files
    @property
    def labels(self) -> np.ndarray: ...  # (M,) True for the same speaker


def verify(
    embeddings: Tensor,
    trials: TrialList,
    *,
    known_name: str | None = None,
    eer_rule: str = 'interpolated',
    p_targets: Sequence[float] = (0.01, 0.05),
    crop: str = 'full',
    mean: Tensor | None = None,
    score_norm: str | None = None,
    cohort: Tensor | None = None,
    cohort_name: str | None = None,
    top_k: int = 300,
    resamples: int = 1000,
    seed: int = 0,
    **fields: Any,
) -> tuple[dict, np.ndarray]:
    """Scores a trial list: (JSON-able record with the full protocol, scores (M,) float32).

    Percent for EER; minDCF is normalised (`metrics.DetCurve.min_dcf`). A threshold is null where
    rejecting every trial is best. Both EER rules are in the record; `eer_rule` picks the headline,
    the interval is always that of the interpolated EER.

    Args:
        embeddings: (N, D) in the order of `trials.files`, or (N, S, D): mean over S x S cosines.
        trials: the list.
        known_name: public name of the list, such as 'Vox1-O cleaned'.
        eer_rule: 'interpolated' or 'max' (spec lgl section 7).
        p_targets: priors of minDCF, costs 1 and 1.
        crop: what was embedded, in words: 'full', '10 x 4 s'; only recorded.
        mean: (D,) subtracted from embeddings and cohort before scoring.
        score_norm: None, 'as-norm' (the `top_k` highest cohort scores) or 's-norm' (all).
        cohort: (C, D), needed by `score_norm`.
        cohort_name: where the cohort comes from; only recorded.
        top_k: cohort scores a file keeps in 'as-norm'.
        resamples: of the bootstrap; 0 for no intervals (about 5 ms each on 580,000 trials).
        seed: of the bootstrap.
        fields: further entries of the record, such as what was converted.

    Raises:
        UserError: files of the list without a finite embedding; the first are named.
        ValueError: sizes or arguments that do not fit.
    """
    if len(embeddings) != len(trials.files):
        raise ValueError(f'{len(embeddings)} embeddings for {len(trials.files)} files')
    check_finite(embeddings, trials)
    norm = _normalisation(score_norm, cohort, cohort_name, top_k)
    if mean is not None:
        embeddings, cohort = embeddings - mean, cohort if cohort is None else cohort - mean
    scores = _scores(embeddings, trials, norm, cohort).cpu().numpy()
    how = {
        'embedding_dim': embeddings.shape[-1],
        'segments': embeddings.shape[1] if embeddings.dim() == 3 else 1,
        'mean_subtraction': mean is not None,
        'score_norm': norm,
        **fields,
    }
    record = score_record(
        scores,
        trials,
        known_name=known_name,
        eer_rule=eer_rule,
        p_targets=p_targets,
        crop=crop,
        resamples=resamples,
        seed=seed,
        **how,  # type: ignore[arg-type]
    )
    return record, scores


def score_record(
    scores: np.ndarray,
    trials: TrialList,
    *,
    known_name: str | None = None,
    eer_rule: str = 'interpolated',
    p_targets: Sequence[float] = (0.01, 0.05),
    crop: str = 'full',
    resamples: int = 1000,
    seed: int = 0,
    **fields: Any,
) -> dict:
    """The JSON-able record of a list whose scores are known, such as a mean of two systems'.

    Args:
        scores: (M,)
        trials: the list.
        known_name: see `verify`, and so the next five.
        eer_rule: rule of the headline.
        p_targets: priors of minDCF.
        crop: what was embedded, in words.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        fields: further entries that say how the scores came about.

    Raises:
        ValueError: as `metrics.det_curve`; a field that the record already has.
    """
    curve = metrics.det_curve(scores, trials.labels)
    record = {
        'name': trials.name,
        'known_name': known_name,
        'sha256': trials.sha256,
        'trials': len(scores),
        'targets': curve.targets,
        'nontargets': curve.nontargets,
        'files': len(trials.files),
        **_errors(curve, eer_rule, p_targets),
        'crop': crop,
    }
    if taken := sorted(fields.keys() & {*record, 'confidence'}):
        raise ValueError(f'the record has its own {", ".join(taken)}')
    record |= {**fields, 'confidence': None}
    if resamples:
        _add_intervals(record, scores, trials, resamples=resamples, seed=seed)
    return record


def trial_speakers(trials: TrialList) -> np.ndarray | None:
    """Speaker number of each file, (N,), from the first folder of its path (VoxCeleb's layout).

    None unless every label agrees with it: same folder for targets, another for non-targets.
    """
    folders = [name.partition('/')[0] for name in trials.files]
    speakers = np.unique(folders, return_inverse=True)[1]
    same = speakers[trials.enrol] == speakers[trials.test]
    return speakers if np.array_equal(same, np.asarray(trials.labels, dtype=bool)) else None


def write_results(path: str | Path, table: list[dict], evaluations: list[dict]) -> None:
    """Writes results.json, {"table": rows for people, "evaluations": records of `verify`}.

    Written beside the target and renamed, so that a reader sees the old file or the new one.

    Raises:
        ValueError: a value that JSON does not have, such as NaN.
    """
    path = Path(path)
    text = json.dumps({'table': table, 'evaluations': evaluations}, indent=2, allow_nan=False)
    write_text(path, text + '\n')


def check_finite(embeddings: Tensor, trials: TrialList) -> None:
    """Checks that every file (N, D) or (N, S, D) of a list has an embedding without NaN.

    Raises:
        UserError: how many have not; the first are named.
    """
    broken = ~torch.isfinite(embeddings).flatten(1).all(dim=1)
    bad = [trials.files[i] for i in broken.nonzero().flatten().tolist()]
    if bad:
        raise UserError(
            f'{trials.name}: {len(bad)} of {len(trials.files)} files have no finite embedding '
            f'({first_few(bad)}); repair the audio, or check the weights if it is all of them'
        )


def _normalisation(score_norm, cohort, cohort_name, top_k) -> dict | None:
    if score_norm is None:
        if cohort is not None:
            raise ValueError("a cohort is of no use without score_norm 'as-norm' or 's-norm'")
        return None
    if score_norm not in ('as-norm', 's-norm'):
        raise ValueError(f"score_norm {score_norm!r} is unknown: None, 'as-norm' or 's-norm'")
    if cohort is None:
        raise ValueError(f'score_norm {score_norm!r} needs a cohort')
    return {
        'name': score_norm,
        'cohort': cohort_name,
        'cohort_size': len(cohort),
        'top_k': top_k if score_norm == 'as-norm' else len(cohort),
        'deviation': 'population',
    }


def _scores(embeddings: Tensor, trials: TrialList, norm: dict | None, cohort) -> Tensor:
    pairs = trials.enrol, trials.test
    if embeddings.dim() == 2 and norm is None:
        return scoring.cosine(embeddings, *pairs)
    segments = embeddings if embeddings.dim() == 3 else embeddings[:, None]
    vectors = scoring.segment_mean(segments)
    scores = scoring.dot(vectors, *pairs)
    if norm is None:
        return scores
    statistics = scoring.cohort_statistics(vectors, cohort, norm['top_k'])
    return scoring.as_norm(scores, *pairs, *statistics)


def _errors(curve: metrics.DetCurve, eer_rule: str, p_targets: Sequence[float]) -> dict[str, Any]:
    headline = curve.eer(eer_rule)
    costs = {str(p): curve.min_dcf(p) for p in p_targets}
    return {
        'eer': headline.value,
        'eer_rule': eer_rule,
        'eer_threshold': _number(headline.threshold),
        'eer_interval': None,
        'eer_by_rule': {rule: curve.eer(rule).value for rule in ('interpolated', 'max')},
        'p_targets': list(p_targets),
        'min_dcf': {p: point.value for p, point in costs.items()},
        'min_dcf_threshold': {p: _number(point.threshold) for p, point in costs.items()},
        'min_dcf_interval': None,
    }


def _number(threshold: float) -> float | None:
    return threshold if math.isfinite(threshold) else None


def _add_intervals(record: dict, scores, trials: TrialList, *, resamples: int, seed: int) -> None:
    """Puts bootstrap intervals over speakers, or over files where speakers are not known."""
    speakers = trial_speakers(trials)
    units = np.arange(len(trials.files)) if speakers is None else speakers
    sides = units[trials.enrol], units[trials.test]
    how = {'p_targets': record['p_targets'], 'resamples': resamples, 'seed': seed}
    intervals = metrics.bootstrap(scores, trials.labels, *sides, **how)
    record['eer_interval'] = list(intervals.eer)
    record['min_dcf_interval'] = {str(p): list(pair) for p, pair in intervals.min_dcf.items()}
    record['confidence'] = {
        'level': 0.95,
        'method': 'two-way bootstrap, percentile',
        'unit': 'file' if speakers is None else 'speaker',
        'units': len(np.unique(units)),
        'resamples': resamples,
        'seed': seed,
    }
