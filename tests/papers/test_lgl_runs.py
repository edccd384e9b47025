"""Whole runs of papers/lgl from its command line, on a corpus of twelve speakers."""

import json
import re
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from lgl_recipe import LGL
from recipes import TORCHRUN, logged, same, small_corpus, table_of, weights

from shared.losses.aam_softmax import AamSoftmax
from shared.losses.contrastive import ContrastiveLoss

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp('corpus') / 'demo')


@pytest.fixture(scope='module')
def finished(corpus, tmp_path_factory):
    """An undisturbed run: its folder and what it printed."""
    return LGL.run(corpus, tmp_path_factory.mktemp('runs'))


def encoder(folder):
    return weights(folder / 'encoder.pt')


def trials_in(corpus, name):
    return len(corpus.trials[name].read_text().splitlines())


def test_recipe_leaves_table_plots_report_and_encoder(corpus, finished):
    folder, printed = finished
    results = json.loads((folder / 'results.json').read_text())
    assert [row['phase'] for row in results['table']] == ['untrained', 'contrastive', '1T', '1L']
    assert results['table'][2]['NMI %'] > 0 and 'selected %' in results['table'][3]
    evaluation = results['evaluations'][0]
    assert evaluation['trials'] == trials_in(corpus, 'O') and len(evaluation['sha256']) == 64
    for name in (
        'report.html',
        'encoder.pt',
        'metrics.jsonl',
        'plots/det_vox1_O.png',
        'labels/1.txt',
    ):
        assert (folder / name).stat().st_size > 0
    assert 'untrained' in printed and 'report.html' in printed


def test_second_start_of_a_finished_run_changes_nothing(corpus, finished, tmp_path):
    folder, _ = finished
    copy = tmp_path / 'LGL' / 'run'
    shutil.copytree(folder, copy)
    before = encoder(copy)
    results = (copy / 'results.json').read_text()
    LGL.run(corpus, tmp_path)
    assert same(before, encoder(copy))
    assert (copy / 'results.json').read_text() == results


def test_another_test_list_is_scored_anew_and_nothing_is_trained(corpus, finished, tmp_path):
    copy = tmp_path / 'LGL' / 'run'
    shutil.copytree(finished[0], copy)
    before = encoder(copy)
    LGL.run(corpus, tmp_path, trials_test=corpus.trials['E'])
    assert same(before, encoder(copy)) and logged(copy) == logged(finished[0])
    results = json.loads((copy / 'results.json').read_text())
    assert results['evaluations'][0]['list'] == 'vox1_E'
    for row, old in zip(results['table'], table_of(finished[0]), strict=True):
        assert row.keys() == old.keys() and row['phase'] == old['phase']
        assert len(np.load(copy / 'scores' / f'{row["phase"]}.npy')) == trials_in(corpus, 'E')
    assert results['table'][-1]['EER %'] == results['evaluations'][0]['eer']
    assert [row['EER %'] for row in results['table']] != [r['EER %'] for r in table_of(finished[0])]


def test_run_killed_at_three_moments_ends_with_the_same_bits(corpus, finished, tmp_path):
    """Killed in mid-epoch of Stage I, right after clustering, and in the gated phase."""
    folder = tmp_path / 'LGL' / 'run'
    moments = [
        lambda: (folder / 'contrastive' / 'last.pt').exists(),
        lambda: (folder / 'labels' / '1.txt').exists(),
        lambda: (folder / '1L' / 'last.pt').exists(),
    ]
    for moment in moments:  # a save after every step
        LGL.stopped(corpus, tmp_path, moment, save_minutes=1e-6)
        assert not (folder / 'results.json').exists()
    LGL.run(corpus, tmp_path, save_minutes=1e-6)
    assert same(encoder(finished[0]), encoder(folder))
    first, second = (json.loads((f / 'results.json').read_text()) for f in (finished[0], folder))
    assert first == second
    curves = [logged(f) for f in (finished[0], folder)]
    assert curves[0] == curves[1]


def test_ctrl_c_saves_and_the_same_command_continues(corpus, finished, tmp_path):
    folder = tmp_path / 'LGL' / 'run'

    def moment():
        reached = (folder / 'untrained.json').exists()
        time.sleep(0.3 if reached else 0)
        return reached

    status, errors = LGL.stopped(corpus, tmp_path, moment, kind=signal.SIGINT)
    assert status == 130, errors[-2000:]
    assert 'the same command continues' in errors and 'Traceback' not in errors
    LGL.run(corpus, tmp_path)
    assert same(encoder(finished[0]), encoder(folder))


def test_torchrun_on_two_processes_runs_the_recipe(corpus, tmp_path):
    folder, _ = LGL.run(corpus, tmp_path, TORCHRUN)
    table = table_of(folder)
    assert [row['phase'] for row in table] == ['untrained', 'contrastive', '1T', '1L']


