"""Scores and records with their protocol, results on disk."""

import hashlib
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from shared.errors import UserError
from shared.evaluation import metrics, scoring
from shared.evaluation.verification import score_record, trial_speakers, verify, write_results


def trials_of(speakers=12, files_each=4, count=400, seed=0):
    """Trials among speakers, embeddings that know them, in the columns of a trial list."""
    rng = np.random.default_rng(seed)
    files = [f'id{s:05d}/video/{u:05d}.wav' for s in range(speakers) for u in range(files_each)]
    of = np.repeat(np.arange(speakers), files_each)
    embeddings = rng.standard_normal((speakers, 8))[of] + 1.2 * rng.standard_normal((len(of), 8))
    enrol, test = rng.integers(len(of), size=(2, count))
    test[::2] = enrol[::2] // files_each * files_each + rng.integers(files_each, size=count // 2)
    trials = SimpleNamespace(
        name='vox1_O.txt',
        enrol=enrol,
        test=test,
        labels=of[enrol] == of[test],
        files=tuple(files),
        sha256=hashlib.sha256(b'list').hexdigest(),
    )
    return torch.tensor(embeddings, dtype=torch.float32), trials


def test_record_carries_the_errors_of_its_scores():
    embeddings, trials = trials_of()
    record, scores = verify(embeddings, trials, resamples=50)
    np.testing.assert_allclose(scores, scoring.cosine(embeddings, trials.enrol, trials.test))
    curve = metrics.det_curve(scores, trials.labels)
    assert record['eer'] == curve.eer().value
    assert record['eer_by_rule'] == {r: curve.eer(r).value for r in ('interpolated', 'max')}
    assert record['min_dcf'] == {'0.01': curve.min_dcf(0.01)[0], '0.05': curve.min_dcf(0.05)[0]}
    assert record['eer_interval'][0] < record['eer'] < record['eer_interval'][1]
    assert 1 < record['eer'] < 40


def test_record_carries_the_whole_protocol_as_json():
    embeddings, trials = trials_of()
    cohort = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    record, _ = verify(
        embeddings,
        trials,
        known_name='Vox1-O cleaned',
        eer_rule='max',
        p_targets=(0.01, 0.05, 0.1),
        score_norm='as-norm',
        cohort=cohort,
        cohort_name='VoxCeleb2 dev, speaker means',
        top_k=5,
        resamples=20,
        seed=7,
    )
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert {
        'name': 'vox1_O.txt',
        'known_name': 'Vox1-O cleaned',
        'sha256': trials.sha256,
        'trials': 400,
        'targets': int(trials.labels.sum()),
        'nontargets': int((~trials.labels).sum()),
        'files': 48,
        'eer_rule': 'max',
        'eer': record['eer_by_rule']['max'],
        'p_targets': [0.01, 0.05, 0.1],
        'crop': 'full',
        'embedding_dim': 8,
        'segments': 1,
        'mean_subtraction': False,
        'score_norm': {
            'name': 'as-norm',
            'cohort': 'VoxCeleb2 dev, speaker means',
            'cohort_size': 20,
            'top_k': 5,
            'deviation': 'population',
        },
        'confidence': {
            'level': 0.95,
            'method': 'two-way bootstrap, percentile',
            'unit': 'speaker',
            'units': 12,
            'resamples': 20,
            'seed': 7,
        },
    }.items() <= record.items()


def test_record_of_given_scores_is_the_one_that_verify_makes():
    embeddings, trials = trials_of()
    protocol = {'known_name': 'a', 'eer_rule': 'max', 'p_targets': (0.1,), 'crop': 'b', 'seed': 3}
    record, scores = verify(embeddings, trials, **protocol, resamples=20)
    own = {'embedding_dim', 'segments', 'mean_subtraction', 'score_norm'}
    assert record.keys() > own
    made = score_record(scores, trials, **protocol, resamples=20)
    assert made == {name: value for name, value in record.items() if name not in own}
    other = score_record(scores, trials, **protocol | {'seed': 4}, resamples=20)
    assert other['eer_interval'] != made['eer_interval']
    assert score_record(scores, trials, resamples=0)['eer_interval'] is None


