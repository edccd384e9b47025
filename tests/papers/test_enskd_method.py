"""Classifier, losses, schedules, settings, teacher's file of papers/enskd (spec enskd 2.6-5.4)."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from shared import checkpoint
from shared.arguments import ArgumentError
from shared.datasets.samplers import ShuffledBatches
from shared.datasets.trial_files import trial_lists
from shared.errors import UserError
from shared.meters import Meters
from shared.models.ssl_backends import EcapaSmallBackEnd, SslSpeakerEncoder
from shared.models.ssl_config import SslConfig
from shared.models.ssl_encoder import SslEncoder
from shared.models.tdnn import XVector
from shared.published import students, unispeech

CLASSES, DIM, THEIRS = 6, 5, 4  # speakers, embedding sizes of student and teacher
LABELS = torch.tensor([3, 0, 5])
LABEL_LEVEL = ('kl', 'decoupled', 'enskd')


@pytest.fixture
def enskd(paper):
    return paper('enskd')


@pytest.fixture
def small(enskd, monkeypatch):
    """The paper with an x-vector of eight channels."""
    monkeypatch.setitem(enskd.systems.NETWORKS, 'xvector', small_xvector)
    return enskd


def small_xvector(dim):
    return XVector(dim, width=8, last_width=12)


def args_of(enskd, *argv):
    return enskd.arguments.get_args(list(argv))[0]


def own_args(enskd, kd, *argv):
    """The arguments of an x-vector, small and without dither."""
    words = ('--student', 'xvector', '--embed_size', f'{DIM}', '--dither', '0', '--kd', kd)
    args = args_of(enskd, *words, '--setting', 'matched', *argv)
    return {**enskd.arguments.of_row(args, 'xvector', kd), 'device': 'cpu'}


def waves(rows=3, samples=4000, seed=0):
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))


class Network(nn.Module):
    """Waves (B, L) to embeddings (B, THEIRS), by way of many channels; with batch norms."""

    def __init__(self, channels=500):
        super().__init__()
        self.layer = nn.Conv1d(1, channels, 400, stride=160)
        self.norm = nn.BatchNorm1d(channels)
        self.last = nn.Linear(channels, THEIRS)
        self.learning = []

    def forward(self, waves, lengths=None):
        self.learning.append((self.training, torch.is_grad_enabled()))
        return self.last(self.norm(self.layer(waves.unsqueeze(1))).relu().mean(2))


def small_teacher(enskd, classes=CLASSES):
    torch.manual_seed(7)
    return enskd.models.Teacher(Network(), enskd.models.ContinuousAam(classes, THEIRS, 0.2, 32.0))


def method(enskd, kd, *argv, classes=CLASSES):
    """A student in training with a teacher, the weights of both always the same."""
    teacher = small_teacher(enskd, classes)
    torch.manual_seed(0)
    args = own_args(enskd, kd, *argv)
    framework = enskd.systems.distillation(args, classes, None if kd == 'none' else teacher)
    framework.criterion.set_margin(0.1)
    return framework.train()


# --- AAM-softmax (spec 4.1)


WEIGHT = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [-1, 0.1, 0]], dtype=torch.float64)
EMBEDDINGS = torch.tensor([[2, 1, 0], [-1, 0.2, 0]], dtype=torch.float64)
GOLDEN = torch.tensor(  # without margin
    [[28.62167, 14.31083, 30.35786, -27.05564], [-31.37858, 6.27572, -17.75040, 31.84731]],
    dtype=torch.float64,
)


@pytest.mark.parametrize(
    'margin, targets',
    [
        (0.0, (28.62167, -31.37858)),
        (0.1, (27.04998, -31.84835)),
        (0.2, (25.20802, -32.01645)),  # of the second, angle + margin exceeds pi
    ],
)
def test_logits_have_the_golden_values_of_the_reference(enskd, margin, targets):
    criterion = enskd.models.ContinuousAam(4, 3, margin=9.0, scale=32.0)
    criterion.weight = nn.Parameter(WEIGHT)
    criterion.set_margin(margin)
    each, logits = criterion(EMBEDDINGS, torch.tensor([0, 0]))
    expected = GOLDEN.clone()
    expected[:, 0] = torch.tensor(targets)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(each, logits.logsumexp(1) - logits[:, 0])


def naive_logits(weight, embeddings, labels, margin, scale=32.0):
    """Spec 4.1, element by element."""
    rows = []
    for e, y in zip(embeddings, labels.tolist()):
        row = []
        for j, w in enumerate(weight):
            c = (e * w).sum() / (e.square().sum().sqrt() * w.square().sum().sqrt())
            if j == y:
                turned = c * math.cos(margin) - (1 - c * c).sqrt() * math.sin(margin)
                c = turned if c > -math.cos(margin) else c - (1 - math.cos(margin))
            row.append(scale * c)
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize('margin', [0.0, 0.2, 1.0])
def test_logits_equal_the_loops_in_value_and_gradient(enskd, margin):
    generator = torch.Generator().manual_seed(0)
    criterion = enskd.models.ContinuousAam(4, 3, margin, 32.0).double()
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    with torch.no_grad():
        x[4] = -3 * criterion.weight[0] + 0.05  # beyond
    x.requires_grad_()
    found = criterion(x, labels)[1]
    expected = naive_logits(criterion.weight, x, labels, margin)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    seed = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    inputs = [x, criterion.weight]
    ours, theirs = (torch.autograd.grad((seed * z).sum(), inputs) for z in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_target_logit_is_continuous_where_the_angle_reaches_pi_and_its_gradient_finite(enskd):
    margin, angles = 0.3, math.pi - 0.3 + torch.tensor([-1e-6, 1e-6, -0.2, 0.3])
    criterion = enskd.models.ContinuousAam(2, 2, margin, 32.0).double()
    criterion.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    x = torch.stack([angles.double().cos(), angles.double().sin()], dim=1)
    x = torch.cat([x, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()]).requires_grad_()
    logits = criterion(x, torch.zeros(6, dtype=torch.int64))[1][:, 0]
    assert logits[:2].tolist() == pytest.approx([-32, -32], abs=1e-4)
    assert logits[2] > -32 > logits[3]
    assert torch.autograd.grad(logits.sum(), x)[0].isfinite().all()


def test_class_weights_start_uniform_as_the_reference(enskd):
    weight = enskd.models.ContinuousAam(2000, 100).weight
    bound = math.sqrt(6 / 2100)
    assert 0.99 * bound < weight.abs().max() <= bound  # Xavier, spec 3.4
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


# --- who learns what (spec 4.2-4.5)


def naive_kd(z, v, labels, gamma, temperature):
    """Spec 4.3 and 4.4; gamma None: what the teacher leaves to the others. Float64."""
    total = 0.0
    for row_z, row_v, y in zip(z / temperature, v / temperature, labels.tolist()):
        p, q = (row.exp() / row.exp().sum() for row in (row_v, row_z))
        others = [j for j in range(len(p)) if j != y]
        not_p, not_q = p[others].sum(), q[others].sum()
        tckd = p[y] * torch.log(p[y] / q[y]) + not_p * torch.log(not_p / not_q)
        hat_p, hat_q = p[others] / not_p, q[others] / not_q
        nckd = (hat_p * torch.log(hat_p / hat_q)).sum()
        total = total + tckd + (not_p if gamma is None else gamma) * nckd
    return temperature**2 * total / len(z)


CASES = {
    'none': ('none', ()),
    'cosine': ('cosine', ('--embed_size', f'{THEIRS}')),
    'cosine of another size': ('cosine', ()),
    'kl': ('kl', ()),
    'kl, T 4': ('kl', ('--temperature', '4')),
    'decoupled': ('decoupled', ('--gamma', '5')),  # which is not of it
    'enskd': ('enskd', ()),
    'enskd, gamma 5, T 2': ('enskd', ('--gamma', '5', '--temperature', '2')),
    'enskd, plain logits': ('enskd', ('--kd_logits', 'plain')),
    'kl, plain logits': ('kl', ('--kd_logits', 'plain')),
}


@pytest.mark.parametrize('kd, argv', CASES.values(), ids=CASES.keys())
def test_losses_are_those_of_the_paper_put_together_by_hand(small, kd, argv):
    words = dict(zip(argv[::2], argv[1::2]))
    size = int(words.pop('--embed_size', DIM))
    small_args = ('--student', 'xvector', '--dither', '0', '--embed_size', f'{size}', '--kd', kd)
    argv = [*small_args, *(word for pair in words.items() for word in pair)]
    args = small.arguments.of_row(args_of(small, *argv, '--setting', 'matched'), 'xvector', kd)
    teacher = small_teacher(small)
    torch.manual_seed(0)
    framework = small.systems.distillation(args, CLASSES, None if kd == 'none' else teacher)
    framework.criterion.set_margin(0.1)
    found = framework.train()(waves(), LABELS, kd_weight=0.3)

    e = framework.student(waves()).double()
    z = naive_logits(framework.criterion.weight.double(), e, LABELS, 0.1)
    aam_loss = sum(torch.log(row.exp().sum()) - row[y] for row, y in zip(z, LABELS)) / 3
    assert found['aam_loss'].item() == pytest.approx(aam_loss.item(), rel=1e-5)
    hits = sum(int(row.argmax()) == y for row, y in zip(z, LABELS.tolist()))
    assert found['accuracy'].item() == pytest.approx(100 * hits / 3)
    if kd == 'none':
        assert found.keys() == {'loss', 'aam_loss', 'accuracy'}
        assert found['loss'] == found['aam_loss']
        return
    u = teacher.network(waves()).double()
    if kd == 'cosine':
        if size != THEIRS:
            e = e @ framework.projection.weight.double().T + framework.projection.bias.double()
        cosines = [a @ b / (a.norm() * b.norm()) for a, b in zip(e, u)]
        expected = 1 - sum(cosines) / 3
        assert 'target_kd' not in found
    else:
        gamma = {'kl': None, 'decoupled': 1.0, 'enskd': float(words.get('--gamma', 2.0))}[kd]
        plain = '--kd_logits' in words
        v = naive_logits(teacher.criterion.weight.double(), u, LABELS, 0.0 if plain else 0.2)
        if plain:
            z = naive_logits(framework.criterion.weight.double(), e, LABELS, 0.0)
        temperature = float(words.get('--temperature', 1.0))
        expected = naive_kd(z, v, LABELS, gamma, temperature)
        parts = found['target_kd'] + gamma * found['non_target_kd'] if gamma else None
        if gamma:  # the logged parts are those of the loss
            assert temperature**2 * parts.item() == pytest.approx(expected.item(), rel=1e-4)
    assert found['kd_loss'].item() == pytest.approx(expected.item(), rel=1e-4)
    weighted = found['aam_loss'] + 0.3 * found['kd_loss']
    assert found['loss'].item() == pytest.approx(weighted.item(), rel=1e-6)


@pytest.mark.parametrize('kd', ['cosine', *LABEL_LEVEL])
def test_weight_of_distillation_scales_its_gradient_alone(small, kd):
    framework, x = method(small, kd).double(), waves().double()
    parameters = list(framework.student.parameters())
    gradients = {}
    for weight in (0.0, 1.0, 0.25):
        loss = framework(x, LABELS, kd_weight=weight)['loss']
        gradients[weight] = torch.autograd.grad(loss, parameters)
    alone, state = method(small, 'none').double(), framework.state_dict()
    alone.load_state_dict({name: state[name] for name in alone.state_dict()})
    expected = torch.autograd.grad(alone(x, LABELS)['loss'], list(alone.student.parameters()))
    for none, whole, quarter, plain in zip(*gradients.values(), expected):
        torch.testing.assert_close(none, plain)
        torch.testing.assert_close(quarter, 0.75 * none + 0.25 * whole)
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(gradients[0.0], gradients[1.0]))


def saved_for_backward(framework):
    """Shapes of the tensors that autograd keeps of a forward pass."""
    kept = []

    def keep(x):
        kept.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        framework(waves(), LABELS)
    return kept


@pytest.mark.parametrize('kd', ['cosine', *LABEL_LEVEL])
def test_teacher_learns_nothing_and_keeps_nothing_for_the_backward_pass(small, kd):
    framework = method(small, kd)
    teacher = framework.teacher
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    optimizer = torch.optim.SGD(framework.learnable(), lr=1.0)
    for seed in (0, 1):
        losses = framework.train()(waves(seed=seed), LABELS)
        losses['loss'].backward()
        optimizer.step()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name  # running statistics, too
    assert teacher.network.learning == 2 * [(False, False)]
    assert not [name for name in framework.state_dict() if 'teacher' in name]
    assert not {id(p) for p in framework.learnable()} & {id(p) for p in teacher.parameters()}

    more = saved_for_backward(framework)
    for shape in saved_for_backward(method(small, 'none')):
        more.remove(shape)
    # B x C logits, B x D embeddings, a D x THEIRS projection: no B x 500 x T of the teacher
    assert more and max(map(math.prod, more)) <= max(3 * CLASSES, DIM * THEIRS)


def test_gradients_of_distillation_reach_student_classifier_and_projection(small):
    def moved(kd):
        framework = method(small, kd)
        named = dict(framework.named_parameters())
        learnable = {name: p for name, p in named.items() if p.requires_grad}
        loss = framework(waves(), LABELS)['kd_loss']
        found = torch.autograd.grad(loss, list(learnable.values()), allow_unused=True)
        return {name.split('.')[0] for name, g in zip(learnable, found) if g is not None}

    assert moved('cosine') == {'student', 'projection'}  # embeddings are compared
    assert moved('enskd') == moved('kl') == {'student', 'criterion'}


def test_state_holds_student_classifier_and_projection_and_loads_without_a_teacher(small):
    framework, other = method(small, 'cosine'), method(small, 'cosine')
    state = framework.state_dict()
    heads = {name.split('.')[0] for name in state}
    assert heads == {'student', 'criterion', 'projection'}
    for value in state.values():
        value.zero_()
    other.load_state_dict(state)
    assert all(not value.any() for value in other.state_dict().values())
    assert any(value.any() for value in other.teacher.parameters())


@pytest.mark.parametrize('of_teacher', [True, False], ids=['teacher', 'student'])
def test_bf16_of_one_network_leaves_the_other_in_fp32(small, of_teacher):
    framework, seen = method(small, 'enskd'), []
    framework.teacher.amp = of_teacher
    for layer in (framework.teacher.network.layer, framework.student.network.frame_1.conv_1d):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast('cpu', torch.bfloat16, enabled=not of_teacher):
        losses = framework(waves(), LABELS)
    half, whole = torch.bfloat16, torch.float32
    assert seen == ([whole, half] if of_teacher else [half, whole])  # the student comes first
    assert {losses[name].dtype for name in ('aam_loss', 'kd_loss')} == {whole}
    assert framework.teacher.embed(waves()).dtype == whole


# --- one epoch


class Steps:
    """A loop over some batches; `seen`: rate and margin of each step, `taught`: the teacher's."""

    def __init__(self, framework, done=0, count=4):
        self.batches_done, self.loader, self.meters = done, range(count), Meters()
        self.means = self.meters.means
        self.optimizer = torch.optim.SGD(framework.learnable(), lr=9.0)
        self.seen, self.taught = [], []
        framework.criterion.register_forward_hook(self.watch)
        if framework.teacher is not None:
            framework.teacher.criterion.register_forward_hook(self.watch_teacher)

    def watch(self, module, inputs, outputs):
        self.seen.append((self.optimizer.param_groups[0]['lr'], module.margin))

    def watch_teacher(self, module, inputs, outputs):
        self.taught.append((module.margin, outputs[1]))

    def batches(self, title):
        for step in self.loader[self.batches_done :]:
            yield {
                'waves': waves(seed=step).unsqueeze(1),
                'labels': LABELS,
                'rir': torch.zeros(0, 1),
                'noise': torch.zeros(0, 4000),
                'noise_snr': torch.zeros(0),
                'gain': torch.zeros(0, 4000),
                'clip_ratio': torch.zeros(0),
                **{
                    f'{name}_row': torch.zeros(0, dtype=torch.int64)
                    for name in ('rir', 'noise', 'gain', 'clip')
                },
            }


