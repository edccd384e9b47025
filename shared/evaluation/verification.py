"""From a network to a number with its protocol: extract embeddings, score trials, write results.

Legend: B files of a batch, N files, M trials, S segments of a file, D embedding size, L samples.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from shared import ddp
from shared.errors import UserError
from shared.evaluation import metrics, scoring
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


def extract(
    embed: Callable[[Tensor, Tensor], Tensor],
    loader: Iterable[dict],
    count: int,
    device: torch.device | str,
) -> Tensor:
    """Embeddings of N files, (N, D) float32 on the CPU and the same on every rank.

    Each rank embeds its share, then all ranks exchange them. Rank 0 shows a progress bar (files/s,
    time left) when there is more than one batch; it counts its own files times the ranks.

    Args:
        embed: (waves (B, L), lengths (B,) in samples) -> (B, D), or (B, S, D) for S segments a
            file; called in inference mode. A module, or method of one, must be in eval mode.
        loader: this rank's batches (`shared.datasets.loading.whole_files`): dicts of index (B,)
            0..N-1, waves and lengths, and maybe `skipped`, a message for each file left out
            because its audio is bad. Such files get a row of NaN.
        count: N, over all ranks.
        device: where `embed` runs.

    Raises:
        ValueError: a module in train mode, a file that came more than once, an index outside
            0..N-1, or files that neither came nor were skipped (their indices are named).
        UserError: no file could be read.
    """
    owner = embed if isinstance(embed, nn.Module) else getattr(embed, '__self__', None)
    if isinstance(owner, nn.Module) and owner.training:
        raise ValueError('the network is in train mode: call .eval() before extract')
    index, rows, skipped = _embed_share(embed, loader, count, device)
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < count:
        raise ValueError(f'file index {int(index.min())}..{int(index.max())} of {count} files')

    # A rank without files does not know the shape of a row.
    shares = ddp.gather_objects((tuple(rows[0].shape[1:]) if rows else None, skipped))
    seen = ddp.all_reduce(torch.bincount(index, minlength=count).to(device)).cpu()
    _check_each_came_once(seen, sum(messages for _, messages in shares))
    shape = next((shape for shape, _ in shares if shape), None)
    if shape is None:
        raise UserError(f'none of {count} files could be read: check the data folder')
    table = torch.zeros(count, *shape, device=device)
    if rows:
        table[index.to(device)] = torch.cat(rows)
    table = ddp.all_reduce(table).cpu()  # a row is zero on all ranks but one: the sum is exact
    table[seen == 0] = math.nan
    return table


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

    Raises:
        UserError: files of the list without a finite embedding; the first are named.
        ValueError: sizes or arguments that do not fit.
    """
    if len(embeddings) != len(trials.files):
        raise ValueError(f'{len(embeddings)} embeddings for {len(trials.files)} files')
    _check_finite(embeddings, trials)
    norm = _normalisation(score_norm, cohort, cohort_name, top_k)
    if mean is not None:
        embeddings, cohort = embeddings - mean, cohort if cohort is None else cohort - mean
    scores = _scores(embeddings, trials, norm, cohort).cpu().numpy()
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
        'embedding_dim': embeddings.shape[-1],
        'segments': embeddings.shape[1] if embeddings.dim() == 3 else 1,
        'mean_subtraction': mean is not None,
        'score_norm': norm,
        'confidence': None,
    }
    if resamples:
        _add_intervals(record, scores, trials, resamples=resamples, seed=seed)
    return record, scores


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


def _embed_share(embed, loader, count, device) -> tuple[Tensor, list[Tensor], int]:
    """This rank's file numbers (n,), their embeddings in batches on the device, files skipped."""
    ranks, skipped = ddp.world_size(), 0
    silent = not ddp.is_main() or len(loader) <= 1
    often = 0.1 if sys.stderr.isatty() else 30.0  # seconds; a log file is no screen
    indices, rows = [torch.zeros(0, dtype=torch.int64)], []
    with (
        torch.inference_mode(),
        tqdm(
            total=count,
            desc='embeddings',
            unit=' files',
            leave=False,
            mininterval=often,
            disable=silent,
        ) as bar,
    ):
        for batch in loader:
            files = len(batch['index'])
            skipped += len(batch.get('skipped', ()))
            if files:  # a batch of unreadable files is empty
                waves = batch['waves'].to(device, non_blocking=True)
                lengths = batch['lengths'].to(device, non_blocking=True)
                rows.append(embed(waves, lengths).float())
                indices.append(batch['index'].cpu())
                if len(rows[-1]) != files:
                    raise ValueError(f'{len(rows[-1])} embeddings for {files} files')
            bar.update(min(files * ranks, count - bar.n))
    return torch.cat(indices), rows, skipped


def _check_each_came_once(seen: Tensor, skipped: int) -> None:
    twice = (seen > 1).nonzero().flatten().tolist()
    if twice:
        raise ValueError(f'{len(twice)} files were embedded more than once: {_first(twice)}')
    never = (seen == 0).nonzero().flatten().tolist()
    if len(never) > skipped:
        raise ValueError(f'{len(never)} files never came, {skipped} were skipped: {_first(never)}')


def _check_finite(embeddings: Tensor, trials: TrialList) -> None:
    broken = ~torch.isfinite(embeddings).flatten(1).all(dim=1)
    bad = [trials.files[i] for i in broken.nonzero().flatten().tolist()]
    if bad:
        raise UserError(
            f'{trials.name}: {len(bad)} of {len(trials.files)} files have no finite embedding '
            f'({_first(bad)}); repair the audio, or check the weights if it is all of them'
        )


def _first(items: list) -> str:
    return ', '.join(map(str, items[:5])) + (', ...' if len(items) > 5 else '')


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
