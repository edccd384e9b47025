"""Whole runs of papers/oskdft from its command line: a WavLM of two layers, twelve speakers."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import soundfile
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
    'copied_layers': 0,
    'adapter_size': 4,
    'target_layers': '1,2',
    'embed_size': 8,
    'ecapa_width': 8,
    'ecapa_mfa_width': 24,
    'ecapa_attention_width': 8,
    'ecapa_se_width': 8,
    'epoch': 2,
    'distil_epoch': 1,
    'batch_size': 8,
    'crop_size': 8000,
    'num_seg': 2,
    'seg_size': 8000,
    'eval_seconds': 60,
    'num_workers': 0,
    'keep_checkpoints': 3,
    'usable_gpu': '',
}
ROWS = ['teacher, fine-tuned', 'student without KD', 'KD, then fine-tuned', 'OS-KDFT']
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return small_ssl_corpus(tmp_path_factory.mktemp('corpus') / 'demo')


OSKDFT = Recipe('oskdft', 'OS-KDFT', SMALL, ssl_paths)
SYSTEM_A = {'preset': 'vox2_w2v2', 'student_warmup': 1, 'DA_p': 1.0, 'as_norm': 'true'}
SYSTEM_A |= {'cohort_speakers': 5, 'cohort_top': 3}


@pytest.fixture(scope='module')
def finished(corpus, tmp_path_factory):
    """An undisturbed comparison: its folder and what it printed."""
    return OSKDFT.run(corpus, tmp_path_factory.mktemp('runs'), phase='compare')


def exported(folder, phase='oskdft', kind='student'):
    return weights(folder / 'seed1' / phase / f'{kind}.pt')


def errors(folder):
    """The rows of the table without what differs from run to run: times."""
    return [{k: v for k, v in row.items() if 'ms /' not in k} for row in table_of(folder)]


def test_comparison_leaves_its_rows_with_cost_and_error_the_plot_and_the_report(finished):
    folder, printed = finished
    rows = table_of(folder)
    assert [row['system'] for row in rows] == ROWS
    for row in rows:
        assert row['CPU ms / s'] > 0 and 0 <= row['EER %'] <= 100 and row['system'] in printed
        costs = ('minDCF 0.01', 'minDCF 0.05', 'tta EER %', 'full EER %')
        assert all(0 <= row[name] <= 100 for name in costs)
    teacher, *students = rows
    for name in ('parameters, M', 'GMAC / s'):
        assert {row[name] for row in students} == {students[0][name]}
        assert teacher[name] > students[0][name]
    for name in ('plots/eer_over_cpu_time.png', 'report.html', 'results.json'):
        assert (folder / name).stat().st_size > 0


def test_exported_student_is_the_branch_that_runs_and_nothing_else(finished, paper):
    folder, _ = finished
    student = exported(folder)
    assert all(name.startswith('module.wavlm.') for name in student)
    assert 'module.wavlm.encoder.layers.0.os_kdft_adapter.down.weight' in student
    assert not [name for name in student if 'encoder.layers.1' in name]
    found = sorted(path.name for path in (folder / 'seed1' / 'oskdft').glob('*.pt'))
    epochs = ['epoch_0001.pt', 'epoch_0002.pt']
    assert found == ['backend.pt', 'best.pt', *epochs, 'last.pt', 'student.pt']
    assert not [name for name in weights(folder / 'seed1/oskdft/best.pt') if 'teacher' in name]
    row = table_of(folder)[3]
    parts = [exported(folder), exported(folder, kind='backend')]
    learnt = [x for part in parts for name, x in part.items() if not name.endswith(STATISTICS)]
    assert sum(x.numel() for x in learnt) == round(row['parameters, M'] * 1e6)
    assert len(exported(folder, 'teacher')) > len(student)  # its second layer


STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')


def test_second_step_starts_from_the_distilled_student(finished, paper):
    folder, module = finished[0], paper('oskdft')
    distilled = module.systems.student_in(folder / 'seed1' / 'distilled')
    torch.manual_seed(0)
    before = SslEncoder(TINY_WAVLM).state_dict()
    name = 'feature_extractor.conv_layers.0.conv.weight'
    assert not torch.equal(distilled[name], before[name])  # it has learnt
    adapter = 'encoder.layers.0.adapter.down.weight'
    first = weights(folder / 'seed1/two_steps/epoch_0001.pt')
    assert not torch.equal(first[f'student.{adapter}'], distilled[adapter])
    epochs = [weights(folder / f'seed1/{phase}/last.pt') for phase in ('distilled', 'two_steps')]
    assert [len(state['history']) for state in epochs] == [1, 2]
    assert 'kd_loss' in epochs[0]['history'][0] and 'kd_loss' not in epochs[1]['history'][0]


def test_second_start_of_a_finished_run_changes_nothing(corpus, finished, tmp_path):
    copy = tmp_path / 'OS-KDFT' / 'run'
    shutil.copytree(finished[0], copy)
    before, results = exported(copy), (copy / 'results.json').read_text()
    OSKDFT.run(corpus, tmp_path, phase='compare')
    assert same(before, exported(copy))
    assert (copy / 'results.json').read_text() == results


def test_another_test_list_is_scored_anew_in_a_moved_run(corpus, finished, tmp_path):
    copy = tmp_path / 'OS-KDFT' / 'run'
    shutil.copytree(finished[0], copy)
    before, results = exported(copy), table_of(copy)
    OSKDFT.run(corpus, tmp_path, phase='compare', trials_test=corpus.trials['E'])
    assert same(before, exported(copy))
    assert [row['EER %'] for row in table_of(copy)] != [row['EER %'] for row in results]
    stored = json.loads((copy / 'seed1/oskdft/scores.json').read_text())['result']
    assert {record['name'] for record in stored['records']} == {'vox1_E'}
    assert str(tmp_path) not in json.dumps(stored)  # names no place that may be left


def test_run_killed_at_three_moments_ends_with_the_same_bits(corpus, finished, tmp_path):
    """Killed while distilling, between the two steps, and in the one step."""
    folder = tmp_path / 'OS-KDFT' / 'run'
    moments = [
        lambda: (folder / 'seed1/distilled/last.pt').exists(),
        lambda: (folder / 'seed1/distilled/student.pt').exists(),
        lambda: (folder / 'seed1/oskdft/epoch_0001.pt').exists(),
    ]
    settings = {'phase': 'compare', 'rows': 'two_steps,oskdft', 'save_minutes': 1e-6}
    for moment in moments:  # a save after every step
        OSKDFT.stopped(corpus, tmp_path, moment, **settings)
        assert not (folder / 'results.json').exists()
    OSKDFT.run(corpus, tmp_path, **settings)
    for phase in ('distilled', 'two_steps', 'oskdft'):
        assert same(exported(finished[0], phase), exported(folder, phase))
    assert errors(folder) == errors(finished[0])[2:]
    curves = logged(folder)
    assert curves == {key: x for key, x in logged(finished[0]).items() if key in curves}


def test_torchrun_on_two_processes_runs_the_recipe(corpus, tmp_path):
    folder, _ = OSKDFT.run(corpus, tmp_path, TORCHRUN)
    assert [row['system'] for row in table_of(folder)] == ['OS-KDFT']


def test_evaluation_of_the_exported_files_repeats_the_numbers(corpus, finished, tmp_path):
    files = [finished[0] / 'seed1/oskdft' / f'{kind}.pt' for kind in ('backend', 'student')]
    given = ','.join(map(str, files))
    folder, _ = OSKDFT.run(corpus, tmp_path, eval='true', published=given)
    row, expected = errors(folder / 'evaluation')[0], errors(finished[0])[3]
    assert row == pytest.approx(expected, abs=1e-6)


def test_system_a_runs_with_augmentation_its_slips_and_as_norm(corpus, tmp_path):
    slips = {'adapter_residual': 'true', 'mixed_branches': 'true', 'rebuild_adam': 'true'}
    folder, _ = OSKDFT.run(corpus, tmp_path, **SYSTEM_A, **slips, selection='test')
    (row,) = table_of(folder)
    assert 0 <= row['full, AS-norm EER %'] <= 100
    history = weights(folder / 'seed1/oskdft/last.pt')['history']
    assert [entry['kd_weight'] for entry in history] == [0.5, 0.0]
    assert [entry['lr_student'] for entry in history] == pytest.approx(
        [1e-4 / 2, 0.93 * 1e-4 / 2], rel=1e-6
    )
    again, _ = OSKDFT.run(corpus, tmp_path, **SYSTEM_A, **slips, selection='test', eval='true')
    found = {k: v for k, v in errors(again / 'evaluation')[0].items() if k != 'system'}
    assert found == pytest.approx({k: errors(folder)[0][k] for k in found}, abs=1e-6)


def test_thin_student_and_other_speech_for_the_teacher(corpus, tmp_path):
    settings = {'student': 'fithubert', 'fit_layers': 2, 'fit_width': 8, 'kd': 'hints'}
    for number in range(3):
        wave = torch.randn(30_000, generator=torch.Generator().manual_seed(number)).numpy()
        soundfile.write(tmp_path / f'{number}.wav', 0.1 * wave, 16000)
    settings |= {'path_kd': tmp_path, 'epoch': 1}
    folder, _ = OSKDFT.run(corpus, tmp_path, **settings)
    assert [row['system'] for row in table_of(folder)] == ['OS-KDFT']
    OSKDFT.run(corpus, tmp_path, **settings, eval='true')
    assert errors(folder / 'evaluation')[0] == pytest.approx(errors(folder)[0], abs=1e-6)


# --- wrong input: one line, and nothing is lost


def test_missing_paths_are_named_at_once(corpus, tmp_path):
    line = OSKDFT.refused(corpus, tmp_path, path_ssl='/nowhere/wavlm', path_kd='/nowhere/libri')
    assert 'path_ssl /nowhere/wavlm' in line and 'path_kd /nowhere/libri' in line
    assert not (tmp_path / 'OS-KDFT').exists()


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'target_layers': '1,3'}, ('target_layers', '2 layers')),
        ({'copied_layers': '1'}, ('0',)),
        ({'copied_layers': '0,5'}, ('5',)),
        ({'kd': 'hints'}, ('hints', 'student')),
        ({'kd': 'hints', 'copied_layers': '0,1'}, ('hints', 'student')),
        ({'eval': 'true'}, ('train first', 'student.pt')),
    ],
)
def test_impossible_settings_are_refused_in_one_line(corpus, tmp_path, changes, words):
    line = OSKDFT.refused(corpus, tmp_path, **changes)
    assert all(word in line for word in words), line


def test_evaluation_of_a_student_alone_is_refused(corpus, finished, tmp_path):
    given = finished[0] / 'seed1/oskdft/student.pt'
    line = OSKDFT.refused(corpus, tmp_path, eval='true', published=given)
    assert 'back-end' in line and 'student.pt' in line


# --- two processes learn what one does


def one_epoch(folder, args):
    """Losses and weights after an epoch with batch statistics frozen, on however many ranks."""
    sys.path.insert(0, str(OSKDFT.main.parent))
    import data
    import framework
    import systems
    import train
    from shared import ddp
    from shared.datasets.trial_files import trial_lists
    from shared.loop import Loop
    from shared.losses.class_weights import class_weights

    torch.manual_seed(0)
    args = {**args, 'device': 'cpu', 'path_log': folder}
    tests = trial_lists(args['trials_test'], args['path_test'], budget_seconds=60, workers=0)
    corpus = data.Corpus(args, tests[0])
    student, teacher = systems.student_of(args), systems.teacher_of(args)
    method = framework.OneStep(
        student,
        teacher,
        systems.kd_of(args, student, teacher),
        systems.backend_of(args, student),
        systems.criterion_of(args, corpus.speakers),
        class_weights(torch.from_numpy(corpus.train.speakers), corpus.speakers),
    )
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # stays frozen
    parallel = method.distribute('cpu')
    # plain gradient steps: Adam would blow up rounding where a gradient is near zero
    optimizer = torch.optim.SGD(method.groups(), lr=0.01)
    loop = Loop(Path(folder) / 'oskdft', corpus.loader(0), max_bad_share=0.0, framework=method)
    metrics = train.train_epoch('oskdft', 1, 2, loop, parallel, optimizer, args)
    for name in ('utterances_per_second', 'step_seconds', 'data_wait_percent'):
        del metrics[name]
    return metrics, ddp.unwrap(parallel).copy_of_state()


def test_two_processes_learn_what_one_does(corpus, tmp_path, run_ranks, paper):
    # without dropout and masks, which every rank draws for itself
    model = pretrained(QUIET_WAVLM, tmp_path / 'wavlm')
    quiet = {'mask_time_prob': 0, 'adapter_noise': '0,0', 'lr': 0.01, 'lr_min': 0.01}
    args, *_ = paper('oskdft').arguments.get_args(
        OSKDFT.command(corpus, tmp_path, path_ssl=model, DA_p=0.6, **quiet)[1:]
    )
    (one, state), *_ = run_ranks(one_epoch, str(tmp_path / 'one'), args, ranks=1)
    (two, state_of_two), (also, _) = run_ranks(one_epoch, str(tmp_path / 'two'), args)
    assert two == also
    assert one == pytest.approx(two, abs=1e-5, rel=1e-5)
    for name, value in state.items():
        torch.testing.assert_close(state_of_two[name], value, rtol=1e-4, atol=1e-6)
