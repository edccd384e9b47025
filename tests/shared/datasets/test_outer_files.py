"""Ranges of bytes of files on disk and at URLs, across forks, and what goes wrong with them."""

import os
import shutil
import sys

import fsspec
import numpy as np
import pytest
import soundfile
import torch
from fsspec.implementations.memory import MemoryFileSystem

from shared.datasets import outer_files
from shared.datasets.crops import CropSet, shuffled_loader
from shared.datasets.items import DataError, Sample
from shared.datasets.outer_files import LocalFile, RemoteFile, Window, open_outer, place_of
from shared.datasets.packed import index, pack, packed_folder, read_shards
from shared.datasets.reading import AudioReader, durations
from shared.datasets.samplers import sample_rng
from shared.datasets.voxceleb import read_folder


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """An empty store in memory, and no waiting; the pauses that would have been are returned."""
    monkeypatch.setattr(MemoryFileSystem, 'store', {})
    monkeypatch.setattr(MemoryFileSystem, 'pseudo_dirs', [''])
    pauses = []
    monkeypatch.setattr(outer_files.time, 'sleep', pauses.append)
    return pauses


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for speaker in 'ab':
        for number, suffix in enumerate(('wav', 'flac', 'wav')):
            path = tmp_path / 'wav' / speaker / f'{number}.{suffix}'
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * rng.standard_normal(700), 16000)
    return read_folder(tmp_path / 'wav')


def uploaded(tmp_path):
    """URLs of the shards of `wav` in memory."""
    tars = sorted((pack(tmp_path / 'wav', tmp_path / 'set', per_shard=2).root / 'shards').iterdir())
    memory = fsspec.filesystem('memory')
    for tar in tars:
        memory.pipe_file(f'/bucket/{tar.name}', tar.read_bytes())
    return [f'memory://bucket/{tar.name}' for tar in tars]


class Crops(CropSet):
    def sample(self, epoch, index):
        wave = self.crop(index, 300, sample_rng(self.seed, epoch, index))
        return Sample(wave[None], int(self.utterances.speakers[index]), index)


def crops(utterances, workers=0):
    loader = shuffled_loader(Crops(utterances, seed=3), 3, seed=1, workers=workers)
    return [batch['waves'] for batch in loader]


@pytest.mark.parametrize('scheme', ['memory', 'file'])
@pytest.mark.parametrize('workers', [0, 2])
def test_training_from_urls_gives_the_batches_of_the_folder(folder, tmp_path, scheme, workers):
    urls = uploaded(tmp_path)
    if scheme == 'file':
        urls = [f'file://{tar}' for tar in (tmp_path / 'set/shards').iterdir()]
    found = index(urls, tmp_path / 'remote')
    assert found.names.tolist() == folder.paths.tolist()
    utterances = read_folder(tmp_path / 'remote')
    crops(utterances)  # what the parent has opened must not disturb its children
    for one, other in zip(crops(folder), crops(utterances, workers), strict=True):
        assert torch.equal(one, other)


def test_durations_of_urls_are_known_without_fetching_audio(folder, tmp_path, monkeypatch):
    index(uploaded(tmp_path), tmp_path / 'remote')
    monkeypatch.setattr(RemoteFile, '__init__', None)
    found = read_folder(tmp_path / 'remote')
    seconds = durations(found.all_paths(), AudioReader())
    np.testing.assert_array_equal(seconds, np.full(6, 700 / 16000))


def test_one_file_is_one_request(folder, tmp_path, monkeypatch):
    found, asked = index(uploaded(tmp_path), tmp_path / 'remote'), []
    cat = MemoryFileSystem.cat_file
    monkeypatch.setattr(
        MemoryFileSystem,
        'cat_file',
        lambda self, path, start=None, end=None: (
            asked.append(end - start) or cat(self, path, start=start, end=end)
        ),
    )
    for name in folder.paths.tolist():
        with AudioReader().open(tmp_path / 'remote' / os.fsdecode(name)) as audio:
            audio.read(100, 300)
    assert asked == found.sizes().tolist()


def test_index_of_urls_is_kept_until_they_change(folder, tmp_path):
    urls = uploaded(tmp_path)
    read_shards(urls, tmp_path / 'kept')
    stamp = os.stat(tmp_path / 'kept/index.npz').st_mtime_ns
    found = read_shards(urls, tmp_path / 'kept')
    assert os.stat(tmp_path / 'kept/index.npz').st_mtime_ns == stamp
    memory = fsspec.filesystem('memory')
    memory.pipe_file('/bucket/shards_000000000.tar', memory.cat('/bucket/shards_000000000.tar'))
    outer_files._kept_open.cache_clear()  # as another process, later
    with pytest.raises(DataError, match=r'memory://.*0\.tar: has changed since its index was made'):
        crops(found)
    read_shards(urls, tmp_path / 'kept')
    assert os.stat(tmp_path / 'kept/index.npz').st_mtime_ns != stamp
    for one, other in zip(crops(folder), crops(found), strict=True):
        assert torch.equal(one, other)


