import errno
import math
import os
import random
import signal

import numpy as np
import pytest
import torch
from torch import nn

from shared import checkpoint, ddp, weight_files
from shared.checkpoint import Checkpoint, once
from shared.errors import UserError
from shared.framework import Framework
from shared.weight_files import read, write


class Toy(Framework):
    """A linear map behind dropout, so that training draws random numbers."""

    def __init__(self, width=4):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.5), nn.Linear(width, 1))

    def forward(self, x):
        return self.net(x).pow(2).mean()


def start(folder, seed=0, width=4, **keywords):
    """A run as a recipe builds it: framework, optimizer with moments, checkpoint."""
    torch.manual_seed(seed)
    framework = Toy(width)
    optimizer = torch.optim.Adam(framework.learnable(), lr=0.1)
    keywords = {'framework': framework, 'optimizer': optimizer, **keywords}
    return framework, optimizer, Checkpoint(folder, **keywords)


def train(folder, last, seed=0):
    """Epochs up to `last` from wherever the folder is; everything that must be equal after."""
    framework, optimizer, run = start(folder, seed)
    for epoch in run.epochs(last):
        optimizer.zero_grad()
        framework(torch.randn(8, 3)).backward()
        optimizer.step()
        noise = random.random() + np.random.rand() + np.random.randn()
        run.end_epoch({'noise': noise}, value=[3.0, 1.0, 1.0, 2.0][epoch - 1])
    state = {**framework.state_dict()}
    for number, moments in optimizer.state_dict()['state'].items():
        state |= {f'{number}.{name}': value for name, value in moments.items()}
    draws = [torch.rand(2), torch.tensor(np.random.randn(3)), torch.tensor(random.random())]
    return state, draws, run


