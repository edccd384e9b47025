"""The dynamic loss gate: a threshold on log losses from a mixture of two Gaussians (spec 4.2)."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from losses import SMALLEST
from shared import ddp

TOLERANCE, ITERATIONS = 1e-5, 1000  # of EM; the rest is scikit-learn's defaults, as published
UNSEEN = -math.inf  # of a loss
REJECTED, KEPT, CORRECTED = 0, 1, 2  # what became of a sample; -1: unseen


@dataclass(frozen=True)
class Gate:
    """Two weighted Gaussians on log losses, the lower mean first: right labels, then wrong ones."""

    weights: tuple[float, float]
    means: tuple[float, float]
    deviations: tuple[float, float]
    threshold: float | None  # tau, where their densities cross between the means; None: nowhere


def fit_gate(losses):
    """The gate of the losses of an epoch (N,); those that are not finite were not seen.

    Where the densities do not cross between the means (one mode, constant losses, none), the
    threshold is None, and the caller keeps the one it has (quirk 8).
    """
    from sklearn.exceptions import ConvergenceWarning  # here: slow to load
    from sklearn.mixture import GaussianMixture

    losses = np.asarray(losses, dtype=np.float64)
    x = np.log(np.maximum(losses[np.isfinite(losses)], SMALLEST))  # quirk 7
    if len(x) < 2 or x.min() == x.max():
        middle = float(x[0]) if len(x) else math.nan
        return Gate((0.5, 0.5), (middle, middle), (0.0, 0.0), None)
    mixture = GaussianMixture(2, tol=TOLERANCE, max_iter=ITERATIONS, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)
        mixture.fit(x[:, None])
    order = np.argsort(mixture.means_[:, 0])
    weights, means = mixture.weights_[order], mixture.means_[order, 0]
    deviations = np.sqrt(mixture.covariances_[order, 0, 0])
    parts = [tuple(part.tolist()) for part in (weights, means, deviations)]
    return Gate(*parts, crossing(*parts))


def crossing(weights, means, deviations):
    """Where two weighted Gaussian densities are equal between their means; None: nowhere.

    With A = 1/s1^2 - 1/s2^2, B = -2 (m1/s1^2 - m2/s2^2) and
    C = m1^2/s1^2 - m2^2/s2^2 - 2 ln(w1 s2 / (w2 s1)): a root of A x^2 + B x + C.
    """
    (w1, w2), (m1, m2), (s1, s2) = weights, means, deviations
    if min(w1, w2) <= 0:
        return None
    a = 1 / s1**2 - 1 / s2**2
    b = -2 * (m1 / s1**2 - m2 / s2**2)
    c = (m1 / s1) ** 2 - (m2 / s2) ** 2 - 2 * math.log(w1 * s2 / (w2 * s1))
    if b * b < 4 * a * c:
        return None
    q = -(b + math.copysign(math.sqrt(b * b - 4 * a * c), b)) / 2  # nothing cancels, a may be 0
    roots = [top / bottom for top, bottom in ((q, a), (c, q)) if bottom]
    return next((x for x in roots if m1 < x < m2), None)


class LossRecord:
    """What became of every utterance in the running epoch, by its number.

    Each rank notes its own samples; what is read is of all ranks, and every rank calls it. A part
    of a checkpoint: after a kill the epoch's record goes on.

    Args:
        count: N utterances of the training list.
        device: where the losses are, so that noting them does not wait for it.
    """

    def __init__(self, count, device='cpu'):
        self.losses = torch.empty(count, device=device)  # float32
        self.fates = torch.empty(count, dtype=torch.int8, device=device)
        self.labels = torch.empty(count, dtype=torch.int64, device=device)
        self.clear()

    def clear(self):
        """Forgets all, for the next epoch."""
        self.losses.fill_(UNSEEN)
        self.fates.fill_(-1)
        self.labels.fill_(-1)

    def note(self, index, losses, gated):
        """Takes up a batch: utterances `index` (B,), their losses before the gate, its `Gated`."""
        losses = losses.detach().float()
        self.losses[index] = torch.where(losses.isnan(), UNSEEN, losses)
        self.fates[index] = (KEPT * gated.kept + CORRECTED * gated.corrected).to(torch.int8)
        self.labels[index] = gated.labels

    def values(self):
        """Losses (N,) float32 of all ranks; NaN where unseen."""
        losses = self.state_dict()['losses'].numpy()
        return np.where(losses == UNSEEN, np.nan, losses)

    def fates_and_labels(self):
        """Of all ranks: kept (N,) bool, corrected (N,) bool, learnt labels (N,), -1 where unseen."""
        state = self.state_dict()
        fates, labels = state['fates'].numpy(), state['labels'].numpy()
        return fates == KEPT, fates == CORRECTED, labels

    def state_dict(self):
        """The record of all ranks, for `Checkpoint`; every rank calls it."""
        parts = {'losses': self.losses, 'fates': self.fates, 'labels': self.labels}
        return {name: ddp.all_reduce(part, 'max').cpu() for name, part in parts.items()}

    def load_state_dict(self, state):
        """Goes on from a record of all ranks.

        Raises:
            ValueError: of another number of utterances.
        """
        if len(state['losses']) != len(self.losses):
            raise ValueError(f'losses of {len(state["losses"])}, not {len(self.losses)} utterances')
        self.losses.copy_(state['losses'])
        self.fates.copy_(state['fates'])
        self.labels.copy_(state['labels'])
