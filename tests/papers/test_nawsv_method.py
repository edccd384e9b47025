"""Losses of papers/nawsv (spec nawsv 4)."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from modules import load
from recipes import TINY_WAVLM, pretrained

from shared import ddp

losses = load('nawsv', 'losses')


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def assert_same_gradients(ours, theirs, inputs):
    found, expected = (torch.autograd.grad(loss, inputs) for loss in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


# --- hint loss (spec 4.1)


def test_warm_up_does_not_compare_the_input_of_the_first_layer():
    student = [drawn(4, 3, 5, seed=i) for i in range(3)]
    states = student, [torch.full((4, 3, 5), 1e9), *student[1:]]
    fake = SimpleNamespace(
        states=lambda *waves: states,
        head=lambda states: torch.zeros(4, 2),
        e_apn=lambda *embeddings: torch.tensor(0.0),
        hint_lambda=0.1,
        embed_weight=0.1,
    )
    waves = torch.zeros(2, 8)
    found = load('nawsv', 'framework').WarmUp.forward(fake, waves, waves, waves)
    assert found['hint_loss'].item() == 0 and found['loss'].item() == 0


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


@pytest.mark.parametrize('phase', ['warm_up', 'fine_tune'])
def test_weights_are_on_their_device_before_the_optimizer_takes_up_its_state(
    phase, paper, tmp_path, monkeypatch
):
    """Adam's moments are loaded where the weights are at that moment: a resumed run needs both there."""
    modules = paper('nawsv')
    model = pretrained(TINY_WAVLM, tmp_path / 'wavlm')
    small = ['--ecapa_width', '8', '--ecapa_mfa_width', '8', '--embed_size', '8']
    args = modules.arguments.get_args(['--path_ssl', str(model), *small])[0]
    args['device'] = 'meta'  # stands in for a GPU
    train = SimpleNamespace(speakers=np.arange(6))
    corpus = SimpleNamespace(
        speakers=6, train=train, pair_loader=lambda seed: None, labelled_loader=lambda seed: None
    )

    class Reached(Exception):
        pass

    def loop_of(*given, framework, optimizer):
        weights = [x for group in optimizer.param_groups for x in group['params']]
        assert weights and all(x.device.type == 'meta' for x in weights)
        raise Reached

    monkeypatch.setattr(modules.main, 'loop_of', loop_of)
    given = (1, corpus, None, args) if phase == 'warm_up' else (1, None, corpus, None, args)
    with pytest.raises(Reached):
        getattr(modules.main, phase)(*given)
