"""Training samples of papers/wavlm_ssl: crops, what is added to them, batches (spec 2, 8.2, 8.3)."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from shared.augmentations.augment import augment
from shared.datasets.items import DataError, Utterances, collate, to_device
from shared.datasets.musan import CATEGORIES, Musan
from shared.datasets.reading import AudioReader
from shared.datasets.rirs import Rirs

ARGS = {
    'max_frames': 1,
    'lmft_frames': 2,
    'babble': (3, 8),
    'babble_music': 'music',
    'dino': 'rdino',
    'global_size': 400,
    'local_size': 200,
    'locals': 4,
    'dino_rir_gain': (-7.0, 3.0),
    'snr_noise': (0.0, 15.0),
    'snr_speech': (13.0, 20.0),
    'snr_music': (5.0, 15.0),
}
LENGTHS = (460, 460, 460, 460, 460, 150)  # samples of utterances 0 ... 5
SPEECH = 0.25  # every value of a noise, by category; exact in PCM-16
LEVELS = {0.125: 'noise', SPEECH: 'speech', 0.5: 'music'}
RIR = np.array([0.75, 0.5, 0.25], np.float32)


@pytest.fixture
def audio(tmp_path):
    """Sample k of utterance i holds (k + 1000 (i + 1)) / 2^15; noises tell their category."""

    def write(name, wave):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, 16000, subtype='PCM_16')

    names = [f's{i // 2}/v/{i}.wav' for i in range(len(LENGTHS))]
    for i, (name, length) in enumerate(zip(names, LENGTHS)):
        write(f'wav/{name}', (np.arange(length) + 1000 * (i + 1)) / 2**15)
    for level, category in LEVELS.items():
        for i in range(10):
            write(f'musan/{category}/sub/{i}.wav', np.full(600, level))
    write('rirs/Room001/1.wav', RIR)
    speakers = np.arange(len(names)) // 2
    utterances = Utterances(
        tmp_path / 'wav', np.array(names, 'S'), speakers, ('s0', 's1', 's2'), np.ones(len(names))
    )
    reader = AudioReader()
    return utterances, Musan(tmp_path / 'musan', reader), Rirs(tmp_path / 'rirs', reader)


@pytest.fixture
def labelled(paper, audio):
    data, (utterances, *rest) = paper('wavlm_ssl').data, audio

    def make(labels=(3, 0, 1, 1, 0, 2), seed=0, **changes):
        return data.LabelledCrops(utterances, np.array(labels), *rest, {**ARGS, **changes}, seed)

    return make


@pytest.fixture
def dino(paper, audio):
    data = paper('wavlm_ssl').data
    return lambda seed=0, **changes: data.DinoCrops(*audio, {**ARGS, **changes}, seed)


def first_value(wave):
    """(utterance, sample) that a crop begins with."""
    number = int(round(float(wave[0]) * 2**15))
    return number // 1000 - 1, number % 1000


def categories(sample, view=0):
    return [LEVELS[float(noise[0])] for v, noise, _ in sample.noises if v == view]


def about(expected, draws):
    """An interval of 4.5 deviations of a count."""
    return pytest.approx(draws * expected, abs=4.5 * (draws * expected * (1 - expected)) ** 0.5)


# --- fine-tuning (spec 2.2, 2.3)


def test_labelled_crop_comes_augmented_and_clean_with_its_number_in_the_train_list(labelled):
    data = labelled((3, -1, 1, 0, -1, 2))
    assert len(data) == 4
    samples = [data[epoch, index] for epoch in range(1, 40) for index in range(4)]
    assert {(s.index, s.label) for s in samples} == {(0, 3), (2, 1), (3, 0), (5, 2)}
    for sample in samples:
        assert sample.waves.shape == (2, 400) and sample.waves.dtype == np.float32
        assert np.array_equal(sample.waves[0], sample.waves[1])
        assert first_value(sample.waves[0])[0] == sample.index
        assert {view for view, *_ in sample.noises + sample.rirs} <= {0}
    batch = collate(samples)
    clean = batch['waves'].clone()
    out = augment(batch)
    assert torch.equal(out[:, 1], clean[:, 1])
    changed = (out[:, 0] != clean[:, 0]).any(1).sum().item()
    assert changed == about(5 / 6, len(samples))


def test_crop_length_is_that_of_the_frames_and_starts_anywhere(labelled):
    assert labelled(max_frames=300).size == 48240 and labelled(max_frames=600).size == 96240
    data = labelled()
    starts = {first_value(data[epoch, 1].waves[1])[1] for epoch in range(700)}
    assert starts == set(range(460 - 400 + 1))
    short = data[1, 5].waves[1]
    assert np.array_equal(short, np.resize(short[:150], 400))  # repeated


@pytest.mark.parametrize('babble_music, music, both', [('music', 1 / 3, 0), ('both', 1 / 6, 1 / 6)])
def test_six_draws_are_equally_likely_and_the_last_is_music_as_coded(
    labelled, babble_music, music, both
):
    data, kinds, draws = labelled(babble_music=babble_music), Counter(), 2400
    for epoch in range(draws // 6):
        for index in range(6):
            sample = data[epoch, index]
            found = Counter(categories(sample))
            kinds[bool(sample.rirs), tuple(sorted(found))] += 1
            assert found['speech'] in (0, 3, 4, 5, 6, 7, 8)
            assert found['music'] <= 1 and found['noise'] <= 1
    shares = {
        (False, ()): 1 / 6,
        (True, ()): 1 / 6,
        (False, ('music',)): music,
        (False, ('speech',)): 1 / 6,
        (False, ('noise',)): 1 / 6,
        (False, ('music', 'speech')): both,
    }
    assert set(kinds) == {kind for kind, share in shares.items() if share}
    for kind, share in shares.items():
        assert kinds[kind] == about(share, draws)


def test_babble_is_three_to_eight_files_each_with_an_snr_of_its_own(labelled):
    data, counts, snrs = labelled(), Counter(), {name: [] for name in CATEGORIES}
    for epoch in range(3000):
        noises = data[epoch, 0].noises
        for _, noise, snr in noises:
            snrs[LEVELS[float(noise[0])]].append(snr)
        if len(noises) > 1:
            counts[len(noises)] += 1
            assert len({snr for _, _, snr in noises}) == len(noises)
    assert set(counts) == set(range(3, 9))
    assert all(count == about(1 / 6, sum(counts.values())) for count in counts.values())
    for name, values in snrs.items():
        low, high = ARGS[f'snr_{name}']
        assert low <= min(values) < low + 0.1 and high - 0.1 < max(values) <= high


def test_room_of_fine_tuning_has_unit_energy(labelled):
    rirs = [rir for epoch in range(30) for _, rir in labelled()[epoch, 0].rirs]
    assert rirs
    for rir in rirs:
        assert rir == pytest.approx(RIR / np.sqrt((RIR**2).sum()), abs=1e-4)


def test_labelled_sample_depends_on_seed_epoch_and_utterance_alone(labelled):
    data, again = labelled(), labelled()
    for epoch in (7, 2, 5):
        again[epoch, 0]  # what was drawn before does not matter
    first, second = (augment(collate([d[3, i] for i in range(6)])) for d in (data, again))
    assert torch.equal(first, second)
    starts = [[s[epoch, 1].waves[1, 0] for epoch in range(10)] for s in (data, labelled(seed=1))]
    assert starts[0] != starts[1] and len(set(starts[0])) > 3


# --- DINO (spec 8.2, 8.3)


@pytest.mark.parametrize('recipe', ['rdino', 'dino'])
def test_dino_gives_two_long_crops_and_four_short_ones_of_one_file(dino, recipe):
    data = dino(dino=recipe)
    for index in range(5):
        sample = data[1, index]
        local = sample.more['locals']
        assert sample.waves.shape == (2, 400) and local.waves.shape == (4, 200)
        for wave in [*sample.waves, *local.waves]:
            file, start = first_value(wave)
            assert file == index
            assert np.array_equal(wave * 2**15, 1000 * (index + 1) + start + np.arange(len(wave)))


@pytest.mark.parametrize('recipe, last', [('rdino', -1), ('dino', 0)])
def test_dino_crops_start_anywhere_and_those_of_rdino_all_differ(dino, recipe, last):
    data, rng, equal = dino(dino=recipe), np.random.default_rng(0), 0
    with data.reader.open(data.utterances.path(2)) as file:
        for count, size in ((2, 400), (4, 200)):
            found = set()
            for _ in range(800):
                starts = [first_value(wave)[1] for wave in data.crops(file, count, size, rng)]
                found.update(starts)
                equal += len(set(starts)) < count
            assert found == set(range(460 - size + 1 + last))
    assert (equal == 0) == (recipe == 'rdino')


def test_short_file_of_rdino_gets_zeros_and_no_crop_is_silent(dino):
    data = dino()
    for epoch in range(30):
        sample = data[epoch, 5]
        assert {first_value(wave)[1] for wave in sample.waves} == {0, 1}
        assert {first_value(w)[1] for w in sample.more['locals'].waves} == {0, 1, 2, 3}
        for wave in [*sample.waves, *sample.more['locals'].waves]:
            left = 150 - first_value(wave)[1]
            assert (wave[:left] > 0).all() and not wave[left:].any()


def test_short_file_of_dino_is_wrapped_to_a_global_crop_and_one_sample(dino):
    data, rng = dino(dino='dino'), np.random.default_rng(0)
    whole = ((np.arange(150) + 6000) / 2**15).astype(np.float32)
    wrapped = np.resize(whole, 401)
    with data.reader.open(data.utterances.path(5)) as file:
        for count, size, often in ((2, 400, 20), (4, 200, 800)):
            found = Counter()
            for wave in np.concatenate([data.crops(file, count, size, rng) for _ in range(often)]):
                start = first_value(wave)[1]
                found[start] += 1
                assert np.array_equal(wave, wrapped[start : start + size])
            # starts 0 ... 401 - size; those from 150 on look as they do a file's length before
            expected = Counter(start % 150 for start in range(402 - size))
            assert set(found) == set(expected)
            for start, ways in expected.items():
                assert found[start] == about(ways / (402 - size), count * often)


def test_file_of_one_sample_more_than_a_global_crop_is_taken(dino, audio):
    """Quirk 28: the reference crashes there. So is one of two samples."""
    for length in (2, 400, 401, 402, 403):
        soundfile.write(audio[0].path(0), np.full(length, 0.5), 16000, subtype='PCM_16')
        for recipe in ('rdino', 'dino'):
            assert dino(dino=recipe)[1, 0].index == 0


@pytest.mark.parametrize(
    'recipe, shares', [('rdino', (1 / 6, 1 / 8, 3 / 8, 1 / 3)), ('dino', (0.25,) * 4)]
)
def test_each_dino_crop_is_augmented_by_itself(dino, recipe, shares):
    data, views = dino(dino=recipe), {'globals': 2, 'locals': 4}
    kinds, together, draws, snrs = Counter(), Counter(), 600, {name: [] for name in CATEGORIES}
    for epoch in range(draws):
        sample = data[epoch, 3]
        for name, crops in (('globals', sample), ('locals', sample.more['locals'])):
            rooms = [view for view, _ in crops.rirs]
            noises = {view: (noise, snr) for view, noise, snr in crops.noises}
            assert len(set(rooms)) == len(rooms) and len(noises) == len(crops.noises)
            for view in range(views[name]):
                kinds[name, view, view in rooms, view in noises] += 1
            for noise, snr in noises.values():
                snrs[LEVELS[float(noise[0])]].append(snr)
                assert noise.shape == crops.waves[0].shape
            together[name, 0 in rooms, 1 in rooms] += 1
    for name, count in views.items():
        for view in range(count):
            for (room, noise), share in zip(data_kinds(), shares):
                assert kinds[name, view, room, noise] == about(share, draws)
        room = shares[1] + shares[3]
        assert together[name, True, True] == about(room**2, draws)
    total = sum(len(values) for values in snrs.values())
    for name, values in snrs.items():
        low, high = ARGS[f'snr_{name}']
        assert low <= min(values) < low + 0.5 and high - 0.5 < max(values) <= high
        assert len(values) == about(1 / 3, total)


def data_kinds():
    """(room, noise) in the order of the spec: none, reverb only, noise only, both."""
    return (False, False), (True, False), (False, True), (True, True)


def test_rooms_of_rdino_have_a_gain_and_those_of_dino_unit_energy(dino):
    def gains(recipe):
        data = dino(dino=recipe)
        samples = [data[epoch, 0] for epoch in range(150)]
        rirs = [h for s in samples for _, h in s.rirs + s.more['locals'].rirs]
        for h in rirs:
            assert h / h[0] == pytest.approx(RIR / RIR[0], abs=1e-3)
        return 10 * np.log10([h[0] / RIR[0] for h in rirs])

    drawn = gains('rdino')
    assert -7.01 < drawn.min() < -6.8 and 2.8 < drawn.max() < 3.01
    assert gains('dino') == pytest.approx(-10 * np.log10(np.linalg.norm(RIR)), abs=1e-3)


def test_dino_batch_holds_a_batch_of_the_short_crops(dino):
    """Rows of noises and rooms are those of the batch that they stand in."""
    data = dino()
    samples = [data[1, i] for i in range(5)]
    batch = to_device(collate(samples), 'cpu')
    local = batch['locals']
    assert batch['waves'].shape == (5, 2, 400) and local['waves'].shape == (5, 4, 200)
    assert local['index'].tolist() == batch['index'].tolist() == list(range(5))
    rows = [4 * b + v for b, s in enumerate(samples) for v, *_ in s.more['locals'].noises]
    assert local['noise_row'].tolist() == rows and local['noise'].shape == (len(rows), 200)
    for part, crops in ((batch, samples), (local, [s.more['locals'] for s in samples])):
        clean, out = part['waves'].clone(), augment(part)
        for b, crop in enumerate(crops):
            touched = {v for v, *_ in crop.noises} | {v for v, _ in crop.rirs}
            changed = (out[b] != clean[b]).any(1).nonzero().flatten().tolist()
            assert set(changed) == touched


def test_dino_sample_depends_on_seed_epoch_and_utterance_alone(dino):
    data, again = dino(), dino()
    again[7, 0]
    first, second = (collate([d[3, i] for i in range(6)]) for d in (data, again))
    assert torch.equal(augment(first), augment(second))
    assert torch.equal(augment(first['locals']), augment(second['locals']))
    other = dino(seed=1)
    assert any(not np.array_equal(data[e, 1].waves, other[e, 1].waves) for e in range(3))


def test_bad_file_gives_way_to_the_next_utterance(dino, labelled, audio):
    audio[0].path(2).write_bytes(b'')
    for data in (dino(), labelled()):
        sample = data[1, 2]
        assert sample.index == 3 and '2.wav' in sample.skipped[0]


# --- the corpus


class Listed(list):
    name = 'Vox1-O'


@pytest.fixture
def corpus(paper, audio, tmp_path):
    data, utterances = paper('wavlm_ssl').data, audio[0]
    utterances.write(tmp_path / 'list.txt')
    args = {
        **ARGS,
        'path_log': str(tmp_path / 'log'),
        'path_train': str(utterances.root),
        'list_train': str(tmp_path / 'list.txt'),
        'path_musan': str(tmp_path / 'musan'),
        'path_rir': str(tmp_path / 'rirs'),
        'num_workers': 0,
        'cache_gib': 0.0,
        'eval': False,
        'batch_size': 2,
        'lmft_batch_size': 3,
        'dino_batch_size': 3,
        'max_seg_per_spk': 500,
        'eval_seconds': 60.0,
    }
    return data.Corpus(args, SimpleNamespace(trials=Listed(range(7))))


def first_epoch(loader):
    loader.batch_sampler.set_position(1)
    return list(loader)


def test_corpus_says_what_it_found(corpus):
    assert corpus.describe() == (
        'train: 6 utterances, 0.0 h; each epoch is scored on Vox1-O, 7 trials; '
        'MUSAN: 10 noise, 10 speech, 10 music; 1 RIRs, read from disk; 0 loader processes'
    )


def test_corpus_gives_batches_of_dino_with_every_utterance_once(corpus):
    batches = first_epoch(corpus.dino_loader(seed=1))
    assert [batch['waves'].shape for batch in batches] == [(3, 2, 400)] * 2
    assert [batch['locals']['waves'].shape for batch in batches] == [(3, 4, 200)] * 2
    assert sorted(i for batch in batches for i in batch['index'].tolist()) == list(range(6))


def test_corpus_gives_batches_of_different_labels_and_longer_crops_for_lmft(corpus):
    labels = np.array([0, 0, 1, 1, -1, 2])
    seen = set()
    for lmft, size, length in ((False, 2, 400), (True, 3, 560)):
        loader = corpus.labelled_loader(labels, seed=1, lmft=lmft)
        for batch in first_epoch(loader):
            assert batch['waves'].shape == (size, 2, length)
            assert len(set(batch['labels'].tolist())) == size
            assert torch.equal(batch['labels'], torch.from_numpy(labels)[batch['index']])
            seen.update(batch['index'].tolist())
    assert 4 not in seen and len(seen) > 3
    with pytest.raises(DataError, match='1 speakers or clusters do not fill it'):
        corpus.labelled_loader(np.zeros(6, np.int64), seed=1)


def test_corpus_takes_so_many_utterances_of_a_label_in_an_epoch(corpus):
    labels = np.array([0, 0, 0, 1, 1, 1])
    for most, batches in ((1, 1), (2, 2)):
        corpus.args['max_seg_per_spk'] = most
        loader = corpus.labelled_loader(labels, seed=1)
        drawn = set()
        for epoch in range(1, 30):
            loader.batch_sampler.set_position(epoch)
            assert len(loader) <= batches
            drawn.add(len(loader))
        assert max(drawn) == batches


def test_corpus_gives_every_file_whole_and_passes_over_bad_ones(corpus, audio):
    audio[0].path(1).write_bytes(b'')
    batches = list(corpus.whole_loader())
    rows = [i for batch in batches for i in batch['index'].tolist()]
    assert sorted(rows) == [0, 2, 3, 4, 5]
    lengths = {i: n for b in batches for i, n in zip(b['index'].tolist(), b['lengths'].tolist())}
    assert lengths[0] == 460
    assert sum(len(batch['skipped']) for batch in batches) == 1
