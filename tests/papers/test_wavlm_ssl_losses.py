"""Gate, label correction and pull of papers/wavlm_ssl (spec wavlm_ssl 4)."""

import math

import pytest
import torch
from modules import load

from shared import ddp
from shared.losses.aam_softmax import AamSoftmax, plain_logits

losses = load('wavlm_ssl', 'losses')

# --- vectors of spec 4.6

W = torch.tensor([[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0.5, 0.5]])
Z = torch.tensor(
    [[0.9, 0.1, 0.2, 0], [0.1, 0.2, 0.9, 0.3], [-0.5, 0.4, 0.1, 0.2], [0.3, 0.3, 0.3, 0.3]]
)
CLEAN = torch.tensor(
    [[0.8, 0.1, 0.1, 0], [0.1, 0.1, 1, 0.4], [-0.4, 0.5, 0.1, 0.1], [0.3, 0.31, 0.3, 0.3]]
)
Y = torch.tensor([0, 1, 0, 2])


def vectors(dtype=torch.float32):
    """Losses (4,), logits (4, 3), clean logits, labels, and what they depend on."""
    criterion = AamSoftmax(3, 4).to(dtype)
    criterion.weight.data = W.to(dtype)
    z = Z.to(dtype).clone().requires_grad_()
    each, logits = criterion(z, Y)
    return each, logits, CLEAN.to(dtype) @ W.to(dtype).T, Y, (z, criterion.weight)


def test_aam_softmax_has_the_losses_and_logits_of_the_reference():
    each, logits, *_ = vectors()
    expected = [
        [27.0973854, 3.2349832, 4.5749574],
        [3.0779352, 0.1999077, 26.1171455],
        [-25.7024498, 17.6930351, 9.3831482],
        [15, 15, 16.5759373],
    ]
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert each.tolist() == pytest.approx([0, 25.9172382, 43.3957291, 0.3461589], rel=1e-5)
    assert each[0] == 0  # exactly, in float32


def test_clean_view_predicts_as_the_reference():
    p, own = (vectors()[2] / 0.1).softmax(1).max(1)
    assert p.tolist() == pytest.approx([0.9969773, 0.9908675, 0.9998758, 0.9246209], abs=1e-6)
    assert own.tolist() == [0, 2, 1, 1]


@pytest.mark.parametrize(
    ('log_gate', 'gated', 'with_correction'),
    [
        (1e6, 17.4147816, 17.4147816),
        (1.0, 0.1730795, 0.0866012),
        (3.2, 0.1730795, 0.0866012),
        (losses.NO_GATE, 17.4147816, 17.4147816),
    ],
)
def test_gated_and_corrected_losses_have_the_values_of_the_reference(
    log_gate, gated, with_correction
):
    each, logits, clean, labels, _ = vectors()
    found = losses.gate_and_correct(each, logits, None, labels, log_gate)
    assert found.loss.item() == pytest.approx(gated, rel=1e-5)
    assert torch.equal(found.labels, labels) and not found.corrected.any()
    found = losses.gate_and_correct(each, logits, clean, labels, log_gate)
    assert found.loss.item() == pytest.approx(with_correction, rel=1e-5)
    if log_gate < 10:
        assert found.kept.tolist() == [True, False, False, True]
        assert found.corrected.tolist() == [False, True, True, False]
        assert found.labels.tolist() == [0, 2, 1, 2]


# --- loops in float64


def naive(each, logits, clean, labels, tau, *, soft=None, sure=0.5, temperature=0.1):
    """Spec 4.3 and 4.4, sample by sample; in `soft` the logits without margin."""
    total, passed = 0.0, 0
    for i in range(len(each)):
        if math.log(max(each[i].item(), 1e-8)) <= tau:
            total, passed = total + each[i], passed + 1
        elif clean is not None:
            e = [math.exp(x / temperature) for x in clean[i].tolist()]
            p = [x / sum(e) for x in e]
            if max(p) > sure:
                scores = logits[i] if soft is None else soft[i]
                log_q = [score - scores.exp().sum().log() for score in scores]
                target = [float(x == max(p)) for x in p] if soft is None else p
                total = total - sum(t * q for t, q in zip(target, log_q))
    return total / (max(1, passed) if clean is None else len(each))