@pytest.mark.parametrize('done', [0, 2])
def test_epoch_sets_rate_and_margin_of_each_step_and_the_teachers_margin_stays(small, done):
    schedule = small.train.Schedule(4, 0.1, 1e-3, 1, 2.0, 0.2, 2, 4)
    framework = method(small, 'enskd')
    loop = Steps(framework, done)
    args = {'device': 'cpu', 'amp': False}
    found = small.train.train_epoch('x', 3, schedule, 0.5, loop, framework, loop.optimizer, args)
    steps = range(8 + done, 12)
    expected = [schedule.at(step, 4) for step in steps]
    assert loop.seen == expected and len(set(expected)) == len(expected)
    assert (found['lr'], found['margin']) == expected[-1] and found['kd_weight'] == 0.5
    assert [margin for margin, _ in loop.taught] == [0.2] * len(expected)
    weight = framework.teacher.criterion.weight
    for step, (_, logits) in zip(range(done, 4), loop.taught):
        embeddings = framework.teacher.network(waves(seed=step))
        theirs = naive_logits(weight, embeddings, LABELS, 0.2)
        torch.testing.assert_close(logits, theirs, rtol=1e-4, atol=1e-3)


def test_epoch_without_teacher_logs_no_weight_of_it(small):
    framework = method(small, 'none')
    loop = Steps(framework)
    schedule = small.train.Schedule(4, 0.1, 1e-3, 1, 2.0, 0.2, 2, 4)
    args = {'device': 'cpu', 'amp': False}
    found = small.train.train_epoch('x', 1, schedule, 1.0, loop, framework, loop.optimizer, args)
    assert found.keys() == {'loss', 'aam_loss', 'accuracy', 'lr', 'margin'}


