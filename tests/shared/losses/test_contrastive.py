import pytest
import torch

from shared import ddp
from shared.losses.contrastive import ContrastiveLoss


def golden():
    """Views of the example of spec lgl 5.1, (3, 4) each."""
    views = (0.9 * torch.arange(1, 25.0)).sin().view(3, 2, 4)
    return views[:, 0], views[:, 1]


def naive(view0, view1, scale, bias):
    """Loss and hit of each row with loops over rows and columns, view0 first."""
    rows = [*view0, *view1]
    losses, hits = [], []
    for i, row in enumerate(rows):
        partner = (i + len(view0)) % len(rows)
        similarity = {
            j: scale * (row * other).sum() / (row.norm() * other.norm()) + bias
            for j, other in enumerate(rows)
            if j != i
        }
        losses.append(sum(s.exp() for s in similarity.values()).log() - similarity[partner])
        hits.append(max(similarity, key=lambda j: similarity[j].item()) == partner)
    return torch.stack(losses), torch.tensor(hits)


def test_loss_has_the_golden_values_of_the_reference():
    criterion = ContrastiveLoss()
    loss, _ = criterion(*golden())
    assert loss.item() == pytest.approx(15.929425, abs=1e-5)
    rows, _ = criterion._rows(*golden())
    expected = [16.072319, 16.502991, 15.357615, 15.950672, 16.386654, 15.306301]
    assert rows.tolist() == pytest.approx(expected, abs=2e-5)
    loss.backward()
    assert criterion.scale.grad.item() == pytest.approx(1.549804, abs=1e-5)


def test_loss_equals_the_naive_version_in_value_and_gradient():
    torch.manual_seed(0)
    criterion = ContrastiveLoss(init_scale=3.0).double()
    view0 = torch.randn(5, 6, dtype=torch.float64)
    view1 = (view0 + 1.5 * torch.randn(5, 6)).requires_grad_()
    view0.requires_grad_()
    loss, accuracy = criterion(view0, view1)
    losses, hits = naive(view0, view1, criterion.scale, criterion.bias)
    torch.testing.assert_close(loss, losses.mean(), rtol=1e-10, atol=1e-10)
    assert accuracy.item() == pytest.approx(100 * hits.double().mean().item())
    assert 0 < accuracy.item() < 100
    inputs = [view0, view1, criterion.scale]
    ours = torch.autograd.grad(loss, inputs)
    theirs = torch.autograd.grad(losses.mean(), inputs)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_accuracy_is_full_for_equal_views_and_the_bias_is_not_trained():
    criterion = ContrastiveLoss()
    view = torch.eye(4)
    _, accuracy = criterion(view, view)
    assert accuracy.item() == 100
    assert set(criterion.state_dict()) == {'scale', 'bias'}
    assert not criterion.bias.requires_grad and criterion.bias.item() == -5


def test_loss_ignores_the_length_of_the_embeddings_and_the_order_of_utterances():
    criterion = ContrastiveLoss()
    view0, view1 = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    loss, _ = criterion(view0, view1)
    order = torch.randperm(5)
    torch.testing.assert_close(criterion(3 * view0[order], 0.2 * view1[order])[0], loss)


def test_loss_is_fp32_under_autocast():
    criterion = ContrastiveLoss()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss, _ = criterion(*golden())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(15.929425, abs=1e-5)


def step(inputs, reduce):
    """Loss and gradients of a linear encoder and the scale, reduced by `reduce`."""
    encoder = torch.nn.Linear(5, 4, bias=False)
    encoder.weight.data = (0.7 * torch.arange(1, 21.0)).sin().view(4, 5)
    criterion = ContrastiveLoss(init_scale=4.0)
    loss, accuracy = criterion(encoder(inputs[:, 0]), encoder(inputs[:, 1]))
    loss.backward()
    return [reduce(x) for x in (loss, accuracy, encoder.weight.grad, criterion.scale.grad)]


def step_of_rank(inputs):
    """`step` on this rank's share of the pairs, averaged over ranks as DDP does."""
    share = len(inputs) // ddp.world_size()
    own = inputs[ddp.rank() * share :][:share]
    return step(own, lambda x: ddp.all_reduce(x, op='mean'))


@pytest.mark.slow
def test_two_processes_give_the_loss_and_gradients_of_one(run_ranks):
    inputs = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(4))
    expected = step(inputs, lambda x: x.detach())
    for found in run_ranks(step_of_rank, inputs):
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
