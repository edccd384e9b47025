"""The check of a teacher's classes, the average, the exported file (spec enskd 3.7, 4.7, 5.4)."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from shared import weight_files
from shared.datasets.samplers import ShuffledBatches
from shared.datasets.trial_files import trial_lists
from shared.errors import UserError
from shared.models.ssl_backends import EcapaSmallBackEnd, SslSpeakerEncoder
from shared.models.ssl_config import SslConfig
from shared.models.ssl_encoder import SslEncoder
from shared.models.tdnn import XVector
from shared.published import students, unispeech

DIM = 5
STUDENT = (  # an x-vector of eight channels
    '--student=xvector',
    '--channels=8',
    f'--embed_size={DIM}',
    '--setting=matched',
    '--dither=0',
)


@pytest.fixture
def enskd(paper):
    return paper('enskd')


def args_of(enskd, *argv):
    return enskd.arguments.get_args(list(argv))[0]


# --- a corpus of tones: each speaker has one


SPEAKERS, EACH = 6, 3
TEACHER = SslConfig(
    'wavlm',
    layers=2,
    width=16,
    heads=2,
    ffn_width=32,
    conv_channels=(8,) * 7,
    position_kernel=8,
    position_groups=2,
)


@pytest.fixture
def tones(enskd, tmp_path):
    """A corpus of six speakers with three utterances each, and its arguments."""
    rng = np.random.default_rng(0)

    def write(name, wave):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, 16000, subtype='PCM_16')

    seconds = np.arange(12_000) / 16_000
    for speaker in range(SPEAKERS):
        for number in range(EACH):
            tone = 0.3 * np.sin(2 * np.pi * 300 * (speaker + 1) * seconds + number)
            noise = 0.01 * rng.standard_normal(len(tone))
            write(f'wav/s{speaker}/v/{number}.wav', tone + noise)
    for category in ('noise', 'speech', 'music'):
        write(f'musan/{category}/sub/0.wav', 0.1 * rng.standard_normal(9000))
    write('rirs/Room001/1.wav', np.array([0.5, 0.25]))
    pairs = [f'{int(i == j)} s{i}/v/0.wav s{j}/v/1.wav' for i in range(6) for j in range(6)]
    (tmp_path / 'trials.txt').write_text('\n'.join(pairs) + '\n')
    paths = {
        'path_log': tmp_path,
        'path_train': tmp_path / 'wav',
        'path_test': tmp_path / 'wav',
        'trials_test': tmp_path / 'trials.txt',
        'path_musan': tmp_path / 'musan',
        'path_rir': tmp_path / 'rirs',
        'num_workers': 0,
        'frames': 40,
        'least_recognised': 0.9,
        'eval_seconds': 60,
    }
    args = args_of(enskd, *(f'--{name}={value}' for name, value in paths.items()))
    args['device'] = 'cpu'
    tests = trial_lists(args['trials_test'], args['path_test'], budget_seconds=60, workers=0)
    return enskd.data.Corpus(args, tests[0]), args


class Bands(nn.Module):
    """Waves (B, L) to what they have of eight tones (B, 8)."""

    def forward(self, waves, lengths=None):
        power = torch.fft.rfft(waves).abs()
        return power[:, [waves.shape[1] * 300 * k // 16_000 for k in range(1, 9)]]


@pytest.fixture
def teacher_file(enskd, tmp_path, monkeypatch):
    """`teacher_file(weight)`: a file with this classifier; its network hears which tone it is."""
    torch.manual_seed(0)
    backend = EcapaSmallBackEnd(3, 16, 8, channels=8, mfa_width=8)
    state = SslSpeakerEncoder(SslEncoder(TEACHER), backend).state_dict()
    read = unispeech.read

    def hearing(path):
        return SimpleNamespace(beside=read(path).beside, module=Bands)

    monkeypatch.setattr(enskd.systems.unispeech, 'read', hearing)

    def write(weight):
        file = tmp_path / 'teacher.pth'
        weight_files.write(unispeech.to_published(state, weight), file)
        return file

    return write


RIGHT = torch.eye(8)[:SPEAKERS]  # the tone of each speaker


def test_teacher_whose_classes_are_those_of_the_list_is_accepted(
    enskd, tones, teacher_file, capsys
):
    corpus, args = tones
    teacher = enskd.systems.teacher_of(teacher_file(3 * RIGHT), corpus, args)
    assert 'recognises 100.0 % of clean training crops' in capsys.readouterr().out
    assert (
        not teacher.training and teacher.criterion.margin == 0.2 and teacher.criterion.scale == 32
    )
    batch = next(iter(corpus.clean_loader(np.arange(3))))
    logits = teacher.plain_logits(teacher.embed(batch['waves']))
    assert logits.argmax(1).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    'weight, words',
    [
        (RIGHT.roll(1, 0), ('recognises 0.0 %', 'not 90 % (least_recognised)', 'order')),
        (RIGHT[[0, 1, 2, 3, 5, 4]], ('recognises 66.7 %', 'order')),
        (RIGHT[:5], ('knows 5 speakers', 'has 6', 'VoxCeleb2 dev: 5,994')),
        (torch.eye(8)[:7], ('knows 7 speakers', 'has 6')),
        (None, ('has no classifier',)),
    ],
    ids=['shifted', 'two changed', 'too few', 'too many', 'without head'],
)
def test_teacher_of_other_classes_is_refused_in_one_line_that_says_what_to_do(
    enskd, tones, teacher_file, weight, words
):
    corpus, args = tones
    file = teacher_file(weight)
    with pytest.raises(UserError) as caught:
        enskd.systems.teacher_of(file, corpus, args)
    line = str(caught.value)
    assert '\n' not in line and line.startswith(str(file))
    assert all(word in line for word in (*words, '--path_teacher none')), line


def test_check_of_the_teacher_covers_the_whole_list_and_may_be_weakened(
    enskd, tones, teacher_file, monkeypatch
):
    corpus, args = tones
    file = teacher_file(RIGHT[[0, 1, 2, 3, 5, 4]])
    monkeypatch.setattr(enskd.systems, 'CHECKED', 7)  # of 18; of the first and last one each
    with pytest.raises(UserError, match='recognises 71.4 %'):
        enskd.systems.teacher_of(file, corpus, args)
    enskd.systems.teacher_of(file, corpus, {**args, 'least_recognised': 0.7})


def test_margins_and_bad_files_do_not_enter_the_check_of_the_teacher(
    enskd, tones, teacher_file, tmp_path
):
    corpus, args = tones
    (tmp_path / 'wav/s2/v/1.wav').write_bytes(b'')
    file = teacher_file(RIGHT)
    enskd.systems.teacher_of(file, corpus, {**args, 'teacher_margin': 3.0, 'least_recognised': 1.0})


def test_teacher_whose_embeddings_are_no_numbers_is_refused(
    enskd, tones, teacher_file, monkeypatch
):
    corpus, args = tones
    monkeypatch.setattr(Bands, 'forward', lambda self, x, n: torch.full((len(x), 8), torch.nan))
    with pytest.raises(UserError, match='recognises'):
        enskd.systems.teacher_of(teacher_file(RIGHT), corpus, args)


# --- the file at the end (spec 3.7, 5.4)


XVECTOR = {  # 32 tensors and the classifier
    *(f'frame_{i}.conv_1d.{leaf}' for i in range(1, 6) for leaf in ('weight', 'bias')),
    *(
        f'{norm}.{leaf}'
        for norm in (*(f'frame_{i}.bn' for i in range(1, 6)), 'seg_bn_1')
        for leaf in ('running_mean', 'running_var', 'num_batches_tracked')
    ),
    *(f'seg_{i}.{leaf}' for i in (1, 2) for leaf in ('weight', 'bias')),
    'projection.weight',
}


def test_last_epochs_are_averaged_into_a_file_of_the_authors_layout(enskd, tmp_path):
    own = enskd.arguments.of_row(args_of(enskd, *STUDENT, '--kd=none'), 'xvector', 'none')
    framework = enskd.systems.distillation(own, SPEAKERS)
    args = {'path_log': tmp_path, 'max_bad_share': 0.0, 'keep_checkpoints': 1, 'num_avg': 3}
    args['save_minutes'] = 10.0
    loader = SimpleNamespace(batch_sampler=ShuffledBatches(8, 4, 0))
    loop = enskd.phases.loop_of('x', loader, args, framework=framework)
    states = []
    for epoch in loop.epochs(5):
        with torch.no_grad():
            for value in framework.state_dict().values():
                value += value.new_full(value.shape, epoch**3)
        states.append(framework.copy_of_state())
        loop.end_epoch({}, value=-epoch)

    def published(average):
        state = average.student.network.state_dict()
        return students.to_published(state, average.criterion.weight.detach())

    file = enskd.phases.finish(loop, framework, args, 'avg_model', published)
    assert file == tmp_path / 'x' / 'avg_model.pt' and loop.finished
    stored = weight_files.read(file)
    assert stored.keys() == XVECTOR and len(stored) == 33
    for name, value in stored.items():
        own = 'criterion.weight' if name == 'projection.weight' else f'student.network.{name}'
        mean = sum(state[own].double() for state in states[2:]) / 3
        if name.endswith('num_batches_tracked'):
            assert value.dtype == torch.int64 and value == mean.round()
        else:
            torch.testing.assert_close(value, mean.float())
    before = file.read_bytes()
    again = enskd.phases.loop_of('x', loader, args, framework=framework)
    assert again.finished and not list(again.epochs(5))
    enskd.phases.finish(again, framework, args, 'avg_model', published)
    assert file.read_bytes() == before


@pytest.mark.parametrize('kd, weights', [('enskd', [0.25, 0.5, 0.75]), ('cosine', [1.0] * 3)])
def test_student_is_trained_and_exported_by_main(enskd, tones, teacher_file, kd, weights):
    corpus, args = tones
    teacher = enskd.systems.teacher_of(teacher_file(RIGHT), corpus, args)
    logged = []
    logger = SimpleNamespace(
        log_metrics=lambda values, step: logged.append(values), curves=lambda: None
    )
    changes = {'epoch': 3, 'warmup': 1, 'kd_warmup': 4, 'num_avg': 2, 'batch_size': 6, 'DA_p': 1}
    words = (f'--{name}={x}' for name, x in {**changes, 'frames': 40, 'num_workers': 0}.items())
    own = enskd.arguments.of_row(args_of(enskd, *STUDENT, f'--kd={kd}', *words), 'xvector', kd)
    own |= {'path_log': args['path_log'], 'device': 'cpu'}
    system, folder = enskd.main.distil(1, teacher, corpus, logger, own)
    title = f'seed1/xvector_{kd}'
    assert folder == enskd.main.Path(args['path_log']) / title
    assert [values[f'{title}/kd_weight'] for values in logged] == weights
    assert all(0 <= values[f'{title}/valid_eer'] <= 100 for values in logged)
    stored = weight_files.read(folder / 'avg_model.pt')
    assert stored.keys() == XVECTOR and stored['projection.weight'].shape == (SPEAKERS, DIM)
    assert isinstance(system.network, XVector) and not system.network.training
    parts = [weight_files.read(folder / f'epoch_000{epoch}.pt') for epoch in (2, 3)]
    mean = sum(part['student.network.seg_2.weight'] for part in parts) / 2
    torch.testing.assert_close(system.network.seg_2.weight.detach(), mean)