# --- the students


@pytest.mark.parametrize(
    'student, channels, sizes',
    [
        ('xvector', None, {'dim': 7, 'n_mels': 80, 'width': 512, 'last_width': 1500}),
        ('xvector', 8, {'dim': 7, 'n_mels': 80, 'width': 8, 'last_width': 24}),
        ('resnet34', 4, {'dim': 7, 'n_mels': 80, 'width': 4, 'blocks': (3, 4, 6, 3)}),
        (
            'campplus',
            4,
            {'dim': 7, 'n_mels': 80, 'growth': 32, 'blocks': (12, 24, 16), 'head_width': 4},
        ),
    ],
)
def test_student_is_written_and_read_as_it_was_built(enskd, tmp_path, student, channels, sizes):
    args = args_of(enskd, '--student', student, '--embed_size', '7', f'--channels={channels}')
    args = enskd.arguments.of_row({**args, 'dither': 0.0}, student, 'none')
    built = enskd.systems.student_of(args).eval()
    file = tmp_path / 'x.pt'
    checkpoint.write(students.to_published(built.network.state_dict()), file)
    assert students.read(file).kind == student and students.read(file).sizes == sizes
    found = enskd.systems.system_of(file, args).eval()
    with torch.no_grad():
        assert torch.equal(found(waves()), built(waves()))
    assert built(waves()).shape == (3, 7)


