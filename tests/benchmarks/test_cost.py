"""docs/cost.md is what its script writes, and the script counts what the networks are."""

import json

import pytest
import torch
from torch import nn

PAPERS = ('lgl', 'enskd', 'oskdft', 'nawsv', 'wavlm_ssl')


@pytest.fixture
def cost(bench):
    return bench('cost')


@pytest.fixture
def counted(cost):
    return json.loads(cost.COUNTED.read_text())


def test_page_is_what_the_script_writes_from_the_counts_and_the_arguments(cost, counted):
    """After a change of arguments or formulas: python benchmarks/cost.py --render."""
    assert cost.PAGE.read_text() == cost.page(counted)
    assert len(cost.PAGE.read_text().splitlines()) < 150


@pytest.mark.slow
def test_counts_are_those_of_the_networks_as_they_are(bench, counted):
    """After a change of a network: python benchmarks/cost.py."""
    found = bench('true_size').of_paper('lgl', bench('counting').__file__, '--only', 'Stage II')
    now, kept = found['Stage II'], counted['steps']['lgl']['Stage II']
    assert now['macs'] == pytest.approx(kept['macs'], rel=0.01)
    assert now['kept'] == pytest.approx(kept['kept'], rel=0.05)
    exact = ('parameters', 'learnt', 'samples', 'embed', 'parts')
    assert {name: now[name] for name in exact} == {name: kept[name] for name in exact}


def test_every_phase_of_every_run_was_counted_and_read(cost, counted):
    for run in cost.runs():
        for work in run.works:
            assert work.phase in counted['steps'][run.paper], (run.title, work.phase)
            assert counted['read'][run.paper][work.phase] > 0
            assert work.epochs > 0 and work.steps > 0
    assert {run.paper for run in cost.runs()} == set(PAPERS)


def test_steps_are_those_of_the_specs(cost):
    """Specs lgl 2.7, oskdft 5.2, enskd 5.2, nawsv 2.7 and wavlm_ssl 2.5."""
    per_epoch = {
        (run.title, work.phase): work.steps // work.epochs
        for run in cost.runs()
        for work in run.works
    }
    assert per_epoch['LGL', 'Stage I'] == 3640 and per_epoch['LGL', 'Stage II'] == 2730
    assert per_epoch['OS-KDFT, vox1_wavlm', 'vox1_wavlm'] == 3096
    assert per_epoch['EnSKD, campplus', 'campplus'] == 1421
    assert per_epoch['EnSKD, xvector', 'xvector'] == 710
    assert per_epoch['NAW-SV, vox1', 'warm-up, all'] == 726
    assert per_epoch['wavlm_ssl', 'fine-tuning'] == pytest.approx(4500, rel=0.01)


def test_hours_follow_from_macs_peak_and_utilisation(cost):
    run = cost.Run('p', 'P', 'VoxCeleb1', ())
    work = cost.Work('a', epochs=3, utterances=1001, batch=10)
    counted = {'steps': {'p': {'a': {'macs': 5e9}}}}
    expected = 3 * 100 * 10 * 2 * 5e9 / (312e12 * 0.35) / 3600
    assert cost.hours_of(counted, run, work, 'A100', 'bf16') == pytest.approx(expected)


class Tiny(nn.Module):
    """A frozen layer and two that learn, as a framework would hold them."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Linear(4, 8, bias=False).requires_grad_(False)
        self.student = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 8, bias=False))

    def forward(self, x):
        with torch.no_grad():
            target = self.teacher(x)
        return (self.student(x) - target).square().mean()


def test_count_of_a_step_is_that_of_its_products(bench):
    """Frozen: forward alone. Learning: also gradients, of the weight and of an input that has one."""
    true_size, counting = bench('true_size'), bench('counting')
    framework = Tiny()
    optimizer = torch.optim.Adam(framework.student.parameters())

    def epoch(loop):
        for batch in loop.batches(''):
            framework(batch['waves'].flatten(0, 1)).backward()
            optimizer.step()

    phase = true_size.Phase(
        name='tiny',
        framework=framework,
        optimizers=[optimizer],
        epoch=epoch,
        batch_size=2,
        views={'': (1, 4)},
        data=None,
        parts={'teacher': ('teacher',), 'student': ('student',)},
    )
    found = counting.count(phase)
    assert found['macs'] == 3 * 4 * 8 + 3 * 8 * 8
    assert found['parts'] == {'teacher': 0.1111, 'student': 0.8889}
    assert (found['parameters'], found['learnt']) == (128, 96)
    assert found['optimizer'] == 2 * 4 * 96 + 2 * 4  # two moments, and Adam's count of each tensor
    assert found['kept'] == (4 + 8 + 8) * 4  # inputs of the layers, the difference that is squared
    assert found['embed'] is None


def test_parts_called_child_by_child_are_counted_once(bench):
    counts = {'F': 9, 'F.a': 5, 'F.a.x': 5, 'F.b.x': 3, 'F.b.y': 1, 'F.ab': 7}
    topmost = bench('counting').topmost
    assert (topmost(counts, 'F.a'), topmost(counts, 'F.b'), topmost(counts, 'F.c')) == (5, 4, 0)


def test_slower_way_is_undone_after_it_was_timed(bench):
    framework, slower = Tiny(), bench('true_size').Slower('twice', lambda f: {'forward': len})
    with slower.applied(framework):
        assert framework.forward is len
    assert 'forward' not in vars(framework) and framework.student[0].weight.requires_grad


def test_reading_needs_to_have_been_measured_once(cost, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, 'COUNTED', tmp_path / 'counted.json')
    monkeypatch.setattr('sys.argv', ['cost.py', '--render'])
    with pytest.raises(cost.UserError, match='not whole; run `python benchmarks/cost.py --read`'):
        cost.main()
