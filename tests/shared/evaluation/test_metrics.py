"""EER, minDCF and their intervals against naive definitions, scikit-learn and spec lgl section 7."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from shared.evaluation.metrics import bootstrap, det_curve, eer, min_dcf

TEN_SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2, 0.1])
TEN_LABELS = np.array([1, 1, 0, 1, 1, 0, 1, 0, 0, 0])
many = settings(deadline=None, max_examples=150)


@st.composite
def scored_trials(draw):
    """Few distinct scores, so that ties within and between the classes are common."""
    scores = draw(st.lists(st.integers(-6, 6), min_size=2, max_size=40))
    labels = draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    labels[0], labels[1] = True, False
    return np.array(scores) / 4, np.array(labels)


def gaussian_trials(size=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random(size) < 0.4
    return np.round(rng.standard_normal(size) + 1.5 * labels, 1), labels


def naive_points(scores, labels):
    """(threshold, FNR, FPR) for every threshold that tells scores apart; score >= threshold is in."""
    thresholds = [*sorted(set(scores)), np.inf]
    return [
        (
            t,
            np.mean([s < t for s, y in zip(scores, labels) if y]),
            np.mean([s >= t for s, y in zip(scores, labels) if not y]),
        )
        for t in thresholds
    ]


def naive_eer(scores, labels):
    """Walks along the curve until FNR and FPR change places; a line between the two points."""
    points = naive_points(scores, labels)
    for (_, miss0, alarm0), (_, miss1, alarm1) in zip(points, points[1:]):
        if miss0 < alarm0 and miss1 >= alarm1:
            share = (alarm0 - miss0) / ((alarm0 - miss0) + (miss1 - alarm1))
            return 100 * (miss0 + share * (miss1 - miss0))
    raise AssertionError('FNR and FPR never meet')


def reference_max_eer(scores, labels):
    """The family's rule, spec lgl section 7, on scikit-learn's curve."""
    fpr, tpr, thresholds = roc_curve(labels, scores, pos_label=1)
    fnr = 1 - tpr
    at = np.nanargmin(np.abs(fnr - fpr))
    return 100 * max(fpr[at], fnr[at]), thresholds[at]


def reference_min_dcf(scores, labels, p_target):
    """Spec lgl section 7: one threshold behind each sorted score, ties split, no 'accept all'."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])  # stable
    targets, nontargets = sum(labels), len(labels) - sum(labels)
    missed, rejected, costs = 0, 0, []
    for i in order:
        missed, rejected = missed + labels[i], rejected + 1 - labels[i]
        costs.append(p_target * missed / targets + (1 - p_target) * (1 - rejected / nontargets))
    return min(costs) / p_target


def test_golden_values_of_ten_scores():
    assert eer(TEN_SCORES, TEN_LABELS, 'max').value == pytest.approx(20.0, abs=1e-9)
    assert min_dcf(TEN_SCORES, TEN_LABELS, 0.05) == pytest.approx(0.6, abs=1e-9)
    # The spec names the highest rejected score, 0.7; we the lowest accepted one.
    assert det_curve(TEN_SCORES, TEN_LABELS).min_dcf(0.05).threshold == 0.8


def test_golden_values_of_two_thousand_scores():
    rng = np.random.RandomState(0)
    labels = rng.randint(0, 2, 2000)
    scores = rng.randn(2000) + 1.5 * labels
    assert eer(scores, labels, 'max').value == pytest.approx(22.669284, abs=1e-6)
    assert min_dcf(scores, labels, 0.05) == pytest.approx(0.921233, abs=1e-6)
    assert min_dcf(scores, labels, 0.05) == pytest.approx(reference_min_dcf(scores, labels, 0.05))


@many
@given(scored_trials())
def test_interpolated_eer_equals_a_walk_along_the_curve(trials):
    assert eer(*trials).value == pytest.approx(naive_eer(*trials), abs=1e-9)


@many
@given(scored_trials())
def test_max_rule_equals_scikit_learn_also_with_ties(trials):
    value, threshold = eer(*trials, 'max')
    expected, expected_threshold = reference_max_eer(*trials)
    assert (value, threshold) == (expected, expected_threshold)


@pytest.mark.parametrize('seed', range(5))
def test_max_rule_equals_scikit_learn_on_large_lists(seed):
    rng = np.random.default_rng(seed)
    labels = rng.random(20000) < 0.5
    scores = (rng.standard_normal(20000) + labels * (1 + seed)).astype(np.float32)
    assert eer(scores, labels, 'max') == pytest.approx(reference_max_eer(scores, labels), abs=0)


