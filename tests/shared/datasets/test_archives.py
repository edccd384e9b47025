"""Archives unpacked: kept, continued, refused, found damaged."""

import hashlib
import io
import os
import shutil
import stat
import tarfile
import zipfile

import pytest

from shared.datasets.archives import unpack
from shared.datasets.items import DataError
from shared.errors import UserError

FILES = {f'wav/id{i % 3}/v/{i:05d}.wav': os.urandom(700 + 100 * i) for i in range(12)}
KINDS = ['zip', 'zip in parts', 'tar', 'tar.gz', 'tar.bz2', 'tar.xz', 'tar.gz in parts']


def packed(folder, kind, files=FILES):
    """The first file of an archive of these files."""
    folder.mkdir(exist_ok=True)
    path = folder / f'vox1.{kind.partition(" ")[0]}'
    if kind.startswith('zip'):
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir('wav') if hasattr(archive, 'mkdir') else None
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, f'w:{kind.partition(" ")[0][4:]}') as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    if kind.endswith('parts'):
        data, size = path.read_bytes(), path.stat().st_size // 3 + 1
        path.unlink()
        for i, tail in enumerate(('aa', 'ab', 'ac')):
            path.with_name(f'vox1_part{tail}').write_bytes(data[i * size : (i + 1) * size])
        path = path.with_name('vox1_partaa')
    return path


