"""Utterances in tars against the same utterances in a folder."""

import io
import os
import random
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from shared.datasets import shards
from shared.datasets.crops import CropSet, shuffled_loader
from shared.datasets.embeddings import labels_for
from shared.datasets.items import DataError, Sample
from shared.datasets.loading import whole_files
from shared.datasets.reading import AudioReader, durations
from shared.datasets.samplers import ShuffledBatches, sample_rng
from shared.datasets.shards import read_shards, write_shards
from shared.datasets.voxceleb import read_folder
from shared.errors import UserError

NAMES = ('0.wav', '1.flac', '2.x.y.wav')


class Crops(CropSet):
    def sample(self, epoch, index):
        wave = self.crop(index, 300, sample_rng(self.seed, epoch, index))
        return Sample(wave[None], int(self.utterances.speakers[index]), index)


@pytest.fixture
def folder(tmp_path):
    """18 utterances whose folders sort by parts otherwise than by letters."""
    rng = np.random.default_rng(0)
    for speaker in ('b', 'a', 'a-x'):
        for video in ('v', 'v-2'):
            place = tmp_path / 'wav' / speaker / video
            place.mkdir(parents=True)
            for name in NAMES:
                wave = 0.1 * rng.standard_normal(int(rng.integers(200, 900)))
                soundfile.write(place / name, wave, 16000)
    return read_folder(tmp_path / 'wav')


@pytest.fixture
def packed(folder, tmp_path):
    return read_all(pack(folder, tmp_path / 'set'), tmp_path)


def pack(utterances, place, per_shard=5, **options):
    """The paths of the shards."""
    listed = write_shards(utterances, place, per_shard, **options)
    return [listed.parent / line for line in listed.read_text().split()]


def read_all(tars, tmp_path):
    return read_shards(tars, tmp_path / 'index.npz', workers=2)


def keys(utterances):
    """Names of utterances without the place in a tar."""
    return [utterances.name(i).split('/', 2)[2] for i in range(len(utterances))]


def batches(utterances, workers=0):
    loader = shuffled_loader(Crops(utterances, seed=3), 6, seed=1, workers=workers)
    return list(loader)


def tar_of(path, *members):
    """A tar of (name, content)."""
    with tarfile.open(path, 'w') as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_shards_give_the_utterances_of_the_folder_in_its_order(folder, packed, tmp_path):
    assert keys(packed) == [folder.name(i) for i in range(len(folder))]
    assert packed.speaker_ids == folder.speaker_ids == ('a', 'a-x', 'b')
    assert packed.speakers.tolist() == folder.speakers.tolist()
    assert packed.root == tmp_path / 'set' / 'shards' and packed.seconds is None
    assert packed.name(0).startswith('shards_00000000')
    part = packed.select([7, 2])
    assert keys(part) == [folder.name(7), folder.name(2)]
    assert part.path(1) == packed.path(2) == packed.all_paths()[2]


def test_order_depends_neither_on_the_packing_nor_on_the_order_of_tars(folder, packed, tmp_path):
    other = read_all(pack(folder, tmp_path / 'other', per_shard=7, seed=1)[::-1], tmp_path)
    assert keys(other) == keys(packed) and other.name(0) != packed.name(0)
    assert other.speakers.tolist() == packed.speakers.tolist()


@pytest.mark.parametrize('workers', [0, 2])
def test_training_from_shards_sees_the_crops_of_the_folder(folder, packed, workers):
    expected, found = batches(folder), batches(packed, workers)
    assert len(expected) == 3
    for one, other in zip(expected, found, strict=True):
        for name in ('waves', 'labels', 'index'):
            assert torch.equal(one[name], other[name]), name
        assert other['skipped'] == []


def test_ranks_share_the_batches_of_one(folder, packed):
    for rank in range(2):
        sampler = ShuffledBatches(len(packed), 6, 1, rank, 2)
        for share, whole in zip(sampler, batches(folder), strict=True):
            rows = slice(3 * rank, 3 * rank + 3)
            waves = [torch.from_numpy(Crops(packed, seed=3)[key].waves) for key in share]
            assert torch.equal(torch.stack(waves), whole['waves'][rows])


def test_whole_files_and_durations_are_those_of_the_folder(folder, packed):
    reader = AudioReader()
    seconds = durations(folder.all_paths(), reader)
    np.testing.assert_array_equal(durations(packed.all_paths(), reader), seconds)
    options = {'budget_seconds': 0.1, 'workers': 0}
    expected = whole_files(folder.all_paths(), seconds, reader, **options)
    for one, other in zip(
        expected, whole_files(packed.all_paths(), None, reader, **options), strict=True
    ):
        for name in ('index', 'waves', 'lengths'):
            assert torch.equal(one[name], other[name]), name


def test_labels_by_key_are_found(folder, packed):
    names = [folder.name(i) for i in range(len(folder))]
    labels = labels_for(packed, names, np.arange(len(folder)))
    assert labels.tolist() == list(range(len(folder)))


