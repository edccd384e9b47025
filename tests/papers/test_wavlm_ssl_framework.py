"""Who learns from what in the fine-tuning of papers/wavlm_ssl (spec wavlm_ssl 3.5, 4, 6, 10.1-6)."""

import math

import pytest
import torch
import torch.nn.functional as F
from recipes import TINY_WAVLM

from shared.losses.aam_softmax import AamSoftmax
from shared.models.mhfa import Mhfa
from shared.models.ssl_encoder import SslEncoder

LABELS = torch.tensor([0, 3, 1, 2])
OPEN = float('inf')
GATE, SURE = 2.35, 0.43  # with which the four samples have every fate


@pytest.fixture
def wavlm_ssl(paper):
    return paper('wavlm_ssl')


def framework_of(wavlm_ssl, **changes):
    args, *_ = wavlm_ssl.arguments.get_args([])
    torch.manual_seed(0)
    encoder = SslEncoder(TINY_WAVLM)
    backend = Mhfa(encoder.states, encoder.width, heads=2, compression=4, dim=6)
    criterion = AamSoftmax(5, 6, 0.2, scale=20.0)
    method = wavlm_ssl.framework.GatedFineTuning(encoder, backend, criterion, {**args, **changes})
    method.pull_towards(encoder.state_dict(), 'cpu')
    return method.eval()  # no dropout: two passes are alike


def waves(seed=0):
    return 0.1 * torch.randn(4, 8000, generator=torch.Generator().manual_seed(seed))


def test_layers_back_end_and_classifier_learn_and_nothing_below_them(wavlm_ssl):
    method = framework_of(wavlm_ssl)
    found, *_ = method(waves(), waves(1), LABELS, OPEN, False)
    found['loss'].backward()
    for name, parameter in method.named_parameters():
        learns = not name.startswith('encoder.') or name.startswith('encoder.encoder.layers.')
        assert parameter.requires_grad == learns, name
        moved = parameter.grad is not None and parameter.grad.abs().sum() > 0
        assert moved == learns or name.endswith('k_proj.bias'), name  # cancels in the softmax
    names = {name for name, _ in method.named_parameters() if name.startswith('backend.')}
    assert len(names) == 10


def test_groups_have_the_rates_of_the_spec_and_hold_each_learnable_parameter_once(wavlm_ssl):
    method = framework_of(wavlm_ssl)
    groups = method.groups(5e-3, 2e-5, 1.5)
    assert [group['name'] for group in groups] == ['mhfa', 'layer 0', 'layer 1']
    assert [group['first_lr'] for group in groups] == pytest.approx([5e-3, 2e-5, 3e-5])
    found = sorted(id(p) for group in groups for p in group['params'])
    assert found == sorted(id(p) for p in method.learnable())


def test_pull_is_zero_at_first_and_then_the_sum_of_distances(wavlm_ssl):
    method = framework_of(wavlm_ssl)
    found, *_ = method(waves(), waves(1), LABELS, OPEN, False)
    assert found['pull'] == 0 and found['loss'].item() == pytest.approx(1.0)
    torch.manual_seed(1)
    expected = 0.0
    with torch.no_grad():
        for _, parameter in method.pulled():
            step = 0.01 * torch.randn_like(parameter)
            parameter.add_(step)
            expected += math.sqrt(sum(float(x) ** 2 for x in step.flatten()))
    found, *_ = method(waves(), waves(1), LABELS, OPEN, False)
    assert found['pull'].item() == pytest.approx(expected, rel=1e-3)
    assert found['loss'].item() == pytest.approx(1.01, abs=1e-4)


def test_gate_and_correction_are_those_of_naive_passes(wavlm_ssl):
    method = framework_of(wavlm_ssl, lc_threshold=0.2, lc_temperature=1.0)
    with torch.no_grad():
        losses, _ = method.criterion(method.embed(waves()), LABELS)
        gate = float(losses.log().median())
        clean = F.linear(method.embed(waves(1)), method.criterion.weight).softmax(1)
    means, found, gated = method(waves(), waves(1), LABELS, gate, True)
    torch.testing.assert_close(found, losses)
    kept = losses.log() <= gate
    assert torch.equal(gated.kept, kept) and 0 < kept.sum() < 4
    assert torch.equal(gated.corrected, ~kept & (clean.max(1).values > 0.2))
    assert torch.equal(gated.labels[gated.corrected], clean.argmax(1)[gated.corrected])
    assert means['kept'] == kept.float().mean()
    off = framework_of(wavlm_ssl, lc='none')
    assert not off(waves(), waves(1), LABELS, gate, True)[2].corrected.any()


