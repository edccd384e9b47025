"""Training samples of papers/enskd: crops, speeds, a room or a noise, lists (spec 2.2-2.5)."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from shared.augmentations.noise import add_noise
from shared.augmentations.reverb import reverberate
from shared.datasets.items import DataError, Utterances, collate
from shared.datasets.musan import CATEGORIES, Musan
from shared.datasets.reading import AudioReader
from shared.datasets.rirs import Rirs
from shared.datasets.shards import write_shards
from shared.datasets.voxceleb import read_folder
from shared.models.kaldi_fbank import KaldiFbank

SIZE = 200
ARGS = {
    'DA_p': 0.6,
    'speed_perturb': False,
    'snr_noise': (0.0, 15.0),
    'snr_speech': (10.0, 30.0),
    'snr_music': (5.0, 15.0),
}
OF_A_RUN = {  # what tells whether anything is augmented
    'eval': False,
    'phase': 'train',
    'setting': 'paper',
    'student': 'xvector',
    'kd': 'none',
    'students': ('xvector',),
    'losses': ('none',),
    'path_teacher': 'teacher.pth',
    'teacher_DA_p': 0.6,
    'embed_size': None,
}
LEVELS = {'noise': 0.125, 'speech': 0.25, 'music': 0.5}  # all values of its files; exact in PCM-16
FILES = {'noise': 10, 'speech': 6, 'music': 4}
RIR = np.array([0.75, 0.5, 0.25], np.float32)


def write(path, wave):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, 16000, subtype='PCM_16')


@pytest.fixture
def enskd(paper):
    return paper('enskd')


@pytest.fixture
def audio(tmp_path):
    """Six utterances of three speakers: sample k of utterance i holds (k + 1000 i) / 2^15."""
    names = [f's{i // 2}/v/{i}.wav' for i in range(6)]
    for i, name in enumerate(names):
        write(tmp_path / 'wav' / name, (np.arange(150 if i == 5 else 260) + 1000 * i) / 2**15)
    for category, level in LEVELS.items():
        for i in range(FILES[category]):
            write(tmp_path / f'musan/{category}/sub/{i}.wav', np.full(300, level))
    write(tmp_path / 'rirs/Room001/1.wav', RIR)
    utterances = Utterances(
        tmp_path / 'wav', np.array(names, 'S'), np.arange(6) // 2, ('s0', 's1', 's2'), np.ones(6)
    )
    reader = AudioReader()
    return utterances, Musan(tmp_path / 'musan', reader), Rirs(tmp_path / 'rirs', reader)


@pytest.fixture
def crops(enskd, audio):
    def make(seed=0, size=SIZE, utterances=None, **changes):
        parts = (utterances or audio[0], *audio[1:])
        return enskd.data.LabelledCrops(*parts, size, {**ARGS, **changes}, seed)

    return make


def kind_of(sample):
    """What is added to a crop: 'room', a category of noises, or nothing."""
    kinds = ['room' for _ in sample.rirs]
    levels = {level: name for name, level in LEVELS.items()}
    kinds += [levels[float(noise[0])] for _, noise, _ in sample.noises]
    assert len(kinds) <= 1  # never both, and one noise at most
    return kinds[0] if kinds else None


# --- crops


@pytest.mark.parametrize('frames, samples', [(200, 32_240), (300, 48_240), (1, 400)])
def test_crop_is_as_long_as_its_frames(enskd, frames, samples):
    assert enskd.data.samples_of(frames) == samples
    features, _ = KaldiFbank()(torch.zeros(1, samples))
    assert features.shape == (1, 80, frames)
    assert KaldiFbank()(torch.zeros(1, samples + 159))[0].shape[2] == frames


def test_crop_starts_anywhere_and_a_short_file_is_repeated(crops):
    data = crops(DA_p=0.0)
    for index in range(6):
        sample = data[1, index]
        assert sample.waves.shape == (1, SIZE) and sample.waves.dtype == np.float32
        assert sample.label == index // 2 and sample.index == index
        assert int(round(sample.waves[0, 0] * 2**15)) // 1000 == index
        assert kind_of(sample) is None
    starts = {int(data[epoch, 1].waves[0, 0] * 2**15) - 1000 for epoch in range(1000)}
    assert starts == set(range(61))
    wave = data[1, 5].waves[0]
    assert np.array_equal(wave[150:], wave[:50])


def test_six_tenths_are_augmented_half_by_a_room_and_half_by_one_noise(crops):
    data = crops()
    kinds = Counter(kind_of(data[epoch, index]) for epoch in range(1, 501) for index in range(4))
    assert set(kinds) == {None, 'room', *CATEGORIES}
    # every file of MUSAN is equally likely; the bounds are 4 deviations
    expected = {None: 800, 'room': 600, 'noise': 300, 'speech': 180, 'music': 120}
    for kind, count in expected.items():
        deviation = (count * (1 - count / 2000)) ** 0.5
        assert abs(kinds[kind] - count) < 4 * deviation, kind


def test_no_crop_is_augmented_where_the_share_is_none_and_every_one_where_it_is_all(crops):
    none, every = crops(DA_p=0.0), crops(DA_p=1.0)
    assert {kind_of(none[epoch, 0]) for epoch in range(1, 51)} == {None}
    assert None not in {kind_of(every[epoch, 0]) for epoch in range(1, 51)}


def test_snrs_are_those_of_the_category_and_the_room_has_unit_energy(crops):
    data, snrs = crops(DA_p=1.0), {name: [] for name in CATEGORIES}
    for epoch in range(1, 1201):
        sample = data[epoch, 0]
        for view, noise, snr in sample.noises:
            assert view == 0 and noise.shape == (SIZE,)
            snrs[kind_of(sample)].append(snr)
        for view, rir in sample.rirs:
            assert view == 0
            np.testing.assert_allclose(rir, RIR / np.linalg.norm(RIR), rtol=1e-6)
    for name, values in snrs.items():
        low, high = ARGS[f'snr_{name}']
        assert low <= min(values) < low + 0.7 and high - 0.7 < max(values) <= high


@pytest.mark.parametrize('speed_perturb', [False, True])
def test_samples_depend_on_seed_epoch_and_utterance_alone(crops, speed_perturb):
    settings = {'DA_p': 1.0, 'speed_perturb': speed_perturb}
    data, again = crops(**settings), crops(**settings)
    for epoch in (7, 2, 5):
        again[epoch, 0]  # what was drawn before does not matter
    first, second = (collate([d[3, i] for i in range(6)]) for d in (data, again))
    for name in ('waves', 'labels', 'rir', 'rir_row', 'noise', 'noise_row', 'noise_snr'):
        assert torch.equal(first[name], second[name]), name
    for changed in (crops(seed=1, **settings)[3, 1], data[4, 1]):
        assert not np.array_equal(changed.waves, data[3, 1].waves)


# --- speeds


@pytest.fixture
def tones(tmp_path):
    """Four speakers, each a tone of one second."""
    seconds = np.arange(16_000) / 16_000
    for i in range(4):
        write(
            tmp_path / f'tones/s{i}/v/0.wav', 0.5 * np.sin(2 * np.pi * (1000 + 200 * i) * seconds)
        )
    return read_folder(tmp_path / 'tones')


def test_speed_moves_the_pitch_and_makes_classes_of_its_own(crops, tones):
    data = crops(utterances=tones, size=8000, speed_perturb=True, DA_p=0.0)
    factors, found = (1.0, 0.9, 1.1), Counter()
    for epoch in range(1, 76):
        for index in range(4):
            sample = data[epoch, index]
            speed, speaker = divmod(sample.label, 4)
            found[speed] += 1
            assert speaker == index and sample.waves.shape == (1, 8000)
            spectrum = np.abs(np.fft.rfft(sample.waves[0] * np.hanning(8000)))
            hertz = spectrum.argmax() * 2  # bins of 2 Hz
            assert abs(hertz - factors[speed] * (1000 + 200 * index)) <= 2
            assert sample.converted == {}  # it is no conversion of a file
    assert set(found) == {0, 1, 2} and all(abs(count - 100) < 33 for count in found.values())


def test_crops_start_anywhere_in_the_stretched_file(crops):
    """0.9 makes 260 samples 289, 1.1 makes them 237; a file of 150 is repeated as it then is."""
    data = crops(speed_perturb=True, DA_p=0.0)
    firsts = {0: set(), 1: set(), 2: set()}
    for epoch in range(1, 1501):
        sample = data[epoch, 2]
        firsts[sample.label // 3].add(int(round(1000 * sample.waves[0, 0] * 2**15)))
    assert [len(starts) for starts in firsts.values()] == [61, 90, 38]
    for epoch in range(1, 21):
        sample = data[epoch, 5]
        period = (150, 167, 137)[sample.label // 3]
        assert np.array_equal(sample.waves[0, period:], sample.waves[0, : SIZE - period])


def test_without_speed_perturbation_labels_are_the_speakers_and_crops_the_files(crops, tones):
    data = crops(utterances=tones, size=8000, DA_p=0.0)
    assert {data[epoch, 3].label for epoch in range(1, 31)} == {3}


# --- what is done on the device


@pytest.fixture
def speech(tmp_path):
    """Six utterances of noise at the level of speech."""
    rng = np.random.default_rng(0)
    for i in range(6):
        write(tmp_path / f'speech/s{i // 2}/v/{i}.wav', 0.05 * rng.standard_normal(9000))
    return read_folder(tmp_path / 'speech')


def test_peaks_are_brought_to_one_in_augmented_rows_alone(enskd, crops, speech):
    data = crops(utterances=speech, size=6640)
    batch = collate([data[epoch, index] for epoch in (1, 2, 3) for index in range(6)])
    touched = {*batch['rir_row'].tolist(), *batch['noise_row'].tolist()}
    assert batch['rir_row'].numel() and batch['noise_row'].numel() and len(touched) < 18
    clean = batch['waves'].squeeze(1).clone()
    out = enskd.train.augmented(batch)
    assert out.shape == (18, 6640) and out.dtype == torch.float32
    expected = reverberate(clean, batch['rir'], batch['rir_row'])
    expected = add_noise(expected, batch['noise'], batch['noise_row'], batch['noise_snr'])
    for row in range(18):
        if row in touched:
            peak = expected[row].abs().max()
            torch.testing.assert_close(out[row], expected[row] / (peak + 1e-4))
            assert out[row].abs().max() == pytest.approx(1, abs=2e-3)
        else:
            assert torch.equal(out[row], clean[row])


def test_teacher_and_student_hear_the_same_augmented_crop(enskd, crops, speech, monkeypatch):
    """Without dither the batch's wave gives the student's features (spec 8.5-7)."""
    heard = {}

    class Teacher(torch.nn.Module):
        def forward(self, waves):
            heard['teacher'] = waves
            return waves[:, :4]

    class Student(torch.nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.last = torch.nn.Linear(80, dim)

        def forward(self, features, frames=None):
            heard['student'] = features
            return self.last(features.mean(2))

    monkeypatch.setitem(enskd.systems.NETWORKS, 'xvector', Student)
    words = '--student xvector --kd enskd --dither 0 --embed_size 4 --setting matched'
    args = enskd.arguments.get_args(words.split())[0]
    args = enskd.arguments.of_row(args, 'xvector', 'enskd')
    teacher = enskd.models.Teacher(Teacher(), enskd.models.ContinuousAam(3, 4, 0.2, 32.0))
    framework = enskd.systems.distillation(args, 3, teacher).train()
    data = crops(utterances=speech, size=6640)
    batch = collate([data[epoch, index] for epoch in (1, 2, 3) for index in range(6)])
    assert batch['rir_row'].numel() and batch['noise_row'].numel()
    waves = enskd.train.augmented(batch)
    framework(waves, batch['labels'])
    assert torch.equal(heard['teacher'], waves)
    features, _ = KaldiFbank().eval()(heard['teacher'])
    assert heard['student'].shape == (18, 80, 40) and torch.equal(heard['student'], features)
    assert features.mean(2).abs().max() < 1e-4  # each bin's mean is subtracted


def test_features_are_masked_in_training_alone_where_the_arguments_say_so(enskd):
    words = '--dither 0 --spec_aug_p 1 --spec_aug_size 10,8 --embed_size 4'
    args = enskd.arguments.get_args(words.split())[0]
    encoder = enskd.systems.speaker_encoder(torch.nn.Identity(), args)
    waves = torch.randn(8, 6640, generator=torch.Generator().manual_seed(0))
    plain, _ = KaldiFbank()(waves)
    masked, _ = encoder.frontend.train()(waves)
    for row, whole in zip(masked, plain):
        hidden = row != whole
        frames, bins = hidden.all(0).sum(), hidden.all(1).sum()
        assert 1 <= frames <= 10 and 1 <= bins <= 8 and (row[hidden] == 0).all()
        assert hidden.sum() == 80 * frames + (40 - frames) * bins
    assert torch.equal(encoder.frontend.eval()(waves)[0], plain)


# --- the corpus


class Listed(list):
    name = 'Vox1-O'


@pytest.fixture
def corpus(enskd, audio, tmp_path):
    def make(**changes):
        args = {
            **ARGS,
            'path_log': str(tmp_path / 'log'),
            'path_train': str(tmp_path / 'wav'),
            'list_train': None,
            'utt2spk': None,
            'path_musan': str(tmp_path / 'musan'),
            'path_rir': str(tmp_path / 'rirs'),
            'num_workers': 0,
            'cache_gib': 0.0,
            **OF_A_RUN,
            'batch_size': 2,
            'eval_seconds': 60.0,
            'frames': 1,
            **changes,
        }
        valid = SimpleNamespace(trials=Listed(range(7)))
        return enskd.data.Corpus(args, valid), args

    return make


def batches(corpus, args, epoch=1):
    loader = corpus.loader(1, args, frames=1)
    loader.batch_sampler.set_position(epoch)
    return list(loader)


def test_corpus_gives_batches_and_says_what_was_found(corpus):
    found, args = corpus()
    first, *others = batches(found, args)
    assert len(others) == 2 and first['waves'].shape == (2, 1, 400) and found.classes == 3
    assert found.describe() == (
        'train: 6 utterances of 3 speakers, 0.0 h; each epoch is scored on Vox1-O, 7 trials; '
        'MUSAN: 10 noise, 6 speech, 4 music; 1 RIRs, read from disk; 0 loader processes'
    )
    whole = {i: n for b in found.whole_loader() for i, n in zip(b['index'].tolist(), b['lengths'])}
    assert sorted(whole) == list(range(6))


@pytest.fixture
def lists(audio, tmp_path):
    """The same utterances as raw.list, wav.scp with utt2spk, and shards; arguments of each."""
    utterances, place = audio[0], tmp_path / 'lists'
    place.mkdir()
    keys = [utterances.name(i) for i in range(6)]
    paths = [str(utterances.path(i)) for i in range(6)]
    rows = [{'key': k, 'spk': k.split('/')[0], 'wav': p} for k, p in zip(keys, paths)]
    (place / 'raw.list').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (place / 'wav.scp').write_text(''.join(f'{k} {p}\n' for k, p in zip(keys, paths)))
    (place / 'utt2spk').write_text(''.join(f'{k} {k.split("/")[0]}\n' for k in keys))
    shards = write_shards(utterances, tmp_path / 'set', per_shard=2)
    utterances.write(place / 'train.txt')
    return {
        'folder': {},
        'list': {'list_train': str(place / 'train.txt')},
        'raw': {'list_train': str(place / 'raw.list')},
        'raw, utt2spk': {
            'list_train': str(place / 'raw.list'),
            'utt2spk': str(place / 'utt2spk'),
        },
        'scp': {'list_train': str(place / 'wav.scp'), 'utt2spk': str(place / 'utt2spk')},
        'shards': {'list_train': str(shards)},
    }


@pytest.mark.parametrize('speed_perturb', [False, True])
def test_folder_and_lists_and_shards_give_identical_batches(corpus, lists, speed_perturb):
    settings = {'speed_perturb': speed_perturb, 'DA_p': 1.0}
    expected = batches(*corpus(**settings))
    for kind, given in lists.items():
        elsewhere = {'path_train': 'nowhere'} if kind not in ('folder', 'list') else {}
        found, args = corpus(**given, **elsewhere, **settings)
        assert found.train.speaker_ids == ('s0', 's1', 's2'), kind
        for one, other in zip(expected, batches(found, args), strict=True):
            assert one.keys() == other.keys()
            for name, value in one.items():
                same = torch.equal(value, other[name]) if torch.is_tensor(value) else True
                assert same and (torch.is_tensor(value) or value == other[name]), (kind, name)


def test_classes_of_a_part_are_those_of_the_whole_where_utt2spk_names_them(corpus, lists):
    given = lists['raw, utt2spk']
    path = given['list_train']
    with open(path) as file:
        lines = file.readlines()
    with open(path, 'w') as file:
        file.writelines(lines[2:])  # of s1 and s2
    assert corpus(**given)[0].classes == 3 and corpus(list_train=path)[0].classes == 2
    assert set(corpus(**given)[0].train.speakers) == {1, 2}


def test_index_of_shards_is_kept_in_the_run_folder(corpus, lists, tmp_path):
    corpus(**lists['shards'])
    assert (tmp_path / 'log/lists/shards/index.npz').exists()


def test_paths_that_a_run_needs_depend_on_the_kind_of_list(enskd, corpus, lists):
    base = {'as_norm': True, 'kd': 'enskd', 'speed_perturb': False}
    base |= {'path_teacher': 't.pth', 'path_ssl': 'w.pt', 'published': None}
    base |= dict.fromkeys(('path_test', 'trials_test', 'path_valid', 'trials_valid'))

    def needed(**changes):
        return enskd.paths.needed_paths({**corpus()[1], **base, **changes})

    for kind, given in lists.items():
        assert ('path_train' in needed(**given)) == (kind in ('folder', 'list')), kind
    assert needed()['path_teacher'] == 't.pth' and 'path_ssl' not in needed()
    assert needed(path_teacher=None)['path_ssl'] == 'w.pt'
    alone = needed(kd='none', path_teacher=None)
    assert 'path_teacher' not in alone and 'path_ssl' not in alone
    for phase, losses, wanted in (
        ('compare', ('none', 'kl'), True),
        ('compare', ('none',), False),
        ('teacher', ('none',), True),
    ):
        found = needed(kd='none', losses=losses, path_teacher=None, phase=phase)
        assert ('path_ssl' in found) == wanted
    scoring = needed(eval=True, as_norm=False)
    assert scoring.keys() == {'path_test', 'trials_test', 'published'}


@pytest.mark.parametrize(
    'changes, heard',
    [
        ({}, True),
        ({'DA_p': 0.0}, False),
        ({'DA_p': 0.0, 'path_teacher': None}, False),
        ({'DA_p': 0.0, 'path_teacher': None, 'kd': 'kl'}, True),
        ({'DA_p': 0.0, 'path_teacher': None, 'kd': 'kl', 'teacher_DA_p': 0.0}, False),
        ({'phase': 'teacher', 'path_teacher': None, 'teacher_DA_p': 0.0}, False),
        ({'kd': 'cosine', 'DA_p': None}, False),  # the table's share
        ({'kd': 'kl', 'DA_p': None}, True),
        ({'phase': 'compare', 'losses': ('cosine', 'kl'), 'DA_p': None}, True),
        ({'eval': True, 'as_norm': True}, False),
    ],
    ids=lambda value: ' '.join(f'{k}={v}' for k, v in value.items()) if type(value) is dict else '',
)
def test_musan_and_rooms_are_needed_only_where_something_hears_them(corpus, enskd, changes, heard):
    nowhere = {'path_musan': 'nowhere', 'path_rir': 'nowhere'}
    if heard:
        with pytest.raises(DataError, match='nowhere: no such folder'):
            corpus(**changes, **nowhere)
    else:
        found, args = corpus(**changes, **nowhere)
        assert found.musan is found.rirs is None and 'MUSAN' not in found.describe()
        whole = ('published', 'path_test', 'trials_test', 'path_valid', 'trials_valid', 'path_ssl')
        args = {'as_norm': True, **dict.fromkeys(whole), **args}
        assert not {'path_musan', 'path_rir'} & enskd.paths.needed_paths(args).keys()
        if changes.get('DA_p') == 0.0:
            assert len(batches(found, args)) == 3


def test_list_of_features_is_refused(corpus, tmp_path):
    (tmp_path / 'feat.list').write_text('{"key": "a", "spk": "b", "feat": "x.ark:7"}\n')
    with pytest.raises(DataError, match='holds features, no waveform'):
        corpus(list_train=str(tmp_path / 'feat.list'))


# --- clean crops, of the check of the teacher and of the cohort


def test_clean_crops_are_as_the_files_whatever_training_adds(corpus, monkeypatch, enskd):
    found, _ = corpus(DA_p=1.0, speed_perturb=True)
    (whole,) = found.clean_loader(np.arange(6))
    assert whole['waves'].shape == (6, 400) and whole['waves'].dtype == torch.float32
    assert whole['index'].tolist() == list(range(6)) and whole['lengths'].tolist() == 6 * [400]
    for row in range(6):  # consecutive numbers, the file repeated
        values = (whole['waves'][row] * 2**15).long() - 1000 * row
        length = 150 if row == 5 else 260
        assert torch.equal(values, torch.arange(400) % length)
    monkeypatch.setattr(enskd.data, 'CLEAN_BATCH', 4)
    parts = list(found.clean_loader(np.arange(6)))
    assert torch.equal(torch.cat([part['waves'] for part in parts]), whole['waves'])


def test_clean_crops_are_drawn_by_their_utterance_alone(enskd, audio):
    whole = enskd.data.CleanCrops(audio[0], np.arange(6), 200, seed=0)[0]
    some = enskd.data.CleanCrops(audio[0], np.array([4, 1]), 200, seed=0)[0]
    assert torch.equal(some['waves'], whole['waves'][[4, 1]]) and some['index'].tolist() == [0, 1]
    assert len({int(wave[0] * 2**15) % 1000 for wave in whole['waves'][:5]}) > 2  # starts


def test_clean_crops_start_anywhere_and_seeds_differ(enskd, audio):
    make = enskd.data.CleanCrops
    starts = {int(make(audio[0], [1], 200, seed)[0]['waves'][0, 0] * 2**15) for seed in range(600)}
    assert starts == set(range(1000, 1061))


def test_ranks_share_the_clean_crops(enskd, audio, monkeypatch):
    monkeypatch.setattr(enskd.data, 'CLEAN_BATCH', 2)

    def shares(ranks):
        """The batches of each rank."""
        monkeypatch.setattr(enskd.data.ddp, 'world_size', lambda: ranks)
        for rank in range(ranks):
            monkeypatch.setattr(enskd.data.ddp, 'rank', lambda rank=rank: rank)
            data = enskd.data.CleanCrops(audio[0], np.arange(6), 200, seed=0)
            yield [data[number] for number in range(len(data))]

    (alone,), several = shares(1), list(shares(2))
    whole = torch.cat([part['waves'] for part in alone])
    assert [len(share) for share in several] == [2, 1]
    parts = [part for share in several for part in share]
    assert sorted(i for part in parts for i in part['index'].tolist()) == list(range(6))
    assert all(torch.equal(part['waves'], whole[part['index']]) for part in parts)


def test_unreadable_files_are_left_out_of_the_clean_crops_and_said(enskd, audio):
    utterances = audio[0]
    for row in (1, 2):
        utterances.path(row).write_bytes(b'')
    batch = enskd.data.CleanCrops(utterances, np.arange(3), 200, seed=0)[0]
    assert batch['index'].tolist() == [0] and batch['waves'].shape == (1, 200)
    assert len(batch['skipped']) == 2 and '1.wav' in batch['skipped'][0]
    nothing = enskd.data.CleanCrops(utterances, np.array([1, 2]), 200, seed=0)[0]
    assert nothing['waves'].shape == (0, 200) and nothing['lengths'].tolist() == []
