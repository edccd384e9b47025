"""Losses, branches, learning rates of papers/oskdft (spec oskdft 1, 3-5, 9)."""

import math

import pytest
import torch
import torch.nn.functional as F

from shared.models.adapters import AdapterSettings
from shared.models.span_masks import SpanMasks
from shared.models.ssl_backends import LinearBackEnd, SslSpeakerEncoder
from shared.models.ssl_config import SslConfig
from shared.models.ssl_encoder import SslEncoder

TINY = SslConfig(
    'hubert',
    layers=3,
    width=16,
    heads=2,
    ffn_width=24,
    conv_channels=(8,) * 7,
    position_kernel=8,
    position_groups=2,
    dropout=0.0,
    attention_dropout=0.0,
    layer_drop=0.0,
)


@pytest.fixture
def oskdft(paper):
    return paper('oskdft')


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def waves(rows=3, samples=4000, seed=0):
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))


def args_of(oskdft, *argv):
    return oskdft.arguments.get_args(list(argv))[0]


# --- KD losses (spec 4.1-4.3)


def naive_distilhubert(loss, student, teacher, cosine):
    """Spec 4.1, element by element."""
    total = 0.0
    rows, frames, width = student[-1].shape
    for b in range(rows):
        for head, target in zip(loss.heads, loss.targets):
            difference, agreement = 0.0, 0.0
            for t in range(frames):
                p, y = head(student[-1][b, t]), teacher[target][b, t]
                difference = difference + sum(abs(p[d] - y[d]) for d in range(width))
                c = (p * y).sum() / (p.square().sum().sqrt() * y.square().sum().sqrt())
                agreement = agreement - torch.log(1 + torch.exp(-c))
            scale = 1 if cosine == 'sum' else 1 / frames
            total = total + difference / (frames * width) - loss.cos_lambda * scale * agreement
    return total / rows


@pytest.mark.parametrize('cosine', ['sum', 'mean'])
def test_distilhubert_loss_equals_loops_in_value_and_gradient(oskdft, cosine):
    torch.manual_seed(0)
    loss = oskdft.losses.DistilHubertLoss(4, 4, (1, 3), 0.7, cosine).double()
    student = [drawn(2, 3, 4, seed=i) for i in range(3)]
    teacher = [drawn(2, 3, 4, seed=10 + i).detach() for i in range(4)]
    found, expected = loss(student, teacher), naive_distilhubert(loss, student, teacher, cosine)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    inputs = [student[-1], *loss.parameters()]
    ours, theirs = (torch.autograd.grad(x, inputs) for x in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_distilhubert_loss_has_the_published_floor_and_parameters(oskdft):
    loss = oskdft.losses.DistilHubertLoss(768, 768)
    assert sum(p.numel() for p in loss.parameters()) == 3_543_552
    loss.heads = torch.nn.ModuleList(torch.nn.Identity() for _ in range(3))
    state = torch.randn(2, 149, 768)
    assert loss([state], [state] * 13).item() == pytest.approx(140.03, abs=0.01)


def test_last_state_loss_is_a_hundred_mean_squares(oskdft):
    student, teacher = drawn(2, 3, 4), drawn(2, 3, 4, seed=1).detach()
    found = oskdft.losses.LastStateLoss()([None, student], [None, teacher])
    expected = 100 * sum((a - b) ** 2 for a, b in zip(student.flatten(), teacher.flatten())) / 24
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    ours, theirs = (torch.autograd.grad(x, student)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_hint_loss_compares_the_students_states_with_the_layers_of_their_number(oskdft):
    teacher = [torch.full((1, 2, 3), 1e9), torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)]
    student = [torch.full((1, 2, 3), 2.0), torch.full((1, 2, 3), 3.0)]
    assert oskdft.losses.HintLoss(0.1)(student, teacher).item() == pytest.approx(9 + 0.1 * 4)


def test_linear_softmax_gives_the_cross_entropy_of_each_sample(oskdft):
    torch.manual_seed(0)
    criterion = oskdft.losses.LinearSoftmax(5, 3)
    x, labels = torch.randn(4, 3), torch.tensor([0, 4, 2, 2])
    losses, logits = criterion(x, labels)
    for b in range(4):
        scores = [(criterion.weight[c] @ x[b] + criterion.bias[c]).item() for c in range(5)]
        expected = math.log(sum(map(math.exp, scores))) - scores[labels[b]]
        assert losses[b].item() == pytest.approx(expected, rel=1e-5)
    assert logits.shape == (4, 5)


# --- who learns from what (spec 1, 4.5)


def one_step(oskdft, noise=(0.0, 0.0), kd=True, sv=True, masks=None):
    torch.manual_seed(0)
    settings = AdapterSettings(4, 'relu', noise=noise, input='stream')
    student = SslEncoder(TINY, layers=2, adapters=settings, masks=masks or SpanMasks())
    parts = {}
    if kd:
        loss = oskdft.losses.DistilHubertLoss(16, 16, (1, 2, 3))
        parts.update(teacher=SslEncoder(TINY), kd=loss)
    if sv:
        parts.update(
            backend=LinearBackEnd(3, 16, 6),
            criterion=oskdft.losses.LinearSoftmax(5, 6),
            class_weights=torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0]),
        )
    return oskdft.framework.OneStep(student, **parts)