# --- schedules (spec 5.2, 5.3)


def paper_schedule(enskd, preset):
    args = args_of(enskd, '--preset', preset)
    return enskd.phases.student_schedule(enskd.arguments.of_row(args, args['student'], args['kd']))


RATES = [  # R = 12, at the start of an epoch
    (1, 0.0),
    (2, 0.190118),
    (4, 0.515384),
    (7, 0.885401),
    (20, 0.458195),
    (40, 0.166308),
    (75, 0.028228),
    (100, 0.007952),
    (150, 0.000631),
    (151, 0.0006),
]


@pytest.mark.parametrize(
    'preset, per_epoch, factor',
    [
        ('campplus_enskd', 1421, 1),
        ('resnet34_enskd', 1421, 1),
        ('campplus_kl', 1421, 1),
        ('xvector_enskd', 710, 2),
        ('resnet34_kl', 2132, 8 / 12),
        ('xvector_kl', 1066, 16 / 12),
        ('xvector_cosine', 1066, 16 / 12),
        ('campplus_none', 4265, 4 / 12),
    ],
)
def test_learning_rates_are_the_published(enskd, preset, per_epoch, factor):
    schedule = paper_schedule(enskd, preset)
    assert schedule.epochs == 150
    for epoch, lr in RATES:
        found, _ = schedule.at((epoch - 1) * per_epoch, per_epoch)
        assert found == pytest.approx(factor * lr, abs=factor * 6e-7), epoch


