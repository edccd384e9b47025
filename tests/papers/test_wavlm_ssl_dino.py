import contextlib
import copy
import types

import numpy as np
import pytest
import torch
import torchaudio
from loops import FakeLoop

from shared import weight_files
from shared.averaging import average
from shared.datasets.items import Sample, collate
from shared.errors import UserError
from shared.losses.dino import DinoLoss, RedundancyLoss

ARGS = {  # where a default could stand for it, another value
    'device': 'cpu',
    'amp': False,
    'compile': False,
    'dino': 'rdino',
    'dino_epoch': 4,
    'dino_lr': 0.2,
    'dino_lr_min': 1e-5,
    'dino_warmup': 1,
    'dino_weight_decay': 0.1,
    'dino_clip': 0.2,
    'dino_momentum': 0.9,
    'dino_outputs': 11,
    'dino_hidden': 10,
    'dino_bottleneck': 6,
    'dino_regulariser': 12,
    'reg_divisor': 7,
    'reg_std': 3.0,
    'reg_cov': 2.0,
    'reg_weight': (0.05, 0.2),
    'reg_epochs': 10,
    'teacher_temperature': 0.06,
    'student_temperature': 0.2,
    'centre_momentum': 0.7,
    'dino_width': 8,
    'dino_mfa_width': 12,
    'dino_attention_width': 4,
    'dino_se_width': 4,
    'dino_embed_size': 5,
    'freeze_last_epoch': 1,
    'dino_take': 3,
}


@pytest.fixture
def wavlm_ssl(paper):
    return paper('wavlm_ssl')


@pytest.fixture
def dino(wavlm_ssl):
    return wavlm_ssl.dino


@pytest.fixture
def training(wavlm_ssl):
    return wavlm_ssl.dino_training


@pytest.fixture
def method(dino):
    torch.manual_seed(0)
    return dino.dino_framework(ARGS).train()


def crops(seed=1, count=3):
    """Global (B, 2, L) and local crops (B, 4, l)."""
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(count, v, n, generator=generator) for v, n in ((2, 4000), (4, 2000))]


def batch_of(seed):
    """Batch of global crops, whose locals are another."""
    batch, local = (
        collate([Sample(waves=w.numpy(), label=-1, index=i) for i, w in enumerate(x)])
        for x in crops(seed)
    )
    local.pop('skipped'), local.pop('converted')
    return {**batch, 'locals': local}


def test_losses_are_those_of_crops_one_after_the_other(dino, method):
    long, short = crops()
    with torch.no_grad():
        losses, targets = copy.deepcopy(method)(long, short, 0.3)
    student, teacher = copy.deepcopy(method.student), copy.deepcopy(method.teacher)
    criterion, redundancy = DinoLoss(11, 0.2, 0.06), RedundancyLoss(7, std=3.0, cov=2.0)
    with torch.no_grad():
        of_long = student['encoder'](torch.cat([long[:, 0], long[:, 1]]))
        of_short = student['encoder'](torch.cat([short[:, v] for v in range(4)]))
        logits, wide = student['head'](torch.cat([of_long, of_short]))
        embeddings = teacher['encoder'](torch.cat([long[:, 0], long[:, 1]]))
        expected_targets, wide_target = teacher['head'](embeddings)
        dino_loss = criterion(logits, expected_targets)
        reg_loss = redundancy(wide[:6], wide_target)
    torch.testing.assert_close(targets, expected_targets)
    torch.testing.assert_close(losses['dino_loss'], dino_loss)
    torch.testing.assert_close(losses['reg_loss'], reg_loss)
    torch.testing.assert_close(losses['loss'], dino_loss + 0.3 * reg_loss)
    assert 0 <= losses['spread'] <= 1


def test_plain_recipe_has_no_regulariser_and_another_window(dino):
    torch.manual_seed(0)
    plain = dino.dino_framework({**ARGS, 'dino': 'dino', 'dino_regulariser': 0})
    losses, _ = plain(*crops())
    assert 'reg_loss' not in losses and losses['loss'] is losses['dino_loss']
    window = plain.student['encoder'].frontend.window
    torch.testing.assert_close(window, torch.hamming_window(400))
    torch.testing.assert_close(dino.dino_encoder(ARGS).frontend.window, torch.hann_window(400))


@pytest.mark.parametrize('recipe, window', [('rdino', 'hann'), ('dino', 'hamming')])
def test_features_are_those_of_torchaudio(dino, recipe, window):
    """Spec 8.1: power mels of 0 to 8000 Hz, log, unit variance of each band over time."""
    mels = torchaudio.transforms.MelSpectrogram(
        16000,
        n_fft=512,
        win_length=400,
        hop_length=160,
        f_min=0.0,
        f_max=8000.0,
        n_mels=80,
        window_fn=getattr(torch, f'{window}_window'),
    )
    waves = 0.1 * torch.randn(2, 64000, generator=torch.Generator().manual_seed(0))
    frontend = dino.dino_encoder({**ARGS, 'dino': recipe}).frontend
    for count, frames in ((64000, 401), (63900, 400), (32000, 201)):
        features, _ = frontend(waves[:, :count])
        expected = (mels(waves[:, :count]) + 1e-6).log()
        centred = expected - expected.mean(-1, keepdim=True)
        expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        assert features.shape == (2, 80, frames)
        torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)


