"""What single benchmarks hand over, on sizes that take no time."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from shared.models.ecapa_tdnn import EcapaTdnn
from shared.models.frontend import LogMel
from shared.models.speaker_encoder import SpeakerEncoder


@pytest.fixture
def checked(bench):
    """`checked(row)`: the row, which `run.py` would accept."""

    def check(row):
        table = bench('table')
        assert tuple(row) == table.FIELDS
        table.check_target(row)
        return row

    return check


@pytest.fixture
def tiny():
    network = EcapaTdnn(width=8, mfa_width=8, attention_width=4, se_width=4, dim=4)
    return SpeakerEncoder(LogMel(), network)


def test_extraction_compares_ways_that_agree(bench, checked, tiny, tmp_path):
    extraction = bench('extraction')
    files = extraction.make_files(tmp_path, 4)
    row = checked(extraction.compare(extraction.System('tiny', tiny, 4), *files, 'cpu', rounds=1))
    assert row['ratio'] > 0 and row['unit'] == 'files/s'


def test_extraction_refuses_ways_that_differ(bench, tiny, tmp_path, monkeypatch):
    extraction = bench('extraction')
    files = extraction.make_files(tmp_path, 4)
    monkeypatch.setattr(extraction, 'one_by_one', lambda *_: torch.zeros(4, 4))
    with pytest.raises(AssertionError, match='not close'):
        extraction.compare(extraction.System('tiny', tiny, 4), *files, 'cpu', rounds=1)


def test_lengths_are_those_of_a_corpus(bench, tmp_path):
    _, seconds = bench('extraction').make_files(tmp_path, 60)
    assert seconds.min() >= 4 and seconds.max() <= 20
    assert 7 < seconds.mean() < 10 and seconds.std() > 2


def test_training_step_takes_turns_with_the_slower_way(bench, checked):
    train_step, true_size = bench('train_step'), bench('true_size')
    seen, framework = [], nn.Linear(1, 1)
    framework.way = 'ours'
    phase = SimpleNamespace(
        framework=framework,
        epoch=lambda loop: [seen.append(framework.way) for _ in loop.batches('')],
        slower=true_size.Slower('what they do', lambda _: {'way': 'theirs'}),
        args={},
    )
    (row,) = train_step.steps('a phase', phase, {'waves': torch.zeros(2)}, 2, 'cpu', quick=True)
    assert seen == ['ours', 'theirs'] * 2
    assert checked(row)['what'] == 'training step, a phase; other: what they do'
    assert row['unit'] == 'utt/s' and row['target'] == '>= 1x'


def test_scoring_hands_over_seconds_and_their_limit(bench, checked, monkeypatch):
    scoring = bench('scoring')
    for name, value in {'TRIALS': 400, 'PART': 20, 'NORM_PART': 2, 'COHORT': 350}.items():
        monkeypatch.setattr(scoring, name, value)
    row = checked(scoring.scoring_row('few', 60, 5, 16))
    assert row['target'] == '< 2 s' and row['other'] > 0
    assert checked(scoring.normalisation())['target'] == '< 2 s'


def test_row_of_a_gpu_that_is_not_there_says_so(bench, checked):
    row = checked(bench('ssl_encoder').gpu_row('WavLM-Base+', None, None))
    assert bench('table').met(row) is None and row['target'] == '>= 2x'


def test_batch_of_silence_has_the_shapes_of_the_loader(bench):
    true_size = bench('true_size')
    phase = SimpleNamespace(views={'': (2, 500), 'locals': (4, 300)})
    batch = true_size.synthetic(phase, 3)
    assert batch['waves'].shape == (3, 2, 500) and batch['locals']['waves'].shape == (3, 4, 300)
    assert not {'skipped', 'converted'} & batch.keys()