def errors_of(call, *arguments, **keywords):
    """The text of a `UserError`, which is one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **keywords)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_continued_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    random.seed(1), np.random.seed(1)
    whole, draws, run = train(tmp_path / 'whole', 3)
    random.seed(1), np.random.seed(1)
    for last in (1, 2, 3):  # each with another seed: what counts is in the file
        parts, drawn, continued = train(tmp_path / 'parts', last, seed=0 if last == 1 else last)
        random.seed(last), np.random.seed(last)
    assert whole.keys() == parts.keys() and len(whole) == 4 + 3 * 4
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(draws, drawn))
    assert continued.history == run.history and len(run.history) == 3
    assert continued.best == run.best == {'epoch': 2, 'value': 1.0}


def test_best_is_the_lowest_value_and_the_earliest_of_equals(tmp_path):
    framework, _, run = start(tmp_path)
    better = []
    for epoch, value in zip(run.epochs(5), [3.0, 1.0, 1.0, 2.0, math.nan]):
        framework.net[0].bias.data.fill_(epoch)
        better.append(run.end_epoch({}, value))
    assert better == [True, True, False, False, False]
    assert run.best == {'epoch': 2, 'value': 1.0}
    assert read(tmp_path / 'best.pt')['net.0.bias'].unique().tolist() == [2]
    run.load_best()
    assert framework.net[0].bias.unique().tolist() == [2]


def test_value_that_is_no_number_is_beaten_by_any_number(tmp_path):
    _, _, run = start(tmp_path)
    better = [run.end_epoch({}, value) for value in (math.nan, math.nan, 50.0, math.nan, 60.0)]
    assert better == [True, False, True, False, False]
    assert run.best == {'epoch': 3, 'value': 50.0}


def test_numbers_of_numpy_and_torch_can_be_read_again(tmp_path):
    _, _, run = start(tmp_path)
    value = np.float64(2.5)
    run.end_epoch({'eer': value, 'n': np.int64(3), 'loss': torch.tensor(0.5)}, value)
    run.finish({'eers': [np.float32(1.5)], 'name': 'x', 'nothing': None, 'rows': np.arange(2)})
    again = start(tmp_path)[2]
    assert again.history == [{'epoch': 1, 'eer': 2.5, 'n': 3, 'loss': 0.5}]
    assert again.best == {'epoch': 1, 'value': 2.5}
    assert again.summary == {'eers': [1.5], 'name': 'x', 'nothing': None, 'rows': [0, 1]}


def test_finished_phase_is_skipped(tmp_path):
    _, _, run = start(tmp_path)
    run.end_epoch({}, 1.0)
    assert not run.finished
    run.finish()
    again = start(tmp_path)[2]
    assert again.finished and again.summary == {} and list(again.epochs(9)) == []


def test_only_older_epochs_of_the_run_are_removed(tmp_path):
    others = [
        'epoch_0001.bak',
        'epoch_0001_mine.pt',
        'epoch_notes.pt',
        'epoch_9999.pt',
        'notes.txt',
    ]
    for name in others:
        (tmp_path / name).write_text('mine')
    _, _, run = start(tmp_path, keep=2)
    for _ in run.epochs(5):
        run.end_epoch({}, 1.0)
    own = ['best.pt', 'epoch_0004.pt', 'epoch_0005.pt', 'last.pt']
    assert names(tmp_path) == sorted(own + others)


def test_keeping_none_keeps_best_and_last(tmp_path):
    _, _, run = start(tmp_path, keep=0)
    for _ in run.epochs(2):
        run.end_epoch({}, 1.0)
    assert names(tmp_path) == ['best.pt', 'last.pt']


# what can go wrong


@pytest.fixture
def full_disk(monkeypatch):
    """`full_disk(error)`: from now on a save writes half and fails."""

    def fill(error):
        def save(state, file):
            file.write(b'half')
            raise error

        monkeypatch.setattr(torch, 'save', save)

    return fill


@pytest.mark.parametrize(
    'error', [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError('unexpected pos 64')]
)
def test_failed_save_leaves_the_last_good_file_and_no_other(error, tmp_path, full_disk):
    framework, _, run = start(tmp_path)
    run.end_epoch({}, 1.0)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    full_disk(error)
    text = errors_of(run.end_epoch, {}, 0.5)
    assert 'could not be saved' in text and str(error) in text and str(tmp_path) in text
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    again = start(tmp_path, seed=1)
    assert again[2].best == {'epoch': 1, 'value': 1.0} and next(again[2].epochs(2)) == 2
    assert torch.equal(again[0].net[0].weight, framework.net[0].weight)


@pytest.mark.parametrize('code', ['ESTALE', 'EXDEV', 'EBUSY', 'EROFS', 'ENOSPC'])
def test_refused_rename_leaves_the_last_good_file_and_the_run_continues(
    code, tmp_path, monkeypatch
):
    number = getattr(errno, code)
    whole, draws, _ = train(tmp_path / 'whole', 3)
    train(tmp_path / 'parts', 1)
    files = {path.name: path.read_bytes() for path in (tmp_path / 'parts').iterdir()}

    def refuse(source, target):
        if target.name == 'last.pt':
            raise OSError(number, os.strerror(number))
        original(source, target)

    with monkeypatch.context() as patch:
        original = os.replace
        patch.setattr(os, 'replace', refuse)
        text = errors_of(train, tmp_path / 'parts', 3)
    assert f'{tmp_path}/parts/last.pt: could not be saved' in text and os.strerror(number) in text
    left = {path.name: path.read_bytes() for path in (tmp_path / 'parts').iterdir()}
    assert left['last.pt'] == files['last.pt'] and not [name for name in left if 'tmp' in name]
    parts, drawn, _ = train(tmp_path / 'parts', 3, seed=9)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert torch.equal(draws[0], drawn[0])


def test_disk_that_is_full_for_the_kernel_leaves_the_last_good_file(tmp_path):
    _, _, run = start(tmp_path)
    run.end_epoch({}, 1.0)
    before = (tmp_path / 'last.pt').read_bytes()
    (tmp_path / f'.last.pt.{os.getpid()}.tmp').symlink_to('/dev/full')
    text = errors_of(run.save)
    assert 'No space left on device' in text and 'free some space' in text
    assert (tmp_path / 'last.pt').read_bytes() == before
    assert names(tmp_path) == ['best.pt', 'epoch_0001.pt', 'last.pt']
    run.save()  # there is room again
    assert next(start(tmp_path)[2].epochs(2)) == 2


def read_only(*_):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize('by', ['the disk', 'the folder'])
def test_folder_that_became_read_only_is_one_line(by, tmp_path, monkeypatch):
    _, _, run = start(tmp_path)
    run.end_epoch({}, 1.0)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if by == 'the disk':
        monkeypatch.setattr(weight_files, 'open', read_only, raising=False)
    elif os.getuid() == 0:
        pytest.skip('root writes everywhere')
    else:
        tmp_path.chmod(0o500)
    try:
        text = errors_of(run.save)
    finally:
        tmp_path.chmod(0o700)
    assert 'could not be saved' in text and 'make it writable or name another folder' in text
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert next(start(tmp_path)[2].epochs(2)) == 2


def test_old_epoch_that_cannot_be_removed_waits_for_the_next(tmp_path, monkeypatch):
    _, _, run = start(tmp_path, keep=1)
    run.end_epoch({}, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), 'unlink', lambda *_, **__: read_only())
        run.end_epoch({}, 1.0)
    assert (tmp_path / 'epoch_0001.pt').exists()
    run.end_epoch({}, 1.0)
    assert names(tmp_path) == ['best.pt', 'epoch_0003.pt', 'last.pt']


def test_what_a_killed_save_left_is_gone_after_the_next_start(tmp_path):
    _, _, run = start(tmp_path)
    run.save()
    (tmp_path / f'.last.pt.{2**22 + 1}.tmp').write_bytes(b'half')
    start(tmp_path)
    assert names(tmp_path) == ['last.pt']


def test_kill_between_last_and_best_leaves_the_best_of_the_last(tmp_path, monkeypatch):
    framework, _, run = start(tmp_path)
    run.end_epoch({}, 2.0)
    with torch.no_grad():
        framework.net[0].bias.fill_(7)
    original = checkpoint.write

    def killed(state, path):
        if path.name == 'best.pt':
            raise KeyboardInterrupt
        original(state, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, 'write', killed)
        run.end_epoch({}, 1.0)
    assert (read(tmp_path / 'best.pt')['net.0.bias'] != 7).all()  # still of epoch 1
    assert start(tmp_path)[2].best == {'epoch': 2, 'value': 1.0}
    assert (read(tmp_path / 'best.pt')['net.0.bias'] == 7).all()


def test_weights_that_move_after_the_optimizer_took_up_its_state_are_an_error(tmp_path):
    framework, optimizer, run = start(tmp_path)
    framework(torch.randn(8, 3)).backward()
    optimizer.step()
    run.save()
    framework, optimizer, run = start(tmp_path)
    loader = type('Loader', (list,), {'batch_sampler': type('S', (), {'set_position': print})})
    assert list(run.batches(loader([1]))) == [1]
    moments = optimizer.state[framework.net[0].weight]  # as if the weights had gone to a GPU
    moments['exp_avg'] = moments['exp_avg'].to('meta')
    with pytest.raises(RuntimeError, match='distribute them before'):
        next(run.batches(loader([1])))


def test_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / 'run').write_text('')
    _, _, run = start(tmp_path / 'run')
    assert 'could not be saved' in errors_of(run.save)


def test_checkpoint_of_another_model_names_what_does_not_fit(tmp_path):
    start(tmp_path)[2].save()
    text = errors_of(start, tmp_path, width=5)
    assert f'{tmp_path / "last.pt"} (framework): checkpoint of another model' in text
    assert '3 of another shape (net.0.bias (4,) instead of (5,), ' in text


@pytest.mark.parametrize('state', [[1, 2], {'a': 1}, torch.ones(2)])
def test_file_without_weights_is_one_line(state, tmp_path):
    write(state, tmp_path / 'last.pt')
    assert 'not a checkpoint of a run' in errors_of(start, tmp_path)


def test_checkpoint_of_another_kind_of_run_is_one_line(tmp_path):
    start(tmp_path, teacher=Toy())[2].save()
    assert "differs in ['teacher']" in errors_of(start, tmp_path)


def test_optimizer_of_other_parameters_is_one_line(tmp_path):
    start(tmp_path)[2].save()
    fewer = torch.optim.Adam(Toy().net[0].parameters())
    assert '(optimizer): state of another run' in errors_of(start, tmp_path, optimizer=fewer)


@pytest.mark.parametrize('cut', ['empty', 'half', 'flipped'])
def test_damaged_file_is_one_line(cut, tmp_path):
    start(tmp_path)[2].save()
    path = tmp_path / 'last.pt'
    whole = path.read_bytes()
    damaged = {'empty': b'', 'half': whole[: len(whole) // 2], 'flipped': whole[::-1]}[cut]
    path.write_bytes(damaged)
    assert f'{path}: not a readable checkpoint' in errors_of(start, tmp_path)
    assert path.read_bytes() == damaged  # it may still be worth something to its owner


def test_once_computes_once(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {'eer': np.float64(1.5), 'phase': 'x', 'range': (1, 2)}

    first = once(tmp_path / 'a' / 'b.json', make, key='list')
    assert once(tmp_path / 'a' / 'b.json', make, key='list') == first
    assert first == {'eer': 1.5, 'phase': 'x', 'range': [1, 2]} and calls == [1]
    assert names(tmp_path / 'a') == ['b.json']


def test_once_computes_anew_for_another_key_or_a_file_without_one(tmp_path):
    calls, path = [], tmp_path / 'scores.json'

    def make():
        calls.append(1)
        return {'eer': len(calls)}

    path.write_text('{"eer": 50.0}')  # of an earlier version
    assert once(path, make, key=('list O', 'list E')) == {'eer': 1}
    assert once(path, make, key=('list O', 'list E')) == {'eer': 1}
    assert once(path, make, key=('list O',)) == {'eer': 2}
    assert once(path, make, key={'clean': 'list O'}) == {'eer': 3}
    assert once(path, make, key={'clean': 'list O'}) == {'eer': 3}
    assert once(path, make, key=None) == {'eer': 4} and names(tmp_path) == ['scores.json']


def test_once_stores_nothing_when_making_fails(tmp_path):
    with pytest.raises(ZeroDivisionError):
        once(tmp_path / 'b.json', lambda: {'a': 1 / 0}, key=None)
    assert once(tmp_path / 'b.json', lambda: {'a': 2}, key=None) == {'a': 2}


# two ranks


def two_epochs(folder):
    """Saves, continues; the numbers each rank draws next, and who wrote."""
    torch.manual_seed(ddp.rank())
    writes, original = [], weight_files.replacing
    weight_files.replacing = lambda path: writes.append(path.name) or original(path)
    run = Checkpoint(folder, framework=Toy())
    run.end_epoch({}, 1.0)
    seen = read(run.folder / 'last.pt')['position']  # nobody goes on before it is written
    expected = torch.rand(3)
    torch.manual_seed(99)
    Checkpoint(folder, framework=Toy())
    made = once(run.folder / 'once.json', lambda: {'by': ddp.rank()}, key='list')
    again = once(run.folder / 'once.json', lambda: {'by': 'a second time'}, key='list')
    return writes, seen, expected.tolist(), torch.rand(3).tolist(), made, again


@pytest.mark.slow
def test_two_ranks_continue_their_own_numbers_and_rank_0_writes(run_ranks, tmp_path):
    main, other = run_ranks(two_epochs, tmp_path / 'run')
    assert (main[0], other[0]) == (['epoch_0001.pt', 'last.pt', 'best.pt'], [])
    for _, seen, expected, drawn, _, again in (main, other):
        assert seen == {'epoch': 2, 'batch': 0}
        assert drawn == expected and again == {'by': 0}
    assert main[2] != other[2]


def differently(folder):
    """Two ranks that measured different things; what each then knows."""
    run = Checkpoint(folder, framework=Toy())
    for value in ([1.0, 2.0], [3.0, 0.5]):
        run.end_epoch({'eer': value[ddp.rank()]}, value[ddp.rank()])
    return run.history, run.best


@pytest.mark.slow
def test_what_rank_0_measured_counts(run_ranks, tmp_path):
    history = [{'epoch': 1, 'eer': 1.0}, {'epoch': 2, 'eer': 3.0}]
    for found in run_ranks(differently, tmp_path):
        assert found == (history, {'epoch': 1, 'value': 1.0})


def in_folders_of_their_own(folder, begun):
    """Two machines without a common disk; what each says."""
    checkpoint.SEEN = 0.3
    own = folder / str(ddp.rank())
    try:
        run = Checkpoint(own, framework=Toy())
        assert not begun
        run.end_epoch({}, 1.0)
    except UserError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.parametrize('begun', [False, True])
def test_machines_without_a_common_folder_are_told_so(begun, run_ranks, tmp_path):
    if begun:
        Checkpoint(tmp_path / '0', framework=Toy()).end_epoch({}, 1.0)
    said = run_ranks(in_folders_of_their_own, tmp_path, begun)
    assert all('on a disk that they share' in text for text in said)
    expected = 'at epoch 2, batch 0, rank 1 at epoch 1, batch 0' if begun else 'rank 1 does not see'
    assert all(expected in text for text in said)


def interrupted(folder, agree):
    """Ctrl-C on rank 1 alone, while rank 0 has not begun to write."""
    checkpoint.AGREE = agree
    original = checkpoint.write

    def late(state, path):
        assert not os.path.exists(folder / 'left')
        original(state, path)

    checkpoint.write = late
    run = Checkpoint(folder, framework=Toy())
    loader = type('Loader', (list,), {'batch_sampler': type('S', (), {'set_position': print})})
    signal.signal(signal.SIGINT, ddp._on_interrupt)
    done = 0
    try:
        for batch in run.batches(loader(range(25))):
            done = batch + 1
            if batch == 3 and ddp.rank() == 1:
                signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        stored = read(run.folder / 'last.pt')['position']
        (folder / 'left').touch()
        return done, stored
    return done, None


@pytest.mark.slow
@pytest.mark.parametrize('agree, step', [(1e6, 10), (0, 4)], ids=['quick steps', 'slow steps'])
def test_ctrl_c_on_one_rank_saves_and_ends_all(agree, step, run_ranks, tmp_path):
    for found in run_ranks(interrupted, tmp_path, agree):
        assert found == (step, {'epoch': 1, 'batch': step})


def without_room(folder, call):
    """What a disk without room, which rank 0 meets, is on this rank."""
    run = Checkpoint(folder, framework=Toy())
    if ddp.is_main():
        weight_files.replacing = checkpoint.write_text = without_room_for
    try:
        {
            'save': run.save,
            'end_epoch': lambda: run.end_epoch({}, 1.0),
            'once': lambda: once(folder / 'once.json', dict, key=None),
        }[call]()
    except UserError as error:
        return str(error)
    return 'it went on'


def without_room_for(path, text=''):
    raise UserError(f'{path}: could not be saved')


@pytest.mark.slow
@pytest.mark.parametrize(
    'call, name', [('save', 'last.pt'), ('end_epoch', 'epoch_0001.pt'), ('once', 'once.json')]
)
def test_disk_without_room_ends_every_rank_with_the_same_line(run_ranks, tmp_path, call, name):
    assert run_ranks(without_room, tmp_path, call) == [f'{tmp_path}/{name}: could not be saved'] * 2
