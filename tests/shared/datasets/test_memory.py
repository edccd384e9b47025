"""MUSAN and responses in memory: the same samples as from disk, for all ranks and workers."""

import os
import re

import numpy as np
import pytest
import soundfile
import torch

from shared import ddp
from shared.augmentations.reverb import unit_energy
from shared.datasets import memory
from shared.datasets.crops import CropSet, shuffled_loader
from shared.datasets.items import Sample
from shared.datasets.memory import GIB, keep_in_memory
from shared.datasets.musan import CATEGORIES, Musan, NoiseRange
from shared.datasets.packed import pack
from shared.datasets.reading import AudioError, AudioReader
from shared.datasets.rirs import Rirs
from shared.datasets.samplers import sample_rng
from shared.datasets.voxceleb import read_folder

CROP = 900


def write(path, wave, rate=16000, subtype='PCM_16'):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype=subtype)


@pytest.fixture
def root(tmp_path):
    """Eight utterances, MUSAN of four files a category and of every kind, five responses."""
    rng = np.random.default_rng(0)

    def noise(seconds):
        return rng.uniform(-1, 1, int(16000 * seconds))

    for i in range(8):
        write(tmp_path / f'vox/s{i % 4}/v/{i}.wav', noise(0.1))
    for category in CATEGORIES:
        for i in range(4):
            write(tmp_path / f'musan/{category}/sub/{i}.wav', noise(0.02 + 0.05 * i))
    for i in range(5):
        write(tmp_path / f'rirs/room/{i}.wav', np.stack([noise(0.01), noise(0.01)], 1))
    return tmp_path


def corpora(root):
    return Musan(root / 'musan', AudioReader()), Rirs(root / 'rirs', AudioReader())


class Noisy(CropSet):
    """A crop with a response and babble."""

    def __init__(self, root, musan, rirs):
        super().__init__(read_folder(root / 'vox'), seed=3)
        self.musan, self.rirs = musan, rirs

    def sample(self, epoch, index):
        rng = sample_rng(self.seed, epoch, index)
        sample = Sample(self.crop(index, CROP, rng)[None], label=0, index=index)
        sample.rirs.append((0, unit_energy(self.rirs.draw(rng))))
        category = rng.choice(CATEGORIES)
        drawn = self.musan.several(category, CROP, rng, NoiseRange((0, 15), (1, 3)))
        sample.noises = [(0, noise, snr) for noise, snr in drawn]
        return sample


def batches(root, gib, workers=0):
    musan, rirs = corpora(root)
    said = keep_in_memory(gib, musan, rirs)
    found = []
    for epoch in (1, 2):
        loader = shuffled_loader(Noisy(root, musan, rirs), 4, seed=0, workers=workers)
        loader.batch_sampler.set_position(epoch)
        found += list(loader)
    return found, said


def assert_equal(one, other):
    assert len(one) == len(other)
    for first, second in zip(one, other):
        assert first.keys() == second.keys()
        for key, value in first.items():
            same = (
                torch.equal(value, second[key]) if torch.is_tensor(value) else value == second[key]
            )
            assert same, key


ALL = 'in memory: 5 of 5 RIRs, 4 of 4 noise, 4 of 4 speech, 4 of 4 music'


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_are_those_from_disk_bit_for_bit(root, workers):
    disk, said = batches(root, 0.0)
    assert said == 'read from disk'
    kept, said = batches(root, 0.01, workers)
    assert said.startswith(ALL) and said.endswith(' GiB')
    assert_equal(disk, kept)


def test_files_in_memory_are_not_opened_again(root):
    musan, rirs = corpora(root)
    keep_in_memory(0.01, musan, rirs)
    expected = rirs.draw(np.random.default_rng(1))
    for folder in ('musan', 'rirs'):
        (root / folder).rename(root / f'{folder}_gone')
    assert np.array_equal(rirs.draw(np.random.default_rng(1)), expected)
    crop = musan.crop('music', 20000, np.random.default_rng(0))  # wrapped around
    assert crop.dtype == np.float32 and crop.shape == (20000,) and crop.flags.writeable


