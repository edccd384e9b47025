"""Losses, head and back-end of papers/nawsv (spec nawsv 3.3, 3.4, 4)."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from shared import ddp

PAPER = Path(__file__).parents[2] / 'papers' / 'nawsv'


def load(name):
    """One module of the paper, in the ranks of `run_ranks` too."""
    spec = importlib.util.spec_from_file_location(f'nawsv_{name}', PAPER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


losses, models = load('losses'), load('models')


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def assert_same_gradients(ours, theirs, inputs):
    found, expected = (torch.autograd.grad(loss, inputs) for loss in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


# --- hint loss (spec 4.1)


def test_hint_loss_of_states_that_differ_by_one_everywhere_is_2_point_1():
    teacher = [torch.randn(2, 5, 8) for _ in range(13)]
    loss = losses.hint_loss([state + 1 for state in teacher], teacher, 0.1)
    assert loss.item() == pytest.approx(1 + 11 * 0.1, rel=1e-6)


def test_hint_loss_equals_loops_in_value_and_gradient():
    student = [drawn(3, 4, 2, seed=i) for i in range(4)]
    teacher = [drawn(3, 4, 2, seed=10 + i).detach() for i in range(4)]
    expected = 0.0
    for b in range(3):
        for layer in range(1, 4):
            total = sum(
                (student[layer][b, t, d] - teacher[layer][b, t, d]) ** 2
                for t in range(4)
                for d in range(2)
            )
            expected = expected + (1.0 if layer == 3 else 0.3) * total / 8 / 3
    found = losses.hint_loss(student, teacher, 0.3)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_same_gradients(found, expected, student[1:])


def test_hint_loss_does_not_compare_state_zero():
    student = [drawn(2, 3, 4, seed=i) for i in range(3)]
    loss = losses.hint_loss(student, [torch.full((2, 3, 4), 1e9), *student[1:]], 0.1)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, student[0], allow_unused=True) == (None,)


def test_hint_loss_of_one_layer_is_that_of_the_last():
    student = [torch.zeros(1, 2, 3), torch.full((1, 2, 3), 3.0)]
    assert losses.hint_loss(student, [torch.zeros(1, 2, 3)] * 2, 0.1).item() == 9


def test_hint_loss_refuses_encoders_of_different_depths():
    with pytest.raises(ValueError):
        losses.hint_loss([torch.zeros(1, 2, 3)] * 3, [torch.zeros(1, 2, 3)] * 4, 0.1)


def test_hint_loss_sees_differences_that_bf16_would_round_away():
    student, teacher = torch.full((1, 2, 3), 256.0), torch.full((1, 2, 3), 255.0)
    states = [[x.bfloat16()] * 2 for x in (student, teacher)]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = losses.hint_loss(*states, 0.1)
    assert loss.dtype == torch.float32 and loss.item() == 1


# --- E-APN (spec 4.2)


def naive_e_apn(w, b, noisy, *prototypes):
    total = 0.0
    for family in prototypes:
        for i, query in enumerate(noisy):
            logits = [w * (query @ p) / (query.norm() * p.norm()) + b for p in family]
            total = total - (logits[i].exp() / sum(logit.exp() for logit in logits)).log()
    return total / len(prototypes) / len(noisy)


@pytest.mark.parametrize('families', [1, 3])
def test_e_apn_of_equal_constant_embeddings_is_log_n(families):
    constant = torch.full((6, 4), 0.7)
    loss = losses.EApn()(constant, *[constant] * families)
    assert loss.item() == pytest.approx(math.log(6), rel=1e-6)


@pytest.mark.parametrize('families', [1, 3])
def test_e_apn_equals_loops_in_value_and_gradient(families):
    module = losses.EApn().double()
    embeddings = [drawn(5, 3, seed=i) for i in range(families + 1)]
    found = module(*embeddings)
    expected = naive_e_apn(module.w, module.b, *embeddings)
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    assert_same_gradients(found, expected, [module.w, *embeddings])
    assert torch.autograd.grad(module(*embeddings), module.b)[0].abs() < 1e-12  # it cancels


def test_e_apn_starts_at_the_published_scale_and_bias():
    state = losses.EApn().state_dict()
    assert {name: value.item() for name, value in state.items()} == {'w': 10, 'b': -5}


def test_e_apn_never_uses_a_scale_below_its_floor():
    embeddings = [drawn(5, 3, seed=i).detach() for i in range(2)]
    negative, floor = losses.EApn(init_w=-3.0), losses.EApn(init_w=1e-6)
    assert torch.equal(negative(*embeddings), floor(*embeddings))


def test_e_apn_is_fp32_under_autocast():
    module, embeddings = losses.EApn(), [torch.randn(5, 3).bfloat16() for _ in range(4)]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = module(*embeddings)
    assert torch.equal(found, module(*(x.float() for x in embeddings)))


def e_apn_of_a_rank(gather):
    """Loss of this rank's half, and the gradients DDP would average."""
    module = losses.EApn(gather=gather).double()
    whole = [drawn(6, 3, seed=i) for i in range(4)]
    half = slice(3 * ddp.rank(), 3 * ddp.rank() + 3)
    loss = module(*(x[half] for x in whole))
    loss.backward()
    gradients = [x.grad / ddp.world_size() for x in (*whole, module.w)]
    return loss.item(), [ddp.all_reduce(x).tolist() for x in gradients]