def test_baseline_phases_and_evaluation_run_alone(corpus, tmp_path):
    folder, _ = LGL.run(corpus, tmp_path, phase='contrastive', lgl='false')
    assert not (folder / 'labels').exists()
    LGL.run(corpus, tmp_path, phase='cluster', lgl='false')
    assert (folder / 'labels' / '1.txt').exists() and not (folder / '1T').exists()
    LGL.run(corpus, tmp_path, phase='classify', lgl='false')
    assert (folder / '1T' / 'best.pt').exists() and not (folder / '1L').exists()
    other = tmp_path / 'other' / corpus.trials['O'].name
    other.parent.mkdir()
    shutil.copy(corpus.trials['E'], other)
    trials = f'{corpus.trials["O"]},{other}'
    LGL.run(corpus, tmp_path, eval='true', trials_test=trials, lgl='false')
    results = json.loads((folder / 'evaluation' / 'results.json').read_text())
    found = [(record['list'], record['trials']) for record in results['evaluations']]
    assert found == [('vox1_O', trials_in(corpus, 'O')), ('vox1_O_2', trials_in(corpus, 'E'))]
    plots = {path.name for path in (folder / 'evaluation' / 'plots').iterdir()}
    assert {'det_vox1_O.png', 'det_vox1_O_2.png'} <= plots


def test_lists_are_made_from_folders_once(corpus, tmp_path):
    changes = {'list_train': 'none', 'trials_valid': 'none', 'phase': 'contrastive'}
    folder, _ = LGL.run(corpus, tmp_path, **changes)
    train = (folder / 'lists' / 'train.txt').read_text()
    assert len(train.splitlines()) == 24 and float(train.split()[2]) > 1
    valid = (folder / 'lists' / 'valid_trials.txt').read_text()
    assert {line[0] for line in valid.splitlines()} == {'0', '1'}
    LGL.run(corpus, tmp_path, **changes)
    assert (folder / 'lists' / 'train.txt').read_text() == train
    assert (folder / 'lists' / 'valid_trials.txt').read_text() == valid


def test_last_iteration_can_be_wider(corpus, tmp_path):
    folder, _ = LGL.run(corpus, tmp_path, iterations=2, gates='2.0,2.0', width_last=16)
    assert len(encoder(folder)['stem.conv.weight']) == 16
    assert (
        len(
            torch.load(folder / '1L' / 'best.pt', weights_only=True)[
                'encoder.network.stem.conv.weight'
            ]
        )
        == 8
    )


def test_total_number_of_epochs_ends_the_recipe(corpus, tmp_path):
    folder, _ = LGL.run(
        corpus,
        tmp_path,
        iterations=2,
        gates='2.0,2.0',
        epoch_total=3,
        patience=2,
        phase_epoch_min=2,
    )
    table = table_of(folder)
    epochs = {row['phase']: row.get('epochs') for row in table}
    assert epochs == {'untrained': None, 'contrastive': 2, '1T': 2, '1L': 1}
    assert not (folder / 'labels' / '2.txt').exists()


# --- wrong input: one line, and nothing is lost


def test_missing_paths_are_named_at_once(corpus, tmp_path):
    line = LGL.refused(corpus, tmp_path, path_musan='/nowhere/musan', trials_test='/nowhere/o.txt')
    assert 'path_musan /nowhere/musan' in line and 'trials_test /nowhere/o.txt' in line
    assert not (tmp_path / 'LGL').exists()


def test_missing_paths_are_named_once_by_several_processes(corpus, tmp_path):
    _, printed = LGL.run(corpus, tmp_path, TORCHRUN, status=1, path_musan='/nowhere/musan')
    assert printed.count('not found: path_musan /nowhere/musan.') == 1


def test_other_arguments_in_the_same_folder_are_refused(corpus, finished):
    folder = finished[0]
    before = (folder / 'arguments.json').read_bytes()
    line = LGL.refused(corpus, folder.parent.parent, lr=0.5)
    assert 'lr' in line and '0.5' in line and 'name' in line
    assert (folder / 'arguments.json').read_bytes() == before


def test_a_longer_stage_one_than_the_finished_one_is_refused_not_ignored(
    corpus, finished, tmp_path
):
    shutil.copytree(finished[0], tmp_path / 'LGL' / 'run')
    line = LGL.refused(corpus, tmp_path, contrastive_epoch=3)
    assert 'contrastive: ended at epoch 2' in line and 'name' in line


def test_more_clusters_than_utterances_are_refused_before_training(corpus, tmp_path):
    line = LGL.refused(corpus, tmp_path, clusters=1000)
    assert 'clusters 1000' in line and '24 utterances' in line
    assert not (tmp_path / 'LGL' / 'run' / 'contrastive').exists()


def test_unknown_trial_id_is_named(corpus, tmp_path):
    trials = tmp_path / 'trials.txt'
    trials.write_text(corpus.trials['O'].read_text() + '1 id1/none/1.wav id1/none/2.wav\n')
    line = LGL.refused(corpus, tmp_path, trials_test=trials)
    assert 'id1/none/1.wav' in line


def test_checkpoint_of_another_model_is_named(corpus, tmp_path):
    torch.save({'some.weight': torch.ones(1)}, tmp_path / 'other.pt')
    line = LGL.refused(corpus, tmp_path, published=tmp_path / 'other.pt')
    assert 'other.pt' in line and 'some.weight' in line