LABELS = torch.tensor([0, 4, 2])


def moved(framework, loss):
    """Names of the parameters with a gradient of a loss that is not zero."""
    named = [(name, p) for name, p in framework.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True, retain_graph=True)
    return {name for (name, _), g in zip(named, found) if g is not None and g.abs().sum() > 0}


def test_gradients_of_each_loss_go_where_the_paper_sends_them(oskdft):
    framework = one_step(oskdft, noise=(0.1, 0.5)).train()
    losses = framework(waves(), LABELS, waves())
    by_kd, by_sv = moved(framework, losses['kd_loss']), moved(framework, losses['sv_loss'])
    learnable = {name for name, p in framework.named_parameters() if p.requires_grad}
    shared = {n for n in learnable if n.startswith('student.') and '.adapter.' not in n}
    # a shift of all keys cancels in the softmax
    shared = {n for n in shared if not n.endswith('k_proj.bias')}
    adapters = {n for n in learnable if '.adapter.' in n}
    heads = {n for n in learnable if n.startswith('kd.')}
    rest = {n for n in learnable if n.startswith(('backend.', 'criterion.'))}
    assert len(adapters) == 8 and len(heads) == 12 and len(rest) == 7
    assert shared <= by_kd and shared <= by_sv
    assert by_kd - shared <= heads | {n for n in learnable if n.endswith('k_proj.bias')}
    assert heads <= by_kd and not heads & by_sv and not adapters & by_kd and not rest & by_kd
    assert adapters <= by_sv
    assert {n for n in rest if n != 'backend.projection.bias'} <= by_sv  # the norm takes it out
    assert all(p.grad is None and not p.requires_grad for p in framework.teacher.parameters())


def test_loss_is_the_sum_of_both_with_the_weight_of_distillation(oskdft):
    framework = one_step(oskdft).train()
    losses = framework(waves(), LABELS, waves(), kd_weight=0.25)
    expected = 0.25 * losses['kd_loss'] + losses['sv_loss']
    assert losses['loss'].item() == pytest.approx(expected.item(), rel=1e-6)


