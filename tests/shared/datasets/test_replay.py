import numpy as np
import pytest
import soundfile
import torch

from shared.datasets.crops import CropSet
from shared.datasets.items import Sample, Utterances
from shared.datasets.loading import train_loader
from shared.datasets.replay import batch_again
from shared.datasets.samplers import DistinctBatches, ShuffledBatches, sample_rng

FILES, BATCH = 11, 3


class Crops(CropSet):
    """A crop, and noise for some; with pairs of utterances the second is the noise."""

    def __getitem__(self, key):
        epoch, index, *second = key
        return self.sample(epoch, index, *second) if second else super().__getitem__(key)

    def sample(self, epoch, index, second=None):
        rng = sample_rng(self.seed, epoch, index)
        sample = Sample(self.crop(index, 500, rng)[None], label=index % 4, index=index)
        if second is not None or rng.random() < 0.5:
            sample.noises.append((0, self.crop(second or 0, 500, rng), rng.uniform(0, 15)))
        return sample


def corpus(root, bad=()):
    for number in range(FILES):
        wave = np.random.default_rng(number).standard_normal(3000) / 9
        soundfile.write(root / f'{number}.wav', wave, 16000)
    for number in bad:
        (root / f'{number}.wav').write_bytes(b'no audio')
    names = np.array([f'{number}.wav'.encode() for number in range(FILES)])
    return Utterances(root, names, np.arange(FILES) % 4, ('a', 'b', 'c', 'd'))


def equal(batch, other):
    if isinstance(batch, torch.Tensor):
        return torch.equal(batch, other)
    if isinstance(batch, dict):
        return batch.keys() == other.keys() and all(equal(batch[k], other[k]) for k in batch)
    return batch == other


@pytest.mark.parametrize('kind', ['utterances', 'pairs'])
@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('workers', [0, 1])
def test_every_batch_can_be_had_again(kind, rank, workers, tmp_path):
    if kind == 'pairs':
        utterances = corpus(tmp_path)
        sampler = DistinctBatches(utterances.speakers, 2, 5, rank, 2, each=2)
    else:  # one of them gives way to the next
        utterances = corpus(tmp_path, bad=(7,))
        sampler = ShuffledBatches(FILES, 2 * BATCH, 5, rank, 2)
    loader = train_loader(Crops(utterances, 3), sampler, workers)
    for epoch in (1, 2):
        sampler.set_position(epoch)
        batches = list(loader)
        sampler.set_position(8, 1)
        for step in reversed(range(1, len(batches) + 1)):
            again = batch_again(loader, epoch, step)
            assert equal(again['batch'], batches[step - 1])
            assert not equal(again['batch'], batches[step - 2]) or len(batches) == 1
            for key, files in zip(again['keys'], again['files'], strict=True):
                assert key[0] == epoch
                assert files == [str(utterances.root / f'{i}.wav') for i in key[1:]]
        assert (sampler.epoch, sampler.batch) == (8, 1)
