"""Derived files: made once, kept, continued, refused; in place and in processes."""

import json
import os
import runpy

import pytest

from shared import ddp
from shared.datasets.decoding import AudioError
from shared.datasets.demo_nonspeech import Sounds
from shared.datasets.derived import Manifest, digest_of, make_files
from shared.datasets.items import DataError
from shared.errors import UserError
from shared.files import write_text

NAMES = ['c', 'a', 'b', 'd']


class Texts:
    """Two files a source; `made` are the targets written by this object."""

    def __init__(self, bad=(), stop_at=None):
        self.bad, self.stop_at, self.made = bad, stop_at, []

    def targets(self, source):
        return [f'{source}/1.txt', f'{source}/2.txt']

    def make(self, source, missing, folder):
        if source in self.bad:
            raise AudioError(f'{source}: cut short')
        for target in missing:
            if target == self.stop_at:
                raise KeyboardInterrupt
            write_text(folder / target, f'text of {target}')
            self.made.append(target)


class Groups(Texts):
    """The same files, several sources at a time; `groups` are those of each call."""

    def __init__(self, bad=()):
        super().__init__(bad)
        self.groups = []

    def make_group(self, missing, folder):
        self.groups.append(list(missing))
        for source, targets in missing.items():
            if source not in self.bad:
                self.make(source, targets, folder)
        return {source: f'{source}: cut short' for source in missing if source in self.bad}


def call(folder, sources=NAMES, maker=None, settings=None, **options):
    options = {'workers': 0, 'title': 'texts', **options}
    settings = {'seed': 1, 'snrs': (0, 5)} if settings is None else settings
    return make_files(sources, maker or Texts(), folder=folder, settings=settings, **options)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


def test_make_files_makes_every_target_and_then_the_manifest(tmp_path):
    folder = tmp_path / 'new' / 'texts'
    assert call(folder) == Manifest(folder, sources=4, files=8, skipped=0)
    files = contents(folder)
    record = json.loads(files.pop('manifest.json'))
    assert set(files) == {f'{name}/{i}.txt' for name in NAMES for i in (1, 2)}
    assert files['a/2.txt'] == b'text of a/2.txt'
    assert record['settings'] == {'seed': 1, 'snrs': [0, 5]}
    assert list(record['lists'].values()) == [{'sources': 4, 'files': 8, 'skipped': 0}]


def test_make_files_leaves_a_complete_folder_alone_without_looking_into_it(tmp_path):
    call(tmp_path)
    (tmp_path / 'a' / '1.txt').unlink()
    before, maker = contents(tmp_path), Texts()
    assert call(tmp_path, sources=sorted(NAMES), maker=maker).files == 8  # in any order
    assert maker.made == [] and contents(tmp_path) == before


def test_make_files_continues_an_interrupted_call_with_what_is_missing(tmp_path):
    once, twice = tmp_path / 'once', tmp_path / 'twice'
    call(once)
    with pytest.raises(KeyboardInterrupt):
        call(twice, maker=Texts(stop_at='b/2.txt'))
    assert 'manifest.json' not in contents(twice) and 'manifest.unfinished.json' in contents(twice)
    maker = Texts()
    call(twice, maker=maker)
    assert maker.made == ['b/2.txt', 'd/1.txt', 'd/2.txt']
    assert contents(twice) == contents(once)


def test_make_files_adds_another_list_to_a_complete_folder_and_knows_both(tmp_path):
    call(tmp_path, sources=['a', 'b'])
    maker = Texts()
    assert call(tmp_path, sources=['b', 'e'], maker=maker).files == 4
    assert maker.made == ['e/1.txt', 'e/2.txt']
    for sources in (['a', 'b'], ['b', 'e']):
        maker = Texts()
        assert call(tmp_path, sources=sources, maker=maker).sources == 2 and not maker.made
    assert 'manifest.unfinished.json' not in contents(tmp_path)


