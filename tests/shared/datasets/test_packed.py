"""Packed folders against the same audio in a folder."""

import io
import os
import shutil
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from shared.augmentations.reverb import unit_energy
from shared.datasets import offset_index, packed, shards
from shared.datasets.crops import CropSet, shuffled_loader
from shared.datasets.embeddings import labels_for
from shared.datasets.items import DataError, Sample
from shared.datasets.lists import audio_files
from shared.datasets.loading import whole_files
from shared.datasets.musan import CATEGORIES, Musan, NoiseRange
from shared.datasets.noisy_sets import FlatNoises
from shared.datasets.packed import INDEX, index, pack, packed_folder, read_shards
from shared.datasets.reading import AudioReader, durations
from shared.datasets.rirs import Rirs
from shared.datasets.samplers import ShuffledBatches, sample_rng
from shared.datasets.trial_files import trial_lists
from shared.datasets.voxceleb import read_folder, read_list
from shared.errors import UserError

NAMES = ('0.wav', '1.flac', '2.x.y.wav')
SET = {'per_shard': 5}


def write(path, rng, samples=None, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.1 * rng.standard_normal(samples or int(rng.integers(200, 900)))
    soundfile.write(path, wave, rate)


@pytest.fixture
def folder(tmp_path):
    """18 utterances whose folders sort by parts otherwise than by letters."""
    rng = np.random.default_rng(0)
    for speaker in ('b', 'a', 'a-x'):
        for video in ('v', 'v-2'):
            for name in NAMES:
                write(tmp_path / 'wav' / speaker / video / name, rng)
    return read_folder(tmp_path / 'wav')


@pytest.fixture
def extras(tmp_path):
    """MUSAN and RIRS_NOISES, as distributed."""
    rng = np.random.default_rng(1)
    for category in CATEGORIES:
        for number in range(4):
            suffix = ('wav', 'flac')[number % 2]
            write(tmp_path / f'musan/{category}/free/{category}-{number}.{suffix}', rng, 1500)
    (tmp_path / 'musan/README').write_text('no audio')
    for name in ('simulated_rirs/smallroom/Room1/1.wav', 'simulated_rirs/mediumroom/Room1/1.wav'):
        write(tmp_path / 'rirs' / name, rng, 150)
    for name in ('real_rirs_isotropic_noises/a.wav', 'real_rirs_isotropic_noises/a_noise.wav'):
        write(tmp_path / 'rirs' / name, rng, 100)
    return tmp_path / 'musan', tmp_path / 'rirs'


def tar_of(path, *members):
    """A tar of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


class Crops(CropSet):
    def sample(self, epoch, index):
        wave = self.crop(index, 300, sample_rng(self.seed, epoch, index))
        return Sample(wave[None], int(self.utterances.speakers[index]), index)


class Augmented(Crops):
    """A crop with a room and a noise of MUSAN."""

    def __init__(self, utterances, musan, rirs):
        super().__init__(utterances, seed=3)
        self.musan, self.rirs = Musan(musan, AudioReader()), Rirs(rirs, AudioReader())

    def sample(self, epoch, index):
        sample = super().sample(epoch, index)
        rng = sample_rng(self.seed, epoch, index)
        sample.rirs.append((0, unit_energy(self.rirs.draw(rng))))
        category = str(rng.choice(CATEGORIES))
        drawn = self.musan.several(category, 300, rng, NoiseRange((0, 15), (1, 3)))
        sample.noises = [(0, noise, snr) for noise, snr in drawn]
        return sample


def batches(data, workers=0):
    return list(shuffled_loader(data, 6, seed=1, workers=workers))


def check_equal(expected, found):
    assert len(expected) == len(found) > 0
    for one, other in zip(expected, found):
        assert one.keys() == other.keys()
        for name, value in one.items():
            same = (
                torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
            )
            assert same, name


# --- a packed folder is the folder


def test_packed_folder_has_the_files_of_the_folder_in_its_order(folder, tmp_path):
    write(tmp_path / 'wav/a/0.wav', np.random.default_rng(2))  # beside folders: before them
    write(tmp_path / 'wav/a/z.wav', np.random.default_rng(3))
    found = pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    walked = [f'{above}/{name}' for above, names in audio_files(tmp_path / 'wav') for name in names]
    assert [name.decode() for name in found.names.tolist()] == walked and len(found) == 20
    assert found.root == tmp_path / 'set' and packed_folder(tmp_path / 'set') is found
    assert list(audio_files(tmp_path / 'set')) == list(audio_files(tmp_path / 'wav'))
    sizes = [(tmp_path / 'wav' / name).stat().st_size for name in walked]
    assert found.sizes().tolist() == sizes
    assert [found.open(name).read() for name in walked] == [
        (tmp_path / 'wav' / name).read_bytes() for name in walked
    ]


def test_lists_from_a_packed_folder_are_those_of_the_folder(folder, tmp_path):
    write(tmp_path / 'wav/a/v/8k.wav', np.random.default_rng(2), 333, rate=8000)
    (tmp_path / 'wav/a/v/none.wav').write_bytes(b'')
    pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    one, other = read_folder(tmp_path / 'wav'), read_folder(tmp_path / 'set')
    for name in ('paths', 'speakers'):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.speaker_ids == other.speaker_ids == ('a', 'a-x', 'b')
    reader = AudioReader()
    seconds = durations(one.all_paths(), reader)
    np.testing.assert_array_equal(durations(other.all_paths(), reader), seconds)
    assert np.isnan(seconds).sum() == 1
    told = packed_folder(tmp_path / 'set').seconds()  # not of FLAC files shorter than its look
    known = ~np.isnan(told)
    np.testing.assert_array_equal(told[known], seconds[known])
    assert known.sum() >= 15
    one.write(tmp_path / 'list.txt')
    assert read_list(tmp_path / 'list.txt', tmp_path / 'set').paths.tolist() == one.paths.tolist()
    (tmp_path / 'list.txt').write_text('a a/v/0.wav\na a/v/9.wav\n')
    with pytest.raises(DataError, match=r'1 listed files are not below .*: a/v/9\.wav;'):
        read_list(tmp_path / 'list.txt', tmp_path / 'set')


@pytest.mark.parametrize('workers', [0, 2])
def test_training_from_packed_folders_gives_the_batches_of_folders(
    folder, extras, tmp_path, workers
):
    roots = [tmp_path / 'wav', *extras]
    twins = [pack(root, tmp_path / 'packed' / root.name, **SET).root for root in roots]
    expected = batches(Augmented(folder, *extras))
    packed._loaded.clear()  # as in a process that has just started
    found = batches(Augmented(read_folder(twins[0]), *twins[1:]), workers)
    check_equal(expected, found)
    assert sum(len(batch['noise']) for batch in found) > 18 and found[0]['rir'].any()


def test_whole_files_of_trials_are_those_of_the_folder(folder, tmp_path):
    pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    (tmp_path / 'trials').write_text('1 a/v/0.wav a/v/1.flac\n0 a/v/0.wav b/v-2/2.x.y.wav\n')
    options = {'budget_seconds': 0.1, 'workers': 0}
    expected, found = (
        trial_lists([tmp_path / 'trials'], tmp_path / root, **options)[0] for root in ('wav', 'set')
    )
    assert expected.trials.files == found.trials.files and len(found.paths) == 3
    check_equal(list(expected.loader()), list(found.loader()))
    assert found.converted == {}
    (tmp_path / 'trials').write_text('1 a/v/0.wav a/v/1.flac\n0 a/v/0.wav c/v/0.wav\n')
    with pytest.raises(DataError, match=r'1 listed files are not below .*: c/v/0\.wav'):
        trial_lists([tmp_path / 'trials'], tmp_path / 'set', **options)


@pytest.mark.parametrize('deep', [False, True], ids=['as distributed', 'one folder deeper'])
def test_musan_and_responses_are_those_of_the_folder(extras, tmp_path, deep):
    musan, rirs = extras
    if deep:
        musan = tmp_path / 'above'
        musan.mkdir()
        extras[0].rename(musan / 'musan')
    twins = [
        pack(path, tmp_path / f'{path.name}_packed', per_shard=3).root for path in (musan, rirs)
    ]
    one, other = Musan(musan, AudioReader()), Musan(twins[0], AudioReader())
    for category in CATEGORIES:
        assert one.files[category].tolist() == other.files[category].tolist()
    rng, same = np.random.default_rng(5), np.random.default_rng(5)
    np.testing.assert_array_equal(one.crop('music', 999, rng), other.crop('music', 999, same))
    one, other = Rirs(rirs, AudioReader()), Rirs(twins[1], AudioReader())
    assert one.files.tolist() == other.files.tolist() and len(one.files) == 3
    np.testing.assert_array_equal(one.draw(rng), other.draw(same))
    assert (
        FlatNoises(twins[0]).files['nonspeech'].tolist()
        == FlatNoises(musan).files['nonspeech'].tolist()
    )


def test_packed_folder_without_the_categories_is_no_musan(extras, tmp_path):
    twin = pack(extras[1], tmp_path / 'set').root
    with pytest.raises(DataError, match='no folders noise, speech and music'):
        Musan(twin, AudioReader())


def test_labels_by_key_are_found(folder, tmp_path):
    pack(tmp_path / 'wav', tmp_path / 'set')
    names = [folder.name(i) for i in range(len(folder))]
    labels = labels_for(read_folder(tmp_path / 'set'), names, np.arange(len(folder)))
    assert labels.tolist() == list(range(len(folder)))


def test_packed_folder_may_be_moved(folder, tmp_path):
    pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    (tmp_path / 'set').rename(tmp_path / 'other')
    assert packed_folder(tmp_path / 'set') is None
    check_equal(batches(Crops(folder, 3)), batches(Crops(read_folder(tmp_path / 'other'), 3)))


def test_names_that_are_missing_are_told(folder, tmp_path):
    found = pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    rng = np.random.default_rng(0)
    names = rng.permutation(found.names)
    assert found.missing(names).tolist() == [] and found.missing([]).tolist() == []
    np.testing.assert_array_equal(found.names[found.rows(names)], names)
    odd = ['a/v/9.wav', 'a/v/0.wav', './a//v/0.wav', 'a/v', 'a/v/0.wav.wav', 'ä' * 60]
    lost = ['a/v/9.wav', 'a/v', 'a/v/0.wav.wav', 'ä' * 60]
    assert found.missing(odd).tolist() == [os.fsencode(name) for name in lost]
    assert found.missing(np.array(odd)).tolist() == found.missing(odd).tolist()
    assert [os.fsdecode(name) for name in found.below('a/v-2').tolist()] == [
        f'a/v-2/{name}' for name in NAMES
    ]
    assert len(found.below('.')) == 18 and len(found.below('a')) == 6 and not len(found.below('c'))
    assert not len(found.below('a' * 99))


# --- packing


def test_second_pack_does_nothing_and_a_killed_one_goes_on(folder, tmp_path):
    pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    files = [path for path in (tmp_path / 'set').rglob('*') if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    assert len(before) == 7  # 4 shards, shard.list, utt2spk, index.npz
    pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files} == before
    (tmp_path / 'set' / INDEX).unlink()
    (tmp_path / 'set/shards/shards_000000003.tar').unlink()
    found = pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    check_equal(batches(Crops(folder, 3)), batches(Crops(found.utterances(), 3)))


def test_folders_that_cannot_be_packed_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match='no such folder'):
        pack(tmp_path / 'nowhere', tmp_path / 'set')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty/README').touch()
    with pytest.raises(DataError, match=r'no \.wav or \.flac below it; it holds README'):
        pack(tmp_path / 'empty', tmp_path / 'set')
    (tmp_path / 'wav/a/v/0.m4a').touch()  # beside 0.wav
    pack(tmp_path / 'wav', tmp_path / 'set')
    (tmp_path / 'wav/a/v/5.m4a').touch()
    with pytest.raises(DataError, match=r'5\.m4a: is neither wav nor FLAC: convert it first'):
        pack(tmp_path / 'wav', tmp_path / 'other')
    for source, out in (('set', 'other'), ('wav', 'wav')):
        with pytest.raises(DataError, match='give a folder of its own'):
            pack(tmp_path / source, tmp_path / out)
    assert not (tmp_path / 'other').exists()


# --- shards of others


def sample(name, wave, speaker=None):
    """Members of one utterance."""
    label = [(f'{os.path.splitext(name)[0]}.spk', speaker)] if speaker else []
    return [*label, (name, wave)]


def test_index_of_shards_of_others(folder, tmp_path):
    wave = folder.path(0).read_bytes()
    tars = [
        tar_of(tmp_path / 'x/1.tar', *sample('s-v-1.wav', wave, b's'), ('s-v-1.json', b'{}')),
        tar_of(tmp_path / 'x/2.tar', *sample('r/v/2.wav', wave), *sample('q/1.flac', wave)),
    ]
    found = index(tars, tmp_path / 'set')
    assert found.names.tolist() == [b's-v-1.wav', b'q/1.flac', b'r/v/2.wav']
    assert found.speaker_ids == ('q', 'r', 's') and found.speakers.tolist() == [2, 0, 1]
    with (
        AudioReader().open(tmp_path / 'set/r/v/2.wav') as audio,
        AudioReader().open(folder.path(0)) as alone,
    ):
        np.testing.assert_array_equal(audio.read(0, 100), alone.read(0, 100))
    assert os.listdir(tmp_path / 'set') == [INDEX]
    (tmp_path / 'x/all.list').write_text('1.tar\n2.tar\n')
    assert (
        index([tmp_path / 'x/all.list'], tmp_path / 'twin').names.tolist() == found.names.tolist()
    )


def test_index_is_kept_and_only_changed_tars_are_looked_into(folder, tmp_path, monkeypatch):
    pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    tars, looked, look = sorted((tmp_path / 'set/shards').iterdir()), [], shards._shard
    monkeypatch.setattr(shards, '_shard', lambda tar: looked.append(tar) or look(tar))
    whole = read_shards(tars, tmp_path / 'kept', workers=2)
    assert len(looked) == 4 and os.listdir(tmp_path / 'kept') == [INDEX]
    looked.clear()
    again = read_shards(tars, tmp_path / 'kept')
    assert looked == [] and again.paths.tolist() == whole.paths.tolist()
    part = read_shards(tars[:2], tmp_path / 'kept')
    assert looked == [] and len(part) == 10
    added = sample('c/v/1.wav.wav', folder.path(0).read_bytes(), b'c')
    tar_of(tars[1], *added)
    changed = read_shards(tars, tmp_path / 'kept')
    assert sorted(looked) == sorted(map(str, tars[1:]))
    assert len(changed) == 14 and changed.speaker_ids == ('a', 'a-x', 'b', 'c')
    stamp = os.stat(tars[1])
    tar_of(tars[1], added[0], ('c/v/1.wav.wav', folder.path(0).read_bytes()[::-1]))
    os.utime(tars[1], ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    looked.clear()
    read_shards(tars, tmp_path / 'kept')
    assert looked == [str(tars[1])]


def test_order_depends_neither_on_the_packing_nor_on_the_order_of_tars(folder, tmp_path):
    found = []
    for name, options in (('one', SET), ('other', {'per_shard': 7, 'seed': 1})):
        pack(tmp_path / 'wav', tmp_path / name, **options)
        tars = sorted((tmp_path / name / 'shards').iterdir(), reverse=name == 'other')
        found.append(read_shards(tars, tmp_path / f'kept-{name}'))
    assert found[0].paths.tolist() == found[1].paths.tolist() == folder.paths.tolist()
    assert found[0].speakers.tolist() == found[1].speakers.tolist() == folder.speakers.tolist()
    check_equal(batches(Crops(found[0], 3)), batches(Crops(found[1], 3), workers=2))


def test_ranks_share_the_batches_of_one(folder, tmp_path):
    found = pack(tmp_path / 'wav', tmp_path / 'set', **SET).utterances()
    for rank in range(2):
        sampler = ShuffledBatches(len(found), 6, 1, rank, 2)
        for share, whole in zip(sampler, batches(Crops(folder, 3)), strict=True):
            waves = [torch.from_numpy(Crops(found, seed=3)[key].waves) for key in share]
            assert torch.equal(torch.stack(waves), whole['waves'][3 * rank : 3 * rank + 3])


def read_as_rank(tars, kept):
    found = read_shards(tars, kept)
    return found.paths.tolist(), found.speakers.tolist(), found.speaker_ids


def test_two_ranks_read_one_index(folder, tmp_path, run_ranks):
    pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    tars = [str(path) for path in (tmp_path / 'set/shards').iterdir()]
    one, other = run_ranks(read_as_rank, tars, str(tmp_path / 'kept'))
    assert one == other == read_as_rank(tars, tmp_path / 'alone')


def test_whole_files_are_those_of_the_folder(folder, tmp_path):
    found = pack(tmp_path / 'wav', tmp_path / 'set', **SET).utterances()
    options = {'budget_seconds': 0.1, 'workers': 0}
    one = whole_files(folder.all_paths(), None, AudioReader(), **options)
    other = whole_files(found.all_paths(), found.seconds, AudioReader(), **options)
    check_equal(list(one), list(other))


# --- what cannot be used


def test_damaged_member_gives_way_to_the_next_and_is_reported(folder, tmp_path):
    found = pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    for row, damage in ((4, b'fLaC' + bytes(30)), (8, bytes(40))):  # flac and wav
        place = found._places[found._tar[row]]
        stamp = os.stat(place)
        with open(place, 'r+b') as file:
            file.seek(int(found._offsets[row]))
            file.write(damage)
        os.utime(place, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    utterances = read_folder(tmp_path / 'set')
    for row in (4, 8):
        sample = Crops(utterances, seed=3)[1, row]
        assert sample.index == row + 1 and len(sample.skipped) == 1
        assert sample.skipped[0].startswith(f'{utterances.path(row)}: cannot be')
        expected = Crops(folder, seed=3)[1, row + 1].waves
        np.testing.assert_array_equal(sample.waves, expected)


@pytest.mark.parametrize(
    'change, what',
    [
        ('shorter', r'0\.tar: has changed since its index was made: make it again \(python -m'),
        ('gone', r'0\.tar: shard cannot be read \(No such file'),
        ('folder', r'0\.tar: is no file'),
    ],
)
def test_shard_that_changed_or_is_gone_stops_at_once(folder, tmp_path, change, what):
    found = pack(tmp_path / 'wav', tmp_path / 'set')
    tar = tmp_path / 'set/shards/shards_000000000.tar'
    if change == 'shorter':
        tar.write_bytes(tar.read_bytes()[:5000])
    else:
        tar.unlink()
        if change == 'folder':
            tar.mkdir()
    with pytest.raises(DataError, match=what) as caught:
        Crops(found.utterances(), seed=3)[1, 0]
    assert len(str(caught.value).splitlines()) == 1 and 'in a row' not in str(caught.value)


def test_packed_folder_can_be_copied(folder, tmp_path):
    pack(tmp_path / 'wav', tmp_path / 'set')
    shutil.copytree(tmp_path / 'set', tmp_path / 'copy', copy_function=shutil.copyfile)
    for tar in (tmp_path / 'copy/shards').iterdir():
        os.utime(tar, (1, 1))  # as on another disk
    shutil.rmtree(tmp_path / 'set')
    copy = packed_folder(tmp_path / 'copy')
    name = os.fsdecode(copy.names[0])
    with copy.open(name) as file:
        assert file.read() == (tmp_path / 'wav' / name).read_bytes()


@pytest.mark.parametrize('content', [b'', b'text', 'half'])
def test_index_that_is_none_is_refused_and_left(folder, tmp_path, content):
    pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    path = tmp_path / 'set' / INDEX
    path.write_bytes(path.read_bytes()[:200] if content == 'half' else content)
    before = path.read_bytes()
    tars = list((tmp_path / 'set/shards').iterdir())
    for use in (packed_folder, read_folder, lambda root: read_shards(tars, root)):
        with pytest.raises(DataError, match=r'index\.npz: is no index of shards'):
            use(tmp_path / 'set')
    assert path.read_bytes() == before


def altered(path, **columns):
    with np.load(path) as file:
        table = dict(file)
    np.savez(path, **{**table, **columns})


def test_index_of_another_version_is_made_again(folder, tmp_path):
    expected = pack(tmp_path / 'wav', tmp_path / 'set', **SET).names.tolist()
    altered(tmp_path / 'set' / INDEX, version=0, offsets=np.arange(3))
    with pytest.raises(DataError, match=r'index\.npz: is an index of version 0: make it again'):
        packed_folder(tmp_path / 'set')
    assert pack(tmp_path / 'wav', tmp_path / 'set', **SET).names.tolist() == expected
    altered(tmp_path / 'set' / INDEX, offsets=np.arange(3))
    with pytest.raises(DataError, match=r'index\.npz: is a damaged index of shards'):
        packed_folder(tmp_path / 'set')


ODD = ['../x.wav', '/x.wav', 'a/../../x.wav', 'a//x.wav', 'a/./x.wav', './x.wav', 'a/', '']
ODD += ['a\nx.wav', '\x1b[2J.wav', 'a/..', 'a\0b', 'a/\x7f.wav', '\x85.wav']


@pytest.mark.parametrize('name', ODD, ids=[ascii(name) for name in ODD])
@pytest.mark.parametrize('wide', [0, 40])
def test_unsafe_name_in_an_index_is_refused(folder, tmp_path, name, wide):
    found = pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    names = [*found.names.tolist()[:17], name.encode()]
    altered(tmp_path / 'set' / INDEX, names=np.array(names, f'S{wide}' if wide else 'S'))
    with pytest.raises(DataError, match='unsafe name') as caught:
        packed_folder(tmp_path / 'set')
    assert str(caught.value).isprintable()


def test_plain_names_are_no_suspects():
    names = [b'a/b.wav', b'..a/b..wav', b'.a/...', b'a b', b'a']
    assert not offset_index._suspect(np.array(names)).any()
    assert offset_index._suspect(np.array([*names, 'é'.encode()])).tolist() == [False] * 5 + [True]


def test_names_of_other_alphabets_are_taken(folder, tmp_path):
    os.rename(tmp_path / 'wav/b', tmp_path / 'wav/é中')
    found = pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    folder = read_folder(tmp_path / 'wav')
    assert found.names.tolist() == folder.paths.tolist() and found.speaker_ids[-1] == 'é中'
    check_equal(batches(Crops(folder, 3)), batches(Crops(read_folder(tmp_path / 'set'), 3)))


@pytest.mark.parametrize(
    'members, what',
    [
        ([('1.wav', b'x')], r'1\.wav has no \.spk, which tells its speaker'),
        ([(f'{n}.{e}', b's') for n in '121' for e in ('spk', 'wav')], r'1\.wav is there twice'),
        ([], r'a\.tar: no utterance in all shards'),
    ],
)
def test_shards_that_cannot_be_used_are_refused(tmp_path, members, what):
    tar = tar_of(tmp_path / 'a.tar', *members)
    with pytest.raises(DataError, match=what) as caught:
        read_shards([tar], tmp_path / 'kept')
    assert str(tar) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / 'kept').exists()


def test_sets_of_shards_that_cannot_be_used_are_refused(folder, tmp_path):
    pack(tmp_path / 'wav', tmp_path / 'set', **SET)
    tars, kept = sorted((tmp_path / 'set/shards').iterdir()), tmp_path / 'kept'
    for use in (index, read_shards):
        with pytest.raises(DataError, match='no shards'):
            use([], kept)
        with pytest.raises(DataError, match=r'shards_000000001\.tar: is listed twice'):
            use([tars[0], tars[1], tars[1]], kept)
        with pytest.raises(DataError, match=r'none\.tar: shard cannot be read \(No such'):
            use([*tars, tmp_path / 'none.tar'], kept)
    (tmp_path / 'twin.tar').write_bytes(tars[2].read_bytes())
    with pytest.raises(DataError, match=r'twin\.tar: .* is there twice, or also in .*2\.tar'):
        index([tars[2], tmp_path / 'twin.tar'], kept)
    content = tars[3].read_bytes()
    tars[3].write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r'shards_000000003\.tar: cut short'):
        index([tars[3]], kept)


def test_index_that_other_machines_do_not_see_is_said(folder, tmp_path, monkeypatch):
    tars = [tar_of(tmp_path / 'a.tar', *sample('1.wav', b'x', b's'))]
    monkeypatch.setattr(packed.ddp, 'is_main', lambda: False)
    with pytest.raises(UserError, match=r'kept: index of the shards is not here'):
        read_shards(tars, tmp_path / 'kept')
