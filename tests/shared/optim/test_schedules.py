import math

import pytest
import torch

from shared.optim.schedules import (
    cosine,
    cosine_momentum,
    exponential_steps,
    growing_margin,
    set_lr,
    warmup_cosine,
    warmup_exponential,
)


@pytest.mark.parametrize(
    'epoch, lr', [(1, 1e-3), (5, 1e-3), (6, 9e-4), (10, 9e-4), (43, 4.305e-4), (50, 3.874e-4)]
)
def test_exponential_steps_decay_after_each_five_epochs(epoch, lr):
    assert exponential_steps(1e-3, 0.9, 5, epoch) == pytest.approx(lr, abs=5e-8)


@pytest.mark.parametrize(  # spec nawsv section 5, 27 epochs counted from 0
    'done, lr',
    [(0, 5.00e-5), (5, 4.59e-5), (9, 3.76e-5), (15, 2.10e-5), (20, 8.27e-6), (26, 6.7e-7)],
)
def test_cosine_gives_the_published_rates(done, lr):
    assert cosine(5e-5, 5e-7, done, 27) == pytest.approx(lr, rel=5e-3)


def test_cosine_ends_at_the_minimum_and_may_be_constant():
    assert cosine(1.0, 0.1, 10, 10) == pytest.approx(0.1)
    assert cosine(0.3, 0.3, 7, 10) == 0.3


@pytest.mark.parametrize(  # spec wavlm_ssl 8.2: 70 epochs of 100 steps, 10 of them warm-up
    'step, lr',
    [
        (0, 0.0),
        (1, 0.325 / 999),
        (999, 0.325),
        (1000, 0.325),
        (4000, 0.162505),
        (6999, 1.0022e-5),
    ],
)
def test_warmup_cosine_gives_the_published_rates(step, lr):
    assert warmup_cosine(0.325, 1e-5, step, 1000, 7000) == pytest.approx(lr, rel=1e-4)


def test_warmup_cosine_without_warm_up_starts_at_the_peak():
    assert warmup_cosine(0.3, 0.1, 0, 0, 10) == 0.3
    assert warmup_cosine(0.3, 0.1, 0, 1, 10) == 0  # a single step of warm-up is its first
    assert warmup_cosine(0.3, 0.1, 1, 1, 10) == 0.3


def test_cosine_momentum_gives_the_published_values():
    assert cosine_momentum(0.996, 0, 7000) == pytest.approx(0.996, abs=1e-12)
    assert cosine_momentum(0.996, 3500, 7000) == pytest.approx(0.998, abs=1e-12)
    assert 1 - cosine_momentum(0.996, 6999, 7000) == pytest.approx(2e-10, rel=0.01)


E = 1421  # steps of an epoch of 1,092,009 utterances on 3 x 256 (spec enskd 5.2)


@pytest.mark.parametrize(
    'epoch, lr',
    [
        (1, 0.0),
        (2, 0.190118),
        (4, 0.515384),
        (7, 0.885401),
        (20, 0.458195),
        (40, 0.166308),
        (75, 0.028228),
        (100, 0.007952),
        (150, 0.000631),
        (151, 0.0006),
    ],
)
def test_warmup_exponential_gives_the_published_rates(epoch, lr):
    step = (epoch - 1) * E
    found = warmup_exponential(0.1, 5e-5, step, 6 * E, 150 * E, scale=12)
    assert found == pytest.approx(lr, abs=5.1e-7)
    double = warmup_exponential(0.1, 5e-5, step, 6 * E, 150 * E, scale=24)
    assert double == pytest.approx(2 * found, rel=1e-12)


def test_warmup_exponential_peaks_where_the_warm_up_ends():
    rates = [warmup_exponential(0.1, 5e-5, step, 60, 1500, scale=4) for step in range(1500)]
    assert max(rates) == rates[60] == pytest.approx(0.295, abs=5e-4)
    assert rates[30] == pytest.approx(4 * 0.5 * 0.1 * 5e-4 ** (30 / 1500))


def test_warmup_exponential_without_warm_up_starts_at_the_scaled_rate():
    assert warmup_exponential(0.1, 0.01, 0, 0, 10, scale=2) == pytest.approx(0.2)
    assert warmup_exponential(0.1, 0.01, 10, 0, 10) == pytest.approx(0.01)


@pytest.mark.parametrize(  # spec enskd 5.3
    'epoch, margin',
    [
        (1, 0.0),
        (20, 0.0),
        (20.5, 0.031741),
        (21, 0.058411),
        (22, 0.099763),
        (25, 0.164434),
        (30, 0.193675),
        (35, 0.198875),
        (39, 0.199717),
        (40, 0.2),
        (150, 0.2),
    ],
)
def test_growing_margin_gives_the_published_values(epoch, margin):
    step = math.ceil((epoch - 1) * E)
    assert growing_margin(step, E, 0.0, 0.2, 20, 40) == pytest.approx(margin, abs=5.1e-7)


def test_growing_margin_never_falls_and_is_exact_at_both_ends():
    margins = [growing_margin(step, 10, 0.1, 0.3, 3, 5) for step in range(60)]
    assert margins == sorted(margins)
    assert set(margins[:21]) == {0.1} and set(margins[40:]) == {0.3}
    assert 0.1 < margins[21] and margins[39] < 0.3


def test_growing_margin_may_jump_or_stay():
    jump = [growing_margin(step, 10, 0.0, 0.2, 3, 3) for step in (0, 19, 20, 21)]
    assert jump == [0.0, 0.0, 0.2, 0.2]
    assert {growing_margin(step, 10, 0.5, 0.5, 1, 1) for step in range(30)} == {0.5}


def test_set_lr_reaches_every_group():
    groups = [{'params': [torch.zeros(1, requires_grad=True)]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    set_lr(optimizer, 0.25)
    assert [group['lr'] for group in optimizer.param_groups] == [0.25, 0.25]