def test_gathered_e_apn_on_two_processes_is_that_of_one(run_ranks):
    (loss0, gradients), (loss1, same) = run_ranks(e_apn_of_a_rank, True)
    assert gradients == same
    module, whole = losses.EApn().double(), [drawn(6, 3, seed=i) for i in range(4)]
    expected = naive_e_apn(module.w, module.b, *whole)
    assert (loss0 + loss1) / 2 == pytest.approx(expected.item(), rel=1e-10)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, [*whole, module.w])):
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), theirs)


def test_e_apn_has_the_other_speakers_of_its_own_rank_unless_gathered(run_ranks):
    ranks = run_ranks(e_apn_of_a_rank, False)
    whole = [drawn(6, 3, seed=i) for i in range(4)]
    for (loss, _), half in zip(ranks, (slice(0, 3), slice(3, 6))):
        expected = naive_e_apn(10.0, -5.0, *(x[half] for x in whole))
        assert loss == pytest.approx(expected.item(), rel=1e-10)


# --- class weights (spec 2.1, 4.4)

LABELS = torch.tensor([0, 2, 2, 1, 0, 2])
WEIGHTS = torch.tensor([3.0, 0.5, 1.5], dtype=torch.float64)


def test_class_weights_are_all_files_over_those_of_the_class():
    found = losses.class_weights(LABELS, 3)
    assert found.tolist() == [6 / 2, 6 / 1, 6 / 3] and found.dtype == torch.float32
    assert losses.class_weights(LABELS, 4).isfinite().all()  # of a class without files too


def weighted_mean_of_a_rank():
    """Loss of this rank's part, the halves of unequal weight, and the averaged gradient."""
    logits = drawn(6, 3)
    half = slice(3 * ddp.rank(), 3 * ddp.rank() + 3)
    sample_losses = F.cross_entropy(logits[half], LABELS[half], reduction='none')
    loss = losses.weighted_mean(sample_losses, LABELS[half], WEIGHTS)
    loss.backward()
    return loss.item(), ddp.all_reduce(logits.grad, 'mean').tolist()


def test_weighted_mean_equals_torchs_in_value_and_gradient():
    logits = drawn(6, 3)
    expected = F.cross_entropy(logits, LABELS, weight=WEIGHTS)
    sample_losses = F.cross_entropy(logits, LABELS, reduction='none')
    naive = sum(WEIGHTS[y] * loss for y, loss in zip(LABELS, sample_losses))
    naive = naive / sum(WEIGHTS[y] for y in LABELS)
    found = losses.weighted_mean(sample_losses, LABELS, WEIGHTS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert found.item() == pytest.approx(naive.item(), rel=1e-12)
    expected_gradient = torch.autograd.grad(expected, logits)[0]
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], expected_gradient)


