import math

import pytest
import torch

from shared import ddp
from shared.meters import Meters, Progress

# (rank, weight, loss) of four steps
STEPS = [(0, 3, 1.0), (1, 1, 4.0), (0, 2, 0.5), (1, 5, 2.0)]


def naive():
    return sum(w * x for _, w, x in STEPS) / sum(w for _, w, _ in STEPS)


def filled(rank=None):
    meters = Meters()
    for owner, weight, loss in STEPS:
        if rank in (None, owner):
            meters.update({'loss': torch.tensor(loss, requires_grad=True), 'hits': weight}, weight)
    return meters


def test_means_are_weighted():
    assert filled().means()['loss'] == pytest.approx(naive(), rel=1e-12)
    meters = Meters()
    meters.update({'a': 1.0})
    meters.update({'a': 3.0, 'b': 7})
    assert meters.means() == {'a': 2.0, 'b': 7.0}


def test_means_of_nothing_are_empty():
    meters = filled()
    meters.clear()
    assert meters.means() == {} and Meters().means() == {}


def test_small_values_are_not_lost_in_a_long_epoch():
    meters = Meters()
    meters.update({'loss': torch.tensor(1e8)})
    for _ in range(4):
        meters.update({'loss': torch.tensor(1.0)})  # float32 sums would stay at 1e8
    assert meters.means()['loss'] == (1e8 + 4) / 5


def test_values_keep_no_graph():
    assert not any(value.requires_grad for value in filled()._sums.values())


def test_state_goes_round_and_continues():
    whole, first = filled(), Meters()
    for _, weight, loss in STEPS[:2]:
        first.update({'loss': loss, 'hits': weight}, weight)
    state = first.state_dict()
    second = Meters()
    second.update({'gone': 1.0})
    second.load_state_dict(state)
    for _, weight, loss in STEPS[2:]:
        second.update({'loss': loss, 'hits': weight}, weight)
    assert second.means() == whole.means()
    assert first.state_dict() == state  # a copy, not a view


def on_two_ranks():
    meters = filled(ddp.rank())
    state = meters.state_dict()
    again = Meters()
    again.load_state_dict(state)
    return meters.means(), meters.means(over_ranks=False), again.means(over_ranks=False), state


@pytest.mark.slow
def test_two_ranks_report_the_means_of_one_and_restore_their_own(run_ranks):
    results = run_ranks(on_two_ranks)
    for rank, (over_ranks, own, restored, state) in enumerate(results):
        assert over_ranks == pytest.approx(filled().means(), rel=1e-12)
        assert own == restored == pytest.approx(filled(rank).means(), rel=1e-12)
        alone = Meters()  # a run continued on one process
        alone.load_state_dict(state)
        assert alone.means() == pytest.approx(filled().means(), rel=1e-12)


def test_progress_is_due_at_the_interval_and_on_the_last_step():
    progress, due = Progress('t', 10, 4, start=3, interval=4, show=False), []
    for step in progress.watch(range(4, 11), Meters()):
        due += [step] * progress.due
    assert due == [4, 8, 10]


def test_progress_measures_speed():
    progress = Progress('t', 2, 4, show=False)
    assert list(progress.watch('ab', Meters())) == ['a', 'b']
    speed = progress.speed
    assert speed.keys() == {'utterances_per_second', 'step_seconds', 'data_wait_percent'}
    assert speed['utterances_per_second'] * speed['step_seconds'] == pytest.approx(4)
    assert 0 <= speed['data_wait_percent'] <= 100


def test_progress_shows_loss_and_speed_on_one_rank_only(capsys):
    meters = Meters()
    meters.update({'loss': 1.25})
    list(Progress('training 7', 2, 4, show=False).watch('ab', meters))
    assert capsys.readouterr().err == ''
    list(Progress('training 7', 2, 4).watch('ab', meters))
    shown = capsys.readouterr().err
    assert 'training 7' in shown and 'utt/s' in shown and 'loss 1.250' in shown


def watched(values, start=0):
    """Meters after an epoch with a loss of 1, and `values`: step -> another quantity."""
    meters, total = Meters(), 40
    progress = Progress('t', total, 1, start=start, show=False)
    for step in progress.watch(range(start + 1, total + 1), meters):
        meters.update({'loss': torch.tensor(1.0), 'other': values.get(step, 1.0)})
        if progress.due and meters.not_finite():
            break
    return meters


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('step', [1, 13, 20, 40])
def test_the_first_step_that_is_not_finite_is_named_with_its_values(step, value):
    later = dict.fromkeys(range(step + 1, 41), -value)
    found, values = watched({step: value, **later}, start=0 if step == 1 else 11).not_finite()
    assert found == step and values.keys() == {'other'}
    assert values['other'] == value or math.isnan(values['other']) and math.isnan(value)


def test_finite_values_are_never_taken_for_others():
    meters = watched({3: 1e300, 4: -1e300, 5: 1e-300})
    assert meters.not_finite() is None and Meters().not_finite() is None
    assert meters.recent() == {step: {'loss': 1.0, 'other': 1.0} for step in range(31, 41)}
    meters.clear()
    assert meters.recent() == {} and meters.not_finite() is None


def test_a_nan_without_weight_and_one_beside_an_infinity_are_seen():
    meters = Meters()
    meters.update({'a': math.inf}, weight=0.0)
    assert meters.not_finite() == (0, {'a': math.inf})
    meters.update({'b': -math.inf})
    meters.update({'b': 3.0, 'c': 1.0})  # the last value of a step
    assert meters.recent() == {0: {'a': math.inf, 'b': 3.0, 'c': 1.0}}


def test_no_step_waits_for_the_device():
    meters, done = Meters(), 0
    for _ in Progress('t', 99, 4, start=10, show=False).watch(range(9), meters):
        meters.update({'loss': torch.tensor(1.0, device='meta')})  # it has no value to fetch
        done += 1
    assert done == 9
    with pytest.raises(RuntimeError, match='meta'):
        meters.not_finite()
