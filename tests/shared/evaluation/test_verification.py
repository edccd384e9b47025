"""Extraction on one and two processes, records with their protocol, results on disk."""

import hashlib
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from shared import ddp
from shared.errors import UserError
from shared.evaluation import metrics, scoring, verification
from shared.evaluation.verification import extract, trial_speakers, verify, write_results


def embed(waves, lengths):
    """Sum, first sample and length of each file: any mix-up of rows or lengths shows."""
    return torch.stack([waves.sum(1), waves[:, 0], lengths.float()], dim=1)


def batches(rows, size=3):
    """What the loader gives for these files: file i has i + 2 samples of value i + 1."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        lengths = torch.tensor([i + 2 for i in part])
        waves = torch.zeros(len(part), int(lengths.max()))
        for line, i in zip(waves, part):
            line[: i + 2] = i + 1
        yield {'index': torch.tensor(part), 'waves': waves, 'lengths': lengths, 'skipped': []}


def expected_rows(count):
    return torch.tensor([[(i + 1) * (i + 2), i + 1, i + 2] for i in range(count)]).float()


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


def test_extract_puts_every_file_in_its_row():
    found = extract(embed, list(batches([5, 0, 3, 6, 1, 4, 2])), 7, 'cpu')
    assert found.dtype == torch.float32
    assert not found.is_inference()  # the caller may go on with it
    torch.testing.assert_close(found, expected_rows(7), rtol=0, atol=0)


def test_extract_runs_the_network_in_inference_mode():
    seen = []

    def watched(waves, lengths):
        seen.append(torch.is_inference_mode_enabled())
        return embed(waves, lengths)

    extract(watched, list(batches([0, 1])), 2, 'cpu')
    assert seen == [True]


def test_extract_keeps_segments():
    found = extract(
        lambda w, n: embed(w, n)[:, None].expand(-1, 4, -1), [*batches([1, 0])], 2, 'cpu'
    )
    torch.testing.assert_close(found, expected_rows(2)[:, None].expand(-1, 4, -1))


def test_extract_names_files_that_never_came_or_came_twice():
    with pytest.raises(ValueError, match='2 files never came, 0 were skipped: 1, 4'):
        extract(embed, list(batches([0, 2, 3])), 5, 'cpu')
    with pytest.raises(ValueError, match='1 files were embedded more than once: 2'):
        extract(embed, list(batches([0, 1, 2, 2])), 3, 'cpu')
    with pytest.raises(ValueError, match=r'file index 0\.\.9 of 3 files'):
        extract(embed, list(batches([0, 9])), 3, 'cpu')


def test_extract_gives_nan_to_files_that_the_loader_skipped():
    given = list(batches([0, 2]))
    given[0]['skipped'] = ['1.wav: no samples']
    empty = {'index': torch.zeros(0, dtype=torch.int64), 'waves': torch.zeros(0, 0)}
    given.append({**empty, 'lengths': empty['index'], 'skipped': ['3.wav: truncated']})
    found = extract(embed, given, 4, 'cpu')
    assert found.isnan().all(1).tolist() == [False, True, False, True]
    torch.testing.assert_close(found[[0, 2]], expected_rows(3)[[0, 2]])
    with pytest.raises(UserError, match='none of 1 files could be read'):
        extract(embed, given[1:], 1, 'cpu')


def test_extract_refuses_a_network_in_train_mode_and_rows_that_do_not_match():
    class Network(nn.Module):
        def forward(self, waves, lengths):
            return embed(waves, lengths)

        embed = forward

    network = Network()
    for callable_ in (network, network.embed):
        with pytest.raises(ValueError, match='train mode'):
            extract(callable_, list(batches([0])), 1, 'cpu')
    assert extract(network.eval(), list(batches([0])), 1, 'cpu').shape == (1, 3)
    with pytest.raises(ValueError, match='1 embeddings for 2 files'):
        extract(lambda w, n: embed(w, n)[:1], list(batches([0, 1])), 2, 'cpu')


def test_extract_shows_progress_only_with_more_than_one_batch(capsys):
    extract(embed, list(batches([0, 1, 2])), 3, 'cpu')
    assert capsys.readouterr().err == ''
    extract(embed, list(batches([0, 1, 2, 3])), 4, 'cpu')
    shown = capsys.readouterr().err
    assert 'embeddings' in shown and '0/4' in shown and 'files/s' in shown


def test_extract_shows_progress_only_on_the_main_process(monkeypatch, capsys):
    monkeypatch.setattr(verification.ddp, 'is_main', lambda: False)
    extract(embed, list(batches([0, 1, 2, 3])), 4, 'cpu')
    assert capsys.readouterr().err == ''


def extracted():
    """Tables of this rank's shares, and the error when both ranks embed the same files."""
    shares = [[6, 0, 3, 5, 1], [4, 2]], [[0, 1, 2], []]  # unequal; and one rank with nothing
    tables = [
        extract(embed, list(batches(share[ddp.rank()])), sum(map(len, share)), 'cpu')
        for share in shares
    ]
    with pytest.raises(ValueError) as caught:
        extract(embed, list(batches([0, 1])), 3, 'cpu')
    return tables, str(caught.value)


@pytest.mark.slow
def test_two_processes_get_the_embeddings_of_one_on_both(run_ranks):
    for tables, error in run_ranks(extracted):
        for table in tables:
            torch.testing.assert_close(table, expected_rows(len(table)), rtol=0, atol=0)
        assert 'embedded more than once: 0, 1' in error  # told by both, so neither waits


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
