"""The doctor's report, its exit status, and what it says of weights."""

import hashlib

import pytest
from audio_trees import told, tree

from shared.doctor import examination
from shared.doctor.examination import examine, look_at_weights
from shared.doctor.plan import Corpora, Facts, Load, Weights
from shared.errors import UserError


@pytest.fixture(autouse=True)
def no_imports(monkeypatch):
    """Without the trial of packages, which takes a second."""
    monkeypatch.setattr(examination.machine, 'imports', lambda: iter(()))


def load(folder):
    return Load(folder / 'runs', batches={'batch_size': (2, 16000)}, workers=0, gpu=False)


def good(folder):
    return Corpora({'train': folder}, tree(folder, 'a/1.wav', 'b/1.wav'), published=False)


def test_good_findings_are_shown_written_and_returned(tmp_path, capsys):
    findings = examine(good(tmp_path / 'wav'), load(tmp_path))
    lines = (tmp_path / 'runs' / 'doctor.txt').read_text().splitlines()
    assert lines[:-1] == [finding.line() for finding in findings]
    assert {finding.level for finding in findings} == {'ok'}
    assert lines[-1].startswith(f'doctor: 0 errors, 0 warnings, {len(findings)} ok, in ')
    printed = capsys.readouterr().out.splitlines()
    assert printed[:-1] == lines[:-1] and printed[-1].endswith('runs/doctor.txt')


def test_an_error_ends_with_status_1_after_everything_was_looked_at(tmp_path):
    bad = Corpora({'train': '/nowhere', 'more': '/not'}, '/nowhere', rooms=tmp_path)
    with pytest.raises(SystemExit) as end:
        examine(bad, load(tmp_path))
    assert end.value.code == 1
    lines = (tmp_path / 'runs' / 'doctor.txt').read_text().splitlines()
    assert sum(line.startswith('error') for line in lines) == 3
    assert any('/not is not there' in line for line in lines)
    assert any(line.startswith('error   rooms') for line in lines)
    assert lines[-1].startswith('doctor: 3 errors')


def test_a_warning_is_no_failure(tmp_path):
    corpora = good(tmp_path / 'wav')
    tree(tmp_path / 'wav', 'b/2.wav', rate=8000)
    assert 'warning' in {finding.level for finding in examine(corpora, load(tmp_path))}


def test_a_report_that_cannot_be_written_loses_nothing(tmp_path, capsys):
    (tmp_path / 'runs').write_text('a file')
    examine(good(tmp_path / 'wav'), load(tmp_path))
    assert 'could not be saved' in capsys.readouterr().out.splitlines()[-1]


def examined(folder, train):
    """Status of a rank, and what it was given back."""
    examination.machine.imports = lambda: iter(())
    kind = Corpora({'train': train}, train, published=False)
    try:
        return 0, len(examine(kind, Load(folder, {'batch_size': (3, 16000)}, 0, gpu=False)))
    except SystemExit as end:
        return end.code, 0


def test_all_ranks_end_alike_and_one_report_is_written(run_ranks, tmp_path):
    train = tree(tmp_path / 'wav', 'a/1.wav', 'a/2.wav', 'b/1.wav')
    assert run_ranks(examined, tmp_path, train) == [(1, 0)] * 2
    lines = (tmp_path / 'doctor.txt').read_text().splitlines()
    odd = [line for line in lines if not line.startswith('ok')][:-1]
    assert odd == [
        'error   batches: batch_size 3 does not divide among 2 processes: use a multiple of 2, such as 4'
    ]
    assert sum('ranks reach each other by gloo' in line for line in lines) == 1
    assert sum(line.startswith('ok      cores') for line in lines) == 1  # once a machine


def of_a_reader(folder, train):
    """Every rank's reader is called, as it may wait for all; the error comes from rank 0."""
    calls = []

    def read():
        calls.append(1)
        raise UserError('shard.list: is empty; fill it')

    examination.machine.imports = lambda: iter(())
    with pytest.raises(SystemExit):
        examine(Corpora({}, read_train=read), Load(folder, {}, 0, gpu=False))
    return len(calls)


def test_a_list_with_a_reader_of_its_own_is_read_by_every_rank(run_ranks, tmp_path):
    assert run_ranks(of_a_reader, tmp_path, tmp_path) == [1, 1]
    assert (
        'error   training: shard.list: is empty; fill it' in (tmp_path / 'doctor.txt').read_text()
    )


def refuse(path):
    raise UserError(f'{path}: not a readable weight file')


def weights(path, **changes):
    return Weights(**{'name': 'path_ssl', 'path': path, 'read': str, 'origin': 'ask me', **changes})


NOTHING = Facts()


def look(one, facts=NOTHING):
    return told(look_at_weights(one, facts))


def test_weights_are_read_and_hashed(tmp_path):
    file = tmp_path / 'model.pt'
    file.write_bytes(b'weights' * 5000)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    said = f'path_ssl: {file}: can be read, SHA-256 {digest}'
    assert look(weights(file))[:2] == ([], [f'ok      {said}'])
    known = weights(file, digests={digest: 'the teacher'})
    assert look(known)[:2] == ([], [f'ok      {said}: the teacher'])
    other = weights(file, digests={'0' * 64: 'the teacher', '1' * 64: 'its student'})
    assert look(other)[0] == [
        f'warning {said}, which is not the teacher or its student; if it is meant to be: ask me'
    ]


def test_weights_that_are_missing_or_do_not_fit_are_errors(tmp_path):
    gone = look(weights(tmp_path / 'none.pt'))[0]
    assert gone == [f'error   path_ssl: {tmp_path}/none.pt is not there; ask me']
    file = tmp_path / 'model.pt'
    file.write_bytes(b'x')
    unfit = weights(file, fits=lambda found, facts: f'knows {facts.speakers + 1} speakers')
    (line,), *_ = look(unfit, Facts(speakers=5))
    assert line == f'error   path_ssl: {file}: knows 6 speakers; ask me'


def test_unreadable_weights_are_an_error_and_hide_nothing(tmp_path):
    file = tmp_path / 'model.pt'
    file.write_bytes(b'x')
    several = [weights(file, read=refuse), weights(file, name='published')]
    with pytest.raises(SystemExit):
        examine(good(tmp_path / 'wav'), load(tmp_path), several)
    report = (tmp_path / 'runs' / 'doctor.txt').read_text()
    assert f'error   path_ssl: {file}: not a readable weight file\n' in report
    assert f'ok      published: {file}' in report


def test_missing_weights_are_named_once(tmp_path):
    gone = str(tmp_path / 'none.pt')
    with pytest.raises(SystemExit):
        examine(Corpora({'path_ssl': gone}), load(tmp_path), [weights(gone)])
    assert (tmp_path / 'runs' / 'doctor.txt').read_text().count('is not there') == 1
