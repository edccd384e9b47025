import contextlib
import io
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from shared import ddp
from shared.datasets.samplers import ShuffledBatches
from shared.errors import UserError
from shared.framework import Framework
from shared.loop import Loop
from shared.weight_files import read

SIZE, BATCH, EPOCHS = 23, 4, 2  # five batches an epoch, three utterances left over


class Loader:
    """Batches of `SIZE` numbers, as `train_loader` yields them; those of `bad` were replaced.

    Those of `values` are other numbers.
    """

    def __init__(self, seed=7, size=SIZE, bad=(5,), values=()):
        self.bad, self.values = bad, dict(values)
        self.dataset = self.utterances = self
        self.batch_sampler = ShuffledBatches(size, BATCH, seed, ddp.rank(), ddp.world_size())

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        for keys in self.batch_sampler:
            yield self.collate_fn([self[key] for key in keys])

    def __getitem__(self, key):
        epoch, index = key
        return index, self.values.get(index, index) if epoch == EPOCHS else index

    def path(self, index):
        return Path(f'/data/{index}.wav')

    def collate_fn(self, samples):
        bad = [f'{i}.wav: truncated' for i, _ in samples if i in self.bad]
        x = torch.tensor([[float(value)] for _, value in samples])
        index = torch.tensor([index for index, _ in samples])
        return {'index': index, 'x': x, 'skipped': bad, 'converted': {}}


class Toy(Framework):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))

    def forward(self, x):
        return (self.net(x / SIZE) - 1).pow(2).mean()


class Killed(Exception):
    pass


def run(folder, seed=0, kill=None, press=None, save_minutes=0.0, loader=None):
    """Two epochs of a recipe. `kill`, `press`: ends before, or Ctrl-C in, the n-th step from here."""
    torch.manual_seed(seed)
    framework = Toy()
    parallel = framework.distribute('cpu')
    optimizer = torch.optim.Adam(framework.learnable(), lr=0.01)
    loop = Loop(
        folder,
        loader or Loader(),
        max_bad_share=1.0,
        save_minutes=save_minutes,
        framework=framework,
        optimizer=optimizer,
    )
    steps, losses = [], []
    for epoch in loop.epochs(EPOCHS):
        for batch in loop.batches(f'train {epoch}'):
            if kill == len(steps):
                raise Killed
            steps.append((epoch, batch['index'].tolist()))
            loss = parallel(batch['x'])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loop.meters.update({'loss': loss}, len(batch['index']))
            losses.append(loss.item())
            if press == len(steps):
                signal.raise_signal(signal.SIGINT)
        means = loop.means()
        assert means.pop('step_seconds') > 0 and 0 <= means.pop('data_wait_percent') <= 100
        assert means.pop('utterances_per_second') > 0
        loop.end_epoch(means, value=means['loss'])
    loop.losses = losses
    return steps, framework.state_dict(), loop, torch.rand(3)


def same(ours, theirs):
    """Weights, history with its mean losses, best epoch and the next random numbers."""
    assert all(torch.equal(ours[1][name], value) for name, value in theirs[1].items())
    assert ours[2].history == theirs[2].history and len(ours[2].history) == EPOCHS
    assert ours[2].best == theirs[2].best
    assert torch.equal(ours[3], theirs[3])


@pytest.fixture
def handler(monkeypatch):
    monkeypatch.setattr(ddp, '_requested', False)
    previous = signal.signal(signal.SIGINT, ddp._on_interrupt)
    yield
    signal.signal(signal.SIGINT, previous)


def test_run_sees_each_utterance_once_an_epoch_and_skips_are_counted(tmp_path):
    steps, _, loop, _ = run(tmp_path)
    for epoch in (1, 2):
        seen = [index for number, batch in steps if number == epoch for index in batch]
        assert len(seen) == len(set(seen)) == SIZE // BATCH * BATCH
    assert steps[0][1] != steps[5][1]
    assert 'index' not in loop.skipped.files and loop.skipped.samples == 2 * 20
    assert loop.history == [
        {'epoch': 1, 'loss': pytest.approx(sum(loop.losses[:5]) / 5)},
        {'epoch': 2, 'loss': pytest.approx(sum(loop.losses[5:]) / 5)},
    ]


def test_length_of_an_epoch_is_its_own(tmp_path):
    lengths = []

    class Longer(Loader):
        def __len__(self):
            lengths.append(self.batch_sampler.epoch)
            return len(self.batch_sampler)

    run(tmp_path, loader=Longer())
    assert list(dict.fromkeys(lengths[1:])) == [1, 2]  # the first is asked by `loader or`


