import pytest
import torch
from torch import nn

from shared import ddp
from shared.errors import UserError
from shared.framework import Framework
from shared.precision import compile_methods


class Toy(Framework):
    """Two linear maps around a batch norm; the loss is a mean over rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.teacher = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.student = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x):
        return {'loss': (self.student(x) - self.teacher(x)).pow(2).sum(1).mean()}


def rows():
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


def frozen():
    framework = Toy()
    framework.freeze('teacher')
    return framework


def test_frozen_child_stays_in_eval_mode_whatever_is_called():
    framework = frozen()
    assert framework.training and not framework.teacher.training  # at once
    framework.eval()
    assert framework.train() is framework
    assert framework.student.training
    assert not any(module.training for module in framework.teacher.modules())


def test_freezing_one_after_the_other_keeps_both():
    framework = frozen()
    framework.freeze('student.0')
    framework.train()
    assert not framework.teacher.training and not framework.student[0].training
    assert framework.student[2].training


def test_frozen_child_gets_no_gradient_and_its_statistics_rest():
    framework = frozen()
    before = framework.teacher[1].running_mean.clone()
    framework.train()(rows())['loss'].backward()
    assert all(x.grad is None for x in framework.teacher.parameters())
    assert all(x.grad is not None for x in framework.student.parameters())
    assert torch.equal(framework.teacher[1].running_mean, before)


def test_learnable_are_the_parameters_that_are_not_frozen():
    framework = frozen()
    assert [id(x) for x in framework.learnable()] == [id(x) for x in framework.student.parameters()]
    assert len(Toy().learnable()) == len(list(Toy().parameters()))


def test_freezing_an_unknown_child_is_an_error():
    with pytest.raises(AttributeError, match='techer'):
        Toy().freeze('techer')


def test_unfrozen_child_learns_again_and_follows_the_mode():
    framework = frozen()
    framework.freeze('student')
    framework.unfreeze('teacher')
    assert framework.teacher.training and not framework.student.training
    assert [id(x) for x in framework.learnable()] == [id(x) for x in framework.teacher.parameters()]
    framework.eval().train()
    assert framework.teacher.training and not framework.student.training


def test_child_left_out_of_the_state_is_neither_saved_nor_missed():
    framework, other = Toy(), Toy()
    for one in (framework, other):
        one.freeze('teacher', saved=False)
    with torch.no_grad():
        framework.student[0].weight.add_(1)
        framework.teacher[0].weight.add_(1)
    state = framework.state_dict()
    assert all(name.startswith('student.') for name in state) and len(state) == 4
    assert framework.copy_of_state().keys() == state.keys()
    kept = other.teacher[0].weight.clone()
    other.load_state_dict(state)
    assert torch.equal(other.student[0].weight, framework.student[0].weight)
    assert torch.equal(other.teacher[0].weight, kept)
    del state['student.0.weight']
    with pytest.raises(RuntimeError, match='student.0.weight'):
        other.load_state_dict(state)


def test_copy_of_state_is_not_changed_by_training():
    framework = frozen()
    copy = framework.copy_of_state()
    before = copy['student.0.weight'].clone()
    with torch.no_grad():
        framework.student[0].weight.add_(1)
    assert torch.equal(copy['student.0.weight'], before)
    assert copy.keys() == framework.state_dict().keys()


def test_distribute_on_one_process_is_the_framework_itself():
    framework = Toy().double()
    assert framework.distribute('cpu', sync_bn=True) is framework
    assert ddp.unwrap(framework) is framework
    assert isinstance(framework.teacher[1], nn.BatchNorm1d)


def test_compiled_batch_norm_over_several_gpus_is_refused(monkeypatch):
    moved = []
    monkeypatch.setattr(ddp, 'world_size', lambda: 2)
    monkeypatch.setattr(nn.parallel, 'DistributedDataParallel', lambda module: module)
    monkeypatch.setattr(Toy, 'to', lambda self, device: moved.append(device))

    def parallel(sync_bn, compiled):
        framework = Toy()
        if compiled:
            compile_methods(framework.get_submodule(compiled), 'forward')
        return framework.distribute('cuda:0', sync_bn=sync_bn)

    for given in ((True, None), (False, 'teacher'), (True, 'student')):  # that has no batch norm
        assert parallel(*given) is not None
    assert moved == 3 * ['cuda:0']
    with pytest.raises(UserError, match='^compile: .* --sync_bn false under another `name`$'):
        parallel(True, 'teacher')


def gradients(distribute):
    """One step on this rank's share of the rows, from weights that may differ between ranks."""
    framework = frozen()
    if distribute:
        with torch.no_grad():
            framework.student[0].weight.add_(ddp.rank())  # the wrap must make them equal
    parallel = framework.distribute('cpu')
    parallel.train()
    share = len(rows()) // ddp.world_size()
    own = rows()[ddp.rank() * share : (ddp.rank() + 1) * share]
    parallel(own)['loss'].backward()
    kinds = (type(parallel).__name__, ddp.unwrap(parallel) is framework, framework.teacher.training)
    return kinds, [x.grad.tolist() for x in framework.learnable()]


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(run_ranks):
    _, expected = gradients(False)
    for kinds, found in run_ranks(gradients, True):
        assert kinds == ('DistributedDataParallel', True, False)
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs))
