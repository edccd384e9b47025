"""What the data sets hand around: utterances, trials, training samples and their batches.

Legend: B utterances of a batch, V views of an utterance, L samples, M noises, R room responses.
Utterances and trials are columns, not objects: a million of them cost tens of megabytes.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from shared.errors import UserError
from shared.files import write_text


class DataError(UserError):
    """Data that cannot be used; the message is one line: where, what, and what to do.

    torch hands a loader process's error over as the text of a traceback; its last line is ours.
    """

    def __init__(self, message: str):
        if 'Original Traceback' in message:
            message = message.strip().rpartition('\n')[2].partition('Error: ')[2]
        super().__init__(message)


class Paths(Sequence):
    """File paths below one folder, joined when they are asked for."""

    def __init__(self, root: Path, names: Iterable[str | bytes]):
        self.root = root
        self.names = np.asarray(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Paths(self.root, self.names[index])
        return self.root / os.fsdecode(self.names[index])


@dataclass(frozen=True)
class Utterances:
    """Labelled utterances below one folder, N rows in columns.

    `paths` are relative to `root`, (N,) bytes; `speakers` (N,) int64 indexes `speaker_ids`, which is
    sorted; `seconds` (N,) float64, or None where the list or folder does not tell.
    """

    root: Path
    paths: np.ndarray
    speakers: np.ndarray
    speaker_ids: tuple[str, ...]
    seconds: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Path relative to the root, as lists and trials write it."""
        return os.fsdecode(self.paths[index])

    def path(self, index: int) -> Path:
        """Full path of one utterance."""
        return self.root / self.name(index)

    def all_paths(self) -> Paths:
        """Every full path, as a sequence that holds no object per utterance."""
        return Paths(self.root, self.paths)

    def select(self, indices: np.ndarray | Sequence[int]) -> 'Utterances':
        """Rows by number, in that order; labels and speaker ids keep their meaning."""
        rows = np.asarray(indices, dtype=np.int64)
        seconds = None if self.seconds is None else self.seconds[rows]
        return Utterances(
            self.root, self.paths[rows], self.speakers[rows], self.speaker_ids, seconds
        )

    def write(self, path: str | Path) -> None:
        """Writes the train list of spec lgl 2.2: `speaker path [seconds]` a line."""
        ids = self.speaker_ids
        rows = zip(self.speakers.tolist(), self.paths.tolist())
        lines = [f'{ids[speaker]} {os.fsdecode(name)}' for speaker, name in rows]
        if self.seconds is not None:  # as repr has them: the very same are read again
            seconds = [repr(value).removesuffix('.0') for value in self.seconds.tolist()]
            lines = [f'{line} {text}' for line, text in zip(lines, seconds)]
        write_text(path, '\n'.join(lines) + '\n')


