"""Hints: hidden states compared layer by layer, against loops."""

import pytest
import torch

from shared.losses.hint import hint_loss


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_hint_loss_of_states_that_differ_by_one_everywhere_is_2_point_1():
    teacher = [torch.randn(2, 5, 8) for _ in range(12)]
    loss = hint_loss([state + 1 for state in teacher], teacher, 0.1)
    assert loss.item() == pytest.approx(1 + 11 * 0.1, rel=1e-6)


def test_hint_loss_equals_loops_in_value_and_gradient():
    student = [drawn(3, 4, 2, seed=i) for i in range(4)]
    teacher = [drawn(3, 4, 2, seed=10 + i).detach() for i in range(4)]
    expected = 0.0
    for b in range(3):
        for layer in range(4):
            total = sum(
                (student[layer][b, t, d] - teacher[layer][b, t, d]) ** 2
                for t in range(4)
                for d in range(2)
            )
            expected = expected + (1.0 if layer == 3 else 0.3) * total / 8 / 3
    found = hint_loss(student, teacher, 0.3)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    ours, theirs = (torch.autograd.grad(loss, student) for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_hint_loss_of_one_layer_is_that_of_the_last():
    assert hint_loss([torch.full((1, 2, 3), 3.0)], [torch.zeros(1, 2, 3)], 0.1).item() == 9


def test_hint_loss_refuses_different_numbers_of_states_and_none():
    for ours, theirs in ((3, 4), (0, 0)):
        with pytest.raises(ValueError):
            hint_loss([torch.zeros(1, 2, 3)] * ours, [torch.zeros(1, 2, 3)] * theirs, 0.1)


def test_hint_loss_sees_differences_that_bf16_would_round_away():
    student, teacher = torch.full((1, 2, 3), 256.0), torch.full((1, 2, 3), 255.0)
    states = [[x.bfloat16()] for x in (student, teacher)]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = hint_loss(*states, 0.1)
    assert loss.dtype == torch.float32 and loss.item() == 1
