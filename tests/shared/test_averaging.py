import weakref

import pytest
import torch
from torch import nn

from shared import weight_files
from shared.averaging import average
from shared.errors import UserError


def net(seed, width=4):
    """A network whose BatchNorm has seen `seed + 1` batches."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
    for _ in range(seed + 1):
        module(torch.randn(8, 3))
    return module


def files(folder, states):
    paths = [folder / f'epoch_{epoch:04d}.pt' for epoch in range(1, len(states) + 1)]
    for path, state in zip(paths, states):
        weight_files.write(state, path)
    return paths


def error_of(*sources):
    with pytest.raises(UserError) as caught:
        average(sources)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_average_is_the_mean_of_every_tensor_written_as_a_loop():
    states = [net(seed).state_dict() for seed in range(3)]
    found = average(states)
    assert list(found) == list(states[0])
    for name, value in found.items():
        flat = [state[name].flatten().tolist() for state in states]
        expected = [sum(column) / 3 for column in zip(*flat)]
        assert value.shape == states[0][name].shape and value.dtype == states[0][name].dtype
        assert value.flatten().tolist() == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_average_of_files_is_that_of_the_states_and_fits_the_network(tmp_path):
    states = [net(seed).state_dict() for seed in range(3)]
    found = average(files(tmp_path, states))
    expected = average(states)
    for name, value in found.items():
        assert torch.equal(value, expected[name])
    module = net(7)
    weight_files.load_weights(module, found, 'average')
    assert torch.equal(module[0].weight, expected['0.weight'])


@pytest.mark.parametrize('counts, mean', [((10, 20), 15), ((1, 1, 2), 1), ((1, 2, 2), 2)])
def test_counters_become_their_rounded_mean_as_int64(counts, mean):
    found = average({'n': torch.tensor(count)} for count in counts)['n']
    assert found.dtype == torch.int64 and found.shape == () and found.item() == mean


def test_counters_stay_exact_beyond_the_integers_of_float32():
    found = average({'n': torch.tensor(2**24 + k)} for k in (1, 3))['n']
    assert found.item() == 2**24 + 2


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_are_summed_in_float64_and_keep_their_type(dtype):
    values = [1e4, 1.0, -1e4, 3.0]  # a sum in half precision would lose the small ones
    values = [torch.tensor([value] * 2, dtype=dtype) for value in values]
    found = average({'x': value} for value in values)['x']
    expected = sum(value.double() for value in values) / 4
    assert found.dtype == dtype and torch.equal(found, expected.to(dtype))


def test_states_are_not_changed_and_one_alone_comes_back_as_a_copy():
    state = {'x': torch.ones(2, dtype=torch.float64)}  # no conversion would copy it
    parameter = {'x': nn.Parameter(torch.full((2,), 3.0))}
    found = average([state, parameter])['x']
    assert torch.equal(found, torch.full((2,), 2.0).double()) and not found.requires_grad
    assert torch.equal(state['x'], torch.ones(2).double())
    alone = average([state])['x']
    assert torch.equal(alone, state['x']) and alone.data_ptr() != state['x'].data_ptr()


def test_one_file_is_in_memory_at_a_time(tmp_path, monkeypatch):
    paths, read, alive = files(tmp_path, [net(seed).state_dict() for seed in range(4)]), [], []

    def spy(path, original=weight_files.read):
        alive.append(sum(tensor() is not None for tensor in read))
        state = original(path)
        read.extend(weakref.ref(tensor) for tensor in state.values())
        return state

    monkeypatch.setattr(weight_files, 'read', spy)
    average(paths)
    assert len(read) == 4 * 7 and alive == [0, 0, 0, 0]


def test_state_of_another_model_is_named_with_what_differs(tmp_path):
    same, wider = net(0).state_dict(), net(0, width=5).state_dict()
    first, second, third = files(tmp_path, [same, same, wider])
    message = error_of(first, second, third)
    assert message.startswith(f'{third}: not of the model of {first}')
    assert '0.weight (5, 3) instead of (4, 3)' in message
    renamed = {**same, 'extra': torch.ones(1)}
    assert 'unexpected (extra)' in error_of(first, renamed) and 'state 2' in error_of(same, renamed)
    renamed = {name: value for name, value in same.items() if name != '1.bias'}
    assert 'missing (1.bias)' in error_of(same, renamed)


def test_what_is_not_weights_is_refused_by_name(tmp_path):
    (path,) = files(tmp_path, [{'position': {'epoch': 1}, 'history': []}])
    for sources, name in (
        ((path,), str(path)),
        (({},), 'state 1'),
        (({'x': torch.ones(1)}, {'x': 1.0}), 'state 2'),
        (({'x': torch.ones(1, dtype=torch.complex64)},), 'state 1'),
    ):
        assert error_of(*sources) == f'{name}: not a set of weights (named tensors)'
    (tmp_path / 'cut.pt').write_bytes(path.read_bytes()[:100])
    assert 'cut.pt: not a readable checkpoint' in error_of(tmp_path / 'cut.pt')
    assert 'no such checkpoint file' in error_of(tmp_path / 'none.pt')


def test_nothing_to_average_is_an_error():
    assert error_of() == 'no checkpoints to average'
