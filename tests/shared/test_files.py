import os

import pytest

from shared.errors import UserError
from shared.files import replacing, require_paths, write_text


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