@pytest.mark.parametrize('stop_at', [None, 'b/1.txt'])  # complete and unfinished
@pytest.mark.parametrize(
    'settings, said',
    [
        ({'seed': 2, 'snrs': (0, 5)}, 'seed: 1 there, 2 wanted'),
        ({'seed': 1}, r'snrs: \[0, 5\] there, None wanted'),
        ({'seed': 1, 'snrs': (0, 5), 'exact': True}, 'exact: None there, True wanted'),
    ],
)
def test_make_files_refuses_a_folder_of_other_settings_and_names_them(
    tmp_path, stop_at, settings, said
):
    try:
        call(tmp_path, maker=Texts(stop_at=stop_at))
    except KeyboardInterrupt:
        pass
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf'other settings \({said}\); name another folder'):
        call(tmp_path, settings=settings)
    assert contents(tmp_path) == before


def test_make_files_refuses_a_folder_of_someone_else(tmp_path):
    (tmp_path / '.left.by.replacing.tmp').touch()
    (tmp_path / 'thesis.txt').write_text('years')
    with pytest.raises(UserError, match='thesis.txt, but no manifest.json: it was not made here'):
        call(tmp_path)
    assert len(contents(tmp_path)) == 2
    (tmp_path / 'thesis.txt').unlink()
    assert call(tmp_path).files == 8  # what a killed call left is no one's


def test_make_files_refuses_a_record_it_cannot_read(tmp_path):
    (tmp_path / 'manifest.json').write_text('{"settings": 3')
    with pytest.raises(UserError, match='manifest.json: is not a readable record; name another'):
        call(tmp_path)


def test_make_files_refuses_an_empty_list(tmp_path):
    with pytest.raises(UserError, match=r'nothing to make, the list of sources is empty \(texts\)'):
        call(tmp_path, sources=[])


@pytest.mark.parametrize('name', ['../b', '/b', 'a/../../b'])
def test_make_files_refuses_a_target_outside_the_folder(tmp_path, name):
    with pytest.raises(DataError, match='leads out of the folder it belongs in'):
        call(tmp_path / 'in', sources=[name])
    assert not (tmp_path / 'b').exists()


def test_make_files_lists_and_counts_skipped_sources(tmp_path):
    made = call(tmp_path, maker=Texts(bad=['b']), max_skipped=0.25)
    assert made == Manifest(tmp_path, sources=4, files=6, skipped=1)
    assert (tmp_path / 'skipped.txt').read_text() == 'b\tb: cut short\n'
    call(tmp_path, sources=['x', 'y'], maker=Texts(bad=['x']), max_skipped=0.5)
    assert (tmp_path / 'skipped.txt').read_text() == 'b\tb: cut short\nx\tx: cut short\n'


def test_make_files_stops_at_too_many_bad_sources_and_goes_on_once_mended(tmp_path):
    with pytest.raises(UserError, match='texts: 2 of 4 files cannot be used, 1 may be; .* c: cut'):
        call(tmp_path, maker=Texts(bad=['c', 'b']), max_skipped=0.4)
    assert len((tmp_path / 'skipped.txt').read_text().splitlines()) == 2
    assert not (tmp_path / 'manifest.json').exists()
    assert call(tmp_path).skipped == 0
    assert (tmp_path / 'skipped.txt').read_text() == ''


def test_make_files_tries_skipped_sources_again_and_no_others(tmp_path):
    for bad in (['b', 'c'], ['b', 'c'], ['c']):
        maker = Texts(bad)
        assert call(tmp_path, maker=maker, max_skipped=0.5).skipped == len(bad)
    assert maker.made == ['b/1.txt', 'b/2.txt']
    assert (tmp_path / 'skipped.txt').read_text() == 'c\tc: cut short\n'
    assert call(tmp_path, max_skipped=0.5) == Manifest(tmp_path, sources=4, files=8, skipped=0)
    maker = Texts(bad=NAMES)
    assert call(tmp_path, maker=maker).files == 8 and not maker.made


