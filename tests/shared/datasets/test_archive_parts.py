"""An archive in parts: its sequence, its bytes, its MD5."""

import hashlib
import io

import numpy as np
import pytest

from shared.datasets.archive_parts import JoinedFile, all_parts, archive_name, check_md5
from shared.datasets.items import DataError

BYTES = bytes(range(256)) * 5
SIZES = (300, 1, 500, 479)


@pytest.fixture
def parts(tmp_path):
    paths, at = [], 0
    for size, tail in zip(SIZES, ('aa', 'ab', 'ac', 'ad')):
        paths.append(tmp_path / f'vox1_dev_wav_part{tail}')
        paths[-1].write_bytes(BYTES[at : at + size])
        at += size
    return paths


def md5(data):
    return hashlib.md5(data).hexdigest()


def test_joined_file_reads_like_the_one_file_from_any_place(parts):
    rng = np.random.default_rng(0)
    with JoinedFile(parts) as joined, io.BytesIO(BYTES) as whole:
        assert joined.size == len(BYTES) and joined.read() == BYTES and joined.read(1) == b''
        for _ in range(200):
            offset, size = int(rng.integers(1400)), int(rng.integers(1, 900))
            assert joined.seek(offset) == whole.seek(offset)
            assert joined.read(size) == whole.read(size)
            assert joined.tell() == max(whole.tell(), offset)
        assert joined.seek(-100, 2) == 1180 and joined.read() == BYTES[-100:]
        assert joined.seek(3) == 3 and joined.seek(2, 1) == 5


@pytest.mark.parametrize('offset, part', [(0, 0), (299, 0), (300, 1), (301, 2), (1279, 3)])
def test_joined_file_knows_which_part_holds_a_byte(parts, offset, part):
    with JoinedFile(parts) as joined:
        assert joined.part_at(offset) == parts[part]


def test_joined_file_tells_of_a_part_that_became_shorter(parts):
    with JoinedFile(parts) as joined:
        parts[2].write_bytes(b'short')
        with pytest.raises(OSError, match='became shorter while it was read'):
            joined.read()


def test_joined_file_refuses_an_empty_part(parts):
    parts[1].write_bytes(b'')
    with pytest.raises(DataError, match='partab: is empty: download it again'):
        JoinedFile(parts)


def test_all_parts_takes_those_beside_one_in_their_order(parts, tmp_path):
    (tmp_path / 'vox1_test_wav_partaa').write_bytes(b'another archive')
    (tmp_path / 'vox1_dev_wav.zip').write_bytes(b'no part')
    assert all_parts([parts[2]]) == parts
    assert all_parts(reversed(parts)) == parts
    assert archive_name(parts) == 'vox1_dev_wav'


@pytest.mark.parametrize(
    'names, archive',
    [
        (['x.zip.001', 'x.zip.002'], 'x.zip'),
        (['x.tar.gz.aa', 'x.tar.gz.ab'], 'x.tar.gz'),
        ([f'x.part{i}' for i in range(12)], 'x'),  # 10 comes after 9
        (['musan.tar.gz'], 'musan.tar.gz'),
    ],
)
def test_all_parts_knows_the_usual_names(tmp_path, names, archive):
    for name in names:
        (tmp_path / name).write_bytes(b'x')
    assert [path.name for path in all_parts([tmp_path / names[0]])] == names
    assert archive_name([tmp_path / names[0]]) == archive


@pytest.mark.parametrize('gone, said', [(0, 'partaa'), (2, 'partac')])
def test_all_parts_names_the_one_that_is_missing(parts, gone, said):
    parts[gone].unlink()
    with pytest.raises(DataError, match=rf'{said}: is missing, but vox1_dev_wav_partad is there'):
        all_parts([parts[3]])


def test_all_parts_refuses_what_does_not_belong_together(parts, tmp_path):
    other = tmp_path / 'vox1_test_wav.zip'
    with pytest.raises(DataError, match='vox1_test_wav.zip: no such file'):
        all_parts([parts[0], other])
    other.write_bytes(b'x')
    with pytest.raises(DataError, match='are not parts of one archive'):
        all_parts([parts[0], other])


@pytest.mark.parametrize(
    'line', ['{md5} vox1_dev_wav.zip', 'vox1_dev_wav {md5}', '{md5} *vox1_dev_wav.tar']
)
def test_check_md5_of_the_whole_archive_in_either_layout(parts, tmp_path, line):
    lists = tmp_path / 'md5.txt'
    lists.write_text(f'# comment\n{md5(b"")} other.zip\n{line.format(md5=md5(BYTES).upper())}\n')
    with JoinedFile(parts) as joined:
        assert check_md5(joined, lists).startswith('MD5 of vox1_dev_wav')
        lists.write_text(line.format(md5=md5(b'x')))
        with pytest.raises(
            DataError, match=f'MD5 is {md5(BYTES)}, .*: one of its parts is damaged'
        ):
            check_md5(joined, lists)


def test_check_md5_of_the_parts_also_with_addresses(parts, tmp_path):
    lists = tmp_path / 'md5.txt'
    rows = [f'http://host/x/{path.name} {md5(path.read_bytes())}' for path in parts[:3]]
    lists.write_text('\n'.join(rows))
    with JoinedFile(parts) as joined:
        assert check_md5(joined, lists) == 'MD5 of 3 of 4 parts'
        lists.write_text('\n'.join(rows).replace(md5(b'\x2c'), md5(b'-')))
        with pytest.raises(DataError, match='partab: MD5 is .*: it is damaged, download it again'):
            check_md5(joined, lists)


@pytest.mark.parametrize(
    'text, said',
    [
        ('', 'is empty; lines must be'),
        (f'{md5(b"")} other.zip', 'does not name vox1_dev_wav or a part of it; it names other.zip'),
        ('0123 vox1_dev_wav.zip', 'line 1 must hold an MD5 and a name'),
        (md5(b''), 'line 1 must hold an MD5 and a name'),
    ],
)
def test_check_md5_refuses_a_list_that_does_not_help(parts, tmp_path, text, said):
    (tmp_path / 'md5.txt').write_text(text)
    with JoinedFile(parts) as joined, pytest.raises(DataError, match=said):
        check_md5(joined, tmp_path / 'md5.txt')
