import signal

import pytest
import torch
from torch import nn

from shared import ddp
from shared.datasets.samplers import ShuffledBatches
from shared.errors import UserError
from shared.framework import Framework
from shared.loop import Loop

SIZE, BATCH, EPOCHS = 23, 4, 2  # five batches an epoch, three utterances left over


class Loader:
    """Batches of `SIZE` numbers, as `train_loader` yields them; those of `bad` were replaced."""

    def __init__(self, seed=7, size=SIZE, bad=(5,)):
        self.bad = bad
        self.batch_sampler = ShuffledBatches(size, BATCH, seed, ddp.rank(), ddp.world_size())

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        for pairs in self.batch_sampler:
            index = torch.tensor([index for _, index in pairs])
            bad = [f'{i}.wav: truncated' for i in index.tolist() if i in self.bad]
            yield {'index': index, 'x': index.float()[:, None], 'skipped': bad, 'converted': {}}


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
