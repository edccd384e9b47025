"""The loss gate of papers/wavlm_ssl and the record it is fitted on (spec wavlm_ssl 4.2)."""

import math
import sys
import warnings

import numpy as np
import pytest
import torch
from author_layouts import modules_of

from shared import ddp, weight_files


@pytest.fixture
def wavlm_ssl(monkeypatch):
    yield from modules_of('wavlm_ssl', ('losses', 'gate'), monkeypatch)


def mixture(weights, means, deviations, count, seed=0):
    """Losses (count,) whose logarithms are of two Gaussians."""
    r = np.random.default_rng(seed)
    first = r.random(count) < weights[0]
    parts = [r.normal(m, s, count) for m, s in zip(means, deviations)]
    return np.exp(np.where(first, *parts)).astype(np.float32)


def density(x, weight, mean, deviation):
    z = (x - mean) / deviation
    return weight * math.exp(-z * z / 2) / (deviation * math.sqrt(2 * math.pi))


def crossing_on_a_grid(weights, means, deviations, low, high, points=1000):
    """As published: sign changes of the difference on a grid, strictly between the two maxima."""
    grid = np.linspace(low, high, points)
    curves = np.array(
        [[density(x, *part) for x in grid] for part in zip(weights, means, deviations)]
    )
    tops = sorted(curves.argmax(1))
    signs = np.sign(curves[0] - curves[1])
    changes = [i for i in range(points - 1) if signs[i] != signs[i + 1]]
    return [grid[i] for i in changes if tops[0] < i < tops[1]]


# --- where the densities cross


def test_crossing_has_the_golden_value_of_the_spec(wavlm_ssl):
    gaussians = (0.8, 0.2), (-1.6, 3.0), (2.5, 0.12)
    assert wavlm_ssl.gate.crossing(*gaussians) == pytest.approx(2.6998, abs=5e-5)
    # the other root, 3.3215, is beyond both means
    difference = [density(x, 0.8, -1.6, 2.5) - density(x, 0.2, 3.0, 0.12) for x in (3.3214, 3.3216)]
    assert difference[0] < 0 < difference[1]


def test_crossing_is_that_of_the_published_grid_search(wavlm_ssl):
    r, crossed = np.random.default_rng(0), 0
    for _ in range(60):
        first = r.uniform(0.05, 0.95)
        means = np.sort(r.normal(0, 2, 2)).tolist()
        gaussians = (first, 1 - first), means, r.uniform(0.1, 2.5, 2).tolist()
        low, high = means[0] - 2, means[1] + 2
        expected = crossing_on_a_grid(*gaussians, low, high)
        found = wavlm_ssl.gate.crossing(*gaussians)
        if not expected:
            # less than a step of the grid beside a mean, at most
            step = (high - low) / 999
            assert found is None or min(abs(found - mean) for mean in means) < 2 * step
            continue
        crossed += 1
        assert len(expected) == 1
        assert 0 <= found - expected[0] <= (high - low) / 999 + 1e-9
    assert 20 < crossed < 60


def test_crossing_of_equal_deviations_is_in_the_middle_of_equal_weights(wavlm_ssl):
    crossing = wavlm_ssl.gate.crossing
    assert crossing((0.5, 0.5), (-1.0, 3.0), (0.7, 0.7)) == pytest.approx(1.0)
    for tiny in (0.0, 1e-15, 1e-9, 1e-6):  # almost equal: no digit may be lost
        found = crossing((0.5, 0.5), (-1.0, 3.0), (0.7, 0.7 + tiny))
        assert found == pytest.approx(1.0, abs=1e-5)
    assert crossing((0.5, 0.5), (-1.0, 1.0), (1.0, 1.0)) == 0  # both coefficients vanish


@pytest.mark.parametrize(
    'gaussians',
    [
        ((0.99, 0.01), (0.0, 0.1), (1.0, 1.0)),  # the first is above the second at both means
        ((0.5, 0.5), (1.0, 1.0), (0.5, 2.0)),  # one centre
        ((0.5, 0.5), (1.0, 1.0), (1.0, 1.0)),
        ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)),
    ],
)
def test_no_crossing_between_the_means_is_none(wavlm_ssl, gaussians):
    assert wavlm_ssl.gate.crossing(*gaussians) is None


# --- the fit


