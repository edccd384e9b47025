"""The three KD losses of papers/enskd (spec enskd 4.3-4.6, 8.2-11, 8.5)."""

import math

import pytest
import torch
import torch.nn.functional as F

from shared.losses.aam_softmax import AamSoftmax

# Vectors of spec 4.6.
STUDENT = torch.tensor([[2, 1, 0, -1], [0.5, -0.5, 1.5, 0.25]], dtype=torch.float64)
TEACHER = torch.tensor([[3, 0, 1, -2], [-1, 0, 2.5, 0.5]], dtype=torch.float64)
LABELS = torch.tensor([0, 2])


@pytest.fixture
def losses(paper):
    return paper('enskd').losses


def drawn(rows=5, classes=7, scale=2.0, seed=0):
    """Logits of student and teacher (B, C) in float64, the student's with a gradient; labels."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    labels = torch.randint(classes, (rows,), generator=generator)
    return student.requires_grad_(), teacher, labels


def of_aam(dtype=torch.float32, classes=50, dim=8):
    """Logits at scale 32 with margin, of embeddings near to and far from their class."""
    generator = torch.Generator().manual_seed(0)
    criterion = AamSoftmax(classes, dim, margin=0.2, scale=32.0).to(dtype)
    criterion.weight.data = torch.randn(classes, dim, generator=generator, dtype=dtype)
    labels = torch.arange(6)
    near = criterion.weight.data[:6] + 0.1 * torch.randn(6, dim, generator=generator, dtype=dtype)
    far = torch.randn(6, dim, generator=generator, dtype=dtype)
    student, teacher = (criterion(x, labels)[1].detach() for x in (far, near))
    return student.requires_grad_(), teacher, labels


def naive(student, teacher, labels, temperature=1.0):
    """TCKD, NCKD and 1 - p_y of each row (4.3), element by element."""
    found = []
    for z, v, y in zip(student, teacher, labels.tolist()):
        e_z, e_v = (
            [torch.exp((x - row.max().detach()) / temperature) for x in row] for row in (z, v)
        )
        q, p = ([e / sum(row) for e in row] for row in (e_z, e_v))
        others = [j for j in range(len(z)) if j != y]
        not_p, not_q = (sum(x[j] for j in others) for x in (p, q))
        tckd = p[y] * torch.log(p[y] / q[y]) + not_p * torch.log(not_p / not_q)
        nckd = sum(p[j] / not_p * torch.log((p[j] / not_p) / (q[j] / not_q)) for j in others)
        found.append((tckd, nckd, not_p))
    return [torch.stack(part) for part in zip(*found)]


def assert_equal_with_gradient(found, expected, student):
    assert found.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-13)
    ours, theirs = (torch.autograd.grad(x, student, retain_graph=True) for x in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


# --- values of the spec


@pytest.mark.parametrize(
    'temperature, tckd, nckd, total',
    [
        (1.0, 0.1124515244, 0.3743070417, 0.8610656078),
        (4.0, 0.1777343699, 0.4248190914, 1.0273725527),
    ],
)
def test_enskd_has_the_values_of_the_reference(losses, temperature, tckd, nckd, total):
    found = losses.enskd_loss(STUDENT, TEACHER, LABELS, gamma=2.0, temperature=temperature)
    assert temperature**2 * found.target.item() == pytest.approx(tckd, abs=1e-10)
    assert temperature**2 * found.non_target.item() == pytest.approx(nckd, abs=1e-10)
    assert found.loss.item() == pytest.approx(total, abs=1e-10)


def test_kl_has_the_value_of_the_reference(losses):
    found = losses.kl_loss(STUDENT, TEACHER, LABELS)
    assert found.loss.item() == pytest.approx(0.1779413143, abs=1e-10)
    assert found.target.item() == pytest.approx(0.1124515244, abs=1e-10)
    assert found.non_target.item() == pytest.approx(0.3743070417, abs=1e-10)


def test_gradient_of_the_non_target_part_is_that_of_the_reference(losses):
    student = STUDENT.clone().requires_grad_()
    losses.non_target_kd(student, TEACHER, LABELS).mean().backward()
    expected = [
        [0, 0.20287225, -0.23032802, 0.02745577],
        [0.17194196, -0.08006382, 0, -0.09187814],
    ]
    torch.testing.assert_close(student.grad, torch.tensor(expected).double(), rtol=0, atol=1e-8)
    assert student.grad[0, 0] == student.grad[1, 2] == 0  # exactly


@pytest.mark.parametrize(
    'epoch, weighted',
    [(1, 0.0430532804), (10, 0.4305328039), (20, 0.8610656078), (150, 0.8610656078)],
)
def test_ramp_weighs_the_loss_as_the_reference(losses, epoch, weighted):
    loss = losses.enskd_loss(STUDENT, TEACHER, LABELS).loss
    assert losses.ramp(epoch, 20) * loss.item() == pytest.approx(weighted, abs=1e-10)


def test_ramp_of_no_epochs_is_one_at_once(losses):
    assert losses.ramp(1, 0) == 1.0


# --- loops in float64


@pytest.mark.parametrize('temperature', [1.0, 4.0])
@pytest.mark.parametrize('gamma', [0.0, 2.0, 8.0])
def test_enskd_equals_the_loops_in_value_and_gradient(losses, temperature, gamma):
    student, teacher, labels = drawn()
    tckd, nckd, _ = naive(student, teacher, labels, temperature)
    expected = temperature**2 / 5 * sum(tckd + gamma * nckd)
    found = losses.enskd_loss(student, teacher, labels, gamma, temperature)
    assert_equal_with_gradient(found.loss, expected, student)


@pytest.mark.parametrize('part', [0, 1], ids=['target', 'non_target'])
def test_each_part_of_each_row_equals_the_loops(losses, part):
    student, teacher, labels = drawn(seed=1)
    found = (losses.target_kd, losses.non_target_kd)[part](student, teacher, labels, 2.0)
    expected = naive(student, teacher, labels, 2.0)[part]
    assert found.shape == (5,)
    for row in range(5):
        assert_equal_with_gradient(found[row], expected[row], student)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_kl_equals_the_loops_and_torchs_divergence_in_value_and_gradient(losses, temperature):
    student, teacher, labels = drawn(seed=2)
    found = losses.kl_loss(student, teacher, labels, temperature).loss
    tckd, nckd, not_p = naive(student, teacher, labels, temperature)
    expected = temperature**2 / 5 * sum(tckd + not_p * nckd)
    assert_equal_with_gradient(found, expected, student)
    log_q, log_p = (x.div(temperature).log_softmax(1) for x in (student, teacher))
    whole = F.kl_div(log_q, log_p, reduction='batchmean', log_target=True)
    assert_equal_with_gradient(found, temperature**2 * whole, student)


def test_cosine_equals_the_loops_in_value_and_gradient(losses):
    student, teacher, _ = drawn(3, 4, seed=3)
    cosines = [
        sum(a * b for a, b in zip(e, u)) / (sum(a * a for a in e) * sum(b * b for b in u)) ** 0.5
        for e, u in zip(student, teacher)
    ]
    found = losses.cosine_loss(student, teacher)
    assert_equal_with_gradient(found, 1 - sum(cosines) / 3, student)


# --- identities


@pytest.mark.parametrize('rows', [1, 64])
def test_kl_is_enskd_whose_gamma_is_what_the_teacher_leaves_to_the_others(losses, rows):
    student, teacher, labels = drawn(rows, seed=4)
    left = 1 - teacher.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
    expected = losses.enskd_loss(student, teacher, labels, gamma=left).loss
    assert_equal_with_gradient(losses.kl_loss(student, teacher, labels).loss, expected, student)


def test_non_target_part_ignores_the_target_and_a_shift_of_all_others(losses):
    student, teacher, labels = drawn(seed=5)
    target = F.one_hot(labels, 7).double()
    expected = losses.non_target_kd(student, teacher, labels)
    shift = torch.arange(5.0).unsqueeze(1).double()
    for change in (9 * target, shift * (1 - target)):
        for moved in ((student + change, teacher), (student, teacher - change)):
            found = losses.non_target_kd(*moved, labels)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
            assert not torch.allclose(losses.target_kd(*moved, labels)[1:], expected[1:])


def test_no_gradient_is_left_when_the_student_is_the_teacher(losses):
    teacher, _, labels = drawn(seed=6)
    student = teacher.detach().clone().requires_grad_()
    for function in (losses.enskd_loss, losses.kl_loss):
        found = function(student, teacher, labels).loss
        assert found.item() == pytest.approx(0, abs=1e-14)
        assert torch.autograd.grad(found, student)[0].abs().max() < 1e-15
    assert losses.cosine_loss(student, 3 * teacher).item() == pytest.approx(0, abs=1e-14)


def test_parts_are_never_negative_and_vanish_for_two_classes(losses):
    student, teacher, labels = drawn(200, seed=7)
    assert losses.target_kd(student, teacher, labels).min() > 0
    assert losses.non_target_kd(student, teacher, labels).min() > 0
    found = losses.non_target_kd(student[:, :2], teacher[:, :2], labels % 2)
    assert (found == 0).all()


def test_teacher_gets_no_gradient_and_the_reported_parts_carry_none(losses):
    student, teacher, labels = drawn()
    teacher.requires_grad_()
    for function in (losses.enskd_loss, losses.kl_loss):
        found = function(student, teacher, labels)
        assert not found.target.requires_grad and not found.non_target.requires_grad
        assert torch.autograd.grad(found.loss, teacher, allow_unused=True) == (None,)
    loss = losses.cosine_loss(student, teacher)
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None,)


# --- extreme logits and low precision


def test_a_certain_teacher_at_scale_32_is_exact_in_fp32(losses):
    student, teacher, labels = of_aam()
    with torch.no_grad():
        student[0, 1:], student[0, 0] = 30.0, -32.6  # as wrong as a student can be
        teacher[1:3] = -32.0
        teacher[1, 1] = teacher[2, 2] = 32.0
        teacher[1, 5] = -12.0
    assert (teacher.softmax(1).gather(1, labels.unsqueeze(1)) == 1).any()  # rounds to 1 in fp32
    wide = student.detach().double().requires_grad_()
    tckd, nckd, not_p = naive(wide, teacher.double(), labels)
    expected = {'enskd_loss': tckd + 2 * nckd, 'kl_loss': tckd + not_p * nckd}
    for name, each in expected.items():
        found = getattr(losses, name)(student, teacher, labels).loss
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(each.mean().item(), rel=1e-5)
        (ours,) = torch.autograd.grad(found, student)
        (theirs,) = torch.autograd.grad(each.mean(), wide, retain_graph=True)
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-6)


def test_a_teacher_sure_to_30_digits_still_teaches_the_other_speakers(losses):
    teacher = torch.tensor([[70.0, 0.0, 1.0, -1.0]])  # p_y = 1 - 1e-30
    student = torch.zeros(1, 4, requires_grad=True)
    labels = torch.tensor([0])
    others = losses.log_odds(teacher, labels, 1.0).neg().sigmoid().item()
    exact = sum(math.exp(x - 70) for x in (0.0, 1.0, -1.0))
    assert others == pytest.approx(exact, rel=1e-4) and 1e-31 < others < 1e-29
    p = torch.tensor([0.0, 1.0, -1.0]).softmax(0)
    nckd = (p * (3 * p).log()).sum().item()
    found = losses.enskd_loss(student, teacher, labels)
    assert found.target.item() == pytest.approx(math.log(4), rel=1e-6)
    assert found.non_target.item() == pytest.approx(nckd, rel=1e-6)
    (grad,) = torch.autograd.grad(found.loss, student)
    expected = torch.tensor([0.25 - 1, *(0.25 + 2 * (1 / 3 - p))])  # q - p, and 2 (q^ - p^)
    torch.testing.assert_close(grad[0], expected, rtol=1e-5, atol=1e-6)
    assert losses.kl_loss(student, teacher, labels).loss.item() == pytest.approx(math.log(4))


@pytest.mark.parametrize('size', [1e3, 1e4])
def test_huge_logits_give_finite_losses_and_gradients(losses, size):
    student, teacher, labels = drawn(scale=1.0)
    student = (size * student).float().detach().requires_grad_()
    teacher = (-size * teacher).float()
    for function in (losses.enskd_loss, losses.kl_loss):
        found = function(student, teacher, labels).loss
        assert found.isfinite() and torch.autograd.grad(found, student)[0].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=['fp16', 'bf16'])
def test_half_precision_is_computed_in_fp32_under_autocast(losses, dtype):
    student, teacher, labels = of_aam()
    half = student.detach().to(dtype).requires_grad_()
    for function in (losses.enskd_loss, losses.kl_loss):
        with torch.autocast('cpu', dtype=dtype):
            found = function(half, teacher.to(dtype), labels)
        assert {x.dtype for x in found} == {torch.float32}
        expected = function(half.float(), teacher.to(dtype).float(), labels)
        assert torch.equal(found.loss, expected.loss)
        assert torch.autograd.grad(found.loss, half)[0].isfinite().all()
    with torch.autocast('cpu', dtype=dtype):
        cosine = losses.cosine_loss(half, teacher.to(dtype))
    assert torch.equal(cosine, losses.cosine_loss(half.float(), teacher.to(dtype).float()))


def test_plain_kl_hardly_passes_on_what_a_sure_teacher_knows_of_the_others(losses):
    student, teacher, labels = drawn(8, 20, seed=8)
    sure = teacher + 25 * F.one_hot(labels, 20)  # what the emphasis is for (4.4)
    target = losses.target_kd(student, sure, labels)
    others = losses.non_target_kd(student, sure, labels)
    kl, enskd = (f(student, sure, labels).loss for f in (losses.kl_loss, losses.enskd_loss))
    assert kl.item() == pytest.approx(target.mean().item(), rel=1e-6)
    assert enskd.item() == pytest.approx((target + 2 * others).mean().item(), rel=1e-12)
