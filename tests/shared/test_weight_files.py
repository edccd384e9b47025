"""Files of tensors: whole or not there, nothing in them run, every misfit named."""

import os
import pickle
from collections import OrderedDict

import pytest
import torch

from shared import weight_files
from shared.errors import UserError
from shared.weight_files import load_weights, read, write


def errors_of(call, *arguments):
    """The text of the `UserError` it raises."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value)


def network():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_interrupted_save_leaves_no_half_file(tmp_path, monkeypatch):
    write({'a': 1}, tmp_path / 'a.pt')

    def half(state, file):
        file.write(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, 'save', half)
    with pytest.raises(KeyboardInterrupt):
        write({'a': 2}, tmp_path / 'a.pt')
    assert names(tmp_path) == ['a.pt'] and read(tmp_path / 'a.pt') == {'a': 1}


def test_what_does_not_fit_is_named():
    state = network().state_dict()
    state['extra'] = state.pop('2.bias')
    state['0.bias'] = torch.ones(5)
    assert errors_of(load_weights, network(), state, 'x.pt') == (
        'x.pt: checkpoint of another model: 1 missing (2.bias); 1 unexpected (extra); '
        '1 of another shape (0.bias (5,) instead of (4,))'
    )
    many = {f'w{i}': torch.ones(1) for i in range(5)}
    assert '5 unexpected (w0, w1, w2, ...)' in errors_of(load_weights, network(), many, 'x.pt')


def test_nothing_is_loaded_from_weights_that_do_not_fit():
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {name: value + 1 for name, value in module.state_dict().items()}
    state['2.bias'] = torch.ones(7)
    errors_of(load_weights, module, state, 'x.pt')
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize('state', [[1, 2], {'a': 1}, torch.ones(2)])
def test_what_is_no_set_of_weights_is_one_line(state):
    assert errors_of(load_weights, network(), state, 'x.pt') == (
        'x.pt: not a set of weights (named tensors)'
    )


def test_missing_file_is_one_line(tmp_path):
    assert 'no such checkpoint file' in errors_of(read, tmp_path / 'none.pt')


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('save', [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_code_in_a_file_is_refused_and_not_run(save, tmp_path):
    save({'objects': Malicious(tmp_path / 'ran')}, tmp_path / 'bad.pt')
    text = errors_of(read, tmp_path / 'bad.pt')
    assert 'bad.pt: not a readable checkpoint' in text
    assert 'it holds ' in text and ' besides tensors' in text
    assert 'weights_only' not in text  # no advice to open it nonetheless
    assert names(tmp_path) == ['bad.pt']


def test_tensors_are_stored_as_of_the_cpu():
    class Far(torch.Tensor):  # stands in for one of a GPU
        def cpu(self):
            return torch.ones(2)

    far = torch.zeros(2).as_subclass(Far)
    state = OrderedDict(a=far, b={'c': [far, 1], 'd': (far, 'x')}, near=torch.zeros(3))
    state._metadata = {'version': 2}  # as `state_dict` leaves it
    moved = weight_files._on_cpu(state)
    tensors = [moved['a'], moved['b']['c'][0], moved['b']['d'][0]]
    assert all(type(x) is torch.Tensor and x.tolist() == [1, 1] for x in tensors)
    assert moved['b']['c'][1:] == [1] and moved['b']['d'][1:] == ('x',)
    assert moved['near'] is state['near'] and moved._metadata == {'version': 2}
    assert state['a'] is far  # what goes on learning is not touched