@pytest.mark.parametrize(
    'epoch, margin',
    [
        (1, 0.0),
        (20, 0.0),
        (20.5, 0.031741),
        (21, 0.058411),
        (22, 0.099763),
        (25, 0.164434),
        (30, 0.193675),
        (35, 0.198875),
        (39, 0.199717),
        (40, 0.2),
        (150, 0.2),
    ],
)
def test_margins_are_the_published(enskd, epoch, margin):
    step = math.ceil((epoch - 1) * 1421)
    _, found = paper_schedule(enskd, 'campplus_enskd').at(step, 1421)
    assert found == pytest.approx(margin, abs=6e-7)


def test_teacher_is_trained_as_microsoft_did_where_that_is_known(enskd):
    schedule = enskd.phases.teacher_schedule(args_of(enskd))
    rates = [schedule.at(step, 1000) for step in (0, 500, 1000, 1999, 2000, 20_000)]
    assert rates[1][0] == pytest.approx(0.5 * 0.64 * (4e-4 / 0.64) ** (500 / 20_000))
    assert (rates[0][0], rates[5][0]) == (0.0, pytest.approx(4e-4))
    assert [margin for _, margin in rates] == [0.0, 0.0, 0.0, 0.0, 0.2, 0.2]


# --- what the compared systems differ in (spec 2.6, 8.3)


RELEASED = {  # student, loss: D, classes, share augmented, utterances of a GPU, GPUs, lr ratio
    ('campplus', 'cosine'): (256, 17982, 0.6, 256, 2, 8),
    ('resnet34', 'cosine'): (256, 17982, 0.6, 256, 2, 8),
    ('xvector', 'cosine'): (256, 17982, 0.0, 512, 2, 16),
    ('campplus', 'kl'): (512, 5994, 0.6, 256, 3, 12),
    ('resnet34', 'kl'): (256, 5994, 0.6, 256, 2, 8),
    ('xvector', 'kl'): (512, 5994, 0.6, 512, 2, 16),
    ('campplus', 'enskd'): (512, 5994, 0.6, 256, 3, 12),
    ('resnet34', 'enskd'): (256, 5994, 0.6, 256, 3, 12),
    ('xvector', 'enskd'): (256, 5994, 0.6, 512, 3, 24),
}


@pytest.mark.parametrize('pair', RELEASED, ids='_'.join)
def test_preset_of_a_released_system_is_its_configuration(small, monkeypatch, pair):
    for student in ('resnet34', 'campplus'):
        monkeypatch.setitem(small.systems.NETWORKS, student, small_xvector)
    dim, classes, share, each, gpus, ratio = RELEASED[pair]
    student, kd = pair
    args = args_of(small, '--preset', f'{student}_{kd}')
    assert (args['name'], args['student'], args['kd']) == (f'{student}_{kd}', student, kd)
    args = small.arguments.of_row(args, student, kd)
    assert (args['embed_size'], args['DA_p'], args['batch_size']) == (dim, share, each * gpus)
    assert args['speed_perturb'] == (classes == 17982)
    assert small.phases.student_schedule(args).lr_scale == ratio
    assert (args['frames'], args['epoch'], args['num_avg'], args['gamma']) == (200, 150, 10, 2.0)
    teacher = small.models.Teacher(nn.Identity(), small.models.ContinuousAam(1, 256))
    framework = small.systems.distillation(args, 5994, teacher)
    assert framework.criterion.weight.shape == (classes, dim)
    assert framework.criterion.scale == 32
    assert isinstance(framework.projection, nn.Identity)  # the released cosine systems have none


