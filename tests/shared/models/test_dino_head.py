import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared.models.dino_head import DinoHead

TINY = {'hidden': 6, 'bottleneck': 4, 'outputs': 9}


@pytest.mark.parametrize('regulariser, count', [(None, 22_622_464), (8192, 40_980_736)])
def test_head_has_the_published_number_of_parameters(regulariser, count):
    with torch.device('meta'):
        head = DinoHead(512, regulariser=regulariser)
    fixed = 65_536  # the magnitudes of the directions, all 1, which we do not keep
    assert sum(p.numel() for p in head.parameters()) + fixed == count


def published_names(state):
    """The shapes of their entries: directions have a magnitude and are called weight_v."""
    names = {name: tuple(value.shape) for name, value in state.items()}
    names['last_layer.weight_v'] = names.pop('last_layer.weight')
    return names


def test_entries_have_the_published_names_and_shapes():
    with torch.device('meta'):
        plain, wide = DinoHead(512).state_dict(), DinoHead(512, regulariser=8192).state_dict()
    assert published_names(plain)['mlp.6.weight'] == (256, 2048)
    assert not any(name.startswith('add_layer') for name in plain)
    wide = published_names(wide)
    assert wide['mlp.0.weight'] == (2048, 512) and wide['mlp.3.weight'] == (2048, 2048)
    assert wide['mlp.1.running_var'] == wide['mlp.4.running_var'] == (2048,)
    assert wide['mlp.6.weight'] == (8192, 2048) and wide['add_layer.weight'] == (256, 8192)
    assert wide['last_layer.weight_v'] == (65536, 256)
    assert len(wide) == len(plain) + 2


@pytest.mark.parametrize('regulariser', [None, 5])
def test_head_equals_torch_layers_with_weight_norm_in_value_and_gradient(regulariser):
    torch.manual_seed(0)
    head = DinoHead(7, **TINY, regulariser=regulariser).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.7)
    x = torch.randn(8, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, 9, dtype=torch.float64)
    logits, wide = head(x)
    parameters = list(head.parameters())
    found = torch.autograd.grad((logits * weight).sum(), [x, *parameters])

    hidden = x
    for linear, norm in ((head.mlp[0], head.mlp[1]), (head.mlp[3], head.mlp[4])):
        hidden = hidden @ linear.weight.T + linear.bias
        mean, variance = hidden.mean(0), hidden.var(0, correction=0)
        hidden = (hidden - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    hidden = hidden @ head.mlp[6].weight.T + head.mlp[6].bias
    if regulariser is None:
        assert wide is None
    else:
        torch.testing.assert_close(wide, hidden)
        hidden = hidden @ head.add_layer.weight.T + head.add_layer.bias
    last = nn.utils.parametrizations.weight_norm(nn.Linear(4, 9, bias=False).double())
    last.parametrizations.weight.original0.data.fill_(1)
    last.parametrizations.weight.original1 = head.last_layer.weight
    expected = last(hidden / hidden.norm(dim=1, keepdim=True))
    torch.testing.assert_close(logits, expected)
    theirs = torch.autograd.grad((expected * weight).sum(), [x, *parameters])
    for ours, other in zip(found, theirs):
        torch.testing.assert_close(ours, other, rtol=1e-7, atol=1e-9)


def test_linear_layers_start_small_and_directions_as_torch_draws_them():
    torch.manual_seed(1)
    head = DinoHead(64, hidden=128, bottleneck=32, outputs=500, regulariser=256)
    for layer in (head.mlp[0], head.mlp[3], head.mlp[6], head.add_layer):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert (layer.bias == 0).all()
    bound = 32**-0.5  # uniform
    assert head.last_layer.bias is None
    assert head.last_layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_logits_are_cosines_in_fp32_under_autocast():
    torch.manual_seed(2)
    head = DinoHead(7, **TINY)
    with torch.no_grad():
        head.last_layer.weight.mul_(100)  # the length of a direction does not count
    x = torch.randn(16, 7)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits, _ = head(x)
        narrow = head.mlp(x)
    assert logits.dtype == torch.float32 and logits.abs().max() <= 1
    expected = F.cosine_similarity(narrow.float()[:, None], head.last_layer.weight[None], dim=-1)
    torch.testing.assert_close(logits, expected)