def test_what_would_not_be_the_same_samples_stays_on_disk(root):
    rng = np.random.default_rng(5)
    sub = root / 'musan/noise/sub'
    write(sub / 'a_rate.wav', rng.uniform(-1, 1, 900), rate=8000)
    write(sub / 'b_stereo.wav', rng.uniform(-1, 1, (900, 2)))
    write(sub / 'c_float.wav', rng.uniform(-1, 1, 900).astype(np.float32), subtype='FLOAT')
    write(sub / 'd_24.flac', rng.uniform(-1, 1, 900), subtype='PCM_24')
    write(sub / 'e_16.flac', rng.uniform(-1, 1, 900))
    write(sub / 'f_loud.wav', np.array([0.5, 1.0, -1.0], np.float32), subtype='FLOAT')
    (sub / 'g_bad.wav').write_bytes(b'RIFF')
    disk, _ = corpora(root)
    musan, rirs = corpora(root)
    assert keep_in_memory(0.01, musan, rirs).startswith(
        'in memory: 5 of 5 RIRs, 5 of 11 noise, 4 of 4 speech'
    )
    kept = {os.path.basename(path) for path in musan.reader.block.places if '/noise/' in path}
    assert kept == {'0.wav', '1.wav', '2.wav', '3.wav', 'e_16.flac'}
    for file in range(10):
        one, other = (
            found.crop('noise', 700, np.random.default_rng(file), file) for found in (disk, musan)
        )
        assert np.array_equal(one, other), disk.files['noise'][file]
    assert musan.reader.converted == disk.reader.converted == {'resampled': 1, 'mixed to mono': 1}
    with pytest.raises(AudioError, match=r'g_bad\.wav'):
        musan.crop('noise', 700, np.random.default_rng(0), file=10)


def test_silent_response_is_refused_from_memory_as_well(root):
    for path in (root / 'rirs/room').iterdir():
        write(path, np.zeros(20))
    musan, rirs = corpora(root)
    keep_in_memory(0.01, None, rirs)
    with pytest.raises(AudioError, match=r'\d\.wav: the response is silent'):
        rirs.draw(np.random.default_rng(0))


