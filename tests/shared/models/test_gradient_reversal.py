import torch

from shared.models.gradient_reversal import reverse_gradient


def test_reversal_keeps_the_value_and_negates_the_gradient():
    x = torch.randn(3, 4, requires_grad=True)
    y = reverse_gradient(x)
    assert torch.equal(y, x)
    (y.square().sum()).backward()
    torch.testing.assert_close(x.grad, -2 * x.detach())
