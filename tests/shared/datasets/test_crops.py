"""What training sets share: keys, substitutes for bad files, and the shuffled loader."""

import numpy as np
import pytest
import soundfile

from shared.datasets.crops import CropSet, shuffled_loader
from shared.datasets.items import DataError, Sample, Utterances
from shared.datasets.samplers import sample_rng


class Plain(CropSet):
    def sample(self, epoch, index):
        wave = self.crop(index, 10, sample_rng(self.seed, epoch, index))
        return Sample(wave[None], label=epoch, index=index)


@pytest.fixture
def data(tmp_path):
    """Six utterances; sample k of utterance i holds (100 i + k) / 2^15."""
    for i in range(6):
        wave = (np.arange(30) + 100 * i) / 2**15
        soundfile.write(tmp_path / f'{i}.wav', wave, 16000, subtype='PCM_16')
    names = np.array([f'{i}.wav' for i in range(6)], 'S')
    return Plain(Utterances(tmp_path, names, np.arange(6), tuple('abcdef')), seed=1)


def test_key_is_epoch_and_utterance_and_a_sample_depends_on_nothing_else(data):
    sample = data[3, 2]
    assert (sample.label, sample.index) == (3, 2) and len(data) == 6
    values = sample.waves[0] * 2**15
    assert values.tolist() == [values[0] + i for i in range(10)] and 200 <= values[0] <= 220
    data[4, 2]
    assert np.array_equal(data[3, 2].waves, sample.waves)
    other = {float(data[epoch, 2].waves[0, 0]) for epoch in range(20)}
    assert len(other) > 5


def test_bad_file_gives_way_to_the_next_utterance(data):
    data.utterances.path(5).write_bytes(b'')
    sample = data[1, 5]
    assert sample.index == 0 and '5.wav' in sample.skipped[0]


def test_shuffled_loader_gives_each_utterance_once_an_epoch_in_another_order(data):
    loader = shuffled_loader(data, 3, seed=0, workers=0)
    orders = []
    for epoch in (1, 2):
        loader.batch_sampler.set_position(epoch)
        batches = list(loader)
        assert [batch['waves'].shape for batch in batches] == [(3, 1, 10)] * 2
        assert all(batch['labels'].tolist() == [epoch] * 3 for batch in batches)
        orders.append([i for batch in batches for i in batch['index'].tolist()])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(6)) and orders[0] != orders[1]
    with pytest.raises(DataError, match='do not fill one batch of 7'):
        shuffled_loader(data, 7, seed=0, workers=0)