def test_teacher_starts_as_a_copy_and_never_learns(method):
    for ours, theirs in zip(method.student.parameters(), method.teacher.parameters()):
        assert torch.equal(ours, theirs) and not theirs.requires_grad and ours is not theirs
    losses, targets = method(*crops())
    losses['loss'].backward()
    assert not targets.requires_grad
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for p in method.student.parameters())
    assert len(method.learnable()) == len(list(method.student.parameters()))


def test_teacher_follows_the_student_in_its_parameters_alone(method):
    """Batch statistics are those of the teacher's own batches (quirk 30)."""
    before = copy.deepcopy(method.teacher.state_dict())
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(torch.randn_like(parameter))
        for buffer in method.student.buffers():
            buffer.add_(1)
    method.update_teacher(0.75)
    parameters = dict(method.student.named_parameters())
    for name, value in method.teacher.state_dict().items():
        expected = before[name]
        if name in parameters:
            expected = 0.75 * expected + 0.25 * parameters[name]
        torch.testing.assert_close(value, expected)
    method(*crops())
    running = 'encoder.network.stem.norm.running_mean'
    assert not torch.equal(method.teacher.state_dict()[running], before[running])


def test_only_matrices_decay(method):
    matrices, vectors = method.groups(0.3)
    assert matrices['weight_decay'] == 0.3 and vectors['weight_decay'] == 0
    assert all(p.ndim > 1 for p in matrices['params'])
    assert all(p.ndim == 1 for p in vectors['params'])
    assert len(matrices['params']) + len(vectors['params']) == len(method.learnable())


def test_what_is_handed_on_is_the_encoder_of_the_teacher(dino, method):
    with torch.no_grad():
        next(method.teacher['encoder'].parameters()).fill_(0.5)
    encoder = dino.dino_encoder(ARGS)
    encoder.load_state_dict(method.networks()['encoder'])
    assert (next(encoder.parameters()) == 0.5).all()


def test_each_gradient_is_clipped_on_its_own(training):
    parameters = [torch.zeros(n, requires_grad=True) for n in (4, 9, 2)]
    parameters[0].grad = torch.full((4,), 5.0)  # norm 10
    parameters[1].grad = torch.full((9,), 0.5)  # norm 1.5
    training.clip_each(parameters, 3.0)
    assert parameters[0].grad.tolist() == pytest.approx([1.5] * 4)
    assert parameters[1].grad.tolist() == [0.5] * 9
    assert parameters[2].grad is None


def test_regulariser_grows_on_a_line_with_both_ends_and_stays(training):
    expected = [*np.linspace(0.05, 0.2, 10), 0.2, 0.2]
    found = [training.regulariser_weight(epoch, ARGS) for epoch in range(1, 13)]
    assert found == pytest.approx(expected)


def naive_epoch(training, method, epoch, batches):
    """The steps of an epoch of 2 batches in plain words; the norms of all gradients."""
    learnable, norms = list(method.student.parameters()), []
    groups = [
        {'params': [p for p in learnable if p.ndim > 1], 'weight_decay': 0.1},
        {'params': [p for p in learnable if p.ndim == 1]},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    for i, batch in enumerate(batches):
        step = (epoch - 1) * 2 + i
        lr, momentum = training.schedules(step, 2, ARGS)
        for group in optimizer.param_groups:
            group['lr'] = lr
        losses, targets = method(
            batch['waves'], batch['locals']['waves'], training.regulariser_weight(epoch, ARGS)
        )
        optimizer.zero_grad()
        losses['loss'].backward()
        for name, parameter in method.named_parameters():
            if parameter.grad is None:
                continue
            norms.append(float(parameter.grad.norm()))
            if norms[-1] > 0.2:
                parameter.grad *= 0.2 / norms[-1]
            if 'last_layer' in name and epoch == 1:
                parameter.grad = None
        optimizer.step()
        for a, b in zip(method.teacher.parameters(), method.student.parameters()):
            a.data = momentum * a.data + (1 - momentum) * b.data
        method.criterion.centre = 0.7 * method.criterion.centre + 0.3 * targets.mean(0)
    return norms


@pytest.mark.parametrize('epoch', [1, 2])
def test_epoch_equals_its_steps_in_plain_words(training, method, epoch):
    batches = [batch_of(seed) for seed in (3, 4)]
    other = copy.deepcopy(method)
    optimizer = training.dino_optimizer(method, ARGS)
    first = method.student['head'].last_layer.weight.clone()
    metrics = training.dino_epoch('', epoch, FakeLoop(batches), method, optimizer, ARGS)
    norms = naive_epoch(training, other, epoch, batches)
    assert min(norms) < 0.2 < max(norms)
    for (name, ours), expected in zip(method.state_dict().items(), other.state_dict().values()):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5, msg=name)
    frozen = torch.equal(first, method.student['head'].last_layer.weight)
    assert frozen == (epoch == 1)
    lr, momentum = training.schedules(2 * epoch - 1, 2, ARGS)
    assert (metrics['lr'], metrics['teacher_momentum']) == (lr, momentum)
    assert {'loss', 'dino_loss', 'reg_loss', 'spread', 'reg_weight'} <= metrics.keys()