def below(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


@pytest.mark.parametrize('kind', KINDS)
def test_unpack_writes_every_file_once_and_leaves_the_archive(tmp_path, kind):
    path, out = packed(tmp_path / 'in', kind), tmp_path / 'out'
    archive = below(tmp_path / 'in')
    made = unpack([path], out)
    assert (made.files, made.written) == (12, 12)
    assert below(out) == FILES
    before = times(out)
    made = unpack([path], out)
    assert (made.files, made.written) == (12, 0)
    assert times(out) == before and below(tmp_path / 'in') == archive


@pytest.mark.parametrize('kind', ['zip', 'tar.gz'])
def test_unpack_goes_on_and_replaces_what_is_not_as_the_archive_says(tmp_path, kind):
    path, out = packed(tmp_path / 'in', kind), tmp_path / 'out'
    names = list(FILES)
    unpack([path], out)
    (out / names[1]).unlink()
    (out / names[4]).write_bytes(FILES[names[4]][:-5])  # cut short
    (out / names[7]).write_bytes(b'x' * len(FILES[names[7]]))  # of the right size
    assert unpack([path], out).written == 3
    assert below(out) == FILES


def test_unpack_checks_the_md5_before_it_writes(tmp_path):
    path, lists = packed(tmp_path / 'in', 'zip'), tmp_path / 'md5.txt'
    lists.write_text(f'{hashlib.md5(path.read_bytes()).hexdigest()} vox1.zip\n')
    assert unpack([path], tmp_path / 'out', lists).checked == 'MD5 of vox1.zip'
    lists.write_text(f'{"0" * 32} vox1.zip\n')
    with pytest.raises(DataError, match='vox1.zip: MD5 is .* it is damaged, download it again'):
        unpack([path], tmp_path / 'new', lists)
    assert not (tmp_path / 'new').exists()


UNSAFE = ['../out.wav', '/tmp/out.wav', 'wav/../../out.wav', 'wav/new\nline.wav']


@pytest.mark.parametrize('kind', ['zip', 'tar'])
@pytest.mark.parametrize('number', range(len(UNSAFE)))
def test_unpack_refuses_names_that_lead_out(tmp_path, kind, number):
    path = packed(tmp_path / 'in', kind, {UNSAFE[number]: b'x'})
    with pytest.raises(DataError, match=r'has an unsafe name'):
        unpack([path], tmp_path / 'out')
    assert not below(tmp_path / 'out')


def test_unpack_refuses_links(tmp_path):
    zipped = zipfile.ZipInfo('wav/link')
    zipped.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr(zipped, '/etc/passwd')
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
        member = tarfile.TarInfo('wav/link')
        member.type, member.linkname = kind, '/etc/passwd'
        with tarfile.open(tmp_path / f'b{ord(kind)}.tar', 'w') as archive:
            archive.addfile(member)
    for path in (*tmp_path.glob('*.zip'), *tmp_path.glob('*.tar')):
        with pytest.raises(DataError, match="'wav/link' is a link or device"):
            unpack([path], tmp_path / 'out')
    assert not below(tmp_path / 'out')


def test_unpack_refuses_a_zip_that_holds_a_file_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr('a.wav', b'1')
        with pytest.warns(UserWarning, match='Duplicate name'):
            archive.writestr('a.wav', b'2')
    with pytest.raises(DataError, match='a.zip: holds a.wav twice'):
        unpack([tmp_path / 'a.zip'], tmp_path / 'out')


def test_unpack_of_a_damaged_zip_keeps_the_rest_and_names_the_part(tmp_path):
    path = packed(tmp_path / 'in', 'zip in parts')
    second = path.with_name('vox1_partab')
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 255
    second.write_bytes(data)
    said = r'vox1: 1 of 12 files are damaged, the first: wav/.* in vox1_parta[ab]; the others are'
    with pytest.raises(DataError, match=said):
        unpack([path], tmp_path / 'out')
    made = below(tmp_path / 'out')
    assert len(made) == 11 and made.items() <= FILES.items()


@pytest.mark.parametrize('kind', ['zip', 'tar', 'tar.gz', 'tar.bz2', 'tar.xz'])
def test_unpack_tells_of_an_archive_that_is_cut_short(tmp_path, kind):
    path = packed(tmp_path / 'in', kind)
    path.write_bytes(path.read_bytes()[:7000])
    with pytest.raises(DataError, match='cut short'):
        unpack([path], tmp_path / 'out')
    assert below(tmp_path / 'out').items() <= FILES.items()  # whole or absent


def test_unpack_does_not_take_a_damaged_header_for_the_end(tmp_path):
    path = packed(tmp_path / 'in', 'tar')
    data = bytearray(path.read_bytes())
    data[1540] ^= 255  # in the name of the second file: 512 + 1024 bytes come before
    path.write_bytes(data)
    with pytest.raises(DataError, match='vox1.tar: damaged, a header is wrong at byte'):
        unpack([path], tmp_path / 'out')


def test_unpack_tells_of_a_tar_without_its_end_mark(tmp_path):
    path = packed(tmp_path / 'in', 'tar', {'a.wav': b'x' * 512})
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(DataError, match='cut short, its end mark is missing at byte 1024'):
        unpack([path], tmp_path / 'out')


@pytest.mark.parametrize(
    'data, said',
    [
        (b'<!DOCTYPE html><html>login', 'is a web page, not an archive: was a password asked for'),
        (b'hello', 'is no zip or tar; download it again'),
        (b'PK\3\4' + bytes(600), 'is a zip without its end: it is cut short, or its last part'),
    ],
)
def test_unpack_says_what_a_file_is_that_is_no_archive(tmp_path, data, said):
    (tmp_path / 'a.zip').write_bytes(data)
    with pytest.raises(DataError, match=f'a.zip: {said}'):
        unpack([tmp_path / 'a.zip'], tmp_path / 'out')


@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_unpack_looks_for_space_first(tmp_path, kind, monkeypatch):
    path = packed(tmp_path / 'in', kind)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=2**30 + 5000))
    with pytest.raises(UserError, match=r'out: needs 0.0 GiB, 1.0 GiB are free'):
        unpack([path], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_unpack_tells_of_a_full_disk_and_leaves_nothing_half(tmp_path, monkeypatch):
    path = packed(tmp_path / 'in', 'zip')

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(UserError, match='could not be written .No space left on device'):
        unpack([path], tmp_path / 'out')
    assert not below(tmp_path / 'out')
