"""The demo corpus on its smallest settings: layouts, lists, determinism, what it refuses."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shared.datasets import demo, demo_parts, demo_scenes, demo_voices
from shared.datasets.demo_settings import Difficulty, Settings
from shared.errors import UserError

TINY = {
    'train_speakers': 3,
    'valid_speakers': 2,
    'test_speakers': 3,
    'videos': 2,
    'utterances_per_video': 2,
    'seconds': (0.5, 0.8),
    'trials': 20,
    'musan_files': (2, 1, 1),
    'rooms': 3,
}


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def trials_of(path: Path) -> list[tuple[bool, str, str]]:
    rows = [line.split() for line in path.read_text().splitlines()]
    return [(label == '1', enrol, test) for label, enrol, test in rows]


def speaker(path: str) -> str:
    return path.split('/')[0]


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return demo.make(tmp_path_factory.mktemp('demo'), **TINY, processes=1)


@pytest.fixture(scope='module')
def synthesiser():
    with demo_voices.Synthesiser() as synthesiser:
        yield synthesiser


def test_make_gives_the_same_bytes_in_one_and_in_two_processes(corpus, tmp_path):
    other = demo.make(tmp_path, **TINY, processes=2)
    assert digests(other.root) == digests(corpus.root)


def test_make_gives_other_audio_for_another_seed(corpus, tmp_path):
    other = demo.make(tmp_path, **TINY, seed=1, processes=1)
    waves = {value for key, value in digests(other.root).items() if key.endswith('.wav')}
    assert not waves & set(digests(corpus.root).values())


def test_make_writes_the_layouts_of_the_real_corpora(corpus):
    names = [name for name in digests(corpus.root) if name.endswith('.wav')]
    count = {
        top: sum(name.startswith(top + '/') for name in names)
        for top in ('VoxCeleb2', 'VoxCeleb1/wav', 'musan', 'RIRS_NOISES/simulated_rirs')
    }
    assert count == {
        'VoxCeleb2': 3 * 4,
        'VoxCeleb1/wav': 5 * 4,
        'musan': 4,
        'RIRS_NOISES/simulated_rirs': 9,
    }
    assert sum(count.values()) == len(names)
    assert {path.parent.parent.parent for path in corpus.vox1.rglob('*.wav')} == {corpus.vox1}
    assert {path.parent.parent.name for path in corpus.musan.rglob('*.wav')} == set(
        demo_parts.MUSAN
    )
    assert {path.relative_to(corpus.rirs).as_posix() for path in corpus.rirs.rglob('*1.wav')} == {
        f'{size}/Room001/Room001-00001.wav' for size in demo_scenes.ROOM_SIZES
    }


def test_make_writes_pcm16_mono_at_16_khz_that_is_neither_silent_nor_clipped(corpus):
    for path in corpus.root.rglob('*.wav'):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, 'PCM_16')
        wave, _ = soundfile.read(path)
        assert np.isfinite(wave).all() and 0.01 < np.abs(wave).max() < 1, path


def test_train_list_names_every_training_file_with_its_speaker_and_length(corpus):
    rows = [line.split() for line in corpus.train_list.read_text().splitlines()]
    on_disk = {path.relative_to(corpus.train).as_posix() for path in corpus.train.rglob('*.wav')}
    assert {path for _, path, _ in rows} == on_disk and len(rows) == len(on_disk)
    for name, path, seconds in rows:
        assert name == speaker(path)
        assert float(seconds) == pytest.approx(
            soundfile.info(corpus.train / path).duration, abs=1e-3
        )
        assert 0.5 <= float(seconds) <= 2 * 0.8


def test_speakers_of_the_sets_are_disjoint(corpus):
    train = {path.name for path in corpus.train.iterdir()}
    valid, test = (
        {speaker(path) for _, *pair in trials_of(corpus.trials[name]) for path in pair}
        for name in ('valid', 'O')
    )
    assert (len(train), len(valid), len(test)) == tuple(corpus.speakers.values())
    assert not (train & valid or train & test or valid & test)


def test_trials_pair_different_videos_and_exist_once(corpus):
    for path in corpus.trials.values():
        trials = trials_of(path)
        assert any(target for target, *_ in trials) and not all(target for target, *_ in trials)
        assert len({frozenset(pair) for _, *pair in trials}) == len(trials)
        for target, enrol, test in trials:
            assert target == (speaker(enrol) == speaker(test))
            assert enrol.split('/')[1] != test.split('/')[1]
            assert (corpus.vox1 / enrol).is_file() and (corpus.vox1 / test).is_file()


def test_hard_nontargets_share_their_gender_and_extended_ones_need_not(corpus):
    def genders_differ(name):
        # genders alternate from the first speaker of each set on
        def gender(path):
            number = int(speaker(path)[2:]) - 10000
            return (number if number < TINY['valid_speakers'] else number - 2) % 2

        return [
            gender(enrol) != gender(test)
            for target, enrol, test in trials_of(corpus.trials[name])
            if not target
        ]

    assert not any(genders_differ('H')) and any(genders_differ('E'))


def test_make_returns_at_once_when_the_corpus_is_complete(corpus, monkeypatch):
    monkeypatch.setattr(demo, 'build', lambda *_: pytest.fail('built again'))
    assert demo.make(corpus.root, **TINY) == corpus


def test_make_finishes_an_interrupted_build(corpus, tmp_path, monkeypatch):
    def dies_at_the_second(root, settings, processes):
        parts = demo_parts.write_parts(root, settings, processes)
        yield next(parts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(demo, 'write_parts', dies_at_the_second)
        demo.make(tmp_path, **TINY, processes=1)
    assert not (tmp_path / 'corpus.json').exists()
    demo.make(tmp_path, **TINY, processes=1)
    assert digests(tmp_path) == digests(corpus.root)


def test_make_refuses_a_root_of_other_settings_and_names_them(corpus):
    before = digests(corpus.root)
    with pytest.raises(UserError, match='train_speakers: 3 there, 4 wanted.*name another root'):
        demo.make(corpus.root, **{**TINY, 'train_speakers': 4})
    assert digests(corpus.root) == before


def test_make_refuses_to_write_into_a_real_voxceleb(tmp_path):
    (tmp_path / 'VoxCeleb2').mkdir()
    with pytest.raises(UserError, match='VoxCeleb2 is not of a demo corpus'):
        demo.make(tmp_path, **TINY)
    assert [path.name for path in tmp_path.rglob('*')] == ['VoxCeleb2']


@pytest.mark.parametrize(
    'wrong',
    [
        {'videos': 1},
        {'test_speakers': 1},
        {'train_speakers': 10001},
        {'utterances_per_video': 0},
        {'seconds': (3.0, 2.0)},
        {'rooms': 0},
    ],
)
def test_make_refuses_impossible_settings_before_writing(wrong, tmp_path):
    with pytest.raises(UserError, match='demo corpus'):
        demo.make(tmp_path / 'new', **{**TINY, **wrong})
    assert not (tmp_path / 'new').exists()


def test_settings_name_changes_with_every_setting():
    names = {
        Settings(**change).name()
        for change in ({}, {'seed': 1}, {'videos': 5}, {'difficulty': Difficulty(mood=0.0)})
    }
    assert len(names) == 4


def test_corpus_json_holds_the_settings(corpus):
    stored = json.loads((corpus.root / 'corpus.json').read_text())
    assert stored['train_speakers'] == 3 and stored['difficulty']['voice_spread'] > 0


def test_speak_does_not_depend_on_what_was_said_before(synthesiser):
    drawn = (demo_voices.draw_voice(np.random.default_rng(k), 'f', spread=1.0) for k in range(99))
    breathy = next(voice for voice in drawn if 'breath ' in voice.variant)  # made of noise
    other = demo_voices.draw_voice(np.random.default_rng(0), 'm', spread=1.0)

    def say():
        return synthesiser.speak(breathy, np.random.default_rng(5), samples=8000)

    first = say()
    synthesiser.speak(other, np.random.default_rng(6), samples=5000)
    assert len(first) == 8000 and np.array_equal(say(), first)


def test_speak_says_something_else_with_other_random_numbers(synthesiser):
    voice = demo_voices.draw_voice(np.random.default_rng(0), 'f', spread=1.0)
    waves = [synthesiser.speak(voice, np.random.default_rng(k), samples=16000) for k in (1, 2)]
    assert abs(np.corrcoef(waves)[0, 1]) < 0.5


def test_draw_voice_without_spread_differs_by_gender_alone():
    def draw(seed, gender):
        return demo_voices.draw_voice(np.random.default_rng(seed), gender, spread=0.0)

    assert draw(0, 'f').accent == draw(1, 'f').accent
    assert draw(0, 'f').variant.splitlines()[:10] == draw(1, 'f').variant.splitlines()[:10]
    assert draw(0, 'f') != draw(0, 'm')


def test_record_adds_the_noise_at_the_ratio_of_the_scene():
    speech = np.sin(2 * np.pi * 300 * np.arange(32000) / 16000)
    delta = np.zeros(8)
    delta[0] = 1
    noise = demo_scenes.coloured(np.random.default_rng(1), 20000, slope=0.0)
    scene = demo_scenes.Scene(response=delta, noise=noise, snr=10.0)
    wave = demo_scenes.record(np.random.default_rng(0), scene, speech)
    power = np.mean(wave**2)
    tone = 2 * np.mean(wave * speech) ** 2  # power of the sine in the mixture
    assert 10 * np.log10(tone / (power - tone)) == pytest.approx(10, abs=2.2)


@pytest.mark.parametrize('kind', demo_scenes.NOISES)
def test_draw_noise_fills_any_length(kind):
    for samples in (8009, 16000):  # 8009 is prime
        wave = demo_scenes.draw_noise(np.random.default_rng(0), kind, samples)
        assert wave.shape == (samples,) and np.isfinite(wave).all() and wave.std() > 0


def test_draw_rir_starts_with_its_direct_sound_and_decays():
    rng = np.random.default_rng(0)
    for size in demo_scenes.ROOM_SIZES:
        rir = demo_scenes.draw_rir(rng, demo_scenes.draw_room(rng, size))
        assert np.abs(rir).max() == 1 and np.abs(rir[:200]).max() > 0.05
        assert np.sum(rir[len(rir) // 2 :] ** 2) < 0.5 * np.sum(rir**2)