@dataclass(frozen=True)
class Trials:
    """Verification trials, M rows in columns.

    `enrol` and `test` (M,) int64 index `files` (unique, sorted, relative paths); `labels` (M,) bool,
    True for the same speaker; `sha256` is the digest of the list file's bytes.
    """

    name: str
    enrol: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    files: tuple[str, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Sample:
    """One training utterance as a worker read it; mixing is left to the device (design 4.2).

    `waves` (V, L) float32 clean crops. `noises`: (view, noise (L,), SNR in dB), several of one view
    make babble, or are added in turn (`augmentations.augment` has both). `rirs`: (view, response
    (K,)) already scaled. `clips`: (view, part of its extremes that clipping leaves, 0 to 1).
    `gains`: (view, factor of each sample (L,)). At most one a view of these three. `skipped`: why
    other utterances were passed over. `converted`: what was resampled or mixed to mono. `more`:
    crops of another length, by the name that their part of the batch gets.
    """

    waves: np.ndarray
    label: int
    index: int
    noises: list[tuple[int, np.ndarray, float]] = field(default_factory=list)
    rirs: list[tuple[int, np.ndarray]] = field(default_factory=list)
    clips: list[tuple[int, float]] = field(default_factory=list)
    gains: list[tuple[int, np.ndarray]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    converted: Counter = field(default_factory=Counter)
    more: dict[str, 'Sample'] = field(default_factory=dict)


def collate(samples: list[Sample]) -> dict:
    """Batch of samples: clean waves, and what to do to them with the row it belongs to.

    Returns waves (B, V, L), labels (B,), index (B,); noise (M, L), noise_row (M,), noise_snr (M,) in
    dB, in turns: first noises of all rows, then second ones, ..., noise_turns of each (numbers);
    rir (R, K), zero-padded to the longest and cut at L, rir_row (R,); clip_ratio, clip_row (P,);
    gain (G, L), gain_row (G,); skipped, converted. Row b * V + v is view v of utterance b. M, R, P
    and G may be 0. Each name in `Sample.more` is such a batch again, without skipped and converted.
    """
    batch = _collated(samples)
    for name in samples[0].more:
        batch[name] = _collated([s.more[name] for s in samples])
    batch['skipped'] = [message for s in samples for message in s.skipped]
    # a plain dict: pinning memory would add to a Counter what is in it
    batch['converted'] = dict(sum((s.converted for s in samples), Counter()))
    return batch


def _collated(samples: list[Sample]) -> dict:
    views, length = samples[0].waves.shape
    noises = [(b * views + v, x, snr) for b, s in enumerate(samples) for v, x, snr in s.noises]
    turns = _turns([row for row, _, _ in noises])
    noises = [noise for _, noise in sorted(zip(turns, noises), key=lambda pair: pair[0])]
    rirs = [(b * views + v, h[:length]) for b, s in enumerate(samples) for v, h in s.rirs]
    taps = max((len(h) for _, h in rirs), default=1)
    rir = torch.zeros(len(rirs), taps)
    for line, (_, h) in zip(rir.numpy(), rirs):
        line[: len(h)] = h
    clips = [(b * views + v, ratio) for b, s in enumerate(samples) for v, ratio in s.clips]
    gains = [(b * views + v, gain) for b, s in enumerate(samples) for v, gain in s.gains]
    return {
        'waves': _stack([s.waves for s in samples], (views, length)),
        'labels': torch.tensor([s.label for s in samples], dtype=torch.int64),
        'index': torch.tensor([s.index for s in samples], dtype=torch.int64),
        'noise': _stack([x for _, x, _ in noises], (length,)),
        'noise_row': _rows(noises),
        'noise_snr': torch.tensor([snr for _, _, snr in noises], dtype=torch.float32),
        'noise_turns': [turns.count(turn) for turn in range(max(turns, default=-1) + 1)],
        'rir': rir,
        'rir_row': _rows(rirs),
        'clip_ratio': torch.tensor([ratio for _, ratio in clips], dtype=torch.float32),
        'clip_row': _rows(clips),
        'gain': _stack([gain for _, gain in gains], (length,)),
        'gain_row': _rows(gains),
    }


def to_device(batch: dict, device: str | torch.device) -> dict:
    """The batch with its tensors on `device`, copied without waiting where memory is pinned.

    Also those of a batch inside it.
    """

    def moved(value):
        if isinstance(value, torch.Tensor):
            return value.to(device, non_blocking=True)
        return to_device(value, device) if type(value) is dict else value

    return {name: moved(value) for name, value in batch.items()}


def _turns(rows: list[int]) -> list[int]:
    """How many of the same row came before."""
    seen: Counter = Counter()
    turns = []
    for row in rows:
        turns.append(seen[row])
        seen[row] += 1
    return turns


def _rows(entries: Sequence[tuple]) -> torch.Tensor:
    """int64 (len(entries),): the row that each begins with."""
    return torch.tensor([row for row, *_ in entries], dtype=torch.int64)


def _stack(arrays: list[np.ndarray], shape: tuple[int, ...]) -> torch.Tensor:
    """float32 (len(arrays), *shape), also when there is nothing to stack."""
    stacked = torch.empty(len(arrays), *shape)
    for line, array in zip(stacked.numpy(), arrays):
        line[...] = array
    return stacked