@pytest.mark.parametrize('swapped', [False, True])
def test_gate_of_a_synthetic_mixture_is_found(wavlm_ssl, swapped):
    parts = [(0.8, 0.2), (-1.6, 3.0), (2.5, 0.12)]
    losses = mixture(*(part[::-1] if swapped else part for part in parts), 20_000)
    losses[::7] = np.nan  # unseen
    gate = wavlm_ssl.gate.fit_gate(losses)
    for found, part, within in zip(
        (gate.weights, gate.means, gate.deviations), parts, (0.02, 0.1, 0.05)
    ):
        assert found == pytest.approx(part, abs=within)
    assert gate.threshold == pytest.approx(2.6998, abs=0.02)
    assert gate == wavlm_ssl.gate.fit_gate(torch.from_numpy(losses))
    seen = losses[np.isfinite(losses)]
    assert gate == wavlm_ssl.gate.fit_gate(seen)
    x = np.log(seen)
    (grid,) = crossing_on_a_grid(gate.weights, gate.means, gate.deviations, x.min(), x.max())
    assert 0 <= gate.threshold - grid <= (x.max() - x.min()) / 999


def test_gate_is_fitted_as_published(wavlm_ssl):
    """EM by hand from the result: one more step moves nothing beyond the tolerance."""
    x = np.log(mixture((0.6, 0.4), (-2.0, 1.6), (1.0, 0.6), 5000).astype(np.float64))
    gate = wavlm_ssl.gate.fit_gate(np.exp(x))
    parts = list(zip(gate.weights, gate.means, gate.deviations))
    share = np.array([[density(value, *part) for part in parts] for value in x])
    share /= share.sum(1, keepdims=True)
    for k, (weight, mean, deviation) in enumerate(parts):
        total = share[:, k].sum()
        new = (share[:, k] * x).sum() / total
        assert weight == pytest.approx(total / len(x), abs=1e-3)
        assert mean == pytest.approx(new, abs=5e-3)
        variance = (share[:, k] * (x - new) ** 2).sum() / total + 1e-6
        assert deviation == pytest.approx(math.sqrt(variance), abs=5e-3)


@pytest.mark.parametrize('count', [0, 1, 2, 3])
def test_few_losses_give_a_gate_without_a_crash(wavlm_ssl, count):
    gate = wavlm_ssl.gate.fit_gate(np.array([0.1, 5.0, 7.0])[:count])
    assert gate.threshold is None or math.log(0.1) < gate.threshold < math.log(7)
    assert sum(gate.weights) == pytest.approx(1)
    if count < 2:
        assert gate.threshold is None


@pytest.mark.parametrize('value', [0.0, 1e-30, 2.7])
def test_constant_losses_have_no_threshold_and_no_warning(wavlm_ssl, value):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        gate = wavlm_ssl.gate.fit_gate(np.full(50, value))
    assert gate.threshold is None
    assert gate.means == pytest.approx([math.log(max(value, 1e-8))] * 2)


def test_losses_of_one_mode_have_a_threshold_inside_them_or_none(wavlm_ssl):
    for seed in range(5):
        x = np.random.default_rng(seed).normal(2.7, 0.2, 3000)
        gate = wavlm_ssl.gate.fit_gate(np.exp(x))
        assert gate.means[0] <= gate.means[1]
        assert gate.threshold is None or x.min() < gate.threshold < x.max()


def test_zero_losses_are_fitted_as_the_smallest(wavlm_ssl):
    losses = mixture((0.7, 0.3), (-3.0, 2.5), (1.0, 0.3), 2000)
    zeros = np.concatenate([np.zeros(300), losses])
    floors = np.concatenate([np.full(300, 1e-8), losses])
    gate = wavlm_ssl.gate.fit_gate(zeros)
    assert gate == wavlm_ssl.gate.fit_gate(floors)
    assert gate.threshold is not None and np.isfinite(gate.means).all()


def test_many_equal_losses_do_not_crash(wavlm_ssl):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        gate = wavlm_ssl.gate.fit_gate(np.array([0.0] * 500 + [3.0]))
    assert gate.deviations == pytest.approx([1e-3, 1e-3], rel=1e-3)  # the floor of the variance
    assert math.log(1e-8) < gate.threshold < math.log(3)


