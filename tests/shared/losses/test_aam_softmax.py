import math

import pytest
import torch

from shared.losses.aam_softmax import AamSoftmax, plain_logits


def golden():
    """The example of spec lgl 5.3: loss, embeddings (4, 3), labels (4,)."""
    loss = AamSoftmax(5, 3)
    loss.weight.data = (0.8 * torch.arange(1, 16.0)).cos().view(5, 3)
    x = (1.1 * torch.arange(1, 13.0)).sin().view(4, 3).requires_grad_()
    return loss, x, torch.tensor([0, 3, 2, 4])


def naive(x, weight, labels, margin, scale):
    """Cross-entropy of each sample with loops over samples and classes."""
    losses = []
    for embedding, label in zip(x, labels.tolist()):
        logits = []
        for c, row in enumerate(weight):
            cosine = (embedding * row).sum() / (embedding.norm() * row.norm())
            if c == label:
                if cosine.item() > math.cos(math.pi - margin):
                    cosine = torch.cos(torch.acos(cosine) + margin)
                else:
                    cosine = cosine - margin * math.sin(math.pi - margin)
            logits.append(scale * cosine)
        exponentials = [logit.exp() for logit in logits]
        losses.append(-(exponentials[label] / sum(exponentials)).log())
    return torch.stack(losses)


def test_losses_have_the_golden_values_of_the_reference():
    loss, x, labels = golden()
    found, logits = loss(x, labels)
    expected = [12.523249, 27.653305, 10.637836, 8.836796]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert logits.shape == (4, 5)
    torch.testing.assert_close(
        found, torch.nn.functional.cross_entropy(logits, labels, reduction='none')
    )


@pytest.mark.parametrize(
    'gate, count, mean',
    [(1000, 4, 14.912795), (20, 3, 10.665959), (11, 2, 9.737316), (9, 1, 8.836796)],
)
def test_gated_means_have_the_golden_values_of_the_reference(gate, count, mean):
    loss, x, labels = golden()
    found, _ = loss(x, labels)
    selected = found[found <= gate]
    assert len(selected) == count
    assert selected.mean().item() == pytest.approx(mean, abs=1e-4)


def test_gradient_has_the_golden_values_of_the_reference():
    loss, x, labels = golden()
    found, _ = loss(x, labels)
    found[found <= 20].mean().backward()
    assert x.grad[0].tolist() == pytest.approx([-2.826688, 5.160930, 10.481588], abs=1e-4)


@pytest.mark.parametrize('margin', [0.0, 0.2, 0.5])
def test_loss_equals_the_naive_version_in_value_and_gradient(margin):
    torch.manual_seed(0)
    loss = AamSoftmax(6, 5, margin=margin, scale=8.0).double()
    x = torch.randn(9, 5, dtype=torch.float64)
    labels = torch.randint(6, (9,))
    # one sample beyond pi - m, where the margin continues linearly
    x[0] = -2 * loss.weight.data[labels[0]] + 0.01 * torch.randn(5)
    x.requires_grad_()
    share = torch.rand(9, dtype=torch.float64)
    found, _ = loss(x, labels)
    expected = naive(x, loss.weight, labels, margin, 8.0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad((found * share).sum(), [x, loss.weight])
    theirs = torch.autograd.grad((expected * share).sum(), [x, loss.weight])
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_gradient_is_finite_where_the_cosine_is_one_or_minus_one():
    loss = AamSoftmax(3, 4)
    loss.weight.data = torch.eye(3, 4)
    x = torch.tensor([[2.0, 0, 0, 0], [0, -3.0, 0, 0]], requires_grad=True)
    found, _ = loss(x, torch.tensor([0, 1]))
    found.sum().backward()
    assert found.isfinite().all() and x.grad.isfinite().all()
    assert loss.weight.grad.isfinite().all()


def test_set_margin_changes_the_following_forwards():
    loss, x, labels = golden()
    loss.set_margin(0.0)
    found, logits = loss(x, labels)
    weight = torch.nn.functional.normalize(loss.weight)
    cosine = torch.nn.functional.normalize(x) @ weight.T
    torch.testing.assert_close(logits, 30 * cosine)
    assert (found < golden()[0](x, labels)[0]).all()


def test_loss_is_fp32_under_autocast():
    loss, x, labels = golden()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found, logits = loss(x, labels)
    assert found.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(found, loss(x, labels)[0], rtol=0, atol=0)


def test_plain_logits_are_those_without_margin_in_value_and_gradient():
    loss, x, labels = golden()
    loss.set_margin(0.0)
    theirs, ours = loss(x, labels)[1], plain_logits(x, loss.weight)
    torch.testing.assert_close(ours, theirs)
    share = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    for one, other in zip(
        *(torch.autograd.grad((y * share).sum(), [x, loss.weight]) for y in (ours, theirs))
    ):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(plain_logits(x, loss.weight, scale=6.0), theirs / 5)
    norms = x.detach().norm(dim=1)[:, None] * loss.weight.detach().norm(dim=1)
    torch.testing.assert_close(ours.detach(), 30 * x.detach() @ loss.weight.detach().T / norms)


def test_plain_logits_are_fp32_under_autocast():
    loss, x, _ = golden()
    half = x.detach().bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = plain_logits(half, loss.weight)
    assert found.dtype == torch.float32
    assert torch.equal(found, plain_logits(half.float(), loss.weight))


def test_weight_starts_xavier_normal():
    torch.manual_seed(0)
    std = AamSoftmax(6000, 192).weight.std().item()
    assert std == pytest.approx(math.sqrt(2 / 6192), rel=0.01)
