import math

import pytest
import torch

from shared import ddp
from shared.losses.dino import DinoLoss, RedundancyLoss


def golden_outputs():
    """Student (12, 5) and teacher (4, 5) of spec wavlm_ssl 8.5: 4 + 2 crops of 2 utterances."""
    student = 0.2 * (0.3 * torch.arange(60.0)).sin().view(12, 5)
    return student, 0.2 * (0.2 * torch.arange(20.0)).cos().view(4, 5)


def golden_vectors():
    """Student and teacher (6, 4) of spec wavlm_ssl 8.5: 2 global crops of 3 utterances."""
    flat = torch.arange(24.0)
    return (0.3 * flat).sin().view(6, 4), (0.2 * flat).cos().view(6, 4)


def naive_loss(student, teacher, centre, globals, count):
    """Spec 8.1 with loops over pairs, utterances and outputs."""
    total, pairs = 0, 0
    for g in range(globals):
        for v in range(len(student) // count):
            if v == g:
                continue
            pairs += 1
            for b in range(count):
                p = ((teacher[g * count + b] - centre) / 0.04).exp()
                q = (student[v * count + b] / 0.1).exp()
                for k in range(len(p)):
                    total = total - p[k] / p.sum() * (q[k] / q.sum()).log() / count
    return total / pairs


def naive_redundancy(student, teacher, divisor, std, cov):
    """Spec 8.2 with loops over dimensions."""
    total, count = 0, len(student) // 2
    for vectors in (student, teacher):
        x = torch.stack([(vectors[b] + vectors[count + b]) / 2 for b in range(count)])
        dim = x.shape[1]
        for i in range(dim):
            a = x[:, i] - x[:, i].sum() / count
            deviation = ((a * a).sum() / (count - 1) + 1e-4).sqrt()
            total = total + std * max(1 - deviation, 0 * deviation) / dim / 2
            for j in range(dim):
                b = x[:, j] - x[:, j].sum() / count
                if i != j:
                    total = total + cov * ((a * b).sum() / (count - 1)) ** 2 / divisor
    return total


def test_loss_and_centre_have_the_golden_values_of_the_reference():
    criterion, (student, teacher) = DinoLoss(5), golden_outputs()
    assert criterion(student, teacher).item() == pytest.approx(1.7911581, abs=1e-6)
    criterion.update_centre(teacher)
    golden = [0.0006708, -0.0012219, -0.0030658, -0.0047876, -0.0063184]
    assert criterion.centre.shape == (1, 5)
    assert criterion.centre[0].tolist() == pytest.approx(golden, abs=1e-7)
    assert criterion(student, teacher).item() == pytest.approx(1.7936800, abs=1e-6)


def test_loss_alone_leaves_the_centre_which_is_in_the_state():
    criterion, (student, teacher) = DinoLoss(5), golden_outputs()
    criterion(student, teacher)
    assert (criterion.centre == 0).all() and set(criterion.state_dict()) == {'centre'}


@pytest.mark.parametrize('crops, globals', [(6, 2), (2, 2), (4, 1)])
def test_loss_equals_the_naive_version_in_value_and_gradient(crops, globals):
    torch.manual_seed(0)
    criterion = DinoLoss(7).double()
    criterion.centre.normal_(std=0.02)
    student = (0.2 * torch.randn(crops * 3, 7, dtype=torch.float64)).requires_grad_()
    teacher = (0.1 * torch.randn(globals * 3, 7, dtype=torch.float64)).requires_grad_()
    loss = criterion(student, teacher, globals)
    expected = naive_loss(student, teacher.detach(), criterion.centre[0], globals, 3)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    ours, none = torch.autograd.grad(loss, [student, teacher], allow_unused=True)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, student)[0])
    assert none is None  # the teacher learns nothing


def test_loss_of_a_collapsed_teacher_is_the_entropy_of_its_outputs():
    outputs = torch.zeros(6, 9)
    assert DinoLoss(9)(outputs, outputs[:2]).item() == pytest.approx(math.log(9))


def test_loss_is_fp32_under_autocast():
    criterion, (student, teacher) = DinoLoss(5), golden_outputs()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = criterion(student, teacher)
        reg = RedundancyLoss(7)(*golden_vectors())
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(1.7911581, abs=1e-6)
    assert reg.item() == pytest.approx(8.0587578, abs=2e-6)


@pytest.mark.parametrize('student, teacher', [(12, 3), (11, 4), (2, 4), (12, 0)])
def test_loss_refuses_rows_that_are_not_crops_of_the_same_utterances(student, teacher):
    with pytest.raises(ValueError, match=f'{student} student rows, {teacher} of 2 globals'):
        DinoLoss(5)(torch.zeros(student, 5), torch.zeros(teacher, 5))


def test_redundancy_has_the_golden_value_of_the_reference():
    assert RedundancyLoss(7)(*golden_vectors()).item() == pytest.approx(8.0587578, abs=2e-6)


@pytest.mark.parametrize('count, dim', [(3, 5), (7, 4)])  # both ways to the covariances
def test_redundancy_equals_the_naive_version_in_value_and_gradient(count, dim):
    torch.manual_seed(1)
    student, teacher = 1.3 * torch.randn(2, 2 * count, dim, dtype=torch.float64)
    student.requires_grad_()
    loss = RedundancyLoss(11, std=3.0, cov=2.0)(student, teacher)
    expected = naive_redundancy(student, teacher, 11, 3.0, 2.0)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(x, student)[0] for x in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_redundancy_gives_the_teacher_no_gradient_and_wants_two_utterances():
    student, teacher = golden_vectors()
    RedundancyLoss(7)(student.requires_grad_(), teacher.requires_grad_()).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    with pytest.raises(ValueError, match='enlarge the batch'):
        RedundancyLoss(7)(student[:2], teacher[:2])


def step(inputs, teacher, reduce):
    """Losses and the gradient of a linear student, the centre afterwards, reduced by `reduce`.

    Inputs (B, 3, 5) are three crops, teacher (B, 2, 4) outputs of two.
    """
    student = torch.nn.Linear(5, 4, bias=False)
    student.weight.data = (0.7 * torch.arange(1, 21.0)).sin().view(4, 5)
    criterion, redundancy = DinoLoss(4), RedundancyLoss(7)
    outputs = 0.1 * student(inputs.transpose(0, 1).flatten(0, 1))
    targets = teacher.transpose(0, 1).flatten(0, 1)
    loss = criterion(outputs, targets)
    reg = redundancy(outputs[: len(targets)], targets)
    (loss + 0.5 * reg).backward()
    criterion.update_centre(targets)
    return [reduce(x) for x in (loss.detach(), reg.detach(), student.weight.grad, criterion.centre)]


def step_of_rank(inputs, teacher):
    """`step` on this rank's share of the utterances, averaged over ranks as DDP does."""
    share = len(inputs) // ddp.world_size()
    own = slice(ddp.rank() * share, (ddp.rank() + 1) * share)
    return step(inputs[own], teacher[own], lambda x: ddp.all_reduce(x, op='mean'))


@pytest.mark.slow
def test_two_processes_give_losses_gradient_and_centre_of_one(run_ranks):
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(6, 3, 5, generator=generator)
    teacher = 0.1 * torch.randn(6, 2, 4, generator=generator)
    expected = step(inputs, teacher, lambda x: x)
    for found in run_ranks(step_of_rank, inputs, teacher):
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