def test_damaged_member_gives_way_to_the_next_and_is_reported(folder, tmp_path):
    tars = pack(folder, tmp_path / 'set')
    packed = read_all(tars, tmp_path)
    for row, damage in ((4, b'fLaC' + bytes(30)), (8, bytes(40))):  # flac and wav
        tar, place = packed.name(row).split('/')[:2]
        with open(packed.root / tar, 'r+b') as file:
            file.seek(int(place.split('+')[0]))
            file.write(damage)
    packed = read_all(tars, tmp_path)
    for row in (4, 8):
        sample = Crops(packed, seed=3)[1, row]
        assert sample.index == row + 1 and len(sample.skipped) == 1
        assert sample.skipped[0].startswith(f'{packed.path(row)}: cannot be')
        expected = Crops(folder, seed=3)[1, row + 1].waves
        np.testing.assert_array_equal(sample.waves, expected)


def test_shards_have_the_published_layout(folder, tmp_path):
    tars = pack(folder, tmp_path / 'set')
    listed = (tmp_path / 'set' / 'shard.list').read_text()
    assert listed == ''.join(f'shards/shards_{i:09d}.tar\n' for i in range(4))
    order = list(range(18))
    random.Random(42).shuffle(order)
    for number, path in enumerate(tars):
        with tarfile.open(path) as tar:
            members = [(m.name, tar.extractfile(m).read()) for m in tar]
        expected = []
        for row in order[5 * number : 5 * number + 5]:
            key = folder.name(row)
            expected.append((f'{key}.spk', key.split('/')[0].encode()))
            expected.append((f'{key}.{key.split(".")[-1]}', folder.path(row).read_bytes()))
        assert members == expected
    lines = [f'{folder.name(i)} {folder.name(i).split("/")[0]}\n' for i in range(18)]
    assert (tmp_path / 'set' / 'utt2spk').read_text() == ''.join(lines)


def test_packing_again_gives_the_same_bytes_and_never_overwrites(folder, tmp_path):
    one, other = (pack(folder, tmp_path / name) for name in ('one', 'other'))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    with pytest.raises(DataError, match=r'shard\.list: is there already'):
        write_shards(folder, tmp_path / 'one')
    (tmp_path / 'wav' / 'utt2spk').touch()
    with pytest.raises(DataError, match='utt2spk: is there already'):
        write_shards(folder, tmp_path / 'wav')


def test_packing_that_fails_leaves_no_list_and_no_half_tar(folder, tmp_path):
    order = list(range(18))
    random.Random(42).shuffle(order)
    folder.path(order[7]).unlink()
    with pytest.raises(DataError, match='cannot be read'):
        pack(folder, tmp_path / 'set')
    left = [name for _, _, names in os.walk(tmp_path / 'set') for name in names]
    assert left == ['shards_000000000.tar']


def test_packing_refuses_names_that_would_not_come_back(tmp_path):
    (tmp_path / 'wav' / 's').mkdir(parents=True)
    (tmp_path / 'wav' / 's' / 'a b.wav').touch()
    with pytest.raises(DataError, match='without blanks'):
        write_shards(read_folder(tmp_path / 'wav'), tmp_path / 'set')


def test_keys_may_have_dots_or_no_ending_and_either_order(folder, tmp_path):
    wave = folder.path(0).read_bytes()
    tar = tar_of(
        tmp_path / 'a.tar',
        ('s-v-1.spk', b' s\n'),
        ('s-v-1.wav', wave),
        ('r/v.1/2.3.wav', wave),
        ('r/v.1/2.3.spk', b'r'),
    )
    found = read_all([tar], tmp_path)
    assert keys(found) == ['r/v.1/2.3', 's-v-1'] and found.speaker_ids == ('r', 's')
    with AudioReader().open(found.path(0)) as audio, AudioReader().open(folder.path(0)) as alone:
        np.testing.assert_array_equal(audio.read(0, 100), alone.read(0, 100))