def test_a_fit_that_is_still_moving_at_the_last_step_is_taken_without_a_warning(
    wavlm_ssl, monkeypatch
):
    monkeypatch.setattr(wavlm_ssl.gate, 'ITERATIONS', 1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        gate = wavlm_ssl.gate.fit_gate(mixture((0.6, 0.4), (-2.0, 1.6), (1.5, 0.6), 500))
    assert -2 < gate.threshold < 1.6


# --- the record


def batch(wavlm_ssl_losses, index, losses, kept, corrected, labels):
    flags = (torch.tensor(x, dtype=torch.bool) for x in (kept, corrected))
    gated = wavlm_ssl_losses.Gated(torch.zeros(()), *flags, torch.tensor(labels))
    return torch.tensor(index), torch.tensor(losses), gated


def test_record_keeps_losses_fates_and_labels_by_utterance(wavlm_ssl):
    record = wavlm_ssl.gate.LossRecord(6)
    assert np.isnan(record.values()).all()
    record.note(*batch(wavlm_ssl.losses, [4, 1], [0.0, 2.5], [1, 0], [0, 1], [7, 9]))
    record.note(*batch(wavlm_ssl.losses, [0], [8.0], [0], [0], [3]))
    expected = [8.0, 2.5, np.nan, np.nan, 0.0, np.nan]
    np.testing.assert_array_equal(record.values(), np.array(expected, np.float32))
    kept, corrected, labels = record.fates_and_labels()
    assert kept.tolist() == [False, False, False, False, True, False]
    assert corrected.tolist() == [False, True, False, False, False, False]
    assert labels.tolist() == [3, 9, -1, -1, 7, -1]
    record.clear()
    assert np.isnan(record.values()).all()
    assert not record.fates_and_labels()[0].any() and (record.fates_and_labels()[2] == -1).all()


def test_record_takes_losses_with_a_graph_in_half_precision(wavlm_ssl):
    record = wavlm_ssl.gate.LossRecord(2)
    index, _, gated = batch(wavlm_ssl.losses, [1], [0.0], [1], [0], [0])
    loss = torch.ones(1, requires_grad=True) * 2
    record.note(index, loss.bfloat16(), gated)
    assert record.values()[1] == 2 and not record.losses.requires_grad


def test_a_nan_loss_is_no_loss(wavlm_ssl):
    record = wavlm_ssl.gate.LossRecord(2)
    record.note(*batch(wavlm_ssl.losses, [0, 1], [math.nan, 1.0], [1, 1], [0, 0], [0, 0]))
    np.testing.assert_array_equal(record.values(), np.array([np.nan, 1.0], np.float32))
    # stored as unseen: over ranks the largest counts, and NaN has no order
    assert record.state_dict()['losses'].tolist() == [-math.inf, 1.0]


def test_record_goes_on_after_a_kill(wavlm_ssl, tmp_path):
    record, again = wavlm_ssl.gate.LossRecord(5), wavlm_ssl.gate.LossRecord(5)
    record.note(*batch(wavlm_ssl.losses, [3, 0], [1.5, 0.5], [0, 1], [1, 0], [4, 2]))
    weight_files.write(record.state_dict(), tmp_path / 'x.pt')
    again.note(*batch(wavlm_ssl.losses, [1], [9.0], [1], [0], [1]))  # forgotten by loading
    again.load_state_dict(weight_files.read(tmp_path / 'x.pt'))
    rest = batch(wavlm_ssl.losses, [4], [3.0], [1], [0], [1])
    for one in (record, again):
        one.note(*rest)
    np.testing.assert_array_equal(record.values(), again.values())
    for a, b in zip(record.fates_and_labels(), again.fates_and_labels()):
        assert a.tolist() == b.tolist()


def test_record_of_another_list_is_an_error(wavlm_ssl):
    state = wavlm_ssl.gate.LossRecord(5).state_dict()
    with pytest.raises(ValueError, match='5, not 4 utterances'):
        wavlm_ssl.gate.LossRecord(4).load_state_dict(state)


def record_of_a_rank(rows, more, seed=0):
    """Gate, losses, fates and labels after two batches, between which the record was stored."""
    paper = next(modules_of('wavlm_ssl', ('losses', 'gate'), pytest.MonkeyPatch()))
    LossRecord, gate_and_correct = paper.gate.LossRecord, paper.losses.gate_and_correct
    generator = torch.Generator().manual_seed(seed)
    losses = (2 * torch.randn(60, generator=generator)).exp()
    logits = torch.randn(60, 4, generator=generator)
    record = LossRecord(60)
    for part in (rows, more):
        own = torch.tensor(part[ddp.rank()])
        labels = own % 4
        record.note(
            own, losses[own], gate_and_correct(losses[own], logits[own], logits[own], labels, 0.5)
        )
        state = record.state_dict()
        record = LossRecord(60)
        record.load_state_dict(state)
    values = record.values()
    return paper.gate.fit_gate(values).threshold, values, record.fates_and_labels()


def test_two_processes_give_the_record_and_the_gate_of_one(run_ranks):
    (first, second), (third, fourth) = np.random.default_rng(0).permutation(56).reshape(2, 2, 14)
    two = [first.tolist(), second.tolist()], [third.tolist(), fourth.tolist()]
    one = [[*rows[0], *rows[1]] for rows in two]
    ranks = run_ranks(record_of_a_rank, *two)
    ((gate, values, fates),) = run_ranks(record_of_a_rank, [one[0]], [one[1]], ranks=1)
    assert np.isnan(values).sum() == 4 and gate is not None
    assert all(0 < fate.sum() < 50 for fate in fates[:2])
    for found_gate, found_values, found_fates in ranks:
        assert found_gate == gate
        np.testing.assert_array_equal(found_values, values)
        for a, b in zip(found_fates, fates):
            np.testing.assert_array_equal(a, b)


# --- the gate from epoch to epoch (phases.DynamicGate)


def dynamic(paper, losses, **changes):
    """A gate that has seen these losses in the epoch before, and args."""
    module = paper('wavlm_ssl')
    gate = module.phases.DynamicGate(len(losses), 'cpu')
    gate.record.losses.copy_(torch.as_tensor(losses))
    return gate, {'gate_epoch': 5, 'gate_least': 0.0, **changes}


def mixed(seed=0):
    rng = np.random.default_rng(seed)
    logs = np.r_[rng.normal(-1.6, 1.0, 800), rng.normal(3.0, 0.12, 200)]
    return np.exp(logs)


def test_dynamic_gate_is_open_before_its_first_epoch_and_then_that_of_the_epoch_before(paper):
    gate, args = dynamic(paper, mixed())
    gate.begin(4, args)
    assert not gate.active and np.isnan(gate.record.values()).all()
    gate, args = dynamic(paper, mixed())
    gate.begin(5, args)
    assert gate.active and 1.0 < gate.log_gate < 3.0
    assert np.isnan(gate.record.values()).all()


def test_dynamic_gate_keeps_the_old_threshold_where_the_densities_do_not_cross(paper, capsys):
    gate, args = dynamic(paper, np.ones(50))
    gate.begin(5, args)
    assert not gate.active
    said = 'epoch 5: no crossing between the means, the gate stays open\n'
    assert capsys.readouterr().out == said
    gate.log_gate = 0.7
    gate.record.losses.fill_(1.0)
    gate.begin(6, args)
    assert gate.log_gate == 0.7 and 'epoch 6' in (said := capsys.readouterr().out)
    assert 'stays at 0.7' in said
    gate.begin(7, args)  # nothing was seen: nothing to say
    assert not capsys.readouterr().out


def test_dynamic_gate_fits_the_mixture_of_an_epoch_once(paper, monkeypatch):
    gate, args = dynamic(paper, mixed())
    phases, fits = sys.modules['phases'], []
    fit_gate = phases.fit_gate
    monkeypatch.setattr(phases, 'fit_gate', lambda losses: fits.append(1) or fit_gate(losses))
    drawn = gate.fit()  # by the report of the epoch
    gate.begin(5, args)
    assert len(fits) == 1 and gate.log_gate == pytest.approx(drawn.threshold)
    gate.record.losses.copy_(torch.as_tensor(mixed(1)))
    assert gate.fit() != drawn and len(fits) == 2
    gate.load_state_dict(gate.state_dict())  # a record from a file
    gate.fit()
    assert len(fits) == 3


def test_dynamic_gate_lets_the_least_share_pass(paper):
    losses = mixed()
    gate, args = dynamic(paper, losses, gate_least=0.95)
    gate.begin(5, args)
    assert gate.log_gate == pytest.approx(np.log(np.quantile(losses, 0.95)), rel=1e-5)
    other, args = dynamic(paper, losses, gate_least=0.5)
    other.begin(5, args)
    assert other.log_gate < gate.log_gate and other.log_gate > np.log(np.quantile(losses, 0.5))


def test_dynamic_gate_goes_on_from_its_state_and_from_the_losses_of_another_phase(paper, tmp_path):
    gate, args = dynamic(paper, np.r_[mixed(), np.nan])
    gate.write_losses(tmp_path / 'losses.npz')
    gate.begin(5, args)
    other, _ = dynamic(paper, np.zeros(1001))
    other.load_losses(tmp_path / 'losses.npz')
    other.begin(16, args)
    assert other.log_gate == gate.log_gate
    third, _ = dynamic(paper, np.zeros(1001))
    third.load_state_dict(gate.state_dict())
    assert third.log_gate == gate.log_gate