def test_baselines_are_wespeakers_and_dkd_is_trained_as_enskd(enskd):
    of_row, args = enskd.arguments.of_row, args_of(enskd)
    for student, dim in (('xvector', 512), ('resnet34', 256), ('campplus', 512)):
        own = of_row(args, student, 'none')
        found = [own[name] for name in ('embed_size', 'speed_perturb', 'DA_p', 'batch_size')]
        assert found == [dim, True, 0.6, 256]
        enskd_row, decoupled = (of_row(args, student, kd) for kd in ('enskd', 'decoupled'))
        assert {k for k in decoupled if decoupled[k] != enskd_row[k]} == {'kd'}


@pytest.mark.parametrize('student', ['xvector', 'resnet34', 'campplus'])
def test_matched_systems_differ_in_the_loss_alone(enskd, student):
    rows = []
    for kd in ('none', 'cosine', 'kl', 'enskd'):
        args = args_of(enskd, '--preset', f'matched_{student}_{kd}')
        rows.append(enskd.arguments.of_row(args, args['student'], args['kd']))
    first, *others = rows
    for other in others:
        differing = {name for name in first if first[name] != other[name]}
        assert differing == {'kd', 'name', 'preset', 'path_log'}
    assert (first['embed_size'], first['speed_perturb'], first['DA_p']) == (256, False, 0.6)


def test_there_is_a_preset_for_every_system_of_the_paper(enskd):
    names = {f'{student}_{kd}' for student, kd in RELEASED}
    names |= {f'{student}_none' for student in ('xvector', 'resnet34', 'campplus')}
    assert enskd.arguments.PRESETS.keys() == names | {f'matched_{name}' for name in names}


def test_what_is_given_goes_before_the_table(enskd):
    words = ('--embed_size', '192', '--DA_p', '0', '--batch_size', '64', '--speed_perturb', 'false')
    args = enskd.arguments.of_row(
        args_of(enskd, '--preset', 'xvector_none', *words), 'xvector', 'none'
    )
    assert (args['embed_size'], args['DA_p'], args['batch_size']) == (192, 0, 64)
    assert args['speed_perturb'] is False  # which the table has as true
    one = enskd.arguments.of_row(args_of(enskd, '--DA_p', '0.3'), 'xvector', 'cosine')
    assert (one['DA_p'], one['batch_size'], one['speed_perturb']) == (0.3, 1024, True)


# --- wrong arguments


@pytest.mark.parametrize(
    'words, complaint',
    [
        (('--kd', 'kl', '--speed_perturb', 'true'), 'has no such classes, which kd kl compares'),
        (('--kd', 'decoupled', '--speed_perturb', 'true'), 'which kd decoupled compares'),
        (('--speed_perturb', 'true', '--demo'), 'which kd enskd compares'),
        (('--speed_perturb', 'true', '--preset', 'campplus_kl'), 'speed_perturb true'),
        (('--losses', 'kl,dkd'), 'losses kl,dkd: some of none,cosine,kl,decoupled,enskd'),
        (('--students', ''), 'students'),
        (('--warmup', '150'), 'warmup'),
        (('--margin_start', '50'), 'margin_start'),
        (('--temperature', '0'), 'temperature'),
        (('--snr_speech', '30,10'), 'lower bound'),
        (('--DA_p', '60'), 'share'),
        (('--seeds', '1,1'), 'seeds'),
        (('--num_avg', '0'), 'epochs'),
        (('--frames', '10'), 'frames'),
        (('--kd_warmup', '-1'), 'kd_warmup'),
        (('--utt2spk', 'data/utt2spk'), 'list_train'),
    ],
)
def test_wrong_argument_is_refused_in_one_line(enskd, words, complaint):
    with pytest.raises(ArgumentError, match=complaint) as caught:
        args_of(enskd, *words)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('kd', ['none', 'cosine'])
def test_speed_perturbation_goes_with_losses_that_need_no_classes_of_the_teacher(enskd, kd):
    args = args_of(enskd, '--kd', kd, '--speed_perturb', 'true', '--setting', 'matched')
    assert enskd.arguments.of_row(args, 'resnet34', kd)['speed_perturb'] is True


@pytest.mark.parametrize('kd', LABEL_LEVEL)
def test_speed_perturbation_of_a_comparison_is_refused_for_its_label_level_rows(enskd, kd):
    args = args_of(enskd, '--kd', 'none', '--speed_perturb', 'true', '--phase', 'compare')
    with pytest.raises(ArgumentError, match=f'speed_perturb true: .* kd {kd} compares'):
        enskd.arguments.of_row(args, 'campplus', kd)


# --- a corpus of tones: each speaker has one


SPEAKERS, EACH = 6, 3
TEACHER = SslConfig(
    'wavlm',
    layers=2,
    width=16,
    heads=2,
    ffn_width=32,
    conv_channels=(8,) * 7,
    position_kernel=8,
    position_groups=2,
)


