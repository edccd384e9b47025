"""Headers of tars against Python's tarfile, and tars that cannot be used."""

import bz2
import gzip
import io
import lzma
import tarfile

import pytest

from shared.datasets.items import DataError
from shared.datasets.outer_files import LocalFile, Window
from shared.datasets.tars import members

FORMATS = {'ustar': tarfile.USTAR_FORMAT, 'gnu': tarfile.GNU_FORMAT, 'pax': tarfile.PAX_FORMAT}
LONG = '/'.join(['a' * 60, 'b' * 60, 'c.wav'])  # more than the 100 letters of a plain header
LONGER = '/'.join(['d' * 90] * 4 + ['e.x.wav'])  # more than the 255 of ustar


def entry(name, size=0, **more):
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in more.items():
        setattr(info, field, value)
    return info


def packed(path, entries, kind='pax'):
    with tarfile.open(path, 'w', format=FORMATS[kind]) as tar:
        for number, info in enumerate(entries):
            tar.addfile(info, io.BytesIO(bytes([65 + number]) * info.size))
    return path


def found(path):
    file = LocalFile(path)
    expected = outcome(lambda: members(file, path))
    for width in (512, 1024, 4096):
        assert outcome(lambda w=width: members(Window(file, w), path)) == expected
    return list(members(file, path))


def outcome(look):
    """The members, or the error."""
    try:
        return list(look())
    except DataError as error:
        return str(error)


@pytest.mark.parametrize('kind', FORMATS)
def test_members_are_those_of_tarfile(tmp_path, kind):
    names = ['1.wav', LONG, 'a/b.c/d e.wav', 'ä/é.flac'] + [LONGER] * (kind != 'ustar')
    sizes = [513, 0, 512, 1, 511]
    entries = [entry('folder', type=tarfile.DIRTYPE)]
    entries += [entry(name, size) for name, size in zip(names, sizes)]
    path = packed(tmp_path / 'a.tar', entries, kind)
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]
    assert [tuple(member) for member in found(path)] == expected
    assert [name for name, _, _ in expected] == names
    content = path.read_bytes()
    for member, number in zip(found(path), range(1, 9)):
        part = content[member.offset : member.offset + member.size]
        assert part == bytes([65 + number]) * member.size


def test_members_may_begin_with_a_dot_slash_and_carry_other_pax_records(tmp_path):
    entries = [entry('./a/1.wav', 3, pax_headers={'comment': 'x', 'mtime': '1.5'})]
    assert [member.name for member in found(packed(tmp_path / 'a.tar', entries))] == ['a/1.wav']


def test_size_in_a_pax_record_counts(tmp_path):
    path = packed(tmp_path / 'a.tar', [entry('a', 600, pax_headers={'size': '600'}), entry('b', 5)])
    sizes = [(member.name, member.size) for member in found(path)]
    assert sizes == [('a', 600), ('b', 5)]
    content = bytearray(path.read_bytes())
    at = content.index(b'size=600')
    content[at : at + 8] = b'size=x00'
    path.write_bytes(content)
    with pytest.raises(DataError, match='unreadable pax records'):
        found(path)


def test_tar_without_files_has_no_members(tmp_path):
    assert found(packed(tmp_path / 'a.tar', [])) == []


@pytest.mark.parametrize(
    'kind, module', [('gzip', gzip), ('bzip2', bz2), ('xz', lzma)], ids=['gzip', 'bzip2', 'xz']
)
def test_compressed_tar_is_refused(tmp_path, kind, module):
    path = packed(tmp_path / 'a.tar', [entry('a', 2000)])
    path.write_bytes(module.compress(path.read_bytes()))
    with pytest.raises(DataError, match=rf'a\.tar: is compressed \({kind}\): unpack it'):
        found(path)


@pytest.mark.parametrize('content', [b'', b'text', b'text' * 1000], ids=['empty', 'short', 'long'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / 'a.tar').write_bytes(content)
    with pytest.raises(DataError, match=r'a\.tar: is no tar: give'):
        found(tmp_path / 'a.tar')


def test_tar_cut_short_anywhere_is_refused(tmp_path):
    path = packed(tmp_path / 'a.tar', [entry('a', 700), entry(LONG, 10), entry('b', 600)])
    content = path.read_bytes()
    end = found(path)[-1].offset + 1024  # the end mark begins here
    assert content[end : end + 512] == bytes(512)
    for cut in [*range(1, end, 97), *range(512, end, 512), end, end + 511]:
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match='cut short|is no tar'):
            found(path)
    path.write_bytes(content[:1000])
    with pytest.raises(DataError, match=r"cut short, 'a' needs 700 bytes where 488 are left"):
        found(path)
    path.write_bytes(content[: end + 512])
    assert len(found(path)) == 3


def test_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = packed(tmp_path / 'a.tar', [entry('a', 700), entry('b', 600)])
    content = bytearray(path.read_bytes())
    content[1536 + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r'a\.tar: damaged at byte 1536, where a header should be'):
        found(path)


@pytest.mark.parametrize('name', ['../a', '/a', 'a/../../b', 'a//b', 'a/./b', 'a\nb', 'a\x1bb'])
@pytest.mark.parametrize('kind', ['gnu', 'pax'])
def test_unsafe_names_are_refused(tmp_path, kind, name):
    path = packed(tmp_path / 'a.tar', [entry(name, 3)], kind)
    with pytest.raises(DataError, match='unsafe name') as caught:
        found(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    path = packed(tmp_path / 'a.tar', [entry('a', type=kind, linkname='/etc/passwd' * 20)])
    with pytest.raises(DataError, match=r"a\.tar: 'a' is a link or device"):
        found(path)