def test_weighted_mean_on_two_processes_is_that_of_one(run_ranks):
    (loss0, gradient), (loss1, same) = run_ranks(weighted_mean_of_a_rank)
    assert gradient == same
    logits = drawn(6, 3)
    expected = F.cross_entropy(logits, LABELS, weight=WEIGHTS)
    assert (loss0 + loss1) / 2 == pytest.approx(expected.item(), rel=1e-12)
    expected.backward()
    torch.testing.assert_close(torch.tensor(gradient, dtype=torch.float64), logits.grad)


# --- head and back-end (spec 3.3, 3.4)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_head_and_back_end_have_the_published_numbers_of_parameters():
    with torch.device('meta'):
        head, back_end = models.LinearHead(), models.BackEnd()
    assert parameters(head) == 295_501
    assert parameters(back_end) == 8_739_469
    parts = {name: parameters(m) for name, m in back_end.network.named_children()}
    assert parts['stem'] == 1_966_592 + 1_024 and parts['blocks'] == 3 * 746_432
    assert parts['mfa'] == 2_360_832 and parts['pooling'] == 1_575_168
    assert parts['projection'] == 590_016


def tiny(kind, states=3, width=8):
    """A narrow module with every number random, batch statistics too, in eval mode."""
    if kind == 'head':
        module = models.LinearHead(states, width, 5)
    else:
        module = models.BackEnd(states, width, 5, 16, 12, 6, 4)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise.abs() if name.endswith('running_var') else 0.4 * noise)
    return module.eval()


@pytest.mark.parametrize('kind', ['head', 'back-end'])
def test_padded_rows_get_the_embeddings_they_get_alone(kind):
    module, frames = tiny(kind), torch.tensor([9, 20, 2, 13])
    states = [torch.randn(4, 20, 8) for _ in range(3)]
    poisoned = [state.clone() for state in states]
    for state in poisoned:
        for row, count in zip(state, frames.tolist()):
            row[count:] = 1e4  # what an encoder leaves in padded frames does not matter
    with torch.no_grad():
        batched = module(poisoned, frames)
        for i, count in enumerate(frames.tolist()):
            alone = module([state[i : i + 1, :count] for state in states])[0]
            torch.testing.assert_close(batched[i], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            module(states, torch.full((4,), 20)), module(states), rtol=1e-5, atol=1e-5
        )


def test_full_width_back_end_embeds_padded_rows_as_alone():
    torch.manual_seed(0)
    module, frames = models.BackEnd().eval(), [30, 49]
    states = [torch.randn(2, 49, 768) for _ in range(13)]
    with torch.no_grad():
        batched = module(states, torch.tensor(frames))
        alone = [module([s[i : i + 1, :n] for s in states]) for i, n in enumerate(frames)]
    torch.testing.assert_close(batched, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', ['head', 'back-end'])
def test_every_state_and_every_parameter_gets_a_gradient(kind):
    module, states = tiny(kind).train(), [torch.randn(4, 9, 8) for _ in range(3)]
    states = [state.requires_grad_() for state in states]
    (module(states) * torch.randn(4, 5)).sum().backward()
    assert all(state.grad.abs().sum() > 0 for state in states)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize('kind', ['head', 'back-end'])
def test_embedding_does_not_change_with_the_level_the_instance_norm_removes(kind):
    module, states = tiny(kind), [torch.randn(2, 30, 8) for _ in range(3)]
    with torch.no_grad():
        plain, shifted = module(states), module([10 * state + 3 for state in states])
    same = torch.allclose(plain, shifted, rtol=1e-3, atol=1e-3)
    assert same == (kind == 'back-end')


@pytest.mark.parametrize('kind', ['head', 'back-end'])
def test_another_number_of_states_is_refused(kind):
    with pytest.raises(ValueError, match='4 hidden states for 3 weights'):
        tiny(kind)([torch.randn(2, 9, 8)] * 4)
