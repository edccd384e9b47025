"""Schedules, presets, arguments of papers/enskd: what the systems differ in (spec enskd 2.6, 5)."""

import math

import pytest
import torch
from torch import nn

from shared import weight_files
from shared.arguments import ArgumentError
from shared.published import students

LABEL_LEVEL = ('kl', 'decoupled', 'enskd')


@pytest.fixture
def enskd(paper):
    return paper('enskd')


def args_of(enskd, *argv):
    return enskd.arguments.get_args(list(argv))[0]


# --- the students


@pytest.mark.parametrize(
    'student, channels, sizes',
    [
        ('xvector', None, {'dim': 7, 'n_mels': 80, 'width': 512, 'last_width': 1500}),
        ('xvector', 8, {'dim': 7, 'n_mels': 80, 'width': 8, 'last_width': 24}),
        ('resnet34', 4, {'dim': 7, 'n_mels': 80, 'width': 4, 'blocks': (3, 4, 6, 3)}),
        (
            'campplus',
            4,
            {'dim': 7, 'n_mels': 80, 'growth': 32, 'blocks': (12, 24, 16), 'head_width': 4},
        ),
    ],
)
def test_student_is_written_and_read_as_it_was_built(enskd, tmp_path, student, channels, sizes):
    args = args_of(enskd, '--student', student, '--embed_size', '7', f'--channels={channels}')
    args = enskd.arguments.of_row({**args, 'dither': 0.0}, student, 'none')
    built = enskd.systems.student_of(args).eval()
    file = tmp_path / 'x.pt'
    weight_files.write(students.to_published(built.network.state_dict()), file)
    assert students.read(file).kind == student and students.read(file).sizes == sizes
    found = enskd.systems.system_of(file, args).eval()
    waves = 0.1 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found(waves), built(waves)) and built(waves).shape == (2, 7)


# --- schedules (spec 5.2, 5.3)


def paper_schedule(enskd, preset):
    args = args_of(enskd, '--preset', preset)
    return enskd.phases.student_schedule(enskd.arguments.of_row(args, args['student'], args['kd']))


RATES = [  # R = 12, at the start of an epoch
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
]


@pytest.mark.parametrize(
    'preset, per_epoch, factor',
    [
        ('campplus_enskd', 1421, 1),
        ('resnet34_enskd', 1421, 1),
        ('campplus_kl', 1421, 1),
        ('xvector_enskd', 710, 2),
        ('resnet34_kl', 2132, 8 / 12),
        ('xvector_kl', 1066, 16 / 12),
        ('xvector_cosine', 1066, 16 / 12),
        ('campplus_none', 4265, 4 / 12),
    ],
)
def test_learning_rates_are_the_published(enskd, preset, per_epoch, factor):
    schedule = paper_schedule(enskd, preset)
    assert schedule.epochs == 150
    for epoch, lr in RATES:
        found, _ = schedule.at((epoch - 1) * per_epoch, per_epoch)
        assert found == pytest.approx(factor * lr, abs=factor * 6e-7), epoch


