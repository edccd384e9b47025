"""Whole runs of papers/wavlm_ssl from its command line: a WavLM of two layers, twelve speakers."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes import (
    QUIET_WAVLM,
    TINY_WAVLM,
    TORCHRUN,
    Recipe,
    logged,
    pretrained,
    same,
    small_ssl_corpus,
    ssl_paths,
    table_of,
    weights,
)

from shared.models.ssl_encoder import SslEncoder

SMALL = {
    'dino_epoch': 2,
    'dino_take': 2,
    'dino_warmup': 1,
    'dino_batch_size': 8,
    'dino_hidden': 8,
    'dino_bottleneck': 4,
    'dino_outputs': 16,
    'dino_regulariser': 12,
    'dino_width': 16,
    'dino_mfa_width': 24,
    'dino_attention_width': 8,
    'dino_se_width': 8,
    'dino_embed_size': 8,
    'global_size': 8000,
    'local_size': 4000,
    'locals': 2,
    'rounds': 1,
    'centroids': 12,
    'clusters': 6,
    'heads': 2,
    'compression': 4,
    'embed_size': 8,
    'epoch': 3,
    'batch_size': 4,
    'gate_epoch': 2,
    'lc_epoch': 3,
    'lc_threshold': 0.1,
    'lmft_epochs': 1,
    'lmft_batch_size': 4,
    'max_frames': 48,
    'lmft_frames': 64,
    'num_eval': 2,
    'eval_frames': 48,
    'eval_seconds': 60,
    'num_workers': 0,
    'keep_checkpoints': 4,
    'usable_gpu': '',
}
STEPS = ['dino', 'round0', 'round1', 'lmft1']
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return small_ssl_corpus(tmp_path_factory.mktemp('corpus') / 'demo')


WAVLM_SSL = Recipe('wavlm_ssl', 'WavLM-SSL', SMALL, ssl_paths)


@pytest.fixture(scope='module')
def finished(corpus, tmp_path_factory):
    """An undisturbed run: its folder and what it printed."""
    return WAVLM_SSL.run(corpus, tmp_path_factory.mktemp('runs'))


def outputs(folder):
    """The weights that each training leaves, and every list of labels."""
    files = [folder / 'seed1/dino/encoder.pt']
    files += [folder / f'seed1/{step}/model.pt' for step in STEPS[1:]]
    labels = [(folder / f'seed1/labels/{n}.txt').read_text() for n in (0, 1)]
    return [weights(file) for file in files], labels


def assert_same_outputs(first, second):
    (states, labels), (others, other_labels) = outputs(first), outputs(second)
    assert labels == other_labels
    assert all(same(one, other) for one, other in zip(states, others, strict=True))


def test_recipe_leaves_every_step_the_table_its_plots_and_the_authors_files(corpus, finished):
    folder, printed = finished
    rows = table_of(folder)
    assert [row['step'] for row in rows] == STEPS
    for row in rows:
        assert 0 <= row['EER %'] <= 100 and 0 <= row['full EER %'] <= 100
        assert ('NMI %' in row) == row['step'].startswith('round')
        assert row['step'] in printed
    plots = [f'seed1/{step}/plots/gate_{e:02d}.png' for step in STEPS[1:3] for e in (1, 2, 3)]
    plots += ['seed1/lmft1/plots/gate_01.png', 'seed1/round1/plots/shares.png', 'plots/steps.png']
    for name in (*plots, 'report.html', 'results.json', 'seed1/round0/losses.npz'):
        assert (folder / name).stat().st_size > 0, name
    model = weights(folder / 'seed1/round0/model.pt')
    prefixes = {name.split('.')[0] for name in model}
    assert prefixes == {'__S__', '__L__'} and '__S__.model.mask_emb' in model
    embeddings = weights(folder / 'seed1/embeddings/0.pt')
    assert len(embeddings) == 24 and all(x.shape == (1, 8) for x in embeddings.values())
    assert all(len(name.split('/')) == 3 for name in embeddings)
    lines = (folder / 'seed1/labels/1.txt').read_text().splitlines()
    assert {line.split()[1] for line in lines} == set(embeddings)
    assert {int(line.split()[0]) for line in lines} == set(range(6))


def test_gate_comes_from_the_epoch_before_and_goes_into_large_margin_fine_tuning(finished, paper):
    """Of every epoch: test_thresholds_come_from_the_losses_of_the_epoch_before."""
    state = weights(finished[0] / 'seed1/round1/last.pt')
    first, second, third = state['history']
    assert 'threshold' not in first and first['kept %'] == 100 and first['corrected %'] == 0
    assert second['corrected %'] == 0
    assert third['corrected %'] > 0 and third['kept %'] + third['corrected %'] <= 100
    assert third['threshold'] == state['objects']['gate']['log_gate']
    rates = [entry['lr_mhfa'] for entry in state['history']]
    assert rates == pytest.approx([5e-3, 5e-3 * 0.95, 5e-3 * 0.95**2])
    lmft = weights(finished[0] / 'seed1/lmft1/last.pt')['history'][0]
    losses = np.load(finished[0] / 'seed1/round1/losses.npz')['losses']
    stored = state['objects']['gate']['record']['losses'].numpy()
    seen = np.isfinite(losses)
    np.testing.assert_array_equal(losses[seen], stored[np.isfinite(stored)])
    threshold = paper('wavlm_ssl').gate.fit_gate(losses).threshold
    assert lmft['threshold'] == pytest.approx(threshold, abs=1e-5) != third['threshold']
    assert lmft['lr_mhfa'] == pytest.approx(5e-3 * 0.95**3)
    assert lmft['lr_layer 0'] == pytest.approx(2e-5 * 0.95**3)


def test_each_round_starts_from_the_pretrained_model_and_leaves_its_front_end_alone(finished):
    front = '__S__.model.post_extract_proj.weight'
    layer = '__S__.model.encoder.layers.0.fc1.weight'
    torch.manual_seed(0)
    before = SslEncoder(TINY_WAVLM).state_dict()
    for step in STEPS[1:]:
        model = weights(finished[0] / f'seed1/{step}/model.pt')
        assert torch.equal(model[front], before['feature_projection.projection.weight'])
        name = 'encoder.layers.0.feed_forward.intermediate_dense.weight'
        assert 0 < (model[layer] - before[name]).abs().max() < 1e-3  # a few steps of 2e-5


def test_second_start_of_a_finished_run_changes_nothing(corpus, finished, tmp_path):
    copy = tmp_path / 'WavLM-SSL' / 'run'
    shutil.copytree(finished[0], copy)
    results = (copy / 'results.json').read_text()
    WAVLM_SSL.run(corpus, tmp_path)
    assert_same_outputs(finished[0], copy)
    assert (copy / 'results.json').read_text() == results


def test_another_test_list_is_scored_anew_in_a_moved_run(corpus, finished, tmp_path):
    copy = tmp_path / 'WavLM-SSL' / 'run'
    shutil.copytree(finished[0], copy)
    results = table_of(copy)
    WAVLM_SSL.run(corpus, tmp_path, trials_test=corpus.trials['E'])
    assert_same_outputs(finished[0], copy)
    assert [row['EER %'] for row in table_of(copy)] != [row['EER %'] for row in results]
    stored = json.loads((copy / 'seed1/lmft1/scores.json').read_text())['result']
    assert {record['name'] for record in stored['records']} == {'vox1_E'}
    assert str(tmp_path) not in json.dumps(stored)  # names no place that may be left


def test_run_killed_in_each_phase_ends_with_the_same_labels_and_bits(corpus, finished, tmp_path):
    folder = tmp_path / 'WavLM-SSL' / 'run' / 'seed1'
    moments = [
        lambda: (folder / 'dino/last.pt').exists(),
        lambda: (folder / 'dino/encoder.pt').exists(),
        lambda: (folder / 'embeddings/0.pt').exists(),
        lambda: (folder / 'labels/0.txt').exists(),
        lambda: (folder / 'round0/epoch_0002.pt').exists(),
        lambda: (folder / 'round1/losses.npz').exists(),
        lambda: (folder / 'lmft1/last.pt').exists(),
    ]
    for moment in moments:  # a save after every step
        WAVLM_SSL.stopped(corpus, tmp_path, moment, save_minutes=1e-6)
        assert not (folder.parent / 'results.json').exists()
    WAVLM_SSL.run(corpus, tmp_path, save_minutes=1e-6)
    assert_same_outputs(finished[0], folder.parent)
    assert table_of(folder.parent) == table_of(finished[0])
    assert logged(folder.parent) == logged(finished[0])


def test_phases_run_one_step_each_and_in_their_order(corpus, finished, tmp_path):
    line = WAVLM_SSL.refused(corpus, tmp_path, phase='finetune')
    assert 'run --phase dino' in line
    folder, printed = WAVLM_SSL.run(corpus, tmp_path, phase='dino')
    assert [row['step'] for row in table_of(folder)] == ['dino'] and 'report: ' in printed
    folder, printed = WAVLM_SSL.run(corpus, tmp_path, phase='dino')
    assert 'dino is done; next: --phase embed' in printed and 'report: ' in printed
    for phase in ('embed', 'cluster', 'finetune', 'all'):  # the rest at once
        folder, printed = WAVLM_SSL.run(corpus, tmp_path, phase=phase)
    assert_same_outputs(finished[0], folder)
    assert table_of(folder) == table_of(finished[0])


def test_a_phase_goes_on_with_the_next_seed(corpus, finished, tmp_path):
    copy = tmp_path / 'WavLM-SSL' / 'run'
    shutil.copytree(finished[0], copy)
    _, printed = WAVLM_SSL.run(corpus, tmp_path, phase='dino', seeds='1,2')
    assert 'seed1: the whole recipe is done' in printed
    rows = [(row['step'], row['seed']) for row in table_of(copy)]
    assert ('dino', 2) in rows and ('lmft1', 1) in rows and ('round0', 2) not in rows


def test_other_rounds_of_a_run_stay_in_its_table_and_the_newest_is_scored(
    corpus, finished, tmp_path
):
    copy = tmp_path / 'WavLM-SSL' / 'run'
    shutil.copytree(finished[0], copy)
    WAVLM_SSL.run(corpus, tmp_path, rounds=0)
    expected = ['dino', 'round0', 'lmft0', 'round1', 'lmft1']
    assert [row['step'] for row in table_of(copy)] == expected
    WAVLM_SSL.run(corpus, tmp_path, rounds=0, eval='true')
    row = table_of(copy / 'evaluation/seed1_lmft1_model')[0]
    assert row['EER %'] == pytest.approx(table_of(copy)[-1]['EER %'], abs=1e-6)


def test_torchrun_on_two_processes_runs_the_recipe(corpus, tmp_path):
    folder, _ = WAVLM_SSL.run(corpus, tmp_path, TORCHRUN)
    assert [row['step'] for row in table_of(folder)] == STEPS


def test_given_embeddings_replace_dino_and_given_labels_the_clustering(corpus, finished, tmp_path):
    made = finished[0] / 'seed1'
    given = {'embeddings': made / 'embeddings/0.pt', 'name': 'a'}
    folder, _ = WAVLM_SSL.run(corpus, tmp_path, **given)
    assert [row['step'] for row in table_of(folder)] == STEPS[1:]
    one, other = (weights(at / 'seed1/lmft1/model.pt') for at in (finished[0], folder))
    assert same(one, other)
    given = {'labels': made / 'labels/0.txt', 'name': 'b', 'rounds': 0}
    folder, _ = WAVLM_SSL.run(corpus, tmp_path, **given)
    one, other = (weights(at / 'seed1/round0/model.pt') for at in (finished[0], folder))
    assert same(one, other)
    given = {'labels': corpus.train_list, 'name': 'c', 'rounds': 0, 'lmft_epochs': 0}
    folder, printed = WAVLM_SSL.run(corpus, tmp_path, **given, epoch=1)  # true labels
    assert 'names 24 of 24 training utterances, 0 keys' in printed
    assert table_of(folder)[0]['NMI %'] == 100


def test_clustering_alone_replaces_the_published_tool(corpus, finished, tmp_path):
    made, target = finished[0] / 'seed1', tmp_path / 'labels.txt'
    given = {'phase': 'cluster', 'embeddings': made / 'embeddings/0.pt', 'labels': target}
    WAVLM_SSL.run(corpus, tmp_path, **given)
    assert target.read_text() == (made / 'labels/0.txt').read_text()
    assert not (tmp_path / 'WavLM-SSL' / 'run').exists()


def test_evaluation_of_the_exported_file_repeats_the_numbers(corpus, finished, tmp_path):
    given = finished[0] / 'seed1/lmft1/model_epoch1.pt'  # the only epoch, so also the last
    settings = {'eval': 'true', 'published': given, 'path_ssl': '/nowhere'}
    settings |= {'as_norm': 'true', 'labels': finished[0] / 'seed1/labels/1.txt', 'cohort_top': 3}
    folder, _ = WAVLM_SSL.run(corpus, tmp_path, **settings)
    row = table_of(folder / 'evaluation/seed1_lmft1_model_epoch1')[0]
    expected = table_of(finished[0])[-1]
    assert 0 <= row.pop('AS-norm EER %') <= 100
    names = [name for name in row if name not in ('step', 'seed')]
    assert [row[n] for n in names] == pytest.approx([expected[n] for n in names], abs=1e-6)


def test_two_seeds_of_the_plain_recipe_get_rows_and_means(corpus, tmp_path):
    settings = {'dino': 'dino', 'dino_regulariser': 0, 'dino_take': 0, 'rounds': 0}
    settings |= {'lmft_epochs': 0, 'epoch': 1, 'seeds': '1,2', 'lc': 'soft', 'as_norm': 'true'}
    folder, printed = WAVLM_SSL.run(corpus, tmp_path, **settings)
    rows = table_of(folder)
    assert [(row['step'], row['seed']) for row in rows] == [
        ('dino', 1),
        ('dino', 2),
        ('round0', 1),
        ('round0', 2),
        ('dino', 'mean of 2'),
        ('round0', 'mean of 2'),
    ]
    one, other, mean = (
        weights(folder / 'seed1/dino' / name)
        for name in ('epoch_0001.pt', 'epoch_0002.pt', 'encoder.pt')
    )
    name = 'network.stem.norm.weight'
    both = (one[f'teacher.encoder.{name}'] + other[f'teacher.encoder.{name}']) / 2
    torch.testing.assert_close(mean[name], both)
    assert rows[5]['EER %'] == pytest.approx((rows[2]['EER %'] + rows[3]['EER %']) / 2)


# --- wrong input: one line, and nothing is lost


def test_a_corpus_that_is_too_small_is_refused_in_one_line(corpus, tmp_path):
    line = WAVLM_SSL.refused(corpus, tmp_path, lmft_batch_size=8)
    assert 'lmft_batch_size 8' in line and '6 clusters' in line
    assert not (tmp_path / 'WavLM-SSL/run/arguments.json').exists()  # the name is still free


# --- two processes learn what one does


def one_epoch(folder, args):
    """An epoch on however many ranks: metrics, weights, losses, kept, corrected, the next gate."""
    sys.path.insert(0, str(WAVLM_SSL.main.parent))
    import data
    import framework
    import systems
    import train
    from phases import DynamicGate
    from shared import ddp
    from shared.datasets.trial_files import trial_lists
    from shared.loop import Loop

    torch.manual_seed(0)
    args = {**args, 'device': 'cpu', 'path_log': folder}
    tests = trial_lists(args['trials_test'], args['path_test'], budget_seconds=60, workers=0)
    corpus = data.Corpus(args, tests[0])
    encoder = systems.encoder_of(args)
    backend, criterion = systems.backend_of(args, encoder), systems.criterion_of(args, 6, 0.2)
    method = framework.GatedFineTuning(encoder, backend, criterion, args)
    method.pull_towards(encoder.state_dict(), 'cpu')
    gate = DynamicGate(len(corpus.train), 'cpu')
    gate.log_gate = 1.35
    parallel = method.distribute('cpu')
    # plain gradient steps: Adam would blow up rounding where a gradient is near zero
    optimizer = torch.optim.SGD(method.groups(1e-3, 1e-3, 1.0), lr=1e-3)
    loader = corpus.labelled_loader(corpus.train.speakers, 0)
    loop = Loop(Path(folder) / 'round0', loader, max_bad_share=0.0, framework=method)
    metrics = train.finetune_epoch('round0', 3, 0, gate, loop, parallel, optimizer, args)
    for name in ('utterances_per_second', 'step_seconds', 'data_wait_percent'):
        del metrics[name]
    losses, (kept, corrected, _) = gate.record.values(), gate.record.fates_and_labels()
    gate.begin(4, args)
    weights = ddp.unwrap(parallel).copy_of_state()
    return metrics, weights, losses, kept.tolist(), corrected.tolist(), gate.log_gate


def test_two_processes_learn_what_one_does_and_find_the_same_gate(
    corpus, tmp_path, run_ranks, paper
):
    # without dropout, which every rank draws for itself
    model = pretrained(QUIET_WAVLM, tmp_path / 'wavlm')
    # no pull: its gradient has length 1 also where a weight has moved by rounding alone
    settings = {'pull': 0, 'scale': 8, 'lc_threshold': 0.42}
    args, *_ = paper('wavlm_ssl').arguments.get_args(
        WAVLM_SSL.command(corpus, tmp_path, path_ssl=model, **settings)[1:]
    )
    (found,) = run_ranks(one_epoch, str(tmp_path / 'one'), args, ranks=1)
    first, second = run_ranks(one_epoch, str(tmp_path / 'two'), args)
    one, state, losses, kept, corrected, gate = found
    two, state_of_two, losses_of_two, *fates_of_two, gate_of_two = first
    # every fate is among the samples, and no loss hides behind the smallest that has a logarithm
    seen = np.isfinite(losses)
    assert sum(kept) > 0 and sum(corrected) > 0 and sum(kept) + sum(corrected) < seen.sum()
    assert 0 < one['kept %'] < 100 and 0 < one['corrected %'] < 100
    assert losses[seen].min() > 1e-3
    assert two == second[0] and gate_of_two == second[-1]
    assert one == pytest.approx(two, abs=1e-4, rel=1e-5)
    assert fates_of_two == [kept, corrected] == [*second[3:5]]
    np.testing.assert_allclose(losses_of_two, losses, rtol=1e-4)
    np.testing.assert_array_equal(second[2], losses_of_two)
    assert gate == pytest.approx(gate_of_two, abs=1e-4)
    assert np.isfinite(gate) and gate != 1.35  # of this epoch
    for name, value in state.items():
        torch.testing.assert_close(state_of_two[name], value, rtol=1e-4, atol=1e-6)