@many
@given(scored_trials(), st.sampled_from([0.01, 0.05, 0.3, 0.5, 0.9]))
def test_min_dcf_equals_the_minimum_over_all_thresholds(trials, p):
    costs = [p * miss + (1 - p) * alarm for _, miss, alarm in naive_points(*trials)]
    assert min_dcf(*trials, p) == pytest.approx(min(costs) / min(p, 1 - p), abs=1e-9)


def test_min_dcf_does_not_depend_on_the_order_of_tied_trials():
    scores, labels = np.array([0.0, 0.0, 1.0]), np.array([1, 0, 1])
    backwards = min_dcf(scores[::-1], labels[::-1], 0.05)
    assert min_dcf(scores, labels, 0.05) == backwards == 0.5
    # The convention of the spec gains from splitting the tie when the non-target comes first.
    assert reference_min_dcf([0.0, 0.0, 1.0], [0, 1, 1], 0.05) == 0.0


def test_min_dcf_of_useless_scores_is_the_cheaper_of_accepting_and_rejecting_all():
    scores, labels = np.zeros(10), np.arange(10) % 2
    assert min_dcf(scores, labels, 0.05) == 1.0
    assert det_curve(scores, labels).min_dcf(0.05).threshold == np.inf
    assert det_curve(scores, labels).min_dcf(0.95).threshold == 0.0  # accept all


def test_min_dcf_weighs_the_costs():
    curve = det_curve(TEN_SCORES, TEN_LABELS)
    expected = min(10 * 0.01 * curve.fnr + 0.99 * curve.fpr) / 0.1  # NIST SRE 2008 costs
    assert curve.min_dcf(0.01, c_miss=10.0).value == pytest.approx(expected)


@many
@given(scored_trials())
def test_eer_is_unchanged_by_a_rising_transformation(trials):
    scores, labels = trials
    for rule in ('interpolated', 'max'):
        assert eer(np.exp(3 * scores), labels, rule).value == eer(scores, labels, rule).value


@many
@given(scored_trials())
def test_interpolated_eer_is_unchanged_when_labels_and_signs_change_together(trials):
    scores, labels = trials
    assert eer(-scores, ~labels).value == pytest.approx(eer(scores, labels).value, abs=1e-9)


@many
@given(scored_trials(), st.randoms(use_true_random=False))
def test_eer_is_unchanged_by_the_order_of_the_trials(trials, random):
    scores, labels = trials
    order = list(range(len(scores)))
    random.shuffle(order)
    assert eer(scores[order], labels[order]) == eer(scores, labels)


@many
@given(scored_trials())
def test_max_rule_is_never_below_the_interpolated_one(trials):
    assert eer(*trials, 'max').value >= eer(*trials).value - 1e-9


def test_eer_is_zero_when_scores_separate():
    scores, labels = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1])
    assert eer(scores, labels) == (0.0, 0.8)
    assert min_dcf(scores, labels, 0.01) == 0.0


def test_eer_is_a_hundred_when_scores_are_upside_down():
    scores, labels = np.array([0.1, 0.2, 0.8, 0.9]), np.array([1, 1, 0, 0])
    assert eer(scores, labels).value == pytest.approx(100.0)


def test_eer_is_fifty_when_all_scores_are_equal():
    value, threshold = eer(np.full(7, 0.3), np.arange(7) % 2)
    assert value == pytest.approx(50.0)
    assert threshold == 0.3


def test_accepting_at_the_eer_threshold_gives_about_the_eer():
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 2 == 0
    scores = rng.standard_normal(4000) + 1.5 * labels
    value, threshold = eer(scores, labels)
    accepted = scores >= threshold
    assert 100 * np.mean(accepted[~labels]) == pytest.approx(value, abs=0.051)  # one trial
    assert 100 * np.mean(~accepted[labels]) == pytest.approx(value, abs=0.051)


@pytest.mark.parametrize(
    ('scores', 'labels', 'message'),
    [
        ([0.1, np.nan, 0.3], [0, 1, 1], '1 scores are not finite, the first at index 1'),
        ([0.1, 0.2], [1, 1], '2 trials with 2 targets: both classes'),
        ([0.1, 0.2], [0, 0], '2 trials with 0 targets: both classes'),
        ([0.1, 0.2], [0, 1, 1], r'scores \(2,\) and labels \(3,\)'),
        ([0.1, 0.2], [1, 2], 'labels must be 0'),
        ([], [], 'both classes'),
    ],
)
def test_bad_trials_are_refused_in_one_line(scores, labels, message):
    with pytest.raises(ValueError, match=message) as error:
        det_curve(np.array(scores), np.array(labels))
    assert '\n' not in str(error.value)