def test_limit_keeps_responses_first_then_noise_speech_and_music(root):
    sizes = {name: [] for name in ('rirs', 'noise', 'speech', 'music')}
    sizes['rirs'] = [2 * 160] * 5
    for name in CATEGORIES:
        sizes[name] = [2 * int(16000 * (0.02 + 0.05 * i)) for i in range(4)]
    order = [(name, size) for name, group in sizes.items() for size in group]
    total = sum(size for _, size in order)
    for limit in (1, 320, 1599, 1600, 5000, total // 2, total - 1, total):
        fits, used = dict.fromkeys(sizes, 0), 0
        for name, size in order:
            if used + size > limit:
                break
            used += size
            fits[name] += 1
        musan, rirs = corpora(root)
        said = keep_in_memory(limit / GIB + 1e-12, musan, rirs)
        found = list(map(int, re.findall(r'(\d+) of', said)))
        assert found == list(fits.values()), limit
        assert len(rirs.reader.block.samples) * 2 >= used


def test_free_memory_lowers_the_limit_and_that_is_said(root, monkeypatch):
    monkeypatch.setattr(memory, 'free_memory', lambda: 2 * 800)
    musan, rirs = corpora(root)
    said = keep_in_memory(1.0, musan, rirs)
    assert said.startswith('in memory: 2 of 5 RIRs, 0 of 4 noise, 0 of 4 speech, 0 of 4 music')
    assert said.endswith('GiB (the limit is 7.5e-07 GiB, 50% of what is free)')


def test_nothing_is_kept_where_memory_cannot_be_shared(root, monkeypatch):
    disk, _ = batches(root, 0.0)

    def refused(name):
        raise PermissionError(1, 'not here')

    monkeypatch.setattr(os, 'memfd_create', refused)
    kept, said = batches(root, 0.01)
    assert said.startswith('in memory: 0 of 5 RIRs')
    assert said.endswith('1 of 1 ranks cannot share it and read from disk')
    assert_equal(disk, kept)


def test_memory_that_runs_out_while_it_is_filled_keeps_what_is_there(root, monkeypatch):
    real, calls = os.pwrite, []

    def third_fails(*given):
        calls.append(given)
        if len(calls) == 3:
            raise OSError(28, 'no space left')
        return real(*given)

    monkeypatch.setattr(os, 'pwrite', third_fails)
    kept, said = batches(root, 0.01)
    assert said.startswith('in memory: 2 of 5 RIRs, 0 of 4 noise')
    monkeypatch.undo()
    assert_equal(batches(root, 0.0)[0], kept)


def test_corpora_that_are_not_there_are_left_out(root):
    musan, rirs = corpora(root)
    assert keep_in_memory(1.0, None, None) == 'read from disk'
    assert keep_in_memory(0.01, None, rirs).startswith('in memory: 5 of 5 RIRs, ')
    assert keep_in_memory(0.01, musan, None).startswith('in memory: 4 of 4 noise, ')


def test_packed_folders_are_kept_like_plain_ones(root):
    expected, _ = batches(root, 0.0)
    for folder in ('musan', 'rirs'):
        pack(root / folder, root / f'{folder}_packed', per_shard=3)
        (root / folder).rename(root / f'{folder}_plain')
        (root / f'{folder}_packed').rename(root / folder)
    found, said = batches(root, 0.01)
    assert said.startswith(ALL)
    assert_equal(expected, found)


def on_a_rank(root, sabotage):
    """What a rank of two gets, how that is said, and how many files it has in memory."""
    if sabotage and ddp.rank() == 1:
        memory._mapped = lambda offer: None
    if ddp.rank() == 1:
        os.memfd_create = None  # that of the other is used
    found, said = batches(root, 0.01)
    musan, rirs = corpora(root)
    keep_in_memory(0.01, musan, rirs)
    return found, said, len(musan.reader.block.places)


@pytest.mark.parametrize('sabotage', [False, True])
def test_two_ranks_share_one_block_and_get_the_batches_from_disk(root, run_ranks, sabotage):
    first, second = run_ranks(on_a_rank, root, sabotage)
    assert first[1] == second[1] and first[1].startswith(ALL)
    assert ('1 of 2 ranks cannot share it' in first[1]) == sabotage
    assert (first[2], second[2]) == (17, 0 if sabotage else 17)
    alone, _ = batches(root, 0.0)
    for whole, *parts in zip(alone, first[0], second[0], strict=True):
        for key in ('waves', 'index', 'rir', 'rir_row'):
            joined = torch.cat([part[key] for part in parts])
            rows = 2 * (torch.arange(4) // 2) if key == 'rir_row' else 0  # of the second rank
            assert torch.equal(whole[key], joined + rows), key


def own_machine(root):
    """As if each rank had a machine to itself."""
    os.environ.update(LOCAL_RANK='0', LOCAL_WORLD_SIZE='1')
    musan, rirs = corpora(root)
    said = keep_in_memory(0.01, musan, rirs)
    return said, len(musan.reader.block.places), float(rirs.draw(np.random.default_rng(0))[0])


def test_each_machine_has_a_block_of_its_own(root, run_ranks):
    first, second = run_ranks(own_machine, root)
    assert first == second and first[0].startswith(ALL) and first[1] == 17


def test_block_vanishes_with_the_process_however_it_ends(root, python):
    text = (
        'import os, signal, sys; from pathlib import Path; '
        'from shared.datasets.memory import keep_in_memory; '
        'from shared.datasets.rirs import Rirs; from shared.datasets.reading import AudioReader; '
        f'rirs = Rirs({str(root / "rirs")!r}, AudioReader()); print(keep_in_memory(0.01, None, rirs)); '
        'sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)'
    )
    shared = '/dev/shm'
    before = set(os.listdir(shared)) if os.path.isdir(shared) else set()
    done = python('-c', text)
    assert done.returncode == -9 and 'in memory: 5 of 5' in done.stdout
    after = set(os.listdir(shared)) if os.path.isdir(shared) else set()
    assert not [name for name in after - before if 'samples' in name]