@pytest.fixture
def tones(enskd, tmp_path):
    """A corpus of six speakers with three utterances each, and its arguments."""
    rng = np.random.default_rng(0)

    def write(name, wave):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, 16000, subtype='PCM_16')

    seconds = np.arange(12_000) / 16_000
    for speaker in range(SPEAKERS):
        for number in range(EACH):
            tone = 0.3 * np.sin(2 * np.pi * 300 * (speaker + 1) * seconds + number)
            noise = 0.01 * rng.standard_normal(len(tone))
            write(f'wav/s{speaker}/v/{number}.wav', tone + noise)
    for category in ('noise', 'speech', 'music'):
        write(f'musan/{category}/sub/0.wav', 0.1 * rng.standard_normal(9000))
    write('rirs/Room001/1.wav', np.array([0.5, 0.25]))
    pairs = [f'{int(i == j)} s{i}/v/0.wav s{j}/v/1.wav' for i in range(6) for j in range(6)]
    (tmp_path / 'trials.txt').write_text('\n'.join(pairs) + '\n')
    paths = {
        'path_log': tmp_path,
        'path_train': tmp_path / 'wav',
        'path_test': tmp_path / 'wav',
        'trials_test': tmp_path / 'trials.txt',
        'path_musan': tmp_path / 'musan',
        'path_rir': tmp_path / 'rirs',
        'num_workers': 0,
        'frames': 40,
        'least_recognised': 0.9,
        'eval_seconds': 60,
    }
    args = args_of(enskd, *(f'--{name}={value}' for name, value in paths.items()))
    args['device'] = 'cpu'
    tests = trial_lists(args['trials_test'], args['path_test'], budget_seconds=60, workers=0)
    return enskd.data.Corpus(args, tests[0]), args