def test_record_tells_further_fields_but_never_in_place_of_its_own():
    embeddings, trials = trials_of()
    record, scores = verify(embeddings, trials, resamples=0, converted={'resampled': 2}, crops=5)
    assert record['converted'] == {'resampled': 2} and record['crops'] == 5
    assert score_record(scores, trials, resamples=0, segments=9)['segments'] == 9
    with pytest.raises(ValueError, match='its own eer, files'):
        score_record(scores, trials, files=1, eer=0.0, note='x')
    with pytest.raises(ValueError, match=r'scores \(399,\)'):
        score_record(scores[1:], trials)


def test_scores_follow_mean_subtraction_segments_and_normalisation():
    embeddings, trials = trials_of()
    pairs = trials.enrol, trials.test
    mean = embeddings.mean(0)
    _, scores = verify(embeddings, trials, mean=mean, resamples=0)
    np.testing.assert_allclose(scores, scoring.cosine(embeddings - mean, *pairs), atol=1e-6)

    segments = torch.stack([embeddings, embeddings.flip(1)], dim=1)
    record, scores = verify(segments, trials, crop='2 x 4 s', resamples=0)
    np.testing.assert_allclose(scores, scoring.segment_cosine(segments, *pairs), atol=1e-6)
    assert (record['segments'], record['crop'], record['confidence']) == (2, '2 x 4 s', None)

    cohort = embeddings[:10] + 1
    _, scores = verify(
        embeddings, trials, mean=mean, score_norm='s-norm', cohort=cohort, resamples=0
    )
    units = nn.functional.normalize(embeddings - mean)
    statistics = scoring.cohort_statistics(units, cohort - mean, None)
    raw = scoring.dot(units, *pairs)
    np.testing.assert_allclose(scores, scoring.as_norm(raw, *pairs, *statistics), atol=1e-5)


def test_files_without_embedding_are_named():
    embeddings, trials = trials_of()
    embeddings[5, 2] = torch.nan
    embeddings[8, 0] = torch.inf
    with pytest.raises(UserError, match=r'vox1_O.txt: 2 of 48 .*id00001/video/00001.wav') as error:
        verify(embeddings, trials)
    assert '\n' not in str(error.value)
    assert 'id00002/video/00000.wav' in str(error.value)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'score_norm': 'z-norm', 'cohort': torch.ones(3, 8)}, "score_norm 'z-norm' is unknown"),
        ({'score_norm': 'as-norm'}, "'as-norm' needs a cohort"),
        ({'cohort': torch.ones(3, 8)}, 'of no use without score_norm'),
        ({'eer_rule': 'mean'}, "rule 'mean'"),
        ({'p_targets': (0.0,)}, '0 < p_target < 1'),
    ],
)
def test_protocols_that_make_no_sense_are_refused(options, message):
    embeddings, trials = trials_of()
    with pytest.raises(ValueError, match=message):
        verify(embeddings, trials, **options)
    with pytest.raises(ValueError, match='47 embeddings for 48 files'):
        verify(embeddings[1:], trials)


def test_speakers_come_from_folders_only_when_every_label_agrees():
    embeddings, trials = trials_of()
    assert trial_speakers(trials).tolist() == np.repeat(np.arange(12), 4).tolist()
    trials.labels = trials.labels.copy()
    trials.labels[1] ^= True
    assert trial_speakers(trials) is None
    assert verify(embeddings, trials, resamples=5)[0]['confidence']['unit'] == 'file'


def test_results_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'run' / 'results.json'
    write_results(path, [{'system': 'Stage I', 'EER': 7.36}], [{'eer': 7.36}])
    assert json.loads(path.read_text()) == {
        'table': [{'system': 'Stage I', 'EER': 7.36}],
        'evaluations': [{'eer': 7.36}],
    }
    before = path.read_text()
    with pytest.raises(ValueError):
        write_results(path, [{'EER': float('nan')}], [])

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.raises(UserError, match='No space'):
        write_results(path, [], [])
    assert path.read_text() == before