def test_bad_files_are_listed_in_the_folder_and_too_many_stop_the_run(tmp_path):
    _, _, loop, _ = run(tmp_path)
    assert (tmp_path / 'skipped.txt').read_text() == '5.wav: truncated\n'
    assert loop.skipped.files == {'5.wav: truncated'}
    loop = Loop(
        tmp_path / 'other', Loader(size=120, bad=range(11)), max_bad_share=0.0, framework=Toy()
    )
    with pytest.raises(UserError, match=rf'listed in {tmp_path}/other/skipped.txt'):
        list(loop.batches('x'))


class Kept:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.told = []

    def log_metrics(self, values, step=None):
        self.told.append((values, step))

    def curves(self):
        self.told.append('curves')


def test_log_epoch_shows_the_named_logs_all_and_draws(tmp_path, capsys):
    loop = Loop(tmp_path, Loader(), framework=Toy())
    logger, metrics = Kept(), {'lr': 1e-4, 'loss': 2.34567, 'eer': 7.5}
    loop.log_epoch('warm-up', 3, metrics, logger, shown=('loss', 'accuracy', 'eer'))
    assert capsys.readouterr().out == 'warm-up epoch 3: loss 2.346, eer 7.5\n'
    values = {'warm-up/lr': 1e-4, 'warm-up/loss': 2.34567, 'warm-up/eer': 7.5}
    assert logger.told == [(values, 3), 'curves']
    loop.log_epoch('warm-up', 4, metrics, logger)
    assert capsys.readouterr().out == 'warm-up epoch 4: lr 0.0001, loss 2.346, eer 7.5\n'


def test_log_epoch_is_shown_by_the_main_process_only(tmp_path, capsys, monkeypatch):
    loop = Loop(tmp_path, Loader(), framework=Toy())
    monkeypatch.setattr(ddp, 'is_main', lambda: False)
    loop.log_epoch('train', 1, {'loss': 1.0}, logger := Kept())
    assert capsys.readouterr().out == '' and logger.told == [({'train/loss': 1.0}, 1), 'curves']


@pytest.mark.parametrize('kill', [0, 1, 4, 5, 8])
def test_run_killed_inside_an_epoch_continues_bit_for_bit(kill, tmp_path):
    whole = run(tmp_path / 'whole')
    with pytest.raises(Killed):
        run(tmp_path / 'parts', kill=kill)
    # saved after every step, but the last one before the kill: that is repeated
    parts = run(tmp_path / 'parts', seed=0 if kill == 0 else 5)
    same(parts, whole)
    assert parts[0] == whole[0][kill:]


def test_run_killed_between_saves_repeats_what_was_lost(tmp_path):
    whole = run(tmp_path / 'whole')
    with pytest.raises(Killed):
        run(tmp_path / 'parts', kill=8, save_minutes=60)  # only the end of epoch 1 was saved
    parts = run(tmp_path / 'parts', seed=5)
    same(parts, whole)
    assert parts[0] == whole[0][5:]


@pytest.mark.parametrize('press', [1, 5, 7])
def test_ctrl_c_finishes_the_step_saves_and_continues_bit_for_bit(press, tmp_path, handler):
    whole = run(tmp_path / 'whole', save_minutes=60)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'parts', press=press, save_minutes=60)
    ddp._requested = False  # the next process
    torch.manual_seed(5)
    if press == 5:  # the epoch's last step: only what follows the epoch is left
        last = Loop(
            tmp_path / 'parts',
            Loader(),
            max_bad_share=1.0,
            framework=(framework := Toy()),
            optimizer=torch.optim.Adam(framework.learnable()),
        )
        assert last.batches_done == 5 and list(last.batches('x')) == []
        assert last.means()['loss'] == whole[2].history[0]['loss']
        return
    parts = run(tmp_path / 'parts', seed=5)
    same(parts, whole)
    assert parts[0] == whole[0][press:]


def test_run_with_other_data_or_seed_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(UserError, match='sampler state has seed 7, this run 8'):
        run(tmp_path, loader=Loader(seed=8))
    with pytest.raises(UserError, match='size 23, this run 24'):
        run(tmp_path, loader=Loader(size=24))


def two_ranks(folder, kill):
    """History and next random numbers of this rank, after two epochs of twelve steps."""
    try:
        _, _, loop, drawn = run(folder, seed=ddp.rank(), kill=kill, loader=Loader(size=50))
    except Killed:
        _, _, loop, drawn = run(folder, seed=50 + ddp.rank(), loader=Loader(size=50))
    return loop.history, drawn.tolist()


@pytest.mark.slow
def test_two_killed_ranks_report_the_losses_of_the_uninterrupted(run_ranks, tmp_path):
    whole = run_ranks(two_ranks, tmp_path / 'whole', None)
    parts = run_ranks(two_ranks, tmp_path / 'parts', 12 + 11)  # saved in the tenth step of epoch 2
    assert parts == whole
    assert whole[0][0] == whole[1][0] and whole[0][1] != whole[1][1]