def test_failing_network_is_asked_again_and_then_said(folder, tmp_path, network, monkeypatch):
    found = index(uploaded(tmp_path), tmp_path / 'remote')
    left = [3]

    def cat(self, path, start=None, end=None):
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionResetError('connection\nreset')
        return self.store[path].getvalue()[start:end]

    monkeypatch.setattr(MemoryFileSystem, 'cat_file', cat)
    name = os.fsdecode(found.names[0])
    assert found.open(name).read() == (tmp_path / 'wav' / name).read_bytes()
    assert network == [0.5, 1, 2]
    left[0] = 99
    with pytest.raises(DataError, match=r'\d\.tar: cannot be read \(connection reset\)') as caught:
        found.open(name)
    assert left[0] == 94 and len(str(caught.value).splitlines()) == 1
    left[0] = 0
    monkeypatch.setattr(MemoryFileSystem, 'cat_file', lambda *args, **options: b'short')
    with pytest.raises(DataError, match=r'sent 5 of \d+ bytes from byte \d+ on'):
        found.open(name)


def test_driver_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 's3fs', None)  # as if not installed
    with pytest.raises(DataError, match=r's3://b/1\.tar: cannot be opened .*: pip install s3fs'):
        index(['s3://b/1.tar'], tmp_path / 'set')
    with pytest.raises(DataError, match=r'xyz://b/1\.tar: .*: give a URL that fsspec knows'):
        index(['xyz://b/1.tar'], tmp_path / 'set')
    with pytest.raises(
        DataError, match=r'memory://b/1\.tar: shard cannot be read \(no such file\)'
    ):
        index(['memory://b/1.tar'], tmp_path / 'set')
    assert not (tmp_path / 'set').exists()


def test_tar_that_is_cut_short_at_a_url_is_said(folder, tmp_path):
    url = uploaded(tmp_path)[0]
    memory = fsspec.filesystem('memory')
    content = memory.cat('/bucket/shards_000000000.tar')
    memory.pipe_file('/bucket/shards_000000000.tar', content[:2500])
    with pytest.raises(DataError, match=r'memory://bucket/shards_000000000\.tar: cut short'):
        index([url], tmp_path / 'remote')


def test_windows_give_the_bytes_of_the_file(tmp_path):
    content = np.random.default_rng(0).bytes(5000)
    (tmp_path / 'x').write_bytes(content)
    fsspec.filesystem('memory').pipe_file('/x', content)
    rng = np.random.default_rng(1)
    for outer in (LocalFile(tmp_path / 'x'), RemoteFile('memory://x')):
        assert outer.size == 5000
        for width in (16, 300, 9000):
            window = Window(outer, width)
            for _ in range(100):
                at, size = int(rng.integers(5200)), int(rng.integers(1, 600))
                assert window.pread(size, at) == content[at : at + size]
                assert window.pread(size // 2, at + 3) == content[at + 3 : at + 3 + size // 2]


def test_open_files_are_bounded_and_survive_being_forgotten(tmp_path, monkeypatch):
    small = outer_files.lru_cache(2)(outer_files._kept_open.__wrapped__)
    monkeypatch.setattr(outer_files, '_kept_open', small)
    before, parts = len(os.listdir('/proc/self/fd')), []
    for number in range(5):
        path = tmp_path / str(number)
        path.write_bytes(b'content%d' % number)
        parts.append(open_outer(str(path), LocalFile(path).stamp).part(0, 8))
    assert [part.read() for part in parts] == [b'content%d' % number for number in range(5)]
    assert len(os.listdir('/proc/self/fd')) == before + 5
    parts.clear()
    assert len(os.listdir('/proc/self/fd')) == before + 2


def test_connections_belong_to_one_process_and_files_to_all(tmp_path, monkeypatch):
    (tmp_path / 'x').write_bytes(b'x')
    fsspec.filesystem('memory').pipe_file('/x', b'x')
    places = {
        str(tmp_path / 'x'): LocalFile(tmp_path / 'x'),
        'memory://x': RemoteFile('memory://x'),
    }
    opened = {place: open_outer(place, file.stamp) for place, file in places.items()}
    for place, file in places.items():
        assert open_outer(place, file.stamp) is opened[place]
    monkeypatch.setattr(outer_files.os, 'getpid', lambda: -1)  # as after a fork
    same = [open_outer(place, file.stamp) is opened[place] for place, file in places.items()]
    assert same == [True, False]


def test_place_of_a_line():
    assert place_of('a/1.tar', '/root', 'list') == '/root/a/1.tar'
    assert place_of('../1.tar', '/root/x', 'list') == '/root/1.tar'
    assert place_of('gs://b/1.tar', '/root', 'list') == 'gs://b/1.tar'
    for line in ('', 'a\nb', 's3://b/\x1b[2J'):
        with pytest.raises(DataError, match=r'^list: .* is no path or URL of a tar$'):
            place_of(line, '/root', 'list')


def test_packed_folder_of_urls_may_be_copied(folder, tmp_path):
    index(uploaded(tmp_path), tmp_path / 'remote')
    shutil.copytree(tmp_path / 'remote', tmp_path / 'copy')
    found = packed_folder(tmp_path / 'copy')
    for one, other in zip(crops(folder), crops(found.utterances()), strict=True):
        assert torch.equal(one, other)