def test_batch_that_does_not_divide_among_processes_is_refused(corpus, tmp_path):
    _, printed = LGL.run(corpus, tmp_path, TORCHRUN, status=1, contrastive_batch=9)
    assert len(re.findall('contrastive_batch 9 does not divide among 2', printed)) == 1


def test_corrupt_files_are_replaced_counted_and_listed(corpus, tmp_path):
    train = tmp_path / 'wav'
    shutil.copytree(corpus.train, train)
    files = sorted(train.rglob('*.wav'))
    files[0].write_bytes(b'')
    files[1].write_bytes(b'RIFF not a wave file')
    folder, printed = LGL.run(corpus, tmp_path, path_train=train, max_bad_share=0.9)
    listed = (folder / 'contrastive' / 'skipped.txt').read_text()
    assert files[0].name in listed and files[1].name in listed
    assert 'replaced' in printed
    labels = dict(line.split() for line in (folder / 'labels' / '1.txt').read_text().splitlines())
    assert sorted(labels.values()).count('-1') == 2


def test_resampled_and_stereo_audio_is_used_and_counted(corpus, tmp_path):
    train = tmp_path / 'wav'
    shutil.copytree(corpus.train, train)
    path = sorted(train.rglob('*.wav'))[0]
    wave, _ = soundfile.read(path)
    soundfile.write(path, np.stack([wave, wave], 1), 8000)
    _, printed = LGL.run(corpus, tmp_path, path_train=train, phase='contrastive')
    assert re.search(r'\d+ mixed to mono', printed) and re.search(r'\d+ resampled', printed)


def test_resampled_and_stereo_test_files_are_counted_in_the_record(corpus, tmp_path):
    test = tmp_path / 'wav'
    shutil.copytree(corpus.vox1, test)
    for number, name in enumerate(corpus.trials['O'].read_text().split()[1:3]):
        wave, rate = soundfile.read(test / name)
        soundfile.write(test / name, np.stack([wave, wave], 1), (8000, rate)[number])
    folder, printed = LGL.run(corpus, tmp_path, path_test=test, phase='contrastive')
    record = json.loads((folder / 'results.json').read_text())['evaluations'][0]
    assert record['converted'] == {'resampled': 1, 'mixed to mono': 2}
    assert '1 resampled, 2 mixed to mono' in printed or '2 mixed to mono, 1 resampled' in printed


# --- two processes learn what one does


def one_epoch(stage, folder, corpus_args):
    """Losses and weights after an epoch with batch statistics frozen, on however many ranks."""
    sys.path.insert(0, str(LGL.main.parent))
    import data
    import framework
    import models
    import train
    from shared import ddp
    from shared.loop import Loop

    torch.manual_seed(0)
    args = {**corpus_args, 'device': 'cpu'}
    corpus = data.Corpus(args, data.trial_lists(args))
    encoder = models.encoder_of(args)
    adversary = framework.Adversary(models.AugmentationDiscriminator(args['embed_size']))
    if stage == 'contrastive':
        method = framework.Contrastive(encoder, ContrastiveLoss())
        loader = corpus.contrastive_loader()
    else:
        method = framework.GatedClassification(encoder, AamSoftmax(4, args['embed_size']))
        labels = np.arange(len(corpus.train)) % 4
        loader = corpus.labelled_loader(labels, phase=3)
    for module in [*method.modules(), *adversary.modules()]:
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # stays frozen
    parallel, critic = method.distribute('cpu'), adversary.distribute('cpu')
    # plain gradient steps: Adam would blow up rounding where a gradient is near zero
    optimizer = torch.optim.SGD(method.learnable(), lr=0.01)
    critic_optimizer = torch.optim.SGD(adversary.learnable(), lr=0.01)
    loop = Loop(folder, loader, max_bad_share=0.0, framework=method)
    if stage == 'contrastive':
        args['contrastive_lr'] = 0.01
        metrics = train.contrastive_epoch(
            1, loop, parallel, critic, optimizer, critic_optimizer, args
        )
    else:
        metrics = train.classification_epoch('1L', loop, parallel, optimizer, args['gate'], args)
    del metrics['utterances_per_second'], metrics['step_seconds'], metrics['data_wait_percent']
    return metrics, ddp.unwrap(parallel).copy_of_state()


@pytest.mark.parametrize('stage', ['contrastive', 'classification'])
def test_two_processes_learn_what_one_does(stage, corpus, tmp_path, run_ranks, paper):
    lgl = paper('lgl')
    args, _, _ = lgl.arguments.get_args(LGL.command(corpus, tmp_path)[1:])
    args['gate'] = 14.0  # of the losses around it, some pass
    (one, state), *_ = run_ranks(one_epoch, stage, str(tmp_path / 'one'), args, ranks=1)
    (two, state_of_two), (also, _) = run_ranks(one_epoch, stage, str(tmp_path / 'two'), args)
    assert two == also
    assert one == pytest.approx(two, abs=1e-5, rel=1e-5)
    if stage == 'classification':
        assert 10 < one['selected'] < 90
    for name, value in state.items():
        torch.testing.assert_close(state_of_two[name], value, rtol=1e-4, atol=1e-6)
