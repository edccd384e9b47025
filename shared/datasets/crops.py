"""Training sets of speech: what the samples of every recipe have in common, and their loader."""

from fractions import Fraction

import numpy as np
from torch.utils.data import DataLoader, Dataset

from shared import ddp
from shared.datasets.items import Sample, Utterances
from shared.datasets.loading import train_loader, with_substitute
from shared.datasets.reading import ONE, AudioReader
from shared.datasets.samplers import ShuffledBatches


class CropSet(Dataset):
    """Utterances indexed by (epoch, index); `sample` says what one of them is.

    An utterance whose audio cannot be read gives way to the next one.

    Args:
        utterances: what is drawn from.
        seed: of the samples, for `sample_rng`.
    """

    def __init__(self, utterances: Utterances, seed: int):
        self.utterances, self.seed = utterances, seed
        self.reader = AudioReader()

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        return with_substitute(lambda i: self.sample(epoch, i), index, len(self))

    def sample(self, epoch: int, index: int) -> Sample:
        """One utterance, a function of (seed, epoch, index) alone."""
        raise NotImplementedError

    def crop(
        self, index: int, length: int, rng: np.random.Generator, speed: Fraction = ONE
    ) -> np.ndarray:
        """`length` samples from anywhere in an utterance; see `AudioReader.crop`."""
        return self.reader.crop(self.utterances.path(index), length, rng, speed)


def shuffled_loader(data: CropSet, batch_size: int, seed: int, workers: int) -> DataLoader:
    """Each utterance once an epoch, in shuffled batches of `batch_size` over all ranks.

    Raises:
        DataError: as `ShuffledBatches`.
    """
    sampler = ShuffledBatches(len(data), batch_size, seed, ddp.rank(), ddp.world_size())
    return train_loader(data, sampler, workers)
