"""Gradients of a batch in parts, on toy frameworks: against the plain step and against loops."""

from collections import namedtuple
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils._python_dispatch import TorchDispatchMode

from shared import ddp
from shared.errors import UserError
from shared.framework import Framework
from shared.optim.accumulation import Gradients, check_batches

ROWS, GATE = 12, 0.0136
Fates = namedtuple('Fates', 'kept labels missing')


class Toy(Framework):
    """Means over all rows and over those below a gate; each row's loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.unused = nn.Parameter(torch.zeros(2)).requires_grad_(False)
        self.seen = []

    def forward(self, x, labels, factor, gate=None):
        self.seen.append((len(x), factor, gate, torch.is_autocast_enabled('cpu')))
        each = self.net(x).squeeze(1).square()
        plain = (each * labels).mean()
        if gate is None:
            return {'loss': factor * plain, 'labels': labels.mean()}
        kept = each.detach() < gate
        count = ddp.all_reduce(kept.sum())
        gated = torch.where(kept, each, 0.0).sum() * ddp.world_size() / count.clamp(min=1)
        means = {'loss': factor * gated, 'plain': plain, 'weights': {'loss': count}}
        return means, each, Fates(kept, labels, None)


def inputs():
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 3, generator=draw, dtype=torch.float64)
    return x, torch.arange(float(ROWS)).double()


def sgd(framework):
    return torch.optim.SGD(framework.learnable(), lr=0.1)


def gradients_of(framework):
    return [x.grad for x in framework.learnable()]


def of_parts(parts, *inputs):
    framework = Toy()
    found = Gradients(framework, sgd(framework), nullcontext(), parts)(*inputs)
    return found, gradients_of(framework), framework


def test_one_part_is_the_plain_step_bit_for_bit():
    plain, (x, labels) = Toy(), inputs()
    expected = plain(x, labels, 0.5)
    expected['loss'].backward()
    found, gradients, _ = of_parts(1, x, labels, 0.5)
    assert found == expected and not found['loss'].requires_grad
    assert all(map(torch.equal, gradients, gradients_of(plain)))


@pytest.mark.parametrize('parts', [2, 3, 4, 12])
def test_mean_of_equal_parts_is_that_of_the_batch(parts):
    expected, theirs, _ = of_parts(1, *inputs(), 0.5)
    found, ours, framework = of_parts(parts, *inputs(), 0.5)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert [rows for rows, *_ in framework.seen] == [ROWS // parts] * parts


@pytest.mark.parametrize('parts', [1, 2, 4, 12])
def test_parts_count_by_their_weights_as_in_a_loop_over_rows(parts):
    x, labels = inputs()
    found, ours, framework = of_parts(parts, x, labels, 0.5, GATE)
    means, each, fates = found
    plain = Toy()
    rows = [plain.net(row).squeeze().square() for row in x]
    kept = [bool(loss < GATE) for loss in rows]
    counts = [sum(kept[i : i + ROWS // parts]) for i in range(0, ROWS, ROWS // parts)]
    assert parts == 1 or len(set(counts)) > 1  # else equal weights would do
    assert parts < 12 or min(counts) == 0
    expected = sum(loss for loss, passes in zip(rows, kept) if passes) / sum(kept)
    (0.5 * expected).backward()
    assert means['loss'].item() == pytest.approx(0.5 * expected.item(), rel=1e-12)
    weighted = sum(loss * label for loss, label in zip(rows, labels)) / ROWS
    assert means['plain'].item() == pytest.approx(weighted.item(), rel=1e-12)
    assert means.keys() == {'loss', 'plain'}
    torch.testing.assert_close(ours, gradients_of(plain), rtol=1e-12, atol=1e-14)
    # what is of rows comes back in their order
    torch.testing.assert_close(each, torch.stack(rows).detach())
    assert fates.kept.tolist() == kept and torch.equal(fates.labels, labels)
    assert fates.missing is None and not each.requires_grad


@pytest.mark.parametrize('parts', [1, 4])
def test_nothing_that_counts_is_a_loss_and_gradients_of_zero(parts):
    (means, *_), gradients, _ = of_parts(parts, *inputs(), 0.5, -1.0)
    assert means['loss'] == 0 and means['plain'] != 0
    assert all(torch.equal(x, torch.zeros_like(x)) for x in gradients)


def test_gradients_of_the_step_before_are_gone():
    framework, (x, labels) = Toy(), inputs()
    gradients = Gradients(framework, sgd(framework), nullcontext(), 3)
    for _ in range(2):  # no step between them
        gradients(x, labels, 0.5)
    torch.testing.assert_close(gradients_of(framework), of_parts(1, x, labels, 0.5)[1])


def test_what_has_no_rows_goes_to_every_part():
    factor = torch.tensor(0.5, dtype=torch.float64)
    _, _, framework = of_parts(2, *inputs(), factor, None)
    assert [seen[1:3] for seen in framework.seen] == [(factor, None)] * 2


def test_forward_alone_is_in_the_precision_asked_for():
    framework, backward = Toy(), []
    framework.net[2].register_full_backward_hook(
        lambda *_: backward.append(torch.is_autocast_enabled('cpu'))
    )
    precision = torch.autocast('cpu', torch.bfloat16)
    Gradients(framework, sgd(framework), precision, 2)(*inputs(), 0.5)
    assert [seen[3] for seen in framework.seen] == [True, True] and backward == [False, False]


def test_no_part_waits_for_the_device():
    """A weight, a sum of them, a mean: all stay where the losses are."""
    seen = []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    framework = Toy()
    with Reads():
        Gradients(framework, sgd(framework), nullcontext(), 3)(*inputs(), 0.5, GATE)
    assert '_foreach_div_' in seen and not {'_local_scalar_dense', 'nonzero', 'equal'} & set(seen)


def test_batch_norm_moves_with_each_part():
    class Normed(Framework):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return {'loss': self.norm(x).square().mean()}

    framework, expected, x = Normed(), nn.BatchNorm1d(3), inputs()[0].float()
    Gradients(framework, sgd(framework), nullcontext(), 3)(x)
    for part in x.split(4):
        expected(part)
    assert torch.equal(framework.norm.running_var, expected.running_var)
    assert framework.norm.num_batches_tracked == 3


def test_rows_that_make_no_equal_parts_are_an_error():
    x, labels = inputs()
    with pytest.raises(ValueError, match=r'\[12\] rows cannot be divided into 5 equal parts'):
        of_parts(5, x, labels, 0.5)
    with pytest.raises(ValueError, match=r'\[6, 12\] rows'):
        of_parts(2, x, labels[:6], 0.5)


@pytest.mark.parametrize(
    ('size', 'parts', 'processes', 'advice'),
    [
        (400, 3, 1, '3, such as 399'),
        (24, 5, 4, '20, such as 20'),
        (2, 4, 2, '8, such as 8'),
        (300, 1, 8, '8, such as 304'),
    ],
)
def test_batch_that_does_not_divide_is_one_line_with_one_that_does(size, parts, processes, advice):
    fine = {'other': (parts * processes, parts)}
    check_batches(fine, processes)
    with pytest.raises(UserError) as caught:
        check_batches({**fine, 'batch_size': (size, parts)}, processes)
    shares = f' of accumulate {parts} parts each' if parts > 1 else ''
    expected = (
        f'batch_size {size} does not divide among {processes} processes{shares}: '
        f'use a multiple of {advice}'
    )
    assert str(caught.value) == expected


# --- two ranks


def steps_of_a_rank(parts, gate):
    """Weights after two steps, means of the last, how often gradients met in each."""
    framework, share, met = Toy(), ROWS // ddp.world_size(), []
    parallel = framework.distribute('cpu')

    def hook(state, bucket):
        met[-1] += 1  # a bucket
        return allreduce_hook(None, bucket)

    if parallel is not framework:
        parallel.register_comm_hook(None, hook)
    optimizer = sgd(framework)
    gradients = Gradients(parallel, optimizer, nullcontext(), parts)
    own = [x[share * ddp.rank() :][:share] for x in inputs()]
    for _ in range(2):
        met.append(0)
        found = gradients(*own, 0.5, gate)
        optimizer.step()
    means = found if gate is None else found[0]
    means = {name: ddp.all_reduce(value, 'mean').item() for name, value in means.items()}
    return [x.tolist() for x in framework.learnable()], means, met


@pytest.mark.parametrize('gate', [None, GATE])
def test_parts_on_two_ranks_are_the_batch_on_one_and_gradients_meet_once(run_ranks, gate):
    weights, means, _ = steps_of_a_rank(1, gate)
    first, second = run_ranks(steps_of_a_rank, 3, gate)
    assert first == second and first[2] == [1, 1]
    torch.testing.assert_close(first[0], weights, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(first[1], means, rtol=1e-12, atol=1e-14)