def test_bad_rule_and_prior_are_refused():
    with pytest.raises(ValueError, match="rule 'mean'"):
        eer(TEN_SCORES, TEN_LABELS, 'mean')
    with pytest.raises(ValueError, match='0 < p_target < 1'):
        min_dcf(TEN_SCORES, TEN_LABELS, 1.0)


@pytest.mark.parametrize('sign', [1, -1])  # upside down, rejecting all is best
def test_bootstrap_equals_repeating_the_trials_of_each_draw(sign):
    scores, labels = gaussian_trials(300)
    scores = sign * scores
    rng = np.random.default_rng(1)
    enrol = rng.integers(8, size=300)
    test = np.where(labels, enrol, (enrol + rng.integers(1, 8, size=300)) % 8)
    found = bootstrap(scores, labels, enrol, test, p_targets=(0.1,), resamples=20, seed=5)

    draws = np.random.default_rng(5)
    values = []
    for _ in range(20):
        drawn = list(draws.integers(8, size=8))
        weight = [
            drawn.count(a) if a == b else drawn.count(a) * drawn.count(b)
            for a, b in zip(enrol, test)
        ]
        repeated, repeated_labels = np.repeat(scores, weight), np.repeat(labels, weight)
        values.append(
            (eer(repeated, repeated_labels).value, min_dcf(repeated, repeated_labels, 0.1))
        )
    low, high = np.quantile(values, (0.025, 0.975), axis=0)
    assert found.eer == pytest.approx((low[0], high[0]))
    assert found.min_dcf[0.1] == pytest.approx((low[1], high[1]))


def test_bootstrap_over_speakers_is_wider_than_over_trials_when_speakers_differ():
    rng = np.random.default_rng(0)
    speakers, trials = 30, 3000
    hard = 1.5 * rng.standard_normal(speakers)  # some speakers score low against themselves
    enrol = rng.integers(speakers, size=trials)
    labels = rng.random(trials) < 0.5
    other = (enrol + rng.integers(1, speakers, size=trials)) % speakers
    test = np.where(labels, enrol, other)
    scores = rng.standard_normal(trials) + labels * (3 + hard[enrol])

    def width(first, second):
        low, high = bootstrap(scores, labels, first, second, resamples=200).eer
        return high - low

    each = np.arange(trials)
    assert width(enrol, test) > 2 * width(each, each)


def test_bootstrap_repeats_with_its_seed_and_contains_the_estimate():
    scores, labels = gaussian_trials(2000)
    each = np.arange(2000)
    first = bootstrap(scores, labels, each, each, resamples=100, seed=3)
    assert first == bootstrap(scores, labels, each, each, resamples=100, seed=3)
    assert first != bootstrap(scores, labels, each, each, resamples=100, seed=4)
    assert first.eer[0] < eer(scores, labels).value < first.eer[1]


def test_bootstrap_of_independent_trials_has_the_binomial_width():
    rng = np.random.default_rng(0)
    labels = np.arange(20000) % 2 == 0
    scores = rng.standard_normal(20000) + 2 * labels
    each = np.arange(20000)
    low, high = bootstrap(scores, labels, each, each, resamples=300).eer
    # At a fixed rate p, EER is about the mean of FNR and FPR: variance p(1-p)/n twice, over 4.
    p = eer(scores, labels).value / 100
    expected = 2 * 1.96 * 100 * np.sqrt(p * (1 - p) / 10000 / 2)
    assert high - low == pytest.approx(expected, rel=0.25)


def test_bootstrap_refuses_units_that_cannot_be_resampled():
    with pytest.raises(ValueError, match='at least 2 units'):
        bootstrap(TEN_SCORES, TEN_LABELS, np.zeros(10), np.zeros(10))
    with pytest.raises(ValueError, match='10 scores, but 3 and 10 units'):
        bootstrap(TEN_SCORES, TEN_LABELS, np.zeros(3), np.zeros(10))
    with pytest.raises(ValueError, match='resamples >= 1'):
        bootstrap(TEN_SCORES, TEN_LABELS, np.arange(10), np.arange(10), resamples=0)
