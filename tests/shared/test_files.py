import errno
import os

import pytest

from shared.errors import UserError
from shared.files import advice, remove_unfinished, replacing, require_paths, write_text

NO_PROCESS = 2**22 + 1  # above every number that Linux gives


def full(*_):
    raise OSError(28, 'No space left on device')


def test_write_text_replaces_a_file_and_makes_its_folder(tmp_path):
    path = tmp_path / 'a' / 'list.txt'
    write_text(path, 'old')
    write_text(path, 'new')
    assert path.read_text() == 'new' and os.listdir(path.parent) == ['list.txt']


def test_old_file_stays_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / 'list.txt'
    path.write_text('old')
    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(UserError, match=r'list.txt: could not be saved .*No space.*untouched'):
        write_text(path, 'new')
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['list.txt']


@pytest.mark.parametrize(
    'code', ['ENOSPC', 'EDQUOT', 'EROFS', 'EACCES', 'ESTALE', 'EXDEV', 'EBUSY']
)
@pytest.mark.parametrize('call', ['open', 'fsync', 'replace'])
def test_whatever_the_disk_refuses_the_old_file_stays_and_one_line_helps(
    call, code, tmp_path, monkeypatch
):
    path, number = tmp_path / 'last.pt', getattr(errno, code)
    path.write_text('old')

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((type(path), 'write_text') if call == 'open' else (os, call)), refuse)
    with pytest.raises(UserError) as caught:
        write_text(path, 'new')
    text = str(caught.value)
    assert text.startswith(f'{path}: could not be saved ([Errno {number}] {os.strerror(number)})')
    helps = {'ENOSPC': 'free some space', 'EDQUOT': 'free some space', 'EROFS': 'make it writable'}
    helps['EACCES'] = helps['EROFS']
    assert helps.get(code, 'look after the disk or network share') in text and '\n' not in text
    assert text.endswith(', then run the same command again')
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['last.pt']


def test_a_disk_that_is_full_for_the_kernel(tmp_path):
    path = tmp_path / 'last.pt'
    path.write_text('old')
    with replacing(path) as temporary:
        pass_name = temporary.name
        temporary.write_text('new')
    (tmp_path / pass_name).symlink_to('/dev/full')
    with pytest.raises(UserError, match=r'No space left on device\).*free some space'):
        write_text(path, 'newer')
    assert path.read_text() == 'new' and os.listdir(tmp_path) == ['last.pt']


def test_advice_is_for_disks_alone():
    assert advice(OSError(errno.ENOSPC, '')) == 'free some space'
    assert advice(FileNotFoundError(errno.ENOENT, 'x')) is None
    assert advice(ConnectionRefusedError(errno.ECONNREFUSED, '')) is None
    assert advice(OSError('no number')) is None and advice(ValueError('x')) is None
    error = RuntimeError('unexpected pos 704 vs 598')  # as torch hides it
    error.__context__ = OSError(errno.EFBIG, '')
    assert advice(error) == 'free some space'


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    mine = ['.notes.tmp', '.a.12x.tmp', 'a.1.tmp', '.last.pt.tmp', 'last.pt', '.x.1.tmp2']
    others = [f'.last.pt.{os.getppid()}.tmp']  # it lives
    dead = [f'.last.pt.{NO_PROCESS}.tmp', f'.b.{10**30}.tmp', f'.c.{os.getpid()}.tmp']
    for name in mine + others + dead:
        (tmp_path / name).write_text('half')
    folder = tmp_path / f'.scripts.{NO_PROCESS}.tmp'
    folder.mkdir()
    (folder / 'main.py').write_text('half')
    (tmp_path / 'below').mkdir()
    below = tmp_path / 'below' / f'.last.pt.{NO_PROCESS}.tmp'
    below.write_text('half')
    removed = remove_unfinished(tmp_path)
    assert sorted(path.name for path in removed) == sorted([*dead, folder.name, below.name])
    assert sorted(os.listdir(tmp_path)) == sorted([*mine, *others, 'below'])
    assert not below.exists()
    assert remove_unfinished(tmp_path / 'nowhere') == []


def test_a_half_written_folder_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), replacing(tmp_path / 'scripts') as temporary:
        temporary.mkdir()
        (temporary / 'main.py').write_text('half')
        raise ValueError
    assert os.listdir(tmp_path) == []


def test_an_error_of_the_caller_is_passed_on(tmp_path):
    path = tmp_path / 'x'
    path.write_text('old')
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text('half')
        raise KeyError('a')
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['x']


def test_missing_paths_are_named_all_at_once(tmp_path):
    there = tmp_path / 'list.txt'
    there.write_text('')
    require_paths({'a': there, 'b': str(tmp_path), 'c': None, 'd': (there, tmp_path), 'e': ()})
    with pytest.raises(UserError) as error:
        require_paths({'a': '/no/a', 'b': None, 'c': there, 'lists': (there, '/no/x', '/no/y')})
    assert str(error.value) == (
        'not found: a /no/a; lists /no/x; lists /no/y. Edit arguments.py, or try `--demo` first'
    )
