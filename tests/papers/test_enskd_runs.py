"""Whole runs of papers/enskd from its command line: a WavLM of two layers, twelve speakers."""

import json
import re
import shutil
import sys

import pytest
import torch
from recipes import (
    TORCHRUN,
    Recipe,
    logged,
    same,
    small_ssl_corpus,
    ssl_paths,
    table_of,
    weights,
)

from shared.datasets.shards import write_shards
from shared.datasets.voxceleb import read_folder
from shared.published import students, unispeech

SMALL = {
    'path_teacher': 'none',
    'phase': 'compare',
    'students': 'xvector',
    'losses': 'none,kl,enskd,cosine',
    'student': 'xvector',
    'setting': 'matched',
    'channels': 16,
    'embed_size': 16,
    'batch_size': 8,
    'epoch': 2,
    'warmup': 1,
    'kd_warmup': 4,
    'margin_start': 1,
    'margin_fixed': 2,
    'num_avg': 2,
    'teacher_epoch': 2,
    'teacher_batch_size': 8,
    'teacher_lr': 0.02,
    'teacher_lr_last': 0.01,
    'teacher_margin_epoch': 2,
    'teacher_frames': 40,
    'teacher_embed_size': 8,
    'teacher_width': 8,
    'least_recognised': 0,
    'frames': 40,
    'cohort_top': 3,
    'eval_seconds': 60,
    'num_workers': 0,
    'keep_checkpoints': 2,
    'usable_gpu': '',
}
ROWS = [
    'teacher',
    'x-vector, no KD',
    'x-vector, KL KD',
    'x-vector, EnSKD',
    'x-vector, cosine KD',
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return small_ssl_corpus(tmp_path_factory.mktemp('corpus') / 'demo')


ENSKD = Recipe('enskd', 'EnSKD', SMALL, ssl_paths)


@pytest.fixture(scope='module')
def finished(corpus, tmp_path_factory):
    """An undisturbed comparison, its teacher trained first: its folder and what it printed."""
    return ENSKD.run(corpus, tmp_path_factory.mktemp('runs'))


def exported(folder, kd):
    return weights(folder / f'seed1/xvector_{kd}/avg_model.pt')


def assert_same_outputs(first, second, losses=('none', 'kl', 'enskd', 'cosine')):
    one, other = (weights(folder / 'teacher/teacher.pt')['model'] for folder in (first, second))
    assert same(one, other)
    for kd in losses:
        assert same(exported(first, kd), exported(second, kd)), kd


def numbers(row):
    """A row of the table without its name."""
    return {name: value for name, value in row.items() if name != 'system'}


def test_comparison_leaves_its_rows_the_table_of_the_paper_plots_and_the_report(finished):
    folder, printed = finished
    rows = table_of(folder)
    assert [row['system'] for row in rows] == ROWS
    for row in rows:
        errors = ('EER %', 'minDCF 0.01', 'minDCF 0.05', 'EER % without AS-norm')
        assert all(0 <= row[name] <= 100 for name in errors)
        assert row['system'] in printed and row['parameters, M'] > 0
    head, _, line = (folder / 'text/losses.txt').read_text().splitlines()
    assert re.split('  +', head) == ['student', 'no KD', 'KL KD', 'EnSKD', 'cosine KD']
    found = [float(word) for word in line.split()[1:]]
    assert found == pytest.approx([row['EER %'] for row in rows[1:]], abs=0.006)
    assert line in printed
    for name in (
        'plots/losses.png',
        'curves/seed1-xvector_none.png',
        'report.html',
        'results.json',
    ):
        assert (folder / name).stat().st_size > 0, name
    assert 'clean training crops' in printed
    evaluations = json.loads((folder / 'results.json').read_text())['evaluations']
    assert [e['score_norm']['name'] for e in evaluations] == 5 * ['as-norm']
    assert all(e['mean_subtraction'] and 'crops' in str(e['score_norm']) for e in evaluations)


def test_exported_files_are_those_of_the_authors_and_hold_nothing_of_the_teacher(finished):
    folder, _ = finished
    for kd in ('none', 'kl', 'enskd', 'cosine'):
        place = folder / f'seed1/xvector_{kd}'
        found = students.read(place / 'avg_model.pt')
        assert found.kind == 'xvector' and len(exported(folder, kd)) == 33
        assert found.sizes == {'dim': 16, 'n_mels': 80, 'width': 16, 'last_width': 48}
        assert found.beside['classifier'].sizes == {'classes': 6, 'dim': 16}
        files = sorted(path.name for path in place.glob('*.pt'))
        epochs = ['epoch_0001.pt', 'epoch_0002.pt']
        assert files == ['avg_model.pt', 'best.pt', *epochs, 'last.pt']
        one, two = (weights(place / epoch) for epoch in epochs)
        assert not [name for name in two if 'teacher' in name]
        assert ('projection.weight' in two) == (kd == 'cosine')  # 16 of the student's to 8
        name = 'network.seg_2.weight'
        mean = (one[f'student.{name}'] + two[f'student.{name}']) / 2
        torch.testing.assert_close(found.state['seg_2.weight'], mean)
    teacher = unispeech.read(folder / 'teacher/teacher.pt')
    assert teacher.sizes['backend']['channels'] == 8
    assert teacher.beside['classifier'].sizes == {'classes': 6, 'dim': 8}
    row = table_of(folder)[0]
    count = sum(p.numel() for p in teacher.module().parameters())
    assert count == round(1e6 * row['parameters, M'])  # without the classifier


def test_history_tells_the_weight_of_distillation_the_rate_and_the_margin(finished):
    folder, _ = finished
    histories = {
        kd: weights(folder / f'seed1/xvector_{kd}/last.pt')['history']
        for kd in ('none', 'kl', 'enskd', 'cosine')
    }
    for kd in ('kl', 'enskd'):
        assert [entry['kd_weight'] for entry in histories[kd]] == [0.25, 0.5]
        assert all(entry['non_target_kd'] > 0 for entry in histories[kd])
    assert [entry['kd_weight'] for entry in histories['cosine']] == [1.0, 1.0]
    assert not {'kd_loss', 'kd_weight', 'target_kd'} & histories['none'][0].keys()
    first, second = histories['enskd']
    # R = 8 / 64, three steps an epoch; the last steps of both
    assert first['lr'] == pytest.approx(2 / 3 * 0.1 / 8 * (5e-4) ** (2 / 6))
    assert second['lr'] == pytest.approx(0.1 / 8 * (5e-4) ** (5 / 6))
    assert 0.19 < first['margin'] < second['margin'] == 0.2
    teacher = weights(folder / 'teacher/last.pt')['history']
    assert [entry['margin'] for entry in teacher] == [0.0, 0.2] and 'kd_loss' not in teacher[0]


def test_second_start_of_a_finished_run_changes_nothing(corpus, finished, tmp_path):
    copy = tmp_path / 'EnSKD' / 'run'
    shutil.copytree(finished[0], copy)
    results = (copy / 'results.json').read_text()
    ENSKD.run(corpus, tmp_path)
    assert_same_outputs(finished[0], copy)
    assert (copy / 'results.json').read_text() == results
    assert logged(copy) == logged(finished[0])


def test_another_list_and_seed_are_scored_with_the_same_teacher_in_a_moved_run(
    corpus, finished, tmp_path
):
    copy = tmp_path / 'EnSKD' / 'run'
    shutil.copytree(finished[0], copy)
    changes = {'trials_test': corpus.trials['E'], 'seeds': '2,1'}
    ENSKD.run(corpus, tmp_path, **changes, losses='kl')
    assert_same_outputs(finished[0], copy)
    names = [f'x-vector, KL KD, {which}' for which in ('seed 2', 'seed 1', 'mean of 2')]
    rows = table_of(copy)
    assert [row['system'] for row in rows] == ['teacher', *names]
    two, one, mean = (row['EER %'] for row in rows[1:])
    assert mean == pytest.approx((one + two) / 2)
    stored = json.loads((copy / 'seed1/xvector_kl/scores.json').read_text())['result']
    assert {record['name'] for record in stored['records']} == {'vox1_E'}
    assert str(tmp_path) not in json.dumps(stored)  # names no place that may be left
    ENSKD.run(corpus, tmp_path, **changes, phase='teacher')
    assert [row['system'] for row in table_of(copy)] == ['teacher']
    assert_same_outputs(finished[0], copy)


def test_run_killed_at_three_moments_ends_with_the_same_bits(corpus, finished, tmp_path):
    """Killed inside the teacher, between two students and inside the second of them."""
    folder = tmp_path / 'EnSKD' / 'run'
    moments = [
        lambda: (folder / 'teacher/last.pt').exists(),
        lambda: (folder / 'seed1/xvector_none/avg_model.pt').exists(),
        lambda: (folder / 'seed1/xvector_enskd/last.pt').exists(),
    ]
    settings = {'losses': 'none,enskd', 'save_minutes': 1e-6}  # a save after every step
    for moment in moments:
        ENSKD.stopped(corpus, tmp_path, moment, **settings)
        assert not (folder / 'results.json').exists()
    ENSKD.run(corpus, tmp_path, **settings)
    assert_same_outputs(finished[0], folder, ('none', 'enskd'))
    before = table_of(finished[0])
    assert table_of(folder) == [before[0], before[1], before[3]]
    curves = logged(folder)
    assert curves == {key: x for key, x in logged(finished[0]).items() if key in curves}


def test_given_teacher_and_shards_give_the_same_bits_as_folder_and_training(
    corpus, finished, tmp_path
):
    shards = write_shards(read_folder(corpus.train), tmp_path / 'set', per_shard=5)
    given = {'path_teacher': finished[0] / 'teacher/teacher.pt', 'path_ssl': '/nowhere'}
    given |= {'list_train': shards, 'path_train': '/nowhere', 'phase': 'train', 'kd': 'kl'}
    folder, printed = ENSKD.run(corpus, tmp_path, **given)
    assert [row['system'] for row in table_of(folder)] == ['x-vector, KL KD']
    assert same(exported(folder, 'kl'), exported(finished[0], 'kl'))
    assert 'report: ' in printed and not (folder / 'teacher').exists()


def test_torchrun_on_two_processes_runs_the_recipe(corpus, tmp_path):
    folder, _ = ENSKD.run(corpus, tmp_path, TORCHRUN, losses='enskd')
    assert [row['system'] for row in table_of(folder)] == ['teacher', 'x-vector, EnSKD']


def test_paper_settings_of_the_other_students_run_with_three_speeds(corpus, finished, tmp_path):
    settings = {'students': 'resnet34,campplus', 'losses': 'cosine,decoupled', 'epoch': 1}
    settings |= {'setting': 'paper', 'warmup': 0, 'num_avg': 1, 'cohort': 'whole'}
    settings |= {'path_teacher': finished[0] / 'teacher/teacher.pt', 'spec_aug_p': 0.6}
    folder, printed = ENSKD.run(corpus, tmp_path, **settings)
    names = [f'{s}, {loss}' for s in ('ResNet34', 'CAM++') for loss in ('cosine KD', 'TCKD + NCKD')]
    assert [row['system'] for row in table_of(folder)] == ['teacher', *names]
    for student in ('resnet34', 'campplus'):
        for kd, classes in (('cosine', 18), ('decoupled', 6)):
            found = students.read(folder / f'seed1/{student}_{kd}/avg_model.pt')
            assert found.kind == student
            assert found.beside['classifier'].sizes == {'classes': classes, 'dim': 16}
    lines = (folder / 'text/losses.txt').read_text().splitlines()
    assert [line.split()[0] for line in lines[2:]] == ['ResNet34', 'CAM++']


# --- evaluation


def test_evaluation_of_the_run_repeats_the_numbers(corpus, finished, tmp_path):
    copy = tmp_path / 'EnSKD' / 'run'
    shutil.copytree(finished[0], copy)
    ENSKD.run(corpus, tmp_path, eval='true', kd='enskd', path_ssl='/nowhere')
    (row,) = table_of(copy / 'evaluation')
    assert row == pytest.approx(table_of(finished[0])[3], abs=1e-6)
    assert table_of(copy) == table_of(finished[0])


def test_file_in_the_authors_layout_is_scored_and_named_by_what_it_holds(
    corpus, finished, tmp_path
):
    entries = exported(finished[0], 'cosine')
    for name in entries:
        if name.endswith('num_batches_tracked'):  # as averages of the authors have them
            entries[name] = entries[name].float() + 0.4
    torch.save(entries, tmp_path / 'avg_model.pt')
    given = {'published': tmp_path / 'avg_model.pt', 'student': 'campplus', 'eval': 'true'}
    folder, _ = ENSKD.run(corpus, tmp_path, **given)
    (row,) = table_of(folder / 'evaluation')
    assert row['system'] == 'x-vector'
    assert numbers(row) == pytest.approx(numbers(table_of(finished[0])[4]), abs=1e-6)
    nothing = dict.fromkeys(('path_train', 'list_train', 'path_musan', 'path_rir'), '/nowhere')
    folder, _ = ENSKD.run(corpus, tmp_path, **given, **nothing, as_norm='false')
    (row,) = table_of(folder / 'evaluation')
    assert 0 <= row['EER %'] <= 100 and 'EER % without AS-norm' not in row


# --- wrong input: one line, and nothing is lost


def test_missing_paths_are_named_at_once(corpus, tmp_path):
    places = {'path_ssl': '/nowhere/wavlm', 'path_musan': '/nowhere/musan'}
    line = ENSKD.refused(corpus, tmp_path, **places, list_train='/nowhere/train.txt')
    for words in (*(f'{name} {path}' for name, path in places.items()), 'list_train /nowhere'):
        assert words in line
    assert not (tmp_path / 'EnSKD').exists()
    line = ENSKD.refused(corpus, tmp_path, path_teacher='/nowhere/x.pth')
    assert 'path_teacher /nowhere/x.pth' in line


@pytest.mark.parametrize(
    'changes, words',
    [
        ({'least_recognised': 1}, ('least_recognised', '--path_teacher none')),
        ({'path_teacher': 'seed1/xvector_kl/avg_model.pt'}, ('no speaker model on a WavLM',)),
        ({'path_teacher': 'x/other.pth'}, ('knows 5 speakers', 'has 6', '--path_teacher none')),
    ],
    ids=['of another order', 'a student', 'of fewer speakers'],
)
def test_wrong_teacher_is_refused_in_one_line(corpus, finished, tmp_path, changes, words):
    stored = weights(finished[0] / 'teacher/teacher.pt')
    name = 'loss_calculator.projection.weight'
    stored['model'][name] = stored['model'][name][:5]
    (tmp_path / 'x').mkdir()
    torch.save(stored, tmp_path / 'x/other.pth')
    given = changes.get('path_teacher', 'teacher/teacher.pt')
    file = (tmp_path if given.startswith('x/') else finished[0]) / given
    line = ENSKD.refused(corpus, tmp_path, **{**changes, 'path_teacher': file})
    assert line.startswith(f'error: {file}') and all(word in line for word in words), line


@pytest.mark.parametrize(
    'changes, words, status',
    [
        ({'batch_size': 40, 'losses': 'none', 'path_ssl': '/nowhere'}, ('lower batch_size',), 1),
        ({'kd': 'none', 'speed_perturb': 'true'}, ('speed_perturb', 'kd kl'), 1),
        ({'speed_perturb': 'true', 'kd': 'kl'}, ('speed_perturb', 'kd kl'), 2),
        ({'eval': 'true'}, ('avg_model.pt', 'train first'), 1),
    ],
)
def test_impossible_settings_are_refused_in_one_line(corpus, tmp_path, changes, words, status):
    line = ENSKD.refused(corpus, tmp_path, status=status, **changes)
    assert all(word in line for word in words), line


# --- two processes learn what one does


def one_epoch(folder, args):
    """Losses and weights after an epoch with batch statistics frozen, on however many ranks."""
    sys.path.insert(0, str(ENSKD.main.parent))
    import data
    import phases
    import systems
    import train
    from shared import ddp
    from shared.datasets.trial_files import trial_lists

    torch.manual_seed(0)
    args = {**args, 'device': 'cpu', 'path_log': folder}
    tests = trial_lists(args['trials_test'], args['path_test'], budget_seconds=60, workers=0)
    corpus = data.Corpus(args, tests[0])
    teacher = systems.teacher_of(args['path_teacher'], corpus, args)
    method = systems.distillation(args, corpus.classes, teacher)
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # stays frozen
    parallel = method.distribute('cpu')
    # plain gradient steps: momentum would add up rounding
    optimizer = torch.optim.SGD(method.learnable(), lr=0.01)
    loop = phases.loop_of('x', corpus.loader(0, args, args['frames']), args, framework=method)
    schedule = phases.student_schedule(args)
    metrics = train.train_epoch('x', 2, schedule, 0.5, loop, parallel, optimizer, args)
    for name in ('utterances_per_second', 'step_seconds', 'data_wait_percent'):
        del metrics[name]
    return metrics, ddp.unwrap(parallel).copy_of_state()


@pytest.mark.parametrize('kd', ['enskd', 'cosine'])
def test_two_processes_learn_what_one_does(corpus, finished, tmp_path, run_ranks, paper, kd):
    modules = paper('enskd')
    settings = {'path_teacher': finished[0] / 'teacher/teacher.pt', 'dither': 0, 'kd': kd}
    args, *_ = modules.arguments.get_args(ENSKD.command(corpus, tmp_path, **settings)[1:])
    args = modules.arguments.of_row(args, 'xvector', kd)
    (one, state), *_ = run_ranks(one_epoch, str(tmp_path / 'one'), args, ranks=1)
    (two, state_of_two), (also, _) = run_ranks(one_epoch, str(tmp_path / 'two'), args)
    assert two == also
    assert one == pytest.approx(two, abs=1e-5, rel=1e-5) and one['kd_loss'] > 0
    for name, value in state.items():
        torch.testing.assert_close(state_of_two[name], value, rtol=1e-4, atol=1e-6)
