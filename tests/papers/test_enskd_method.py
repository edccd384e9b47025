"""Classifier, losses, one epoch of papers/enskd: who learns what from whom (spec enskd 4)."""

import math

import pytest
import torch
from torch import nn

from shared.meters import Meters
from shared.models.tdnn import XVector

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


def small_teacher(enskd):
    torch.manual_seed(7)
    return enskd.models.Teacher(Network(), enskd.models.ContinuousAam(CLASSES, THEIRS, 0.2, 32.0))


def method(enskd, kd, *argv, dim=DIM):
    """A student in training with a teacher, the weights of both always the same; no dither."""
    words = ('--student', 'xvector', '--embed_size', f'{dim}', '--dither', '0', '--kd', kd)
    args, *_ = enskd.arguments.get_args([*words, '--setting', 'matched', *argv])
    args, teacher = enskd.arguments.of_row(args, 'xvector', kd), small_teacher(enskd)
    torch.manual_seed(0)
    framework = enskd.systems.distillation(args, CLASSES, None if kd == 'none' else teacher)
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


CASES = {  # loss, embedding size, other arguments
    'none': ('none', DIM, {}),
    'cosine': ('cosine', THEIRS, {}),
    'cosine of another size': ('cosine', DIM, {}),
    'kl': ('kl', DIM, {}),
    'kl, T 4': ('kl', DIM, {'temperature': 4.0}),
    'kl, plain logits': ('kl', DIM, {'kd_logits': 'plain'}),
    'decoupled': ('decoupled', DIM, {'gamma': 5.0}),  # which is not of it
    'enskd': ('enskd', DIM, {}),
    'enskd, gamma 5, T 2': ('enskd', DIM, {'gamma': 5.0, 'temperature': 2.0}),
    'enskd, plain logits': ('enskd', DIM, {'kd_logits': 'plain'}),
}


@pytest.mark.parametrize('kd, dim, given', CASES.values(), ids=CASES.keys())
def test_losses_are_those_of_the_paper_put_together_by_hand(small, kd, dim, given):
    framework = method(small, kd, *(f'--{name}={x}' for name, x in given.items()), dim=dim)
    teacher = framework.teacher
    found = framework(waves(), LABELS, kd_weight=0.3)

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
        if dim != THEIRS:
            e = e @ framework.projection.weight.double().T + framework.projection.bias.double()
        cosines = [a @ b / (a.norm() * b.norm()) for a, b in zip(e, u)]
        expected = 1 - sum(cosines) / 3
        assert 'target_kd' not in found
    else:
        gamma = {'kl': None, 'decoupled': 1.0, 'enskd': given.get('gamma', 2.0)}[kd]
        plain = 'kd_logits' in given
        v = naive_logits(teacher.criterion.weight.double(), u, LABELS, 0.0 if plain else 0.2)
        if plain:
            z = naive_logits(framework.criterion.weight.double(), e, LABELS, 0.0)
        temperature = given.get('temperature', 1.0)
        expected = naive_kd(z, v, LABELS, gamma, temperature)
        if gamma:  # the logged parts are those of the loss
            parts = found['target_kd'] + gamma * found['non_target_kd']
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
    args = {'device': 'cpu', 'amp': False, 'accumulate': 1}
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
    args = {'device': 'cpu', 'amp': False, 'accumulate': 1}
    found = small.train.train_epoch('x', 1, schedule, 1.0, loop, framework, loop.optimizer, args)
    assert found.keys() == {'loss', 'aam_loss', 'accuracy', 'lr', 'margin'}