def test_kd_rows_are_those_of_the_student_without_adapters_and_sv_rows_with(oskdft):
    framework = one_step(oskdft).train()
    with torch.no_grad():
        for name, p in framework.student.named_parameters():
            if '.adapter.' in name:
                p.normal_()
    kd, sv = framework.branches(waves())
    none = torch.zeros(3, dtype=torch.bool)
    plain, adapted = framework.student(waves(), adapt=none), framework.student(waves())
    for ours, theirs in zip((*kd, *sv), (*plain.states, *adapted.states), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(kd[-1], sv[-1])


def test_frames_shared_by_both_branches_give_what_two_passes_give(oskdft):
    framework = one_step(oskdft).train()
    same = waves()
    ours, theirs = framework.branches(same), framework.branches(same, same.clone())
    seeds = [torch.randn_like(state) for branch in ours for state in branch]
    gradients = []
    for branches in (ours, theirs):
        states = [state for branch in branches for state in branch]
        total = sum((seed * state).sum() for seed, state in zip(seeds, states))
        used = [p for p in framework.student.parameters() if p.requires_grad]
        gradients.append(torch.autograd.grad(total, used))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_shared_frames_are_computed_once_and_other_speech_in_the_same_call(oskdft):
    framework, calls = one_step(oskdft).train(), []
    framework.student.feature_extractor.register_forward_hook(
        lambda module, inputs, output: calls.append(len(output))
    )
    framework.branches(waves())
    framework.branches(waves(), waves(seed=1))
    assert calls == [3, 6]


def test_masks_of_the_two_branches_differ(oskdft):
    masks = SpanMasks(time_prob=0.5, time_length=2)
    framework = one_step(oskdft, masks=masks).train()
    none = torch.zeros(3, dtype=torch.bool)
    with torch.no_grad():
        for name, p in framework.student.named_parameters():
            if '.adapter.' in name:
                p.zero_()  # so that masks are all that differs
    kd, sv = framework.branches(waves())
    assert not torch.allclose(kd[0], sv[0])
    framework.eval()
    plain = framework.student(waves(), adapt=none).states
    torch.testing.assert_close(framework.branches(waves())[1][-1], plain[-1], rtol=1e-5, atol=1e-5)


def test_teacher_hears_its_own_waves_in_eval_mode_and_is_not_saved(oskdft):
    framework = one_step(oskdft).train()
    assert not framework.teacher.training and framework.student.training
    one, other = (framework(waves(), LABELS, waves(seed=s)) for s in (1, 2))
    assert one['kd_loss'] != other['kd_loss']
    assert not [name for name in framework.state_dict() if name.startswith('teacher')]


def test_branch_alone_learns_alone(oskdft):
    distil, tune = one_step(oskdft, sv=False).train(), one_step(oskdft, kd=False).train()
    assert {group['name'] for group in distil.groups()} == {'student'}
    assert not [n for n, p in distil.named_parameters() if '.adapter.' in n and p.requires_grad]
    losses = distil(waves(), LABELS, waves(), kd_weight=0.1)
    assert losses.keys() == {'loss', 'kd_loss'} and losses['loss'] == losses['kd_loss']
    losses = tune(waves(), LABELS, waves())
    assert losses.keys() == {'loss', 'sv_loss', 'accuracy'} and losses['loss'] == losses['sv_loss']
    assert list(distil.networks()) == ['student']
    assert list(tune.networks()) == ['student', 'backend']


def test_speaker_loss_is_weighted_as_torchs_cross_entropy(oskdft):
    framework = one_step(oskdft, kd=False).train()
    found = framework(waves(), LABELS, waves())['sv_loss']
    embeddings = framework.backend(framework.student(waves()).states)
    logits = F.linear(embeddings, framework.criterion.weight, framework.criterion.bias)
    expected = F.cross_entropy(logits, LABELS, weight=framework.class_weights)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


# --- optimisation (spec 5)


def test_groups_hold_every_learnable_parameter_once(oskdft):
    framework = one_step(oskdft)
    groups = {group['name']: group['params'] for group in framework.groups()}
    assert list(groups) == ['student', 'adapters', 'speakers']
    counts = {name: sum(p.numel() for p in group) for name, group in groups.items()}
    assert counts['adapters'] == 2 * (16 * 4 + 4 + 4 * 16 + 16)
    backend = sum(p.numel() for p in framework.backend.parameters())
    assert counts['speakers'] == backend + 5 * 6 + 5
    learnable = [id(p) for p in framework.learnable()]
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(learnable)


@pytest.mark.parametrize(
    'epoch, speakers, student',
    [  # spec 5.1
        (1, 1.000e-4, 1.00e-5),
        (5, 9.96e-5, 4.98e-5),
        (9, 9.84e-5, 8.86e-5),
        (10, 9.80e-5, 8.24e-5),
        (20, 9.14e-5, 3.99e-5),
        (30, 8.08e-5, 1.93e-5),
        (50, 5.21e-5, 4.52e-6),
        (75, 1.66e-5, 7.37e-7),
        (100, 1.02e-6, 1.20e-7),
    ],
)
def test_learning_rates_of_system_a_are_the_published(oskdft, epoch, speakers, student):
    args = args_of(oskdft, '--preset', 'vox2_w2v2')
    found = oskdft.train.learning_rates(epoch, 100, args)
    assert found['speakers'] == pytest.approx(speakers, rel=6e-3)
    assert found['student'] == pytest.approx(student, rel=6e-3)
    assert found['adapters'] == pytest.approx(10 * found['speakers'])


def test_learning_rates_of_system_a_follow_the_authors_recurrence(oskdft):
    args, student = args_of(oskdft, '--preset', 'vox2_w2v2'), None
    for epoch in range(1, 101):
        found = oskdft.train.learning_rates(epoch, 100, args)
        cosine = 1e-6 + (1e-4 - 1e-6) * (1 + math.cos(math.pi * (epoch - 1) / 100)) / 2
        student = cosine * epoch / 10 if epoch < 10 else student * 0.93
        assert found['speakers'] == pytest.approx(cosine, rel=1e-12)
        assert found['student'] == pytest.approx(student, rel=1e-12)


@pytest.mark.parametrize('preset', ['vox1_wavlm', 'vox1_hubert'])
def test_system_b_has_one_constant_rate_and_weight(oskdft, preset):
    args = args_of(oskdft, '--preset', preset)
    for epoch in (1, 37, 100):
        assert set(oskdft.train.learning_rates(epoch, 100, args).values()) == {5e-5}
        assert oskdft.train.kd_weight_of(epoch, 100, args) == 1.0


def test_distillation_of_system_a_fades_from_099_to_0(oskdft):
    args = args_of(oskdft, '--preset', 'vox2_w2v2')
    weights = [oskdft.train.kd_weight_of(epoch, 100, args) for epoch in (1, 50, 100)]
    assert weights == pytest.approx([0.99, 0.5, 0.0])


# --- evaluation (spec 9.1-1)


def test_mixed_branches_score_the_first_two_of_five_crops_without_adapters(oskdft):
    framework = one_step(oskdft).eval()
    with torch.no_grad():
        for name, p in framework.student.named_parameters():
            if '.adapter.' in name:
                p.normal_()
    student, backend = framework.student, framework.backend
    fixed = SslSpeakerEncoder(student, backend).eval()
    mixed = oskdft.systems.MixedBranches(student, backend, 5).eval()
    x = waves(rows=10)  # the crops of two files
    with torch.no_grad():
        plain = backend(student(x, adapt=torch.zeros(10, dtype=torch.bool)).states)
        with_adapters, found = fixed(x), mixed(x)
        for row in range(10):
            expected = plain if row % 5 < 2 else with_adapters
            torch.testing.assert_close(found[row], expected[row], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(plain, with_adapters, atol=1e-3)
        lengths = torch.full((10,), x.shape[1])
        torch.testing.assert_close(mixed(x, lengths), fixed(x, lengths))


# --- arguments


@pytest.mark.parametrize(
    'words, complaint',
    [
        (['--rows', 'oskdft,studnt'], 'rows'),
        (['--weighted_sum', 'false'], 'backend ecapa'),
        (['--student', 'fithubert'], 'student fithubert: kd hints'),
        (['--crop_size', '3'], 'samples, not seconds'),
        (['--student_warmup', '100'], 'student_warmup'),
        (['--snr_music', '9,3'], 'lower bound'),
        (['--DA_p', '1.5'], 'share'),
        (['--adapter_activation', 'tanh'], 'tanh'),
    ],
)
def test_wrong_argument_is_refused_in_one_line(oskdft, words, complaint):
    with pytest.raises(oskdft.arguments.arguments.ArgumentError, match=complaint) as caught:
        args_of(oskdft, *words)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'preset', ['vox1_wavlm', 'vox1_hubert', 'vox1_fithubert', 'vox2_w2v2', 'vox2_w2v2_repo']
)
def test_preset_is_a_whole_set_of_arguments(oskdft, preset):
    args = args_of(oskdft, '--preset', preset)
    assert args['mixed_branches'] == (preset == 'vox2_w2v2_repo')
    assert (args['batch_size'], args['epoch']) == (128 if 'vox2' in preset else 48, 100)