def test_export_ends_the_phase_at_its_best_epoch_and_writes_each_network_once(tmp_path, capsys):
    loop = run(tmp_path)[2]
    framework = loop._objects['framework']
    torch.nn.init.zeros_(framework.net[0].weight)  # gone on from the best epoch
    best = torch.load(tmp_path / 'best.pt', weights_only=True)

    def states():
        return {'net': framework.net.state_dict()}

    files = loop.export(states)
    assert files == {'net': tmp_path / 'net.pt'} and loop.finished
    stored = torch.load(files['net'], weights_only=True)
    assert all(torch.equal(stored[name], best[f'net.{name}']) for name in stored)
    assert loop.skipped.summary() in capsys.readouterr().out
    when = files['net'].stat().st_mtime_ns
    assert loop.export(states) == files and files['net'].stat().st_mtime_ns == when


# values that are no numbers


def fails(folder, **how):
    """The one line of a run that must end by itself."""
    with pytest.raises(UserError) as caught:
        run(folder, **how)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def step_of(index, size):
    """The step of the last epoch in which an utterance comes, and its rank on two."""
    sampler = ShuffledBatches(size, BATCH, 7)
    sampler.set_position(EPOCHS)
    for step, keys in enumerate(sampler, 1):
        if (EPOCHS, index) in keys:
            return step, keys.index((EPOCHS, index)) // (BATCH // 2)
    raise KeyError(index)


def utterance_of(step, rank, size):
    """An utterance of the last epoch that comes in a step, on a rank of two."""
    return next(i for i in range(size) if i != 5 and step_of(i, size) == (step, rank))


@pytest.mark.parametrize('value, loss', [(float('nan'), 'nan'), (1e30, 'inf')])
@pytest.mark.parametrize('save_minutes', [0, 60])  # seen by a save in the next step, by a look
def test_a_loss_that_is_no_number_ends_the_run_and_leaves_its_batch(
    value, loss, save_minutes, tmp_path
):
    whole = run(tmp_path / 'whole', loader=Loader(size=51))
    index, folder = utterance_of(7, 0, 51), tmp_path / 'parts'
    loader = Loader(size=51, values={index: value})
    text = fails(folder, loader=loader, save_minutes=save_minutes)
    assert text.startswith(f'train 2: loss is {loss} at step 7; its batch is in {folder}/bad_batch')
    assert '`--amp false`' in text and 'learning rate' in text and 'same command' in text
    bad = read(folder / 'bad_batch.pt')
    assert (bad['loop'], bad['epoch'], bad['step'], bad['rank']) == ('train 2', 2, 7, 0)
    row = bad['batch']['index'].tolist().index(index)
    assert bad['keys'][row] == [2, index] and bad['files'][row] == [f'/data/{index}.wav']
    assert (bad['batch']['index'].tolist(), 2) == (whole[0][12 + 6][1], whole[0][12 + 6][0])
    assert bad['batch']['x'][row].item() == pytest.approx(value, nan_ok=True)
    last = list(bad['values'])
    assert last == list(range(last[0], last[0] + len(last))) and 7 in last
    assert [step for step, loss in bad['values'].items() if loss['loss'] < 1e9][-1] == 6
    position = read(folder / 'last.pt')['position']
    assert position == ({'epoch': 2, 'batch': 6} if save_minutes == 0 else {'epoch': 2, 'batch': 0})
    same(run(folder, seed=5, loader=Loader(size=51)), whole)  # with the file mended


@pytest.mark.parametrize('save_minutes, step', [(0, 2), (60, 5)])
def test_a_gradient_that_is_no_number_is_never_saved(save_minutes, step, tmp_path, monkeypatch):
    """The loss is one still. Saved, it would be NaN for ever."""
    whole, calls, original = run(tmp_path / 'whole'), [], torch.optim.Adam.step

    def poisoned(self, *arguments):
        calls.append(1)
        if len(calls) == step:
            self.param_groups[0]['params'][2].grad[0] = float('nan')
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, 'step', poisoned)
        text = fails(tmp_path / 'parts', save_minutes=save_minutes)
    assert f'train 1: the gradient of net.2.weight was not finite at step {step}; its' in text
    bad = read(tmp_path / 'parts' / 'bad_batch.pt')
    assert bad['batch']['index'].tolist() == whole[0][step - 1][1]
    same(run(tmp_path / 'parts', save_minutes=save_minutes), whole)


def test_a_batch_that_cannot_be_read_again_or_written_does_not_hide_why(tmp_path, monkeypatch):
    loader = Loader(values={utterance_of(2, 0, SIZE): float('nan')})
    monkeypatch.setattr(loader, 'path', lambda index: Path('/data/x.wav').open())
    text = fails(tmp_path, loader=loader)
    assert 'train 2: loss is nan at step 2; its batch could not be saved (' in text
    assert '/data/x.wav' in text and not (tmp_path / 'bad_batch.pt').exists()