def test_index_is_kept_and_only_changed_tars_are_looked_into(folder, tmp_path, monkeypatch):
    tars, looked, look = pack(folder, tmp_path / 'set'), [], shards._shard
    monkeypatch.setattr(shards, '_shard', lambda tar: looked.append(tar) or look(tar))
    whole = read_all(tars, tmp_path)
    assert len(looked) == 4 and [path.name for path in tmp_path.glob('index*')] == ['index.npz']
    looked.clear()
    again = read_all(tars, tmp_path)
    assert looked == [] and again.paths.tolist() == whole.paths.tolist()
    part = read_all(tars[:2], tmp_path)
    assert looked == [] and len(part) == 10
    added = ('c/v/1.wav.spk', b'c'), ('c/v/1.wav.wav', folder.path(0).read_bytes())
    tar_of(tars[1], *added)
    changed = read_all(tars, tmp_path)
    assert sorted(looked) == sorted(map(str, [tars[1], *tars[2:]]))
    assert len(changed) == 14 and changed.speaker_ids == ('a', 'a-x', 'b', 'c')
    stamp = os.stat(tars[1])
    tar_of(tars[1], added[0], ('c/v/1.wav.wav', folder.path(0).read_bytes()[::-1]))
    os.utime(tars[1], ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    looked.clear()
    read_all(tars, tmp_path)
    assert looked == [str(tars[1])]


def test_index_of_another_version_is_made_again_and_a_foreign_file_is_left(packed, tmp_path):
    tars = sorted((tmp_path / 'set' / 'shards').iterdir())
    with np.load(tmp_path / 'index.npz') as file:
        table = dict(file)
    np.savez(tmp_path / 'index.npz', **{**table, 'version': 0, 'offsets': table['offsets'] + 1})
    assert read_all(tars, tmp_path).paths.tolist() == packed.paths.tolist()
    for content in (b'', b'text', (tmp_path / 'index.npz').read_bytes()[:200]):
        (tmp_path / 'index.npz').write_bytes(content)
        with pytest.raises(DataError, match=r'index\.npz: is no index of shards'):
            read_all(tars, tmp_path)
        assert (tmp_path / 'index.npz').read_bytes() == content
    np.save(tmp_path / 'array.npy', np.arange(3))
    with pytest.raises(DataError, match=r'array\.npy: is no index of shards'):
        read_shards(tars, tmp_path / 'array.npy')


def read_as_rank(tars, kept):
    found = read_shards(tars, kept)
    return found.paths.tolist(), found.speakers.tolist(), found.speaker_ids


def test_two_ranks_read_one_index(folder, tmp_path, run_ranks):
    tars = [str(path) for path in pack(folder, tmp_path / 'set')]
    one, other = run_ranks(read_as_rank, tars, str(tmp_path / 'index.npz'))
    alone = read_shards(tars, tmp_path / 'alone.npz')
    assert one == other == (alone.paths.tolist(), alone.speakers.tolist(), alone.speaker_ids)


@pytest.mark.parametrize(
    'members, what',
    [
        ([('1.wav', b'x')], r'1 has 0 \.spk and 1 audio members in a row'),
        ([('1.spk', b's')], r'1 has 1 \.spk and 0 audio'),
        ([('1.spk', b's'), ('1.wav', b'x'), ('1.flac', b'x')], r'1 has 1 \.spk and 2 audio'),
        ([('1.spk', b's'), ('2.spk', b's'), ('1.wav', b'x')], r'1 has 1 \.spk and 0 audio'),
        ([('1.spk', b's'), ('1.m4a', b'x')], r'member 1\.m4a is neither a speaker'),
        ([('1.spk', b's'), ('1.wav', b'x'), ('1.vad', b'x')], r'member 1\.vad is neither'),
        ([('1.spk', b's'), ('1', b'x')], 'member 1 is neither'),
        ([('1.spk', b' '), ('1.wav', b'x')], r"1\.spk must hold one speaker, not b''"),
        ([('1.spk', b'a b'), ('1.wav', b'x')], r"1\.spk must hold one speaker, not b'a b'"),
        ([('1.spk', b'\xff'), ('1.wav', b'x')], r'1\.spk must hold one speaker'),
        ([('../1.spk', b's'), ('../1.wav', b'x')], 'unsafe name'),
        ([('1.spk', b's'), ('1.wav', b'x')] * 2, r'1 has 2 \.spk and 2 audio'),
        ([(f'{n}.{e}', b's') for n in '121' for e in ('spk', 'wav')], '1 is there twice'),
        ([], r'a\.tar: no utterance in all shards'),
    ],
)
def test_shards_that_cannot_be_used_are_refused(tmp_path, members, what):
    tar = tar_of(tmp_path / 'a.tar', *members)
    with pytest.raises(DataError, match=what) as caught:
        read_all([tar], tmp_path)
    assert str(tar) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_lists_of_shards_that_cannot_be_used_are_refused(folder, tmp_path):
    tars = pack(folder, tmp_path / 'set')
    with pytest.raises(DataError, match='no shards'):
        read_all([], tmp_path)
    with pytest.raises(DataError, match=r'shards_000000001\.tar: is listed twice'):
        read_all([tars[0], tars[1], tars[1]], tmp_path)
    tars[2].rename(tmp_path / 'copy.tar')
    with pytest.raises(DataError, match=r'shards_000000002\.tar: shard cannot be read \(No such'):
        read_all(tars, tmp_path)
    (tmp_path / 'twin.tar').write_bytes((tmp_path / 'copy.tar').read_bytes())
    with pytest.raises(DataError, match=r'twin\.tar: .* is there twice, or also in .*copy\.tar'):
        read_all([tmp_path / 'copy.tar', tmp_path / 'twin.tar'], tmp_path)
    content = tars[3].read_bytes()
    tars[3].write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r'shards_000000003\.tar: cut short'):
        read_all([tars[3]], tmp_path)


def test_index_that_other_machines_do_not_see_is_said(folder, tmp_path, monkeypatch):
    tars = pack(folder, tmp_path / 'set')
    monkeypatch.setattr(shards.ddp, 'is_main', lambda: False)
    with pytest.raises(UserError, match=r'index\.npz: index of the shards is not here'):
        read_all(tars, tmp_path)