def naive_objective(method, lc, weight, squared):
    """Spec 4.4 and 4.5 sample by sample, as what has the same gradient: log L + weight * log R."""
    embeddings, clean = method.embed(waves()), method.embed(waves(1)).detach()
    losses, logits = method.criterion(embeddings, LABELS)
    classes, total, fates = method.criterion.weight, 0.0, []
    for i, loss in enumerate(losses):
        p = (clean[i] @ classes.detach().T / 0.5).softmax(0)
        fates.append('kept' if loss.log() <= GATE else 'sure' if p.max() > SURE else 'out')
        if fates[-1] == 'kept':
            total = total + loss
        elif fates[-1] == 'sure' and lc == 'hard':
            total = total - logits[i].log_softmax(0)[p.argmax()]
        elif fates[-1] == 'sure' and lc == 'soft':
            cosines = torch.stack([F.cosine_similarity(embeddings[i], w, dim=0) for w in classes])
            total = total - (p * (20 * cosines).log_softmax(0)).sum()
    parts = [now - before for (_, now), before in zip(method.pulled(), method.pretrained)]
    squares = [(part**2).sum() for part in parts]
    distance = sum(squares) if squared else sum(square.sqrt() for square in squares)
    count = 4 if lc != 'none' else fates.count('kept')
    return (total / count).log() + weight * distance.log(), fates


@pytest.mark.parametrize('lc', ['hard', 'soft', 'none'])
@pytest.mark.parametrize('weight, squared', [(0.01, False), (0.3, False), (0.3, True)])
def test_gradients_are_those_of_the_naive_version(wavlm_ssl, lc, weight, squared):
    method = framework_of(
        wavlm_ssl,
        lc=lc,
        lc_threshold=SURE,
        lc_temperature=0.5,
        pull=weight,
        pull_squared=squared,
    )
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in method.pulled():
            parameter.add_(0.01 * torch.randn_like(parameter))
    expected, fates = naive_objective(method, lc, weight, squared)
    assert set(fates) == {'kept', 'sure', 'out'}
    found, *_ = method(waves(), waves(1), LABELS, GATE, True)
    learnable = dict(method.named_parameters())
    learnable = {name: p for name, p in learnable.items() if p.requires_grad}
    ours, theirs = (torch.autograd.grad(x, learnable.values()) for x in (found['loss'], expected))
    for name, a, b in zip(learnable, ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: n + text)


def test_clean_logits_are_fp32_under_autocast(wavlm_ssl, monkeypatch):
    """They are divided by a temperature of 0.1: bf16 would cost whole units."""
    method, heard, seen = framework_of(wavlm_ssl), [], []
    method.backend.register_forward_hook(lambda module, inputs, output: heard.append(output))
    gate = wavlm_ssl.framework.gate_and_correct

    def watched(losses, logits, clean_logits, *rest, **options):
        seen.append(clean_logits)
        return gate(losses, logits, clean_logits, *rest, **options)

    monkeypatch.setattr(wavlm_ssl.framework, 'gate_and_correct', watched)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        method(waves(), waves(1), LABELS, 0.0, True)
    assert seen[0].dtype == torch.float32 and not seen[0].requires_grad
    expected = heard[1].double() @ method.criterion.weight.detach().double().T
    torch.testing.assert_close(seen[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_clean_view_costs_no_graph_and_is_not_heard_before_it_is_needed(wavlm_ssl):
    method, heard = framework_of(wavlm_ssl), []
    method.encoder.register_forward_hook(
        lambda module, inputs, output: heard.append(output.states[-1].requires_grad)
    )
    method(waves(), waves(1), LABELS, OPEN, False)
    method(waves(), waves(1), LABELS, 0.0, True)
    assert heard == [True, True, False]
