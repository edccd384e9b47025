"""Reading and writing other programs' files: forms told by keys, names, shapes, one clear line."""

import pytest
import torch
from torch import nn

from shared.errors import UserError
from shared.published.layout import Form, Layout, axis, has, old_spelling, plain_entries


def linear_form(kind, theirs, **options):
    """Of an nn.Linear that a file calls `theirs`, with its bias as a column."""

    def sizes(entries):
        return {
            'in_features': axis(entries, f'{theirs}.weight', 1, 3),
            'out_features': axis(entries, f'{theirs}.weight', 0, 2),
        }

    return Form(
        kind,
        f'a {kind}',
        (theirs,),
        sizes,
        nn.Linear,
        lambda ours: f'{theirs}.{ours}',
        {'bias': (-1, 1)},
        **options,
    )


LAYOUT = Layout((linear_form('first', 'fc'), linear_form('second', 'fc2')), hint='as a test has it')


def entries_of(theirs, outputs=4, inputs=5):
    torch.manual_seed(0)
    return {
        f'{theirs}.weight': torch.randn(outputs, inputs),
        f'{theirs}.bias': torch.randn(outputs, 1),
    }


@pytest.mark.parametrize('theirs, kind', [('fc', 'first'), ('fc2', 'second')])
def test_form_is_told_by_whole_names_and_sizes_by_shapes(theirs, kind):
    entries = entries_of(theirs)
    found = LAYOUT.from_published(entries, 'x.pt')
    assert (found.kind, found.sizes) == (kind, {'in_features': 5, 'out_features': 4})
    module, x = found.module(), torch.randn(3, 5)
    expected = x @ entries[f'{theirs}.weight'].T + entries[f'{theirs}.bias'][:, 0]
    torch.testing.assert_close(module(x), expected)
    assert not module.training


def test_state_is_written_as_it_was_read(tmp_path):
    entries = entries_of('fc2')
    torch.save(entries, tmp_path / 'x.pt')
    found = LAYOUT.read(tmp_path / 'x.pt')
    written = LAYOUT.to_published('second', found.state)
    assert {name.removeprefix('module.') for name in written} == entries.keys()
    assert all(torch.equal(written[f'module.{name}'], x) for name, x in entries.items())


def test_forms_of_one_kind_are_told_apart_by_our_names_when_written():
    plain, gated = linear_form('part', 'fc'), linear_form('part', 'gate', own='gate')
    layout = Layout((gated, plain))
    assert layout.to_published('part', {'weight': torch.ones(2, 3)}).keys() == {'module.fc.weight'}
    written = layout.to_published('part', {'gate.x': torch.ones(1)})
    assert written.keys() == {'module.gate.gate.x'}
    for kind, state in (('whole', {'weight': torch.ones(1)}), ('part', {})):
        with pytest.raises(ValueError, match=f'{kind}: no form for entries'):
            layout.to_published(kind, state)


def test_entries_of_no_form_are_refused_with_the_hint():
    with pytest.raises(UserError) as caught:
        LAYOUT.from_published({'module.fc3.weight': torch.ones(1)}, 'x.pt')
    assert str(caught.value) == (
        'x.pt: no file of this paper (as a test has it); its 1 entries begin with fc3.weight'
    )


def test_sizes_that_no_module_has_are_refused_in_one_line():
    def refuse(entries):
        raise ValueError('sizes do not go together\nand more')

    form = Form('part', 'a part', ('fc',), refuse, nn.Linear, str)
    with pytest.raises(UserError) as caught:
        Layout((form,)).from_published(entries_of('fc'), 'x.pt')
    assert str(caught.value) == 'x.pt: not a part as published (sizes do not go together)'


def test_plain_entries_have_no_prefix_and_the_old_weight_norm():
    stored = {
        'module.conv.parametrizations.weight.original0': torch.zeros(1),
        'module.conv.parametrizations.weight.original1': torch.ones(1),
        'bias': torch.ones(2),
    }
    plain = plain_entries(stored, 'x.pt')
    assert list(plain) == ['conv.weight_g', 'conv.weight_v', 'bias']
    assert [x.sum().item() for x in plain.values()] == [0, 1, 2]
    stored['conv.weight_g'] = torch.zeros(1)
    with pytest.raises(UserError, match='x.pt: holds entries twice'):
        plain_entries(stored, 'x.pt')
    for content in ({}, [torch.ones(1)], {1: torch.ones(1)}, {'epoch': 3}, None):
        with pytest.raises(UserError, match='x.pt: holds no bare state'):
            plain_entries(content, 'x.pt')


def test_names_count_as_begun_at_dots_only():
    entries = {'fc.weight': torch.ones(2, 3), 'w': torch.ones(1)}
    assert has(entries, 'fc') and has(entries, 'fc.weight') and has(entries, 'a', 'w')
    assert not has(entries, 'f') and not has(entries, 'fc.w') and not has(entries)
    assert (axis(entries, 'fc.weight', 1, 9), axis(entries, 'w', 1, 9), axis({}, 'w', 0, 9)) == (
        (3, 9, 9)
    )
    assert old_spelling('fc.weight') == 'fc.weight'