@pytest.mark.parametrize(
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
def test_margins_are_the_published(enskd, epoch, margin):
    step = math.ceil((epoch - 1) * 1421)
    _, found = paper_schedule(enskd, 'campplus_enskd').at(step, 1421)
    assert found == pytest.approx(margin, abs=6e-7)


def test_teacher_is_trained_as_microsoft_did_where_that_is_known(enskd):
    schedule = enskd.phases.teacher_schedule(args_of(enskd))
    rates = [schedule.at(step, 1000) for step in (0, 500, 1000, 1999, 2000, 20_000)]
    assert rates[1][0] == pytest.approx(0.5 * 0.64 * (4e-4 / 0.64) ** (500 / 20_000))
    assert (rates[0][0], rates[5][0]) == (0.0, pytest.approx(4e-4))
    assert [margin for _, margin in rates] == [0.0, 0.0, 0.0, 0.0, 0.2, 0.2]


# --- what the compared systems differ in (spec 2.6, 8.3)


RELEASED = {  # student, loss: D, classes, share augmented, utterances of a GPU, GPUs, lr ratio
    ('campplus', 'cosine'): (256, 17982, 0.6, 256, 2, 8),
    ('resnet34', 'cosine'): (256, 17982, 0.6, 256, 2, 8),
    ('xvector', 'cosine'): (256, 17982, 0.0, 512, 2, 16),
    ('campplus', 'kl'): (512, 5994, 0.6, 256, 3, 12),
    ('resnet34', 'kl'): (256, 5994, 0.6, 256, 2, 8),
    ('xvector', 'kl'): (512, 5994, 0.6, 512, 2, 16),
    ('campplus', 'enskd'): (512, 5994, 0.6, 256, 3, 12),
    ('resnet34', 'enskd'): (256, 5994, 0.6, 256, 3, 12),
    ('xvector', 'enskd'): (256, 5994, 0.6, 512, 3, 24),
}


@pytest.mark.parametrize('pair', RELEASED, ids='_'.join)
def test_preset_of_a_released_system_is_its_configuration(enskd, monkeypatch, pair):
    monkeypatch.setattr(enskd.systems, 'student_of', lambda args: nn.Identity())
    dim, classes, share, each, gpus, ratio = RELEASED[pair]
    student, kd = pair
    args = args_of(enskd, '--preset', f'{student}_{kd}')
    assert (args['name'], args['student'], args['kd']) == (f'{student}_{kd}', student, kd)
    args = enskd.arguments.of_row(args, student, kd)
    assert (args['embed_size'], args['DA_p'], args['batch_size']) == (dim, share, each * gpus)
    assert args['speed_perturb'] == (classes == 17982)
    assert enskd.phases.student_schedule(args).lr_scale == ratio
    assert (args['frames'], args['epoch'], args['num_avg'], args['gamma']) == (200, 150, 10, 2.0)
    teacher = enskd.models.Teacher(nn.Identity(), enskd.models.ContinuousAam(1, 256))
    framework = enskd.systems.distillation(args, 5994, teacher)
    assert framework.criterion.weight.shape == (classes, dim)
    assert framework.criterion.scale == 32
    assert isinstance(framework.projection, nn.Identity)  # the released cosine systems have none


def test_baselines_are_wespeakers_and_dkd_is_trained_as_enskd(enskd):
    of_row, args = enskd.arguments.of_row, args_of(enskd)
    for student, dim in (('xvector', 512), ('resnet34', 256), ('campplus', 512)):
        own = of_row(args, student, 'none')
        found = [own[name] for name in ('embed_size', 'speed_perturb', 'DA_p', 'batch_size')]
        assert found == [dim, True, 0.6, 256]
        enskd_row, decoupled = (of_row(args, student, kd) for kd in ('enskd', 'decoupled'))
        assert {k for k in decoupled if decoupled[k] != enskd_row[k]} == {'kd'}


@pytest.mark.parametrize('student', ['xvector', 'resnet34', 'campplus'])
def test_matched_systems_differ_in_the_loss_alone(enskd, student):
    rows = []
    for kd in ('none', 'cosine', 'kl', 'enskd'):
        args = args_of(enskd, '--preset', f'matched_{student}_{kd}')
        rows.append(enskd.arguments.of_row(args, args['student'], args['kd']))
    first, *others = rows
    for other in others:
        differing = {name for name in first if first[name] != other[name]}
        assert differing == {'kd', 'name', 'preset', 'path_log'}
    assert (first['embed_size'], first['speed_perturb'], first['DA_p']) == (256, False, 0.6)


def test_there_is_a_preset_for_every_system_of_the_paper(enskd):
    names = {f'{student}_{kd}' for student, kd in RELEASED}
    names |= {f'{student}_none' for student in ('xvector', 'resnet34', 'campplus')}
    assert enskd.arguments.PRESETS.keys() == names | {f'matched_{name}' for name in names}


def test_what_is_given_goes_before_the_table(enskd):
    words = ('--embed_size', '192', '--DA_p', '0', '--batch_size', '64', '--speed_perturb', 'false')
    args = enskd.arguments.of_row(
        args_of(enskd, '--preset', 'xvector_none', *words), 'xvector', 'none'
    )
    assert (args['embed_size'], args['DA_p'], args['batch_size']) == (192, 0, 64)
    assert args['speed_perturb'] is False  # which the table has as true
    one = enskd.arguments.of_row(args_of(enskd, '--DA_p', '0.3'), 'xvector', 'cosine')
    assert (one['DA_p'], one['batch_size'], one['speed_perturb']) == (0.3, 1024, True)


# --- wrong arguments


@pytest.mark.parametrize(
    'words, complaint',
    [
        (('--kd', 'kl', '--speed_perturb', 'true'), 'has no such classes, which kd kl compares'),
        (('--kd', 'decoupled', '--speed_perturb', 'true'), 'which kd decoupled compares'),
        (('--speed_perturb', 'true', '--demo'), 'which kd enskd compares'),
        (('--speed_perturb', 'true', '--preset', 'campplus_kl'), 'speed_perturb true'),
        (('--losses', 'kl,dkd'), 'losses kl,dkd: some of none,cosine,kl,decoupled,enskd'),
        (('--students', ''), 'students'),
        (('--warmup', '150'), 'warmup'),
        (('--margin_start', '50'), 'margin_start'),
        (('--temperature', '0'), 'temperature'),
        (('--snr_speech', '30,10'), 'lower bound'),
        (('--DA_p', '60'), 'share'),
        (('--seeds', '1,1'), 'seeds'),
        (('--num_avg', '0'), 'epochs'),
        (('--frames', '10'), 'frames'),
        (('--kd_warmup', '-1'), 'kd_warmup'),
        (('--utt2spk', 'data/utt2spk'), 'list_train'),
    ],
)
def test_wrong_argument_is_refused_in_one_line(enskd, words, complaint):
    with pytest.raises(ArgumentError, match=complaint) as caught:
        args_of(enskd, *words)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('kd', ['none', 'cosine'])
def test_speed_perturbation_goes_with_losses_that_need_no_classes_of_the_teacher(enskd, kd):
    args = args_of(enskd, '--kd', kd, '--speed_perturb', 'true', '--setting', 'matched')
    assert enskd.arguments.of_row(args, 'resnet34', kd)['speed_perturb'] is True


@pytest.mark.parametrize('kd', LABEL_LEVEL)
def test_speed_perturbation_of_a_comparison_is_refused_for_its_label_level_rows(enskd, kd):
    args = args_of(enskd, '--kd', 'none', '--speed_perturb', 'true', '--phase', 'compare')
    with pytest.raises(ArgumentError, match=f'speed_perturb true: .* kd {kd} compares'):
        enskd.arguments.of_row(args, 'campplus', kd)
