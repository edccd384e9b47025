"""Verification by crops: each file embedded in several equal pieces (TTA), and whole.

Legend: B files of a batch, S crops of a file, L samples, D embedding, C speakers of the cohort,
M trials.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import UserError
from shared.evaluation.extraction import extract
from shared.evaluation.scoring import cosine, segment_cosine, speaker_means
from shared.evaluation.segments import cut_segments
from shared.evaluation.verification import TrialList, check_finite, score_record, verify


class TrialFiles(Protocol):
    """What is needed of a list and its audio: `shared.datasets.trial_files.TrialFiles`."""

    @property
    def trials(self) -> TrialList: ...
    @property
    def converted(self) -> dict[str, int]: ...  # files that reading changes, by kind
    def loader(self) -> Iterable[dict]: ...  # for `extract`


class CropEmbedder(nn.Module):
    """Whole files to an embedding of each of S crops, after that of the file where `full`.

    Crops overlap: those of a batch may be many times its audio. They are embedded in slices of whole
    files' crops with no more samples than the batch has, or of one file's where that is more.

    Args:
        embed: (waves (B, L)) -> (B, D), and (waves, lengths (B,)) for padded rows.
        count: S.
        size: samples of a crop.
        full: embed the file as well.
    """

    def __init__(self, embed: nn.Module, count: int, size: int, full: bool):
        super().__init__()
        self.embed, self.count, self.size, self.full = embed, count, size, full

    def forward(self, waves: Tensor, lengths: Tensor) -> Tensor:
        """Waves (B, L), zero-padded, and their own samples (B,) to (B, full + S, D).

        Raises:
            ValueError: as `cut_segments`.
        """
        crops = cut_segments(waves, lengths, self.count, self.size)  # (B, S, size)
        files = max(waves.numel() // (self.size * self.count), 1)
        slices = [part.flatten(0, 1) for part in crops.split(files)]
        embeddings = torch.cat([self.embed(part) for part in slices]).unflatten(0, crops.shape[:2])
        if not self.full:
            return embeddings
        return torch.cat([self.embed(waves, lengths).unsqueeze(1), embeddings], dim=1)


def verify_by_crops(
    embed: nn.Module,
    trial_files: TrialFiles,
    *,
    count: int,
    size: int,
    full: bool,
    device: torch.device | str,
    known_name: str | None = None,
    eer_rule: str = 'interpolated',
    resamples: int = 0,
    cohort: Tensor | None = None,
    cohort_name: str | None = None,
    top_k: int = 300,
) -> tuple[dict[str, dict], np.ndarray]:
    """Scores a list by crops: records by what was scored, and scores (M,) of the headline.

    'tta' is the mean cosine over all S x S pairs of crops of two files; with `full` also 'full',
    the cosine of the whole files, and 'full+tta', the mean of the two (specs nawsv 6, oskdft 6).
    The last of them is the headline. With a cohort, 'full, AS-norm' comes after it. `embed` is
    moved to the device and left in eval mode.

    Args:
        embed: as `CropEmbedder`.
        trial_files: the list and its audio.
        count: crops of a file, S.
        size: samples of a crop.
        full: embed whole files as well.
        device: where `embed` runs.
        known_name: as `verify`, and so the next two.
        eer_rule: rule of the headline.
        resamples: of the bootstrap.
        cohort: (C, D), `embed_cohort`; needs `full`.
        cohort_name: where the cohort comes from; only recorded.
        top_k: cohort scores a file keeps.

    Raises:
        UserError: files without a finite embedding.
        ValueError: a cohort without `full`, or as `verify`.
    """
    if cohort is not None and not full:
        raise ValueError('AS-norm is of whole files: a cohort needs full=True')
    trials = trial_files.trials
    embedder = CropEmbedder(embed, count, size, full).to(device).eval()
    embeddings = extract(embedder, trial_files.loader(), len(trials.files), device)
    check_finite(embeddings, trials)
    scores = _scores(embeddings, trials, full)
    how: dict[str, Any] = {
        'known_name': known_name,
        'eer_rule': eer_rule,
        'resamples': resamples,
        'converted': trial_files.converted,
    }
    records = {
        crop: score_record(values.numpy(), trials, crop=crop, **how)
        for crop, values in scores.items()
    }
    if cohort is not None:
        records['full, AS-norm'], _ = verify(
            embeddings[:, 0],
            trials,
            crop='full, AS-norm',
            score_norm='as-norm',
            cohort=cohort.cpu(),
            cohort_name=cohort_name,
            top_k=top_k,
            **how,
        )
    return records, list(scores.values())[-1].numpy()


def embed_cohort(
    embed: nn.Module,
    loader: Iterable[dict],
    speakers: np.ndarray,
    device: torch.device | str,
) -> Tensor:
    """The cohort of AS-norm, (C, D): the mean of the raw embeddings of each speaker (spec oskdft 6).

    Files that cannot be read are left out, and so is a speaker who has no other.

    Args:
        embed: as `CropEmbedder`; moved to the device and left in eval mode.
        loader: whole files, for `extract`.
        speakers: (N,) speaker number of each file; rows are in the order of these numbers.
        device: where `embed` runs.

    Raises:
        UserError: no file has a finite embedding.
    """
    embed.to(device).eval()
    embeddings = extract(embed, loader, len(speakers), device)
    known = torch.isfinite(embeddings).all(dim=1)
    if not known.any():
        raise UserError('no file of the cohort has a finite embedding: check the weights')
    numbers = np.unique(speakers[known.numpy()], return_inverse=True)[1]
    return speaker_means(embeddings[known], numbers, unit=False)


def _scores(embeddings: Tensor, trials: TrialList, full: bool) -> dict[str, Tensor]:
    """Scores (M,) of embeddings (N, full + S, D), the headline last."""
    sides = trials.enrol, trials.test
    scores = {'tta': segment_cosine(embeddings[:, int(full) :], *sides)}
    if full:
        scores['full'] = cosine(embeddings[:, 0], *sides)
        scores['full+tta'] = (scores['full'] + scores['tta']) / 2
    return scores