class Bands(nn.Module):
    """Waves (B, L) to what they have of eight tones (B, 8)."""

    def forward(self, waves, lengths=None):
        power = torch.fft.rfft(waves).abs()
        return power[:, [waves.shape[1] * 300 * k // 16_000 for k in range(1, 9)]]


@pytest.fixture
def teacher_file(enskd, tmp_path, monkeypatch):
    """`teacher_file(weight)`: a file with this classifier; its network hears which tone it is."""
    torch.manual_seed(0)
    backend = EcapaSmallBackEnd(3, 16, 8, channels=8, mfa_width=8)
    state = SslSpeakerEncoder(SslEncoder(TEACHER), backend).state_dict()
    read = unispeech.read

    def hearing(path):
        return SimpleNamespace(beside=read(path).beside, module=Bands)

    monkeypatch.setattr(enskd.systems.unispeech, 'read', hearing)

    def write(weight):
        file = tmp_path / 'teacher.pth'
        checkpoint.write(unispeech.to_published(state, weight), file)
        return file

    return write


RIGHT = torch.eye(8)[:SPEAKERS]  # the tone of each speaker


def test_teacher_whose_classes_are_those_of_the_list_is_accepted(
    enskd, tones, teacher_file, capsys
):
    corpus, args = tones
    teacher = enskd.systems.teacher_of(teacher_file(3 * RIGHT), corpus, args)
    assert 'recognises 100.0 % of clean training crops' in capsys.readouterr().out
    assert (
        not teacher.training and teacher.criterion.margin == 0.2 and teacher.criterion.scale == 32
    )
    batch = next(iter(corpus.clean_loader(np.arange(3))))
    logits = teacher.plain_logits(teacher.embed(batch['waves']))
    assert logits.argmax(1).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    'weight, words',
    [
        (RIGHT.roll(1, 0), ('recognises 0.0 %', 'not 90 % (least_recognised)', 'order')),
        (RIGHT[[0, 1, 2, 3, 5, 4]], ('recognises 66.7 %', 'order')),
        (RIGHT[:5], ('knows 5 speakers', 'has 6', 'VoxCeleb2 dev: 5,994')),
        (torch.eye(8)[:7], ('knows 7 speakers', 'has 6')),
        (None, ('has no classifier',)),
    ],
    ids=['shifted', 'two changed', 'too few', 'too many', 'without head'],
)
def test_teacher_of_other_classes_is_refused_in_one_line_that_says_what_to_do(
    enskd, tones, teacher_file, weight, words
):
    corpus, args = tones
    file = teacher_file(weight)
    with pytest.raises(UserError) as caught:
        enskd.systems.teacher_of(file, corpus, args)
    line = str(caught.value)
    assert '\n' not in line and line.startswith(str(file))
    assert all(word in line for word in (*words, '--path_teacher none')), line


def test_check_of_the_teacher_covers_the_whole_list_and_may_be_weakened(
    enskd, tones, teacher_file, monkeypatch
):
    corpus, args = tones
    file = teacher_file(RIGHT[[0, 1, 2, 3, 5, 4]])
    monkeypatch.setattr(enskd.systems, 'CHECKED', 7)  # of 18; of the first and last one each
    with pytest.raises(UserError, match='recognises 71.4 %'):
        enskd.systems.teacher_of(file, corpus, args)
    enskd.systems.teacher_of(file, corpus, {**args, 'least_recognised': 0.7})


def test_margins_and_bad_files_do_not_enter_the_check_of_the_teacher(
    enskd, tones, teacher_file, tmp_path
):
    corpus, args = tones
    (tmp_path / 'wav/s2/v/1.wav').write_bytes(b'')
    file = teacher_file(RIGHT)
    enskd.systems.teacher_of(file, corpus, {**args, 'teacher_margin': 3.0, 'least_recognised': 1.0})


def test_teacher_whose_embeddings_are_no_numbers_is_refused(
    enskd, tones, teacher_file, monkeypatch
):
    corpus, args = tones
    monkeypatch.setattr(Bands, 'forward', lambda self, x, n: torch.full((len(x), 8), torch.nan))
    with pytest.raises(UserError, match='recognises'):
        enskd.systems.teacher_of(teacher_file(RIGHT), corpus, args)


# --- the file at the end (spec 3.7, 5.4)


XVECTOR = {  # 32 tensors and the classifier
    *(f'frame_{i}.conv_1d.{leaf}' for i in range(1, 6) for leaf in ('weight', 'bias')),
    *(
        f'{norm}.{leaf}'
        for norm in (*(f'frame_{i}.bn' for i in range(1, 6)), 'seg_bn_1')
        for leaf in ('running_mean', 'running_var', 'num_batches_tracked')
    ),
    *(f'seg_{i}.{leaf}' for i in (1, 2) for leaf in ('weight', 'bias')),
    'projection.weight',
}


def test_last_epochs_are_averaged_into_a_file_of_the_authors_layout(small, tmp_path):
    framework = method(small, 'cosine')
    args = {'path_log': tmp_path, 'max_bad_share': 0.0, 'keep_checkpoints': 1, 'num_avg': 3}
    args['save_minutes'] = 10.0
    loader = SimpleNamespace(batch_sampler=ShuffledBatches(8, 4, 0))
    loop = small.phases.loop_of('x', loader, args, framework=framework)
    states = []
    for epoch in loop.epochs(5):
        with torch.no_grad():
            for value in framework.state_dict().values():
                value += value.new_full(value.shape, epoch * epoch)
        states.append(framework.copy_of_state())
        loop.end_epoch({}, value=-epoch)

    def published(average):
        state = average.student.network.state_dict()
        return students.to_published(state, average.criterion.weight.detach())

    file = small.phases.finish(loop, framework, args, 'avg_model', published)
    assert file == tmp_path / 'x' / 'avg_model.pt' and loop.finished
    stored = checkpoint.read(file)
    assert stored.keys() == XVECTOR and len(stored) == 33
    for name, value in stored.items():
        own = 'criterion.weight' if name == 'projection.weight' else f'student.network.{name}'
        mean = sum(state[own].double() for state in states[2:]) / 3
        if name.endswith('num_batches_tracked'):
            assert value.dtype == torch.int64 and value == mean.round()
        else:
            torch.testing.assert_close(value, mean.float())
    before = file.read_bytes()
    again = small.phases.loop_of('x', loader, args, framework=method(small, 'cosine'))
    assert again.finished and not list(again.epochs(5))
    small.phases.finish(again, framework, args, 'avg_model', published)
    assert file.read_bytes() == before


@pytest.mark.parametrize('kd, weights', [('enskd', [0.25, 0.5, 0.75]), ('cosine', [1.0] * 3)])
def test_student_is_trained_and_exported_by_main(small, tones, teacher_file, kd, weights):
    corpus, args = tones
    teacher = small.systems.teacher_of(teacher_file(RIGHT), corpus, args)
    logged = []
    logger = SimpleNamespace(
        log_metrics=lambda values, step: logged.append(values), curves=lambda: None
    )
    argv = ('--epoch=3', '--warmup=1', '--kd_warmup=4', '--num_avg=2', '--batch_size=6')
    own = {**own_args(small, kd, *argv, '--DA_p=1'), 'frames': 40, 'save_minutes': 10.0}
    own = {**args, **own, 'path_log': args['path_log'], 'num_workers': 0}
    system, folder = small.main.distil(1, teacher, corpus, logger, own)
    title = f'seed1/xvector_{kd}'
    assert folder == small.main.Path(args['path_log']) / title
    assert [values[f'{title}/kd_weight'] for values in logged] == weights
    assert all(0 <= values[f'{title}/valid_eer'] <= 100 for values in logged)
    stored = checkpoint.read(folder / 'avg_model.pt')
    assert stored.keys() == XVECTOR and stored['projection.weight'].shape == (SPEAKERS, DIM)
    assert isinstance(system.network, XVector) and not system.network.training
    parts = [checkpoint.read(folder / f'epoch_000{epoch}.pt') for epoch in (2, 3)]
    mean = sum(part['student.network.seg_2.weight'] for part in parts) / 2
    torch.testing.assert_close(system.network.seg_2.weight.detach(), mean)