def drawn(count=12, classes=5):
    """As `vectors`, random in float64, with confident and doubtful predictions."""
    generator = torch.Generator().manual_seed(0)
    z, w = (torch.randn(n, 6, generator=generator).double() for n in (count, classes))
    criterion = AamSoftmax(classes, 6, scale=6.0).double()
    criterion.weight.data = w
    labels = torch.randint(classes, (count,), generator=generator)
    z.requires_grad_()
    each, logits = criterion(z, labels)
    clean = 0.1 * torch.randn(count, classes, generator=generator).double()
    clean[::3] *= 5
    return each, logits, clean, labels, (z, criterion.weight)


@pytest.mark.parametrize('mode', ['gate', 'hard', 'soft'])
@pytest.mark.parametrize('log_gate', [math.inf, 1.5, 0.3, -9.0])
def test_loss_equals_the_naive_version_in_value_and_gradient(mode, log_gate):
    each, logits, clean, labels, inputs = drawn()
    clean = None if mode == 'gate' else clean
    soft = plain_logits(*inputs, scale=6.0) if mode == 'soft' else None
    found = losses.gate_and_correct(each, logits, clean, labels, log_gate, plain_logits=soft)
    expected = naive(each, logits, clean, labels, log_gate, soft=soft)
    if log_gate == 0.3:
        assert 0 < found.kept.sum() < 12 and (clean is None or 0 < found.corrected.sum() < 8)
    if not (found.kept | found.corrected).any():
        assert found.loss.item() == expected == 0 and mode == 'gate'
        expected = 0 * each.sum()
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    ours, theirs = (
        torch.autograd.grad(x, inputs, retain_graph=True) for x in (found.loss, expected)
    )
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_confidence_and_sharpness_are_those_asked_for():
    each, logits, _, labels, _ = vectors()
    clean = torch.tensor([[0.0, 0.0, 0.1]]).repeat(4, 1)  # p = 0.576 at 0.1, 0.787 at 0.05
    for options, corrected in (
        ({}, 2),
        ({'sure': 0.6}, 0),
        ({'sure': 0.6, 'temperature': 0.05}, 2),
    ):
        found = losses.gate_and_correct(each, logits, clean, labels, 1.0, **options)
        assert found.corrected.sum() == corrected


def test_a_loss_on_the_gate_passes_and_a_probability_on_the_threshold_does_not():
    each, logits, labels = (
        torch.tensor([1.0, 1.0001, 2.0]),
        torch.zeros(3, 2),
        torch.zeros(3).long(),
    )
    clean = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 1e-3]])  # p = 1/2, exactly, and above
    found = losses.gate_and_correct(each, logits, clean, labels, 0.0)
    assert found.kept.tolist() == [True, False, False]
    assert found.corrected.tolist() == [False, False, True]


def test_doubtful_samples_above_the_gate_add_nothing():
    each, logits, _, labels, inputs = drawn()
    clean = torch.zeros(12, 5, dtype=torch.float64)  # p = 1/5 for all
    found = losses.gate_and_correct(each, logits, clean, labels, 0.3)
    assert not found.corrected.any() and 0 < found.kept.sum() < 12
    assert found.loss.item() == pytest.approx(each[found.kept].sum().item() / 12)


def test_clean_view_and_masks_carry_no_gradient():
    each, logits, clean, labels, inputs = drawn()
    clean.requires_grad_()
    soft = plain_logits(*inputs)
    for plain in (None, soft):
        found = losses.gate_and_correct(each, logits, clean, labels, 0.3, plain_logits=plain)
        (grad,) = torch.autograd.grad(found.loss, clean, retain_graph=True, allow_unused=True)
        assert grad is None


def test_zero_loss_is_kept_and_finite():
    each, logits, clean, labels, inputs = vectors()
    assert each[0] == 0
    for log_gate in (-18.4, 1.0):  # the logarithm of the floor is -18.42
        found = losses.gate_and_correct(each, logits, clean, labels, log_gate)
        assert found.kept[0]
        grads = torch.autograd.grad(found.loss, inputs, retain_graph=True)
        assert found.loss.isfinite() and all(grad.isfinite().all() for grad in grads)
    assert not losses.gate_and_correct(each, logits, None, labels, -19.0).kept.any()


def test_nothing_passed_is_a_loss_of_zero_with_zero_gradient_not_nan():
    each, logits, _, labels, inputs = drawn()
    found = losses.gate_and_correct(each, logits, None, labels, -100.0)
    objective = losses.objective(found.loss, torch.zeros((), dtype=torch.float64))
    assert found.loss.item() == objective.item() == 0 and not found.kept.any()
    assert all((grad == 0).all() for grad in torch.autograd.grad(objective, inputs))
    assert losses.shares(found, logits) == {'kept': 0, 'corrected': 0, 'hits': 0}