def one_of_two_ranks(folder, step):
    """What rank 1's NaN in a step leads to on this rank."""
    values = {utterance_of(step, 1, 50): float('nan')}
    try:
        run(folder, seed=ddp.rank(), loader=Loader(size=50, values=values))
    except UserError as error:
        return str(error)
    return 'it went on'


@pytest.mark.slow
@pytest.mark.parametrize('step', [7, 10])  # everyone's when it is looked for, or its own alone
def test_the_rank_that_saw_it_leaves_its_batch_and_all_end_with_one_line(run_ranks, tmp_path, step):
    text, other = run_ranks(one_of_two_ranks, tmp_path / 'run', step)
    assert text == other
    file = tmp_path / 'run' / 'bad_batch_rank1.pt'
    assert text.startswith(
        f'train 2: loss is nan at step {step} on rank 1; its batch is in {file};'
    )
    assert [path.name for path in (tmp_path / 'run').glob('*bad*')] == [file.name]
    bad = read(file)
    assert bad['rank'] == 1 and utterance_of(step, 1, 50) in bad['batch']['index']
    assert read(tmp_path / 'run' / 'last.pt')['position'] == {'epoch': 2, 'batch': 0}


# another number of processes


class Smooth(Framework):
    """Without dropout and batch norm a step is the same on any number of processes."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def forward(self, x):
        return (self.net(x.double() / SIZE) - 1).pow(2).mean()


def stage(folder, kill):
    """Continues for `kill` steps or to the end; what this rank saw, what is left, what was said."""
    torch.manual_seed(0)
    framework = Smooth()
    parallel = framework.distribute('cpu')
    optimizer = torch.optim.Adam(framework.learnable(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    objects = {'framework': framework, 'optimizer': optimizer, 'schedule': schedule}
    steps = []
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(Killed):
        loop = Loop(folder, Loader(size=50, bad=()), save_minutes=0.0, **objects)
        for epoch in loop.epochs(EPOCHS):
            for batch in loop.batches(f'train {epoch}'):
                if kill == len(steps):
                    raise Killed
                loss = parallel(batch['x'])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                loop.meters.update({'loss': loss}, len(batch['index']))
                steps.append((epoch, batch['index'].tolist(), optimizer.param_groups[0]['lr']))
            loop.end_epoch({'loss': loop.means()['loss']}, value=-epoch)
    state = {name: value.tolist() for name, value in framework.state_dict().items()}
    return steps, state, loop.history, loop.best, said.getvalue()


@pytest.mark.slow
def test_a_run_continued_on_two_processes_and_on_one_again_is_the_same_run(run_ranks, tmp_path):
    whole = stage(tmp_path / 'whole', None)
    folder = tmp_path / 'parts'
    alone = stage(folder, 5)  # of twelve steps an epoch; each is saved
    both = run_ranks(stage, folder, 17 + 1)  # two ranks save every tenth step: until 10 of epoch 2
    last = stage(folder, None)
    # every step has the utterances of the undisturbed run, in the same order, at the same rate
    together = [
        (epoch, mine + theirs, rate)
        for (epoch, mine, rate), (_, theirs, _) in zip(both[0][0], both[1][0])
    ]
    assert alone[0] + together[:17] + last[0] == whole[0] and len(together) == 18
    # means over an epoch of which each did a part, the chosen epoch, the weights
    assert last[3] == whole[3] == {'epoch': 2, 'value': -2}
    for ours, theirs in zip(last[2], whole[2], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)
    for name, values in whole[1].items():
        torch.testing.assert_close(torch.tensor(last[1][name]), torch.tensor(values))
    # said once, by rank 0, when it happens
    told = 'processes instead of {}: same batches, schedule and means; dropout and unsynch'
    assert alone[4] == both[1][4] == '' and f'{folder}: continued on 2 ' in both[0][4]
    assert told.format(1) in both[0][4] and told.format(2) in last[4]
    assert stage(folder, None)[4] == ''  # it is over


def draws(folder):
    """Dropout's numbers: what a rank would draw next before and after it continues."""
    framework = Toy()
    torch.manual_seed(100 + ddp.rank())
    new = torch.rand(2).tolist()
    torch.manual_seed(100 + ddp.rank())
    loop = Loop(folder, Loader(), framework=framework)
    drawn = torch.rand(2).tolist()
    loop.save()
    return new, drawn, torch.rand(2).tolist()


@pytest.mark.slow
def test_ranks_that_stay_go_on_with_their_numbers_and_new_ones_begin(run_ranks, tmp_path):
    first = draws(tmp_path / 'run')
    two = run_ranks(draws, tmp_path / 'run')
    assert two[0][1] == first[2] and two[1][1] == two[1][0]
    assert draws(tmp_path / 'run')[1] == two[0][2]
