"""Files of the authors' layout (spec nawsv 3.5): names, shapes, strictness, same embeddings."""

import re

import pytest
import torch
from author_layouts import (
    backend_keys,
    drawn,
    head_keys,
    modules_of,
    save,
    student_keys,
    their_backend,
    their_head,
)

from shared import weight_files
from shared.errors import UserError
from shared.losses.aam_topk import AamSoftmaxTopK
from shared.models.adapters import AdapterSettings
from shared.models.ssl_backends import EcapaBackEnd, LinearBackEnd
from shared.models.ssl_config import HUBERT_BASE, WAVLM_BASE, SslConfig
from shared.models.ssl_encoder import SslEncoder


@pytest.fixture
def nawsv(monkeypatch):
    yield from modules_of('nawsv', ('losses', 'published'), monkeypatch)


# --- back-end and head

ADAPTER = {'adapter.down': (64, 768), 'adapter.up': (768, 64)}
TINY = {'states': 3, 'width': 8, 'dim': 5}
TINY_BACKEND = {**TINY, 'c': 16, 'mfa': 12, 'attention': 6, 'se': 4}
CASES = {
    'head': (their_head, head_keys, TINY),
    'backend': (their_backend, backend_keys, TINY_BACKEND),
}


@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('kind', CASES)
def test_file_gives_the_embeddings_of_the_layout_it_has(nawsv, tmp_path, kind, prefix):
    theirs, keys, sizes = CASES[kind]
    entries = drawn(keys(**sizes))
    found = nawsv.published.read(save(tmp_path / 'x.pt', entries, prefix))
    assert found.kind == kind
    states = [torch.randn(2, 15, 8) for _ in range(3)]
    with torch.no_grad():
        torch.testing.assert_close(
            found.module()(states), theirs(entries, states), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize('kind', CASES)
def test_full_size_file_is_read_and_gives_the_same_embeddings(nawsv, tmp_path, kind):
    theirs, keys, _ = CASES[kind]
    entries = {name: 0.1 * x for name, x in drawn(keys()).items()}
    assert len(entries) == {'head': 8, 'backend': 232}[kind]
    found = nawsv.published.read(save(tmp_path / 'x.pt', entries))
    states = [torch.randn(1, 20, 768) for _ in range(13)]
    with torch.no_grad():
        torch.testing.assert_close(
            found.module()(states), theirs(entries, states), rtol=1e-4, atol=1e-5
        )


def test_modules_are_written_under_the_published_names_and_shapes(nawsv):
    with torch.device('meta'):
        modules = {
            ('head', 8): (LinearBackEnd(), head_keys()),
            ('backend', 232): (EcapaBackEnd(), backend_keys()),
            ('e_apn', 2): (nawsv.losses.EApn(), {'w': (), 'b': ()}),
        }
        for config, count in ((WAVLM_BASE, 296), (HUBERT_BASE, 259)):
            student = SslEncoder(config, adapters=AdapterSettings())
            keys = student_keys(f'{config.family}.', ADAPTER, gated=config == WAVLM_BASE)
            modules['student', count] = student, keys
    for (kind, count), (module, keys) in modules.items():
        entries = nawsv.published.to_published(kind, module.state_dict())
        found = {key: tuple(value.shape) for key, value in entries.items()}
        assert found == {f'module.{key}': shape for key, shape in keys.items()}
        assert len(found) == count


# --- students

SMALL = SslConfig(
    'wavlm',
    layers=2,
    width=32,
    heads=4,
    ffn_width=48,
    conv_channels=(16,) * 7,
    position_kernel=16,
    position_groups=4,
    position_buckets=20,
)


def small_student(family, adapters=True):
    torch.manual_seed(0)
    heads = 4 if family == 'wavlm' else 1  # a HuBERT's are not in the file: 64 features each
    config = SslConfig(**{**vars(SMALL), 'family': family, 'heads': heads})
    student = SslEncoder(config, adapters=AdapterSettings(width=6) if adapters else None)
    for parameter in student.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return student.eval()


@pytest.mark.parametrize('spelling', ['old', 'new'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('family', ['wavlm', 'hubert'])
def test_student_file_gives_the_states_it_came_from(nawsv, tmp_path, family, prefix, spelling):
    student, entries = small_student(family), {}
    for name, value in student.state_dict().items():
        if spelling == 'old':
            name = re.sub(r'parametrizations\.weight\.original0', 'weight_g', name)
            name = re.sub(r'parametrizations\.weight\.original1', 'weight_v', name)
        entries[f'{family}.{name}'] = value
    found = nawsv.published.read(save(tmp_path / 'x.pt', entries, prefix))
    assert found.kind == 'student' and found.sizes['adapters'].width == 6
    assert found.sizes['config'].family == family
    waves = 0.1 * torch.randn(2, 4000)
    with torch.no_grad():
        for ours, theirs in zip(found.module()(waves).states, student(waves).states):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_student_without_adapters_is_read_as_one(nawsv):
    state = small_student('wavlm', adapters=False).state_dict()
    found = nawsv.published.from_published(nawsv.published.to_published('student', state), 'x')
    assert found.sizes['adapters'] is None and found.state.keys() == state.keys()


def test_student_of_other_convolutions_is_built_with_its_config_only(nawsv):
    config = SslConfig(
        'wavlm',
        layers=1,
        width=32,
        heads=4,
        ffn_width=48,
        conv_channels=(16,) * 3,
        conv_kernels=(10, 3, 2),
        conv_strides=(5, 4, 2),
        position_kernel=16,
        position_groups=4,
    )
    state = SslEncoder(config).state_dict()
    found = nawsv.published.from_published(nawsv.published.to_published('student', state), 'x')
    assert all(torch.equal(found.state[name], value) for name, value in state.items())
    with pytest.raises(UserError, match='without the convolutions of a Base model'):
        found.module()
    assert_same_state(found.module(config).state_dict(), state)


# --- criterion, E-APN, round trips


def test_criterion_file_gives_weight_and_class_weights(nawsv, tmp_path):
    entries = drawn({'fc': (11, 192), 'ce.weight': (11,)})
    found = nawsv.published.read(save(tmp_path / 'x.pt', entries))
    assert (found.kind, found.sizes) == ('criterion', {'classes': 11, 'dim': 192})
    assert torch.equal(found.state['class_weights'], entries['ce.weight'])
    AamSoftmaxTopK(**found.sizes).load_state_dict({'weight': entries['fc']})
    assert torch.equal(found.state['weight'], entries['fc'])


def test_e_apn_file_gives_scale_and_bias(nawsv, tmp_path):
    entries = {'w': torch.tensor(12.5), 'b': torch.tensor(-4.0)}
    module = nawsv.published.read(save(tmp_path / 'x.pt', entries)).module()
    assert (module.w.item(), module.b.item()) == (12.5, -4.0)


def states_of_a_run(nawsv):
    back_end = EcapaBackEnd(3, 8, 5, 16, 12, 6, 4)
    weight = AamSoftmaxTopK(9, 5).weight.detach()
    return {
        'student': small_student('wavlm').state_dict(),
        'head': LinearBackEnd(3, 8, 5).state_dict(),
        'backend': back_end.state_dict(),
        'criterion': {'weight': weight, 'class_weights': torch.rand(9)},
        'e_apn': nawsv.losses.EApn().state_dict(),
    }


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_what_a_run_exports_is_read_back_unchanged(nawsv, tmp_path):
    for kind, state in states_of_a_run(nawsv).items():
        path = tmp_path / f'{kind}.pt'
        weight_files.write(nawsv.published.to_published(kind, state), path)
        found = nawsv.published.read(path)
        assert found.kind == kind
        assert_same_state(found.state, state)


# --- strictness


def test_one_error_names_everything_wrong_with_the_entries(nawsv, tmp_path):
    entries = drawn(backend_keys(**TINY_BACKEND))
    del entries['fc6.bias']
    entries['extra'] = torch.zeros(1)
    entries['bn6.weight'] = torch.ones(4)
    entries['bn6.bias'] = torch.full((5,), torch.nan)
    with pytest.raises(UserError) as caught:
        nawsv.published.read(save(tmp_path / 'bad.pt', entries))
    message = str(caught.value)
    assert '\n' not in message
    for part in (
        'bad.pt: not a back-end as published',
        '1 missing (fc6.bias)',
        '1 unexpected (extra)',
        '1 of another shape (bn6.weight (4,) instead of (5,))',
        '1 not finite (bn6.bias)',
    ):
        assert part in message


@pytest.mark.parametrize('kind', ['head', 'backend', 'criterion', 'e_apn', 'student'])
def test_a_missing_entry_is_an_error_that_names_it(nawsv, kind):
    entries = nawsv.published.to_published(kind, states_of_a_run(nawsv)[kind])
    for key in list(entries)[:: 1 + len(entries) // 40]:
        short = {name: value for name, value in entries.items() if name != key}
        with pytest.raises(UserError) as caught:
            nawsv.published.from_published(short, 'x.pt')
        name = key.removeprefix('module.')
        assert name in str(caught.value) or (kind, name) == ('e_apn', 'b')
        assert '\n' not in str(caught.value)


def test_student_whose_positional_kernel_is_spelled_twice_is_refused(nawsv):
    entries = nawsv.published.to_published('student', small_student('wavlm').state_dict())
    entries['wavlm.encoder.pos_conv_embed.conv.weight_g'] = torch.ones(1, 1, 16)
    with pytest.raises(UserError, match='entries twice'):
        nawsv.published.from_published(entries, 'x.pt')


@pytest.mark.parametrize(
    'content, words',
    [
        (None, 'no such checkpoint'),
        (b'not a checkpoint', 'not a readable checkpoint'),
        ({'epoch': 3}, 'no bare state'),
        ({}, 'no bare state'),
        ([torch.zeros(2)], 'no bare state'),
        ({'Network.conv1.weight': torch.zeros(8, 80, 5)}, 'no file of this paper'),
        ({'module.fc1.weight': torch.zeros(())}, '7 missing'),
        ({'module.conv1.weight': torch.zeros(20, 8, 5)}, 'width 20 must be a multiple of 8'),
        ({'module.wavlm.masked_spec_embed': torch.zeros(768)}, 'not a student'),
        ({'module.wavlm.masked_spec_embed': torch.zeros(0)}, 'not a student'),
        (
            {'module.fc': torch.zeros(3, 192, 2), 'module.ce.weight': torch.zeros(3)},
            'of another shape',
        ),
    ],
)
def test_other_files_are_refused_in_one_line(nawsv, tmp_path, content, words):
    path = tmp_path / 'other.pt'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=words) as caught:
        nawsv.published.read(path)
    assert '\n' not in str(caught.value) and 'other.pt' in str(caught.value)
