"""Whole runs of papers/nawsv from its command line: a WavLM of two layers, twelve speakers."""

import json
import re
import shutil
import sys
from pathlib import Path

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

from shared.datasets.demo_nonspeech import make_nonspeech
from shared.models.ssl_encoder import SslEncoder

SMALL = {
    'adapter_hidden_size': 4,
    'embed_size': 8,
    'ecapa_width': 8,
    'ecapa_mfa_width': 24,
    'ecapa_attention_width': 8,
    'ecapa_se_width': 8,
    'warmup_epoch': 2,
    'adapter_epoch': 1,
    'warmup_batch_size': 2,
    'epoch': 3,
    'unfreeze_ssl_epoch': 1,
    'large_margin_epoch': 2,
    'batch_size': 8,
    'topk_penalty': '2,0.1',
    'crop_size': 8000,
    'large_crop_size': 12000,
    'num_seg': 2,
    'seg_size': 8000,
    'test_snrs': '0,20',
    'eval_seconds': 60,
    'num_workers': 0,
    'keep_checkpoints': 3,
    'usable_gpu': '',
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    """A demo corpus with Nonspeech100 and a pre-trained model of random weights beside it."""
    made = small_ssl_corpus(tmp_path_factory.mktemp('corpus') / 'demo')
    make_nonspeech(made.root / 'Nonspeech100', count=3)
    return made


def paths(corpus):
    """The arguments that name what is in the corpus."""
    return {
        **ssl_paths(corpus),
        'path_valid': corpus.vox1,
        'trials_valid': corpus.trials['valid'],
        'path_nonspeech': corpus.root / 'Nonspeech100',
        'path_musan_split': corpus.root / 'musan_split',
        'path_noisy': corpus.root / 'test_noise',
    }


NAWSV = Recipe('nawsv', 'NAW-SV', SMALL, paths)


@pytest.fixture(scope='module')
def finished(corpus, tmp_path_factory):
    """An undisturbed run with its comparison: its folder and what it printed."""
    return NAWSV.run(corpus, tmp_path_factory.mktemp('runs'), compare='true')


def exported(folder, phase='finetune', kind='student'):
    return weights(folder / 'seed1' / phase / f'{kind}.pt')


def test_recipe_leaves_table_plots_report_and_the_authors_files(corpus, finished):
    folder, printed = finished
    rows = table_of(folder)
    assert [row['system'] for row in rows] == ['NAW-SV', 'no warm-up']
    names = ['clean', 'clean, TTA', 'noise', 'speech', 'music', 'nonspeech', 'mean of 6 noisy']
    for row in rows:
        assert list(row) == ['system', *(f'{name} EER %' for name in [*names, 'with clean'])]
        six = [row[f'{name} EER %'] for name in ('noise', 'speech', 'music')]
        assert row['mean of 6 noisy EER %'] == pytest.approx(sum(six) / 3)
    for name in ('report.html', 'plots/eer_over_snr.png', 'text/conditions.txt'):
        assert (folder / name).stat().st_size > 0
    for condition in ('clean', 'noise_0', 'speech_20', 'music_0', 'nonspeech_20'):
        assert re.search(rf'^\s*{condition}\s+[\d.]+\s+[\d.]+\s*$', printed, re.M), printed
    student = exported(folder)
    assert all(name.startswith('module.wavlm.') for name in student)
    assert 'module.wavlm.encoder.layers.0.adapter.down.weight' in student
    assert not any('adapter' in name for name in exported(folder, 'baseline'))
    assert set(exported(folder, 'warmup', 'e_apn')) == {'module.w', 'module.b'}
    assert set(exported(folder, 'finetune', 'criterion')) == {'module.fc', 'module.ce.weight'}


def test_records_say_how_each_number_came_about(finished):
    stored = json.loads((finished[0] / 'seed1/finetune/conditions.json').read_text())
    records = stored['result']['records']
    assert len(records) == 9 * 3  # clean and 4 noises x 2 SNRs; tta, full, full+tta
    assert {r['crop'] for r in records} == {'tta', 'full', 'full+tta'}
    for record in records:
        assert len(record['sha256']) == 64 and 0 <= record['eer'] <= 100
        assert (record['noise'] is None) == (record['condition'] == 'clean')


def test_warm_up_changes_the_student_in_two_steps(corpus, finished):
    """Adapters alone in the first epoch, all of the student in the second; the teacher never."""
    folder = finished[0] / 'seed1' / 'warmup'
    first, second = (weights(folder / f'epoch_000{k}.pt') for k in (1, 2))
    assert not any(name.startswith('teacher.') for name in first)
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    torch.manual_seed(0)
    before = SslEncoder(TINY_WAVLM).state_dict()
    for name, value in before.items():
        assert torch.equal(first[f'student.{name}'], value), name
    assert 'student.feature_extractor.conv_layers.0.conv.weight' in changed
    assert 'student.encoder.layers.1.adapter.down.weight' in changed


def test_student_rests_while_it_is_frozen_in_fine_tuning(finished, paper):
    folder = finished[0] / 'seed1'
    start = paper('nawsv').published.read(folder / 'warmup' / 'student.pt').state
    first, second = (weights(folder / 'finetune' / f'epoch_000{k}.pt') for k in (1, 2))
    assert all(torch.equal(first[f'student.{name}'], value) for name, value in start.items())
    assert not all(torch.equal(second[f'student.{name}'], value) for name, value in start.items())
    state = weights(folder / 'finetune' / 'last.pt')
    rates = [round(entry['lr'], 7) for entry in state['history']]
    assert rates == [5e-5, 3.76e-5, 1.29e-5]  # half a cosine over three epochs
    assert state['best']['epoch'] == 3  # selection 'last'


def test_second_start_of_a_finished_run_changes_nothing(corpus, finished, tmp_path):
    copy = tmp_path / 'NAW-SV' / 'run'
    shutil.copytree(finished[0], copy)
    before, results = exported(copy), (copy / 'results.json').read_text()
    NAWSV.run(corpus, tmp_path, compare='true')
    assert same(before, exported(copy))
    assert (copy / 'results.json').read_text() == results


def test_another_test_list_is_scored_anew_in_a_moved_run(corpus, finished, tmp_path):
    copy = tmp_path / 'NAW-SV' / 'run'
    shutil.copytree(finished[0], copy)
    lists = f'{corpus.trials["O"]},{corpus.trials["E"]}'
    NAWSV.run(corpus, tmp_path, compare='true', trials_test=lists)
    assert same(exported(finished[0]), exported(copy)) and table_of(copy) == table_of(finished[0])
    stored = json.loads((copy / 'seed1/finetune/conditions.json').read_text())['result']
    names = {record['name'] for record in stored['records'] if not record['noise']}
    assert names == {'vox1_O', 'vox1_E'}
    assert str(tmp_path) not in json.dumps(stored)  # names no place that may be left


def test_run_killed_at_three_moments_ends_with_the_same_bits(corpus, finished, tmp_path):
    """Killed in the warm-up, after it, and when fine-tuning had begun."""
    folder = tmp_path / 'NAW-SV' / 'run'
    moments = [
        lambda: (folder / 'seed1/warmup/last.pt').exists(),
        lambda: (folder / 'seed1/warmup/student.pt').exists(),
        lambda: (folder / 'seed1/finetune/epoch_0001.pt').exists(),
    ]
    for moment in moments:  # a save after every step
        NAWSV.stopped(corpus, tmp_path, moment, save_minutes=1e-6)
        assert not (folder / 'results.json').exists()
    NAWSV.run(corpus, tmp_path, save_minutes=1e-6)
    for phase, kind in (('warmup', 'student'), ('finetune', 'student'), ('finetune', 'backend')):
        assert same(exported(finished[0], phase, kind), exported(folder, phase, kind))
    assert table_of(folder) == table_of(finished[0])[:1]
    curves = logged(folder)
    assert curves == {key: x for key, x in logged(finished[0]).items() if key in curves}


def test_torchrun_on_two_processes_runs_the_recipe(corpus, tmp_path):
    folder, _ = NAWSV.run(corpus, tmp_path, TORCHRUN)
    assert [row['system'] for row in table_of(folder)] == ['NAW-SV']


def test_phases_run_alone_and_evaluation_repeats_the_numbers(corpus, finished, tmp_path):
    folder, printed = NAWSV.run(corpus, tmp_path, phase='prepare')
    assert not folder.exists() and 'epoch' not in printed
    NAWSV.run(corpus, tmp_path, phase='warmup')
    assert not (folder / 'seed1/finetune').exists() and not (folder / 'results.json').exists()
    NAWSV.run(corpus, tmp_path, phase='finetune', compare='true')
    assert table_of(folder) == table_of(finished[0])
    NAWSV.run(corpus, tmp_path, eval='true')
    row, expected = table_of(folder / 'evaluation')[0], table_of(folder)[0]
    assert row == pytest.approx(expected, abs=1e-9)


def test_published_student_replaces_the_warm_up(corpus, finished, tmp_path):
    given = finished[0] / 'seed1/warmup/student.pt'
    folder, _ = NAWSV.run(corpus, tmp_path, published=given)
    assert not (folder / 'seed1/warmup').exists()
    assert same(exported(finished[0]), exported(folder))


def test_two_seeds_get_rows_and_their_mean(corpus, tmp_path):
    folder, printed = NAWSV.run(corpus, tmp_path, seeds='1,2', epoch=2, preset='repo')
    rows = table_of(folder)
    assert [row['system'] for row in rows] == [
        'NAW-SV, seed 1',
        'NAW-SV, seed 2',
        'NAW-SV, mean of 2 seeds',
    ]
    eers = [row['clean EER %'] for row in rows]
    assert eers[2] == pytest.approx((eers[0] + eers[1]) / 2) and 'mean of 2 seeds' in printed
    state = weights(folder / 'seed1/finetune/last.pt')  # the preset selects on the test list
    assert state['best']['value'] == min(entry['valid_eer'] for entry in state['history'])


# --- wrong input: one line, and nothing is lost


def test_missing_paths_are_named_at_once(corpus, tmp_path):
    line = NAWSV.refused(
        corpus, tmp_path, path_ssl='/nowhere/wavlm', path_nonspeech='/nowhere/n100'
    )
    assert 'path_ssl /nowhere/wavlm' in line and 'path_nonspeech /nowhere/n100' in line
    assert not (tmp_path / 'NAW-SV').exists()


def test_pair_batch_of_more_than_all_speakers_is_refused(corpus, tmp_path):
    line = NAWSV.refused(corpus, tmp_path, warmup_batch_size=7)
    assert 'batch of 7' in line and '6 speakers' in line


def test_other_noisy_test_sets_in_the_folder_are_refused(corpus, finished, tmp_path):
    line = NAWSV.refused(corpus, tmp_path, noise_seed=5)
    assert 'test_noise' in line and 'seed' in line


def test_pretrained_file_of_another_kind_is_refused(corpus, tmp_path):
    torch.save({'some.weight': torch.ones(1)}, tmp_path / 'other.pt')
    assert 'other.pt' in NAWSV.refused(corpus, tmp_path, path_ssl=tmp_path / 'other.pt')


def test_fine_tuning_without_a_warm_up_is_refused(corpus, tmp_path):
    assert 'run --phase warmup first' in NAWSV.refused(corpus, tmp_path, phase='finetune')


def test_evaluation_of_a_student_alone_is_refused(corpus, finished, tmp_path):
    given = finished[0] / 'seed1/warmup/student.pt'
    line = NAWSV.refused(corpus, tmp_path, eval='true', published=given)
    assert 'back-end' in line and 'student.pt' in line


# --- two processes learn what one does


def one_epoch(phase, folder, args):
    """Losses and weights after an epoch with batch statistics frozen, on however many ranks."""
    sys.path.insert(0, str(NAWSV.main.parent))
    import data
    import framework
    import losses
    import systems
    import train
    from conditions import prepare, validation_list
    from shared import ddp
    from shared.loop import Loop
    from shared.losses.aam_topk import AamSoftmaxTopK
    from shared.losses.class_weights import class_weights

    torch.manual_seed(0)
    args = {**args, 'device': 'cpu', 'path_log': folder}
    musan_train, tests = prepare(args)
    corpus = data.Corpus(args, validation_list(tests, args), musan_train)
    student = systems.student_of(args, phase)
    if phase == 'warmup':
        head, e_apn = systems.head_of(args, student), losses.EApn(gather=True)
        method = framework.WarmUp(student, systems.teacher_of(args), head, e_apn, args)
        loader = corpus.pair_loader(0)
    else:
        labels = torch.from_numpy(corpus.train.speakers)
        weights_of = class_weights(labels, corpus.speakers)
        criterion = AamSoftmaxTopK(corpus.speakers, args['embed_size'], top_k=2)
        backend = systems.backend_of(args, student)
        method = framework.FineTuning(student, backend, criterion, weights_of)
        loader = corpus.labelled_loader(0)
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # stays frozen
    for what in ('adapters' if phase == 'warmup' else 'backend', 'all'):  # as from epoch to epoch
        method.learn(what)
        parallel = method.distribute('cpu')
    # plain gradient steps: Adam would blow up rounding where a gradient is near zero
    optimizer = torch.optim.SGD(method.learnable(), lr=0.01)
    loop = Loop(Path(folder) / phase, loader, max_bad_share=0.0, framework=method)
    if phase == 'warmup':
        metrics = train.warmup_epoch('warmup', loop, parallel, optimizer, args)
    else:
        args['lr'] = 0.01
        metrics = train.finetune_epoch('finetune', 1, loop, parallel, optimizer, args)
    for name in ('utterances_per_second', 'step_seconds', 'data_wait_percent'):
        del metrics[name]
    return metrics, ddp.unwrap(parallel).copy_of_state()


@pytest.mark.parametrize('phase', ['warmup', 'finetune'])
def test_two_processes_learn_what_one_does(phase, corpus, tmp_path, run_ranks, paper):
    # without dropout and masks, which every rank draws for itself
    model = pretrained(QUIET_WAVLM, tmp_path / 'wavlm')
    masks = {'mask_time_prob': 0, 'mask_feature_prob': 0, 'finetune_mask_time_prob': 0}
    args, *_ = paper('nawsv').arguments.get_args(
        NAWSV.command(corpus, tmp_path, path_ssl=model, warmup_batch_size=4, **masks)[1:]
    )
    (one, state), *_ = run_ranks(one_epoch, phase, str(tmp_path / 'one'), args, ranks=1)
    (two, state_of_two), (also, _) = run_ranks(one_epoch, phase, str(tmp_path / 'two'), args)
    assert two == also
    assert one == pytest.approx(two, abs=1e-5, rel=1e-5)
    for name, value in state.items():
        torch.testing.assert_close(state_of_two[name], value, rtol=1e-4, atol=1e-6)
