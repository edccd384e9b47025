import math

import pytest
import torch

from shared.losses.aam_softmax import AamSoftmax
from shared.losses.aam_topk import AamSoftmaxTopK


def naive(x, weight, labels, margin, scale, top_k, top_k_margin):
    """Cross-entropy of each sample and its logits, with loops (spec nawsv 4.4)."""
    losses, rows = [], []
    for embedding, label in zip(x, labels.tolist()):
        cosines = [(embedding * row).sum() / (embedding.norm() * row.norm()) for row in weight]
        others = sorted((c for c in range(len(weight)) if c != label), key=lambda c: -cosines[c])
        logits = []
        for c, cosine in enumerate(cosines):
            if c == label:
                cosine = torch.cos(torch.acos(cosine) + margin)
            elif c in others[:top_k]:
                cosine = torch.cos(torch.acos(cosine) - top_k_margin)
            logits.append(scale * cosine)
        exponentials = [logit.exp() for logit in logits]
        losses.append(-(exponentials[label] / sum(exponentials)).log())
        rows.append(torch.stack(logits))
    return torch.stack(losses), torch.stack(rows)


@pytest.mark.parametrize('margin', [0.0, 0.2, 0.5])
@pytest.mark.parametrize('top_k', [0, 2, 6])
def test_loss_equals_the_naive_version_in_value_and_gradient(top_k, margin):
    torch.manual_seed(0)
    loss = AamSoftmaxTopK(7, 5, margin=margin, scale=8.0, top_k=top_k, top_k_margin=0.1).double()
    x = torch.randn(9, 5, dtype=torch.float64)
    labels = torch.randint(7, (9,))
    x[0] = -2 * loss.weight.data[labels[0]] + 0.01 * torch.randn(5)  # beyond pi - m
    x.requires_grad_()
    share = torch.rand(9, dtype=torch.float64)
    found, logits = loss(x, labels)
    expected, expected_logits = naive(x, loss.weight, labels, margin, 8.0, top_k, 0.1)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad((found * share).sum(), [x, loss.weight])
    theirs = torch.autograd.grad((expected * share).sum(), [x, loss.weight])
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('target_cosine', [0.9, 0.0, -0.6, -0.99])
def test_top_k_never_holds_the_target_not_even_with_a_negative_cosine(target_cosine):
    loss = AamSoftmaxTopK(4, 4, margin=0.2, scale=30.0, top_k=3, top_k_margin=0.1)
    loss.weight.data = torch.eye(4)
    rest = math.sqrt((1 - target_cosine**2) / 3)
    x = torch.tensor([[target_cosine, rest, rest, rest]])
    _, logits = loss(x, torch.tensor([0]))
    expected = [math.cos(math.acos(target_cosine) + 0.2)]
    expected += 3 * [math.cos(math.acos(rest) - 0.1)]
    assert (logits[0] / 30).tolist() == pytest.approx(expected, abs=1e-5)


def test_without_top_k_the_loss_is_that_of_aam_softmax():
    torch.manual_seed(0)
    plain, ours = AamSoftmax(6, 5), AamSoftmaxTopK(6, 5, top_k=0)
    ours.load_state_dict(plain.state_dict())
    labels = torch.arange(6)
    x = plain.weight.detach() + 0.3 * torch.randn(6, 5)  # within pi - m of the target
    torch.testing.assert_close(ours(x, labels)[0], plain(x, labels)[0])


def test_gradient_is_finite_where_cosines_are_one_or_minus_one():
    loss = AamSoftmaxTopK(3, 4, top_k=2)
    loss.weight.data = torch.eye(3, 4)
    x = torch.tensor([[2.0, 0, 0, 0], [0, -3.0, 0, 0]], requires_grad=True)
    found, _ = loss(x, torch.tensor([1, 1]))
    found.sum().backward()
    assert found.isfinite().all() and x.grad.isfinite().all()
    assert loss.weight.grad.isfinite().all()


def test_set_margin_changes_the_target_alone():
    torch.manual_seed(0)
    loss = AamSoftmaxTopK(8, 5)
    x, labels = torch.randn(3, 5), torch.tensor([0, 4, 7])
    before, old = loss(x, labels)
    loss.set_margin(0.4)
    after, new = loss(x, labels)
    targets = torch.nn.functional.one_hot(labels, 8).bool()
    assert (after > before).all() and (new != old).equal(targets)


def test_loss_is_fp32_under_autocast():
    torch.manual_seed(0)
    loss = AamSoftmaxTopK(8, 5)
    x, labels = torch.randn(3, 5), torch.tensor([0, 4, 7])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found, logits = loss(x.bfloat16(), labels)
    assert found.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(found, loss(x.bfloat16().float(), labels)[0], rtol=0, atol=0)


@pytest.mark.parametrize('top_k', [5, 6, -1])
def test_more_hard_classes_than_there_are_others_are_refused(top_k):
    with pytest.raises(ValueError, match=f'top_k {top_k} does not fit 5 classes: 0 to 4'):
        AamSoftmaxTopK(5, 3, top_k=top_k)
