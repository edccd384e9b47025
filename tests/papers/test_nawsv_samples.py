"""Training samples and the two frameworks of papers/nawsv (spec 1, 2.7, 2.8, 5)."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from recipes import QUIET_WAVLM

from shared.augmentations.augment import augment_in_turn
from shared.datasets.items import Utterances, collate
from shared.datasets.musan import Musan
from shared.datasets.reading import AudioReader
from shared.datasets.rirs import Rirs
from shared.datasets.trial_files import TrialFiles
from shared.datasets.voxceleb import read_trials
from shared.losses.aam_topk import AamSoftmaxTopK
from shared.losses.class_weights import class_weights
from shared.losses.hint import hint_loss
from shared.models.adapters import AdapterSettings
from shared.models.ssl_backends import EcapaBackEnd, LinearBackEnd
from shared.models.ssl_encoder import SpanMasks, SslEncoder, SslOutput

RATE = 16000


@pytest.fixture
def nawsv(paper):
    return paper('nawsv')


# --- samples (spec 2.2, 2.4, 2.7, 2.8)

ARGS = {
    'crop_size': RATE // 2,
    'large_crop_size': RATE,
    'large_margin_epoch': 2,
    'DA_p': 0.6,
    'snr': (0.0, 20.0),
    'babble': (3, 6),
}


@pytest.fixture
def audio(tmp_path):
    """Four utterances of two speakers, MUSAN whose categories are told by their level, one room."""
    rng = np.random.default_rng(0)

    def write(name, seconds, level):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, level * rng.uniform(-1, 1, int(seconds * RATE)), RATE)

    names = [f's{i // 2}/v/{i}.wav' for i in range(4)]
    for name, seconds in zip(names, (1.5, 2.0, 0.3, 1.2)):
        write(f'wav/{name}', seconds, 0.5)
    for category, level in {'noise': 0.1, 'speech': 0.2, 'music': 0.4}.items():
        for i in range(8):
            write(f'musan/{category}/sub/x-{i:04d}.wav', 3, level)
    write('rirs/Room001/Room001-00001.wav', 0.1, 0.3)
    utterances = Utterances(
        tmp_path / 'wav', np.array(names, 'S'), np.array([0, 0, 1, 1]), ('s0', 's1')
    )
    reader = AudioReader()
    return utterances, Musan(tmp_path / 'musan', reader), Rirs(tmp_path / 'rirs', reader)


def level(noise):
    return float(np.sqrt(3) * noise.std())  # of uniform noise: its bound


def test_pair_is_two_clean_crops_with_noise_for_the_second(nawsv, audio):
    utterances, musan, _ = audio
    pairs = nawsv.data.PairSet(utterances, musan, ARGS, seed=0)
    kinds = Counter()
    for epoch in range(400):
        sample = pairs[epoch, 0, 1]
        assert sample.waves.shape == (2, RATE // 2) and sample.label == 0 and not sample.rirs
        assert {view for view, *_ in sample.noises} == {1}
        assert all(0 <= snr <= 20 for *_, snr in sample.noises)
        kinds[tuple(category_of(noise) for _, noise, _ in sample.noises)] += 1
    assert set(kinds) == {('noise',), ('babble',), ('music',), ('babble', 'music')}
    assert all(70 < count < 130 for count in kinds.values())  # 100 each; 30 is 3.5 deviations


def category_of(noise):
    """Babble is the mean of 3 to 6 uniform noises of bound 0.2: at most 0.2 / sqrt(3)."""
    bound = level(noise)
    names = {0.1: 'noise', 0.4: 'music', **{0.2 / k**0.5: 'babble' for k in (3, 4, 5, 6)}}
    peak = abs(noise).max()  # tells 0.1 from babble of four, whose deviation is the same
    if peak <= 0.1001:
        return 'noise'
    return names[min(names, key=lambda x: abs(x - bound) + (x == 0.1))]


def test_reference_is_the_second_crop_without_its_noise(nawsv, audio):
    utterances, musan, _ = audio
    pairs = nawsv.data.PairSet(utterances, musan, ARGS, seed=0)
    batch = collate([pairs[1, 0, 1], pairs[1, 2, 3]])
    clean, reference = batch['waves'].unbind(1)
    before = reference.clone()
    noisy = augment_in_turn(batch)
    assert torch.equal(noisy[:, 0], clean)  # the first utterance has no noise
    assert torch.equal(reference, before)  # Q1: the injector leaves its input alone
    assert (noisy[:, 1] - reference).abs().mean() > 1e-3


def test_unreadable_utterance_of_a_pair_is_replaced_by_its_own_speaker(nawsv, audio):
    utterances, musan, _ = audio
    utterances = utterances.select([0, 1, 2, 3, 0, 0])
    utterances.speakers[:] = [0, 0, 1, 1, 0, 0]
    utterances.path(1).write_bytes(b'')
    pairs = nawsv.data.PairSet(utterances, musan, ARGS, seed=0)
    sample = pairs[1, 0, 1]
    assert sample.label == 0 and sample.index in (0, 4, 5)
    assert sample.skipped and '1.wav' in sample.skipped[0]


def test_bad_utterance_of_a_speaker_without_others_does_not_end_the_run(nawsv, audio):
    utterances, musan, _ = audio
    utterances.path(1).write_bytes(b'')
    sample = nawsv.data.PairSet(utterances, musan, ARGS, seed=0)[1, 0, 1]  # speaker 0 has but two
    assert sample.label == 1 and sample.index in (2, 3) and '1.wav' in sample.skipped[0]


@pytest.mark.parametrize('replayed', [False, True])
def test_teacher_hears_the_second_utterance_clean_unless_the_slip_is_replayed(
    nawsv, audio, replayed
):
    utterances, musan, _ = audio
    batch = collate([nawsv.data.PairSet(utterances, musan, ARGS, seed=0)[1, 0, 1]])
    heard = []

    class Recorder(torch.nn.Module):
        def forward(self, *waves):
            heard.extend(waves)
            return {'loss': torch.zeros((), requires_grad=True)}

    meters = SimpleNamespace(update=lambda losses: None)
    loop = SimpleNamespace(batches=lambda title: [batch], meters=meters, means=dict)
    optimizer = SimpleNamespace(zero_grad=lambda set_to_none: None, step=lambda: None)
    args = {'device': 'cpu', 'amp': False, 'noisy_reference': replayed, 'warmup_lr': 1.0}
    nawsv.train.warmup_epoch('x', loop, Recorder(), optimizer, args)
    clean, noisy, reference = heard
    assert torch.equal(clean, batch['waves'][:, 0])
    assert not torch.equal(noisy, batch['waves'][:, 1])
    assert torch.equal(reference, noisy if replayed else batch['waves'][:, 1])


def test_labelled_crops_are_augmented_as_told_and_grow_with_the_margin(nawsv, audio):
    utterances, musan, rirs = audio
    crops = nawsv.data.LabelledCrops(utterances, musan, rirs, ARGS, seed=0)
    kinds = Counter()
    for epoch in range(1, 1001):
        sample = crops[epoch, 3]
        assert sample.waves.shape == (1, RATE // 2 if epoch <= 2 else RATE) and sample.label == 1
        kind = tuple(category_of(noise) for _, noise, _ in sample.noises) or 'clean'
        kinds['room' if sample.rirs else kind] += 1
    assert 350 < kinds.pop('clean') < 450
    assert set(kinds) == {'room', ('noise',), ('babble',), ('music',), ('babble', 'music')}
    assert all(80 < count < 160 for count in kinds.values())  # 120 each


def test_samples_depend_on_seed_epoch_and_utterance_alone(nawsv, audio):
    utterances, musan, rirs = audio
    first, again = (nawsv.data.LabelledCrops(utterances, musan, rirs, ARGS, 0) for _ in '12')
    first[7, 0]  # what was drawn before does not matter
    assert np.array_equal(first[3, 1].waves, again[3, 1].waves)
    other = nawsv.data.LabelledCrops(utterances, musan, rirs, ARGS, 1)
    assert not np.array_equal(other[3, 1].waves, again[3, 1].waves)


# --- the frameworks


@pytest.fixture
def warmup(nawsv):
    def make(**changes):
        torch.manual_seed(0)
        teacher = SslEncoder(QUIET_WAVLM)
        student = SslEncoder(
            QUIET_WAVLM,
            adapters=AdapterSettings(width=4),
            masks=SpanMasks(time_prob=0.0, time_length=1),
        )
        missing = student.load_state_dict(teacher.state_dict(), strict=False)
        assert all('.adapter.' in name for name in missing.missing_keys)
        head, e_apn = LinearBackEnd(3, 16, 8), nawsv.losses.EApn()
        args = {'hint_lambda': 0.1, 'embed_loss_weight': 0.1, 'separate_batch': False, **changes}
        return nawsv.framework.WarmUp(student, teacher, head, e_apn, args)

    return make


def waves(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, count, 4000, generator=generator)


def test_clean_speech_through_the_shared_cnn_gives_what_two_cnns_give(warmup):
    framework = warmup()
    framework.learn('all')
    expected = framework(*waves())
    framework.learn('adapters')
    found = framework(*waves())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_warm_up_equals_its_figure_step_by_step(warmup, nawsv):
    framework = warmup().eval()
    clean, noisy, reference = waves()
    found = framework(clean, noisy, reference)
    student = framework.student(torch.cat([clean, noisy])).states
    teacher = framework.teacher(torch.cat([clean, reference])).states
    hint = hint_loss(student[1:], teacher[1:], 0.1)
    s, t = framework.head(student), framework.head(teacher)
    e_apn = framework.e_apn(s[4:], s[:4], t[:4], t[4:])
    torch.testing.assert_close(found['hint_loss'], hint)
    torch.testing.assert_close(found['e_apn_loss'], e_apn)
    torch.testing.assert_close(found['loss'], hint + 0.1 * e_apn)


@pytest.mark.parametrize('what', ['adapters', 'all'])
def test_only_what_is_meant_to_learn_gets_a_gradient(warmup, what):
    framework = warmup()
    framework.learn(what)
    framework.train()
    assert framework.student.training and not framework.teacher.training
    framework(*waves())['loss'].backward()
    learning = {name for name, p in framework.named_parameters() if p.grad is not None}
    assert not any(name.startswith('teacher.') for name in learning)
    student = {name for name in learning if name.startswith('student.')}
    if what == 'adapters':
        assert student and all('.adapter.' in name for name in student)
    else:
        every = {f'student.{name}' for name, _ in framework.student.named_parameters()}
        assert every - student == {'student.masked_spec_embed'}  # there are no masks here
    assert {'e_apn.w', 'head.projection.weight', 'head.weighted_sum.weight'} <= learning
    assert learning == {n for n, p in framework.named_parameters() if p.requires_grad}  # for DDP


def test_separate_batch_keeps_the_clean_half_from_the_adapters(warmup):
    framework = warmup(separate_batch=True).eval()
    clean, noisy, reference = waves()
    student, teacher = framework.states(clean, noisy, reference)
    torch.testing.assert_close(student[-1][:4], teacher[-1][:4])  # the pre-trained model as it is
    assert not torch.allclose(student[-1][4:], framework.teacher(noisy).states[-1], atol=1e-4)


def test_hint_loss_of_an_unchanged_student_on_clean_speech_is_zero(warmup):
    framework = warmup().eval()
    for layer in framework.student.encoder.layers:
        torch.nn.init.zeros_(layer.adapter.up.weight)
    clean, noisy, reference = waves()
    assert framework(clean, reference, reference)['hint_loss'] < 1e-10
    assert framework(clean, noisy, reference)['hint_loss'] > 1e-3


@pytest.fixture
def finetuning(nawsv):
    torch.manual_seed(0)
    student = SslEncoder(QUIET_WAVLM, masks=SpanMasks(time_prob=0.05, time_length=2))
    sizes = {'channels': 8, 'mfa_width': 24, 'attention_width': 8, 'se_width': 8}
    backend = EcapaBackEnd(3, 16, 8, **sizes)
    labels = torch.tensor([0, 1, 1, 2, 3, 4, 5, 6])
    weights = class_weights(labels, 7)
    return nawsv.framework.FineTuning(student, backend, AamSoftmaxTopK(7, 8), weights)


def test_student_is_frozen_in_eval_mode_until_it_learns(finetuning):
    finetuning.learn('backend')
    finetuning.train()
    assert not finetuning.student.training and finetuning.backend.training
    finetuning(waves()[0], torch.arange(4))['loss'].backward()
    assert all(p.grad is None for p in finetuning.student.parameters())
    finetuning.learn('all')
    finetuning.train()
    assert finetuning.student.training
    finetuning(waves()[0], torch.arange(4))['loss'].backward()
    assert all(p.grad is not None for p in finetuning.parameters())


def test_margin_set_on_the_criterion_changes_the_loss(finetuning):
    """Q3: the released code sets it on a wrapper, and it stays as it was."""
    finetuning.learn('backend')
    finetuning.eval()
    before = finetuning(waves()[0], torch.arange(4))['loss']
    finetuning.criterion.set_margin(0.4)
    assert finetuning(waves()[0], torch.arange(4))['loss'] > before + 0.5


def test_positions_name_what_the_released_code_forgets_and_nothing_else(nawsv, warmup):
    """Q2; that `fresh` entries stay as initialised is a test of `ssl_encoder`."""
    student = warmup().student
    forgotten = [n for n in student.state_dict() if n.startswith(nawsv.systems.POSITIONS)]
    assert len(forgotten) == 6 and all('layers' not in name for name in forgotten)


# --- validation (spec 6)


def test_validation_scores_the_mean_of_all_pairs_of_crops_and_of_whole_files(nawsv, tmp_path):
    """Against loops over trials and crops; the embedding is the first samples of what it gets."""

    class Student(torch.nn.Module):
        def forward(self, waves, lengths=None):
            return SslOutput((waves[:, :6],), None)

    class Head(torch.nn.Module):
        def forward(self, states, frames=None):
            return states[0]

    rng = np.random.default_rng(0)
    for name in 'abcd':
        wave = rng.uniform(-0.5, 0.5, int(rng.integers(5000, 9000)))
        soundfile.write(tmp_path / f'{name}.wav', wave, RATE)
    (tmp_path / 'trials.txt').write_text('1 a.wav b.wav\n0 a.wav c.wav\n1 c.wav d.wav\n')
    trials = read_trials(tmp_path / 'trials.txt', tmp_path)
    files = TrialFiles(trials, tmp_path, budget_seconds=1, workers=0)
    args = {'num_seg': 2, 'seg_size': 4000, 'device': 'cpu', 'eer_rule': 'interpolated'}
    records, scores = nawsv.train.validate(Student(), Head(), files, args, full=True)
    assert set(records) == {'tta', 'full', 'full+tta'}

    def cosine(x, y):
        return float(np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))

    waves = [soundfile.read(tmp_path / name)[0] for name in trials.files]
    crops = [[wave[s : s + 6] for s in (0, len(wave) - 4000)] for wave in waves]
    for enrol, test, score in zip(trials.enrol, trials.test, scores):
        pairs = [cosine(x, y) for x in crops[enrol] for y in crops[test]]
        whole = cosine(waves[enrol][:6], waves[test][:6])
        assert score == pytest.approx((np.mean(pairs) + whole) / 2, abs=1e-4)
