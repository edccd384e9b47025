import numpy as np
import pytest
import torch
from transformers.models.wavlm.modeling_wavlm import _compute_mask_indices

from shared.models.span_masks import SpanMasks, draw_spans


def count_of_ones(own, size, draws=400, **rule):
    """Numbers of spans of single positions, which cannot overlap; (draws, B)."""
    torch.manual_seed(0)
    own = torch.tensor(own)
    return torch.stack([draw_spans(own, size, length=1, **rule).sum(1) for _ in range(draws)])


def draws_of(own, size, draws, **rule):
    torch.manual_seed(0)
    own = torch.tensor(own)
    return torch.stack([draw_spans(own, size, **rule) for _ in range(draws)])  # (draws, B, size)


@pytest.mark.parametrize(
    'size, prob, length, least, shares',
    [  # spec nawsv 3.2
        (149, 0.1, 5, 2, {2: 0.02, 3: 0.98}),
        (149, 0.05, 10, 2, {2: 1.0}),
        (99, 0.05, 10, 2, {2: 1.0}),
        (768, 0.05, 10, 0, {3: 0.16, 4: 0.84}),
    ],
)
def test_numbers_of_spans_are_those_of_the_rule(size, prob, length, least, shares):
    # the number follows from masked positions where spans happen not to overlap
    rows = draws_of([size] * 8, size, 600, prob=prob, length=length, min_count=least)
    covered = rows.sum(-1)
    assert (covered <= max(shares) * length).all() and (covered >= length).all()
    most = (covered.max(1).values + length - 1) // length  # of 8 rows with the same number
    for count, share in shares.items():
        assert abs((most == count).float().mean() - share) < 0.05
    assert (covered % length == 0).float().mean() > 0.4  # the spans have their length


def test_draws_have_the_distribution_of_transformers():
    rule = {'prob': 0.2, 'length': 4, 'min_count': 2}
    size, draws = 30, 4000
    own = [30, 17]
    mine = draws_of(own, size, draws, **rule).float().mean(0)
    np.random.seed(0)
    padding = torch.arange(size) < torch.tensor(own)[:, None]
    theirs = np.mean(
        [
            _compute_mask_indices((2, size), 0.2, 4, attention_mask=padding.long(), min_masks=2)
            for _ in range(draws)
        ],
        axis=0,
    )
    np.testing.assert_allclose(mine, theirs, atol=6 * np.sqrt(0.25 / draws))
    assert mine[1, 17:].max() == 0


def test_rows_share_one_rounding_of_their_number():
    counts = count_of_ones([100, 100, 100], 100, prob=0.025, min_count=0)
    assert (counts == counts[:, :1]).all()
    assert set(counts.unique().tolist()) == {2, 3}
    assert abs(counts.float().mean() - 2.5) < 0.1


def test_rows_count_by_their_own_frames():
    counts = count_of_ones([100, 60, 20, 1], 100, prob=0.1, min_count=0)
    assert counts[:, 0].unique().tolist() == [10]
    assert counts[:, 1].unique().tolist() == [6]
    assert counts[:, 2].unique().tolist() == [2]
    assert set(counts[:, 3].tolist()) == {0, 1}


def test_starts_are_drawn_without_replacement():
    assert (count_of_ones([5], 5, prob=1.0, min_count=0) == 5).all()


def test_more_spans_than_fit_are_cut():
    rule = {'prob': 0.0, 'length': 4, 'min_count': 50}
    rows = draws_of([10, 5, 4, 3], 10, 100, **rule)
    assert (rows[:, 0].sum(-1) <= 8).all() and rows[:, 0].sum(-1).max() == 8  # 10 // 4 spans
    assert (rows[:, 1, :5].sum(-1) == 5).all()  # both starts
    assert (rows[:, 2, :4].sum(-1) == 4).all()
    assert rows[:, 3].sum() == 0 and rows[:, 1, 5:].sum() == 0


def test_no_span_is_drawn_where_none_is_asked_for():
    assert draw_spans(torch.tensor([9, 9]), 9, prob=0.0, length=3, min_count=0).sum() == 0


def test_impossible_rules_are_refused():
    with pytest.raises(ValueError, match='span of 10 does not fit into 9'):
        draw_spans(torch.tensor([9]), 9, prob=0.1, length=10, min_count=0)
    with pytest.raises(ValueError, match='time_prob 1.5'):
        SpanMasks(time_prob=1.5)
    with pytest.raises(ValueError, match='feature_length 0'):
        SpanMasks(feature_prob=0.1, feature_length=0)
