"""Shards as they are written, and what is found in those of others."""

import io
import os
import random
import re
import tarfile

import numpy as np
import pytest
import soundfile

from shared.datasets.items import DataError, Utterances
from shared.datasets.outer_files import LocalFile
from shared.datasets.shards import listed_tars, look_into, write_shards
from shared.datasets.voxceleb import read_folder

NAMES = ('0.wav', '1.flac', '2.x.y.wav')


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


def pack(utterances, place, per_shard=5, **options):
    """The paths of the shards."""
    listed = write_shards(utterances, place, per_shard, **options)
    return [listed.parent / line for line in listed.read_text().split()]


def tar_of(path, *members):
    """A tar of (name, content)."""
    with tarfile.open(path, 'w') as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def grouped(tars):
    """Samples as webdataset builds them: members in a row, equal up to the name's first dot."""
    samples = []
    for path in tars:
        last = None
        with tarfile.open(path) as tar:
            for member in tar:
                key, suffix = re.fullmatch(r'((?:.*/)?[^.]+)\.([^/]*)', member.name).groups()
                if key != last:
                    samples.append({'__key__': key})
                    last = key
                assert suffix not in samples[-1]
                samples[-1][suffix] = tar.extractfile(member).read()
    return samples


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


def test_shards_are_read_as_webdataset_groups_them(folder, tmp_path):
    samples = grouped(pack(folder, tmp_path / 'set'))
    assert len(samples) == 18
    found = {}
    for sample in samples:
        names = sorted(sample)[1:]  # behind __key__: x.spk and x.wav
        speaker, audio = sorted(names, key=lambda name: not name.endswith('spk'))
        key = f'{sample["__key__"]}.{speaker.removesuffix(".spk")}'
        assert sample[speaker].decode() == key.split('/')[0]
        found[key] = sample[audio]
    assert found == {folder.name(i): folder.path(i).read_bytes() for i in range(18)}


def test_packing_gives_the_same_bytes_and_leaves_the_source(folder, tmp_path):
    files = [path for path in (tmp_path / 'wav').rglob('*') if path.is_file()]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    one, other = (pack(folder, tmp_path / name) for name in ('one', 'other'))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    assert one[0].read_bytes() != pack(folder, tmp_path / 'third', seed=1)[0].read_bytes()
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before


def test_packing_goes_on_where_it_was_interrupted_and_then_does_nothing(folder, tmp_path):
    tars = pack(folder, tmp_path / 'set')
    whole = {path: path.read_bytes() for path in (tmp_path / 'set').rglob('*') if path.is_file()}
    stamps = [os.stat(path).st_mtime_ns for path in whole]
    pack(folder, tmp_path / 'set')
    assert [os.stat(path).st_mtime_ns for path in whole] == stamps
    for name in ('shard.list', 'utt2spk', 'shards/shards_000000002.tar'):
        (tmp_path / 'set' / name).unlink()
    (tars[2].parent / f'.{tars[2].name}.1.tmp').write_bytes(b'half')
    kept = os.stat(tars[1])
    pack(folder, tmp_path / 'set')
    assert {path: path.read_bytes() for path in whole} == whole
    assert os.stat(tars[1]).st_mtime_ns == kept.st_mtime_ns


@pytest.mark.parametrize('change', ['seed', 'per_shard', 'added', 'longer', 'cut'])
def test_packing_never_overwrites_other_shards(folder, tmp_path, change):
    tars = pack(folder, tmp_path / 'set')
    if change != 'added':
        (tmp_path / 'set' / 'shard.list').unlink()
    options, utterances = {}, folder
    if change in ('seed', 'per_shard'):
        options = {change: 6}
    elif change == 'added':
        utterances = folder.select(range(17))
    elif change == 'longer':
        with open(folder.path(3), 'ab') as file:
            file.write(b'x')
    else:
        tars[1].write_bytes(tars[1].read_bytes()[:2000])
    before = [path.read_bytes() for path in tars]
    with pytest.raises(DataError, match='cut short' if change == 'cut' else 'is there already, of'):
        pack(utterances, tmp_path / 'set', **options)
    assert [path.read_bytes() for path in tars] == before


def test_packing_that_fails_leaves_no_list_and_no_half_tar(folder, tmp_path):
    order = list(range(18))
    random.Random(42).shuffle(order)
    folder.path(order[7]).unlink()
    with pytest.raises(DataError, match='cannot be read'):
        pack(folder, tmp_path / 'set')
    left = [name for _, _, names in os.walk(tmp_path / 'set') for name in names]
    assert left == ['shards_000000000.tar']


