"""What an SSL encoder knows of speakers before any fine-tuning: a linear probe on the demo corpus.

Legend: N files, T frames, D width of a state, S states.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.datasets.demo import DemoCorpus
from shared.datasets.reading import AudioReader
from shared.datasets.voxceleb import read_list, read_trials
from shared.evaluation import metrics, scoring
from shared.models.ssl_encoder import SslEncoder

SECONDS = 2.5  # of each file, from its beginning; shorter files are repeated
PER_SPEAKER = 6  # training utterances, spread over the videos
DIMENSIONS = 64  # of the discriminant space, at most
BATCH = 32  # files
PROTOCOL = (
    'mean and standard deviation over time of every hidden state, standardised; linear '
    f'discriminant analysis with Ledoit-Wolf shrinkage to {DIMENSIONS} dimensions, learnt from '
    f'{PER_SPEAKER} utterances of each training speaker; cosine on the trials O, whose speakers '
    f'are unseen; {SECONDS:g} s of each file; EER in percent'
)


def probe(encoder: SslEncoder, corpus: DemoCorpus, device: torch.device | str = 'cpu') -> dict:
    """EER of a linear probe: of all states together, and of each (`PROTOCOL`).

    Only the discriminant analysis is learnt, in closed form, and in the same way for any encoder:
    what differs between two encoders is how well their features separate speakers linearly.

    Returns:
        {'eer': percent, 'eer_by_state': [percent, ...]}, state 0 being the input of layer 1.
    """
    speakers = read_list(corpus.train_list, corpus.train)
    rows = spread(speakers.speakers, PER_SPEAKER)
    trials = read_trials(corpus.trials['O'], corpus.vox1)
    train = statistics(encoder, [speakers.path(row) for row in rows], device)
    test = statistics(encoder, [corpus.vox1 / name for name in trials.files], device)
    labels = speakers.speakers[rows]

    def eer(of_train: np.ndarray, of_test: np.ndarray) -> float:
        vectors = torch.from_numpy(discriminant(of_train, labels, of_test))
        scores = scoring.cosine(vectors, trials.enrol, trials.test)
        return metrics.eer(scores.numpy(), trials.labels).value

    by_state = [eer(train[:, k], test[:, k]) for k in range(train.shape[1])]
    return {'eer': eer(*(x.reshape(len(x), -1) for x in (train, test))), 'eer_by_state': by_state}


def spread(speakers: np.ndarray, count: int) -> np.ndarray:
    """Rows of `count` utterances of each speaker, evenly over the order of the list, ascending."""
    chosen = []
    for speaker in np.unique(speakers):
        rows = np.flatnonzero(speakers == speaker)
        steps = np.linspace(0, len(rows) - 1, min(count, len(rows)))
        chosen.append(rows[steps.round().astype(int)])
    return np.sort(np.concatenate(chosen))


@torch.inference_mode()
def statistics(
    encoder: SslEncoder, paths: Sequence[Path], device: torch.device | str
) -> np.ndarray:
    """Mean and standard deviation over time of every state, (N, S, 2 D) float32."""
    was_training = encoder.training
    encoder.to(device).eval()
    pooled = [
        torch.stack([_moments(state) for state in encoder(waves.to(device)).states], dim=1)
        for waves in _batches(paths)
    ]
    encoder.train(was_training)
    return torch.cat(pooled).float().cpu().numpy()


def discriminant(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Rows of `test` in the discriminant space of `train`, centred on its mean, float32."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # here: slow to load

    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-5
    train, test = (train - mean) / deviation, (test - mean) / deviation
    dimensions = min(DIMENSIONS, len(np.unique(labels)) - 1, train.shape[1])
    analysis = LinearDiscriminantAnalysis('eigen', shrinkage='auto', n_components=dimensions)
    offset = analysis.fit(train, labels).transform(train).mean(axis=0)
    return (analysis.transform(test) - offset).astype(np.float32)


def _moments(state: Tensor) -> Tensor:
    """(B, 2 D) of a state (B, T, D)."""
    return torch.cat([state.mean(dim=1), state.std(dim=1)], dim=1)


def _batches(paths: Sequence[Path]) -> Iterable[Tensor]:
    """Waves (B, L) of `SECONDS`."""
    reader = AudioReader()
    for first in range(0, len(paths), BATCH):
        waves = []
        for path in paths[first : first + BATCH]:
            with reader.open(path) as audio:
                waves.append(torch.from_numpy(audio.read(0, int(SECONDS * reader.rate))))
        yield torch.stack(waves)