def test_make_files_changes_nothing_where_a_skipped_source_stays_bad(tmp_path):
    call(tmp_path, maker=Texts(bad=['b']), max_skipped=0.5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    call(tmp_path, maker=Texts(bad=['b']), max_skipped=0.5)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before


def test_make_files_of_groups_gives_what_one_by_one_gives(tmp_path):
    sources = [f's{i}' for i in range(40)]
    one, groups = Texts(bad=['s3']), Groups(bad=['s3'])
    options = {'sources': sources, 'max_skipped': 0.1}
    first = call(tmp_path / 'one', maker=one, **options)
    assert call(tmp_path / 'groups', maker=groups, **options) == Manifest(
        tmp_path / 'groups', first.sources, first.files, first.skipped
    )
    assert contents(tmp_path / 'groups') == contents(tmp_path / 'one')
    assert [len(group) for group in groups.groups] == [32, 8]
    (tmp_path / 'groups' / 'manifest.json').unlink()
    (tmp_path / 'groups' / 'manifest.unfinished.json').write_text(
        json.dumps({'settings': {'seed': 1, 'snrs': [0, 5]}, 'lists': {}})
    )
    (tmp_path / 'groups' / 's5' / '2.txt').unlink()
    groups = Groups()
    call(tmp_path / 'groups', maker=groups, sources=sources)
    assert groups.groups == [['s3', 's5']] and groups.made == ['s3/1.txt', 's3/2.txt', 's5/2.txt']


def test_make_files_does_not_try_a_whole_corpus_of_bad_sources(tmp_path):
    sources = [f's{i}' for i in range(1000)]
    with pytest.raises(UserError, match='101 of 1000 files cannot be used'):
        call(tmp_path, sources=sources, maker=Texts(bad=sources))


def test_make_files_stops_at_an_error_that_is_not_of_the_source(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(UserError, match='could not be saved .*No space left'):
        call(tmp_path)


def test_make_files_in_processes_gives_what_one_gives(tmp_path):
    sources = [f'n{i}' for i in range(1, 12)]  # more than one chunk a process
    for name, workers in (('one', 0), ('two', 2)):
        call(tmp_path / name, sources=sources, maker=Sounds(seed=3), workers=workers)
    one = contents(tmp_path / 'one')
    assert len(one) == 12 and contents(tmp_path / 'two') == one


SCRIPT = """
import os, signal, sys
from pathlib import Path
from shared.datasets.derived import make_files
from shared.files import write_text

folder, victim = (sys.argv[1:] + ['', ''])[:2]  # none where the test reads the class
folder = Path(folder)

class Texts:
    def targets(self, source):
        return [f'{source}.txt']
    def make(self, source, missing, folder):
        if source == '7' and victim == 'worker':
            os.kill(os.getpid(), signal.SIGKILL)
        if source == '7' and victim == 'parent':
            (folder.parent / 'worker').write_text(str(os.getpid()))
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()
        write_text(folder / missing[0], source)

if __name__ == '__main__':
    sources = [str(i) for i in range(40)]
    make_files(sources, Texts(), folder=folder, settings={}, workers=1, title='texts')
"""


@pytest.mark.parametrize(
    'victim, said', [('worker', 'a worker process was killed'), ('parent', '')]
)
def test_make_files_ends_with_a_killed_process_and_can_be_continued(tmp_path, python, victim, said):
    script, folder = tmp_path / 'script.py', tmp_path / 'made'
    script.write_text(SCRIPT)
    # python() waits for the pipes that a worker left behind would hold open
    killed = python(script, folder, victim)
    assert killed.returncode != 0 and said in killed.stderr
    assert not (folder / 'manifest.json').exists() and (folder / '0.txt').exists()
    texts = runpy.run_path(str(script))['Texts']()
    sources = [str(i) for i in range(40)]
    make_files(sources, texts, folder=folder, settings={}, workers=0, title='texts')
    texts = {f'{i}.txt': str(i).encode() for i in range(40)}
    assert {n: v for n, v in contents(folder).items() if n != 'manifest.json'} == texts


def both_ranks(folder):
    maker = Texts()
    manifest = call(folder, maker=maker)
    return ddp.rank(), manifest, len(maker.made)


def test_make_files_of_two_ranks_is_made_by_the_first_and_known_to_both(tmp_path, run_ranks):
    manifest = Manifest(tmp_path / 'out', sources=4, files=8, skipped=0)
    assert run_ranks(both_ranks, tmp_path / 'out') == [(0, manifest, 8), (1, manifest, 0)]


def test_digest_of_names_ignores_their_order_alone():
    assert digest_of(['a', 'b']) == digest_of(['b', 'a'])
    assert digest_of(['a', 'b']) != digest_of(['a', 'c'])
