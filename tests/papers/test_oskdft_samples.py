"""Training samples of papers/oskdft: who hears what, and how often (spec 2.2, 2.3)."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from shared.augmentations.augment import augment_in_turn
from shared.datasets.items import DataError, Paths, Utterances, collate
from shared.datasets.musan import CATEGORIES, Musan
from shared.datasets.reading import AudioReader
from shared.datasets.rirs import Rirs

SIZE = 200
ARGS = {
    'crop_size': SIZE,
    'epoch': 10,
    'DA_p': 0.6,
    'clip_p': 0.3,
    'clip_ratio': (0.5, 0.9),
    'envelope_p': 0.3,
    'envelope_floor': (0.1, 0.3),
    'snr_noise': (0.0, 15.0),
    'snr_speech': (13.0, 20.0),
    'snr_music': (5.0, 25.0),
    'babble': (3, 8),
}
LEVELS = {'noise': 0.125, 'speech': 0.25, 'music': 0.5}  # all values of its files; exact in PCM-16


def write(path, wave):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, 16000, subtype='PCM_16')


@pytest.fixture
def audio(tmp_path):
    """Six utterances of three speakers, of 260 samples and one of 150; MUSAN told by its levels."""
    names = [f's{i // 2}/v/{i}.wav' for i in range(6)]
    for i, name in enumerate(names):
        write(tmp_path / 'wav' / name, (np.arange(150 if i == 5 else 260) + 1000 * i) / 2**15)
    for category, level in LEVELS.items():
        for i in range(10):
            write(tmp_path / f'musan/{category}/sub/{i}.wav', np.full(300, level))
    write(tmp_path / 'rirs/Room001/1.wav', np.array([0.75, 0.5, 0.25]))
    utterances = Utterances(
        tmp_path / 'wav', np.array(names, 'S'), np.arange(6) // 2, ('s0', 's1', 's2'), np.ones(6)
    )
    reader = AudioReader()
    return utterances, Musan(tmp_path / 'musan', reader), Rirs(tmp_path / 'rirs', reader)


@pytest.fixture
def others(tmp_path):
    """Four files of other speech, 20000 and more in 2^-15."""
    for i in range(4):
        write(tmp_path / f'kd/{i}.wav', (np.arange(SIZE) + 20000 + 1000 * i) / 2**15)
    return Paths(tmp_path / 'kd', [f'{i}.wav' for i in range(4)])


@pytest.fixture
def crops(paper, audio):
    data = paper('oskdft').data

    def make(others=None, seed=0, **changes):
        return data.LabelledCrops(*audio, others, {**ARGS, **changes}, seed)

    return make


def source(wave):
    """Which file a crop is of: thousands of its first value."""
    return int(round(wave[0] * 2**15)) // 1000


def kind_of(sample):
    if sample.rirs:
        return 'room'
    levels = {level: name for name, level in LEVELS.items()}
    return tuple(levels[float(noise[0])] for _, noise, _ in sample.noises)


def test_teacher_and_student_hear_one_view_where_nothing_is_augmented(crops):
    data = crops(DA_p=0.0)
    for index in range(6):
        sample = data[1, index]
        assert sample.waves.shape == (1, SIZE) and sample.label == index // 2
        assert source(sample.waves[0]) == index
        assert not (sample.noises or sample.rirs or sample.clips or sample.gains)


def test_crop_starts_anywhere_and_a_short_file_is_repeated(crops):
    data = crops(DA_p=0.0)
    starts = {int(data[epoch, 1].waves[0, 0] * 2**15) - 1000 for epoch in range(1000)}
    assert starts == set(range(61))
    wave = data[1, 5].waves[0]
    assert np.array_equal(wave[150:], wave[:50])


def test_student_hears_the_crop_of_the_teacher_augmented_and_the_teacher_hears_it_clean(crops):
    data = crops(DA_p=1.0)
    samples = [data[epoch, 2] for epoch in range(1, 61)]
    for sample in samples:
        assert sample.waves.shape == (2, SIZE)
        assert np.array_equal(sample.waves[0], sample.waves[1])
        every = sample.noises + sample.rirs + sample.clips + sample.gains
        assert {view for view, *_ in every} <= {1}
    batch = collate(samples)
    clean = batch['waves'].clone()
    out = augment_in_turn(batch)
    assert torch.equal(out[:, 0], clean[:, 0])
    changed = (out[:, 1] != clean[:, 1]).any(1)
    # five kinds of six change something, clipping and envelopes most of the rest
    assert 0.75 < changed.float().mean() < 1


def test_six_kinds_are_equally_likely_after_the_share_of_augmented_crops(crops):
    data = crops(clip_p=0.0, envelope_p=0.0)
    kinds = Counter(kind_of(data[epoch, index]) for epoch in range(1, 501) for index in range(4))
    count = 2000 * 0.6 / 6  # 200 each; 4 deviations are 54
    unchanged = kinds.pop(())
    assert abs(unchanged - (800 + count)) < 90
    assert set(kinds) == {'room', ('speech',), ('music',), ('noise',), ('speech', 'music')}
    assert all(abs(found - count) < 54 for found in kinds.values())


def test_snrs_are_those_of_the_category(crops):
    data, snrs = crops(DA_p=1.0), {name: [] for name in CATEGORIES}
    for epoch in range(1, 801):
        sample = data[epoch, 0]
        if sample.noises:
            for name, (_, _, snr) in zip(kind_of(sample), sample.noises):
                snrs[name].append(snr)
    for name, values in snrs.items():
        low, high = ARGS[f'snr_{name}']
        assert low <= min(values) < low + 0.5 and high - 0.5 < max(values) <= high


def test_clipping_and_envelopes_come_with_three_tenths_of_the_augmented_crops(crops):
    data = crops(DA_p=1.0)
    samples = [data[epoch, 0] for epoch in range(1, 1001)]
    clips = [ratio for sample in samples for _, ratio in sample.clips]
    gains = [gain for sample in samples for _, gain in sample.gains]
    both = sum(bool(sample.clips and sample.gains) for sample in samples)
    assert abs(len(clips) - 300) < 58 and abs(len(gains) - 300) < 58 and abs(both - 90) < 36
    assert 0.5 <= min(clips) < 0.52 and 0.88 < max(clips) <= 0.9
    rising = sum(gain[-1] > gain[0] for gain in gains)
    assert abs(rising - len(gains) / 2) < 4 * len(gains) ** 0.5 / 2
    floors = [min(gain[0], gain[-1]) for gain in gains]
    assert 0.1 <= min(floors) < 0.11 and 0.29 < max(floors) < 0.3
    assert all(max(gain[0], gain[-1]) == 1 and gain.shape == (SIZE,) for gain in gains)
    shapes = {
        round(float((g[SIZE // 2] - min(g[0], g[-1])) / (1 - min(g[0], g[-1]))), 1) for g in gains
    }
    assert shapes == {
        0.3,
        0.2,
        0.1,
        0.0,
        0.8,
    }  # middles of sine, quad, cubic and circ, expo, bounce


def test_samples_depend_on_seed_epoch_and_utterance_alone(crops, others):
    data, again = crops(others, DA_p=1.0), crops(others, DA_p=1.0)
    for epoch in (7, 2, 5):
        again[epoch, 0]  # what was drawn before does not matter
    first, second = (augment_in_turn(collate([d[3, i] for i in range(6)])) for d in (data, again))
    assert torch.equal(first, second)
    for changed in (crops(others, seed=1, DA_p=1.0)[3, 1], data[4, 1]):
        assert not np.array_equal(changed.waves, data[3, 1].waves)


def test_teacher_hears_other_speech_and_the_student_the_training_crop(crops, others):
    data = crops(others, DA_p=0.0, epoch=10**9)  # the share of training speech is still nothing
    heard = []
    for index in range(6):
        sample = data[1, index]
        assert sample.waves.shape == (2, SIZE) and sample.label == index // 2
        assert source(sample.waves[1]) == index
        heard.append(source(sample.waves[0]) - 20)
    assert sorted(heard[:4]) == [0, 1, 2, 3] and heard[4:] == heard[:2]  # index mod len
    orders = {tuple(source(data[e, i].waves[0]) for i in range(4)) for e in range(1, 30)}
    assert len(orders) > 10


def test_teacher_hears_training_speech_more_and_more_often(crops, others):
    """With probability epoch / epochs; other speech has 20000 and more."""
    data = crops(others, DA_p=0.0, epoch=10)
    for epoch in (1, 5, 10):
        hits, drawn = 0, Counter()
        for seed in range(100):
            data.seed = seed
            for index in range(6):
                heard = source(data[epoch, index].waves[0])
                hits += heard < 20
                drawn[heard] += 1
        assert abs(hits - 60 * epoch) < 50  # of 600, 4 deviations at the most
        assert epoch == 1 or set(range(6)) < set(drawn) | {20}
    assert hits == 600 and max(drawn.values()) < 140  # every utterance alike, 100 each


def test_bad_file_of_other_speech_is_passed_over(crops, others):
    data = crops(others, DA_p=0.0, epoch=10**9)
    name = f'{source(data[1, 3].waves[0]) - 20}.wav'
    (others.root / name).write_bytes(b'')
    sample = crops(others, DA_p=0.0, epoch=10**9)[1, 3]
    assert sample.index == 4 and name in sample.skipped[0]


# --- the corpus


class Listed(list):
    name = 'Vox1-O'


@pytest.fixture
def corpus(paper, audio, tmp_path):
    data, utterances = paper('oskdft').data, audio[0]
    utterances.write(tmp_path / 'list.txt')
    valid = SimpleNamespace(trials=Listed(range(7)))

    def make(**changes):
        args = {
            **ARGS,
            'path_log': str(tmp_path / 'log'),
            'path_train': str(utterances.root),
            'list_train': str(tmp_path / 'list.txt'),
            'path_musan': str(tmp_path / 'musan'),
            'path_rir': str(tmp_path / 'rirs'),
            'path_kd': None,
            'num_workers': 0,
            'cache_gib': 0.0,
            'batch_size': 2,
            'eval_seconds': 60.0,
            **changes,
        }
        return data.Corpus(args, valid)

    return make


def test_corpus_gives_batches_of_two_views_where_the_student_hears_something_else(corpus):
    loader = corpus().loader(seed=1)
    loader.batch_sampler.set_position(1)
    batches = list(loader)
    assert len(batches) == 3 and batches[0]['waves'].shape == (2, 2, SIZE)
    found = corpus()
    assert found.speakers == 3
    assert found.describe() == (
        'train: 6 utterances of 3 speakers, 0.0 h; each epoch is scored on Vox1-O, 7 trials; '
        'MUSAN: 10 noise, 10 speech, 10 music; 1 RIRs, read from disk; 0 loader processes'
    )


def test_corpus_without_augmentation_needs_neither_musan_nor_rooms(corpus, others):
    plain = corpus(DA_p=0.0, path_musan='nowhere', path_rir='nowhere')
    assert plain.musan is plain.rirs is plain.others is None
    with pytest.raises(DataError, match='nowhere: no such folder'):
        corpus(path_musan='nowhere')
    ramp = corpus(DA_p=0.0, path_kd=str(others.root))
    assert sorted(path.name for path in ramp.others) == [f'{i}.wav' for i in range(4)]
    assert all(path.is_file() for path in ramp.others)
    assert 'other speech for the teacher: 4 files' in ramp.describe()
    loader = ramp.loader(seed=1)
    loader.batch_sampler.set_position(1)
    assert next(iter(loader))['waves'].shape == (2, 2, SIZE)


def test_other_speech_without_audio_is_refused(corpus, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match=r'empty: no \.wav or \.flac below it; it holds nothing'):
        corpus(path_kd=str(tmp_path / 'empty'))


def test_cohort_is_every_utterance_of_some_speakers_numbered_anew(corpus):
    found = corpus()
    chosen = set()
    for seed in range(20):
        cohort = found.cohort(2, seed)
        assert len(cohort) == 4 and cohort.speakers.tolist() == [0, 0, 1, 1]
        names = [cohort.name(i) for i in range(4)]
        assert [cohort.speaker_ids[s] for s in cohort.speakers] == [n.split('/')[0] for n in names]
        chosen.add(cohort.speaker_ids)
    assert chosen == {('s0', 's1'), ('s0', 's2'), ('s1', 's2')}
    assert found.cohort(2, 0).speaker_ids == corpus().cohort(2, 0).speaker_ids
    everyone = found.cohort(600, 0)
    assert len(everyone) == 6
    batches = list(found.whole_loader(everyone))
    assert sorted(i for batch in batches for i in batch['index'].tolist()) == list(range(6))
    lengths = {i: n for b in batches for i, n in zip(b['index'].tolist(), b['lengths'].tolist())}
    assert [lengths[i] >= 260 for i in range(5)] == [True] * 5