def test_both_networks_are_in_train_mode(training, method):
    modes = []
    for network in (method.student, method.teacher):
        for part in (network['encoder'].network, network['head']):
            part.register_forward_hook(lambda module, *_: modes.append(module.training))
    optimizer = training.dino_optimizer(method.eval(), ARGS)
    training.dino_epoch('', 2, FakeLoop([batch_of(3)]), method, optimizer, ARGS)
    assert modes and all(modes)


def test_rate_and_momentum_are_those_of_the_authors(wavlm_ssl, training):
    """Spec 8.2, of 7000 steps with 100 an epoch."""
    args, *_ = wavlm_ssl.arguments.get_args([])
    found = {step: training.schedules(step, 100, args) for step in (0, 999, 3500, 4000, 6999)}
    rates = [found[step][0] for step in (0, 999, 4000)]
    assert rates == pytest.approx([0, 0.325, 0.162505], abs=1e-9)
    assert found[6999][0] == pytest.approx(1.0022e-5, rel=1e-4)
    assert [found[step][1] for step in (0, 3500)] == pytest.approx([0.996, 0.998], abs=1e-12)
    assert 1 - found[6999][1] == pytest.approx(2e-10, rel=0.02)


def test_a_stopped_epoch_goes_on_with_the_step_it_was_at(training, method, monkeypatch):
    batches = [batch_of(seed) for seed in (3, 4, 5)]
    steps = []
    schedules = training.schedules
    monkeypatch.setattr(
        training, 'schedules', lambda step, *more: steps.append(step) or schedules(step, *more)
    )
    optimizer = training.dino_optimizer(method, ARGS)
    with contextlib.suppress(ZeroDivisionError):
        training.dino_epoch('', 3, FakeLoop(batches, done=1), method, optimizer, ARGS)
    assert steps[:2] == [7, 8]


# --- whose weights are handed on (spec 8.2, 8.3)


def finished(method, folder, epochs):
    """The loop of a training that left random weights after each epoch, with the last in `method`."""
    for epoch in range(1, epochs + 1):
        torch.manual_seed(epoch)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.copy_(torch.randn_like(parameter))
        weight_files.write(method.state_dict(), folder / f'epoch_{epoch:04d}.pt')
    return types.SimpleNamespace(folder=folder, history=[{}] * epochs)


def test_training_ends_with_the_epoch_that_is_handed_on(training, method, tmp_path):
    """The schedules are those of all epochs, so what follows it would change nothing."""
    assert training.last_epoch(ARGS) == 3 < ARGS['dino_epoch']
    assert training.kept_epochs(ARGS) == 1
    loop = finished(method, tmp_path, 3)
    expected = copy.deepcopy(method.networks())['encoder']
    found = training.handed_on(method, loop, ARGS)['encoder']
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize('epochs', [4, 12])
def test_plain_dino_hands_on_the_mean_of_its_last_ten_epochs(training, method, tmp_path, epochs):
    args = {**ARGS, 'dino_take': 0, 'dino_epoch': epochs}
    assert training.last_epoch(args) == epochs and training.kept_epochs(args) == 10
    loop = finished(method, tmp_path, epochs)
    first = max(epochs - 10, 0) + 1
    mean = average(tmp_path / f'epoch_{e:04d}.pt' for e in range(first, epochs + 1))
    found = training.handed_on(method, loop, args)['encoder']
    for name, value in found.items():
        torch.testing.assert_close(value, mean[f'teacher.encoder.{name}'])


@pytest.mark.parametrize(
    'given, words',
    [
        (('--dino_take', '71'), 'dino_take 71'),
        (('--dino_take', '-1'), 'dino_take -1'),
        (('--dino_epoch', '59'), 'dino_take 60: an epoch of the 59'),
        (('--dino', 'dino'), 'use --preset dino'),
    ],
)
def test_arguments_of_no_recipe_are_refused(wavlm_ssl, given, words):
    with pytest.raises(UserError, match=words):
        wavlm_ssl.arguments.get_args(given)


def test_presets_hand_on_what_their_authors_did(wavlm_ssl):
    take = {
        given: wavlm_ssl.arguments.get_args(given.split())[0]
        for given in ('', '--preset dino', '--demo', '--dino dino --dino_regulariser 0')
    }
    assert [take[given]['dino_take'] for given in ('', '--preset dino')] == [60, 0]
    assert take['--demo']['dino_take'] == take['--demo']['dino_epoch']