def test_a_nan_loss_is_seen_behind_every_gate():
    each = torch.tensor([0.5, math.nan])
    found = losses.gate_and_correct(each, torch.zeros(2, 3), None, torch.zeros(2).long(), -5.0)
    assert found.loss.isnan()


def test_accuracy_is_counted_over_what_is_learnt_against_what_is_learnt():
    kept, corrected = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]).bool()
    gated = losses.Gated(torch.zeros(()), kept, corrected, torch.tensor([0, 1, 2, 0, 0]))
    logits = torch.eye(3)[[0, 2, 2, 1, 0]]  # hit, miss, hit, miss, rejected though class 0
    found = {name: value.item() for name, value in losses.shares(gated, logits).items()}
    assert found == pytest.approx({'kept': 0.4, 'corrected': 0.4, 'hits': 0.4})
    assert found['hits'] / (found['kept'] + found['corrected']) == pytest.approx(0.5)


# --- pull and combination (spec 4.5)


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 4), (4,), (1, 2, 1, 1))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize('squared', [False, True])
def test_pull_equals_the_naive_version_in_value_and_gradient(squared):
    now, before = [x.requires_grad_() for x in tensors(0)], tensors(1)
    found, expected = losses.pull(now, before, squared=squared), 0.0
    for a, b in zip(now, before):
        squares = sum((x - y) ** 2 for x, y in zip(a.flatten(), b.flatten()))
        expected = expected + (squares if squared else squares**0.5)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for a, b in zip(torch.autograd.grad(found, now), torch.autograd.grad(expected, now)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_pull_is_zero_with_zero_gradient_at_the_first_step():
    now = [x.requires_grad_() for x in tensors(0)]
    distance = losses.pull(now, tensors(0))
    whole = losses.objective(torch.tensor(2.0), distance)
    assert distance.item() == 0 and whole.item() == 1
    assert all((grad == 0).all() for grad in torch.autograd.grad(whole, now))


def test_pull_of_other_tensors_is_an_error():
    with pytest.raises(ValueError):
        losses.pull(tensors(0), tensors(1)[:2])


def test_objective_has_gradients_of_the_logarithms():
    loss, distance = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (4.0, 0.5))
    found = losses.objective(loss, distance, weight=0.01)
    assert found.item() == pytest.approx(1 + 0.01 * 0.5 / (0.5 + 1e-5), rel=1e-12)
    found.backward()
    assert loss.grad.item() == pytest.approx(1 / 4)
    assert distance.grad.item() == pytest.approx(0.01 / (0.5 + 1e-5))


def test_constant_factor_of_the_loss_cancels():
    each, logits, clean, labels, inputs = drawn()
    found = losses.gate_and_correct(each, logits, clean, labels, 0.3).loss
    one, two = (
        torch.autograd.grad(x / losses.level_of(x), inputs, retain_graph=True)
        for x in (found, 7 * found)
    )
    for a, b in zip(one, two):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# --- two processes


def step_of_a_rank(rows, log_gate, corrected):
    """What is minimised of this rank's rows, and the gradients that DDP would average."""
    each, logits, clean, labels, inputs = drawn()
    own = torch.tensor(rows[ddp.rank()])
    found = losses.gate_and_correct(
        each[own], logits[own], clean[own] if corrected else None, labels[own], log_gate
    )
    objective = losses.objective(found.loss, torch.zeros((), dtype=torch.float64))
    grads = torch.autograd.grad(objective, inputs)
    return found.loss.item(), [ddp.all_reduce(grad, 'mean').tolist() for grad in grads]


@pytest.mark.parametrize('corrected', [False, True])
def test_two_processes_learn_what_one_does(run_ranks, corrected):
    kept = drawn()[0].detach().log() <= 0.3
    order = kept.long().argsort().tolist()  # the first rank has the rejected ones
    for rows in ([order[:6], order[6:]], [list(range(6)), list(range(6, 12))]):
        (loss0, grads), (loss1, same) = run_ranks(step_of_a_rank, rows, 0.3, corrected)
        assert grads == same
        loss, expected = step_of_a_rank([sum(rows, [])], 0.3, corrected)
        assert (loss0 + loss1) / 2 == pytest.approx(loss, rel=1e-12)
        for a, b in zip(grads, expected):
            a, b = (torch.tensor(x, dtype=torch.float64) for x in (a, b))
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