@pytest.mark.parametrize(
    'name, speaker, what',
    [
        (b's/a b.wav', 's', 'cannot be packed: must end in one of .* without blanks'),
        (b's/a.wav', 's t', 'without blanks'),
        (b's/a.mp3', 's', r'must end in one of \.wav, \.flac'),
        (b's/../a.wav', 's', 'unsafe name'),
    ],
)
def test_packing_refuses_names_that_would_not_come_back(tmp_path, name, speaker, what):
    utterances = Utterances(tmp_path, np.array([name]), np.zeros(1, int), (speaker,))
    with pytest.raises(DataError, match=what):
        write_shards(utterances, tmp_path / 'set')
    assert not (tmp_path / 'set').exists()


def test_shard_is_looked_into(folder, tmp_path):
    wave, flac = folder.path(0).read_bytes(), folder.path(1).read_bytes()
    tar = tar_of(
        tmp_path / 'a.tar',
        ('s-v-1.spk', b' s\n'),
        ('s-v-1.wav', wave),
        ('r/v.1/2.3.json', b'{}'),
        ('r/v.1/2.3.flac', flac),
        ('q/1.wav.wav', b'RIFF' + wave[4:200]),
        ('q/1.wav.spk', b'r'),
    )
    (shard,) = look_into([str(tar)], workers=2)
    assert shard.names.tolist() == [b's-v-1.wav', b'r/v.1/2.3.flac', b'q/1.wav']
    assert shard.speakers.tolist() == [b's', b'', b'r']
    content = tar.read_bytes()
    parts = [content[at : at + size] for at, size in zip(shard.offsets, shard.sizes)]
    assert parts[:2] == [wave, flac] and len(parts[2]) == 200
    lengths = [soundfile.info(folder.path(row)).frames for row in (0, 1)]
    assert shard.forms.tolist() == [[n, 16000, 1] for n in lengths] + [[0, 0, 0]]
    assert shard.stamp == LocalFile(tar).stamp == (tar.stat().st_size, tar.stat().st_mtime_ns)


@pytest.mark.parametrize(
    'members, what',
    [
        ([('1.spk', b's')], r'1 has 1 \.spk and 0 audio members \(\.wav, \.flac\) in a row'),
        ([('1.spk', b's'), ('1.wav', b'x'), ('1.flac', b'x')], r'1 has 1 \.spk and 2 audio'),
        ([('1.spk', b's'), ('2.spk', b's'), ('1.wav', b'x')], r'1 has 1 \.spk and 0 audio'),
        ([('1.spk', b's'), ('1.m4a', b'x')], r'one of each is needed; convert 1\.m4a to one'),
        ([('1.json', b's'), ('2.wav', b'x')], r'1 has 0 \.spk and 0 audio'),
        ([('1.spk', b's'), ('1', b'x')], r'1 has 1 \.spk and 0 audio'),
        ([('1.spk', b' '), ('1.wav', b'x')], r"1\.spk must hold one speaker, not b''"),
        ([('1.spk', b'a b'), ('1.wav', b'x')], r"1\.spk must hold one speaker, not b'a b'"),
        ([('1.spk', b'\xff'), ('1.wav', b'x')], r'1\.spk must hold one speaker'),
        ([('1.spk', b'\x1b[2J'), ('1.wav', b'x')], r'1\.spk must hold one speaker'),
        ([('../1.spk', b's'), ('../1.wav', b'x')], 'unsafe name'),
        ([('1.spk', b's'), ('1.wav', b'x')] * 2, r'1 has 2 \.spk and 2 audio'),
    ],
)
def test_shard_that_cannot_be_used_is_refused(tmp_path, members, what):
    tar = tar_of(tmp_path / 'a.tar', *members)
    with pytest.raises(DataError, match=what) as caught:
        list(look_into([str(tar)], workers=1))
    assert str(tar) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()


def test_list_of_shards_holds_paths_and_urls(tmp_path, monkeypatch):
    path = tmp_path / 'shard.list'
    path.write_text('shards/1.tar\n/data/2.tar\ns3://bucket/3.tar\nfile:///data/4.tar\n')
    rest = ['/data/2.tar', 's3://bucket/3.tar', '/data/4.tar']
    assert listed_tars(path) == [f'{tmp_path}/shards/1.tar', *rest]
    monkeypatch.chdir(tmp_path)
    assert listed_tars('shard.list', '/x') == ['/x/shards/1.tar', *rest]
    for text, what in (
        ('\n', 'is empty; lines must be paths of tars'),
        ('1.tar\na b.tar\n', 'line 2 must be the path of a tar'),
        ('1\x1b.tar\n', r"'1\\x1b\.tar' is no path or URL"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=what):
            listed_tars(path)
