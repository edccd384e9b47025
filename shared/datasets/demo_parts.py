"""Writes the audio of the demo corpus, one independent part at a time, in as many processes as asked.

A part is a speaker, a MUSAN file or a room. Its random numbers come from (seed, kind, number) alone,
so its files are the same in any order and any process.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from shared.datasets import demo_scenes as scenes
from shared.datasets.demo_settings import Settings
from shared.datasets.demo_voices import RATE, Synthesiser, draw_voice
from shared.files import replacing

KINDS = ('train', 'valid', 'test', 'noise', 'speech', 'music', 'rirs')  # the order seeds them
MUSAN = {  # category: (subset, seconds from, to), named after MUSAN's own
    'noise': ('free-sound', 5.0, 40.0),
    'speech': ('librivox', 30.0, 60.0),
    'music': ('fma', 20.0, 60.0),
}
RIRS_PER_ROOM = 3
LONG_SHARE, LONG_FACTOR = 0.1, 2.0  # one utterance in ten is up to twice as long
VIDEO_CHARACTERS = list('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789')

_worker: tuple[Path, Settings, Synthesiser]  # of a process of the pool


@dataclass(frozen=True)
class Utterance:
    """A written file of speech; `path` is relative to the folder of its set."""

    kind: str
    speaker: str
    video: str
    path: str
    seconds: float
    gender: str


def plan(settings: Settings) -> list[tuple[str, int]]:
    """Every part as (kind, number)."""
    counts = {
        'train': settings.train_speakers,
        'valid': settings.valid_speakers,
        'test': settings.test_speakers,
        'rirs': settings.rooms,
        **dict(zip(MUSAN, settings.musan_files)),
    }
    return [(kind, number) for kind in KINDS for number in range(counts[kind])]


def write_parts(root: Path, settings: Settings, processes: int) -> Iterator[list[Utterance]]:
    """Writes every part of `plan`, in its order, and yields the utterances of each."""
    parts = plan(settings)
    if processes < 2:
        with Synthesiser() as synthesiser:
            for kind, number in parts:
                yield write_part(root, settings, kind, number, synthesiser)
        return
    # spawn: espeak-ng is global state, and the caller may hold CUDA or threads.
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context('spawn'), _start_worker, (root, settings)
    )
    try:
        yield from pool.map(_work, parts)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(root: Path, settings: Settings) -> None:
    global _worker
    _worker = root, settings, Synthesiser()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the one that started it is killed: the pool alone would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _worker[2].close()
        os._exit(1)


def _work(part: tuple[str, int]) -> list[Utterance]:
    root, settings, synthesiser = _worker
    return write_part(root, settings, *part, synthesiser)


def write_part(
    root: Path, settings: Settings, kind: str, number: int, synthesiser: Synthesiser
) -> list[Utterance]:
    """Writes the files of one part; returns its utterances, none for noises and rooms."""
    rng = np.random.default_rng([settings.seed, KINDS.index(kind), number])
    if kind == 'rirs':
        write_room(root, rng, number)
    elif kind in MUSAN:
        write_musan(root, rng, kind, number, synthesiser)
    else:
        return write_speaker(root, rng, settings, kind, number, synthesiser)
    return []


def write_speaker(
    root: Path,
    rng: np.random.Generator,
    settings: Settings,
    kind: str,
    number: int,
    synthesiser: Synthesiser,
) -> list[Utterance]:
    """Writes all videos of one speaker; genders alternate, so that every set has both."""
    difficulty = settings.difficulty
    gender = 'fm'[number % 2]
    voice = draw_voice(rng, gender, difficulty.voice_spread)
    first = {'train': 0, 'valid': 10000, 'test': 10000 + settings.valid_speakers}[kind]
    speaker = f'id{first + number:05d}'
    folder = root / ('VoxCeleb2' if kind == 'train' else 'VoxCeleb1/wav')
    utterances = []
    for _ in range(settings.videos):
        video = ''.join(rng.choice(VIDEO_CHARACTERS, size=11))
        scene = scenes.draw_scene(rng, difficulty.channel_db, difficulty.snr_db)
        pitch = int(np.clip(50 + difficulty.mood * rng.standard_normal(), 20, 80))
        tempo = float(np.clip(1 + difficulty.mood / 100 * rng.standard_normal(), 0.7, 1.4))
        for utterance in range(1, settings.utterances_per_video + 1):
            seconds = rng.uniform(*settings.seconds)
            if rng.random() < LONG_SHARE:
                seconds *= rng.uniform(1, LONG_FACTOR)
            speech = synthesiser.speak(voice, rng, int(seconds * RATE), pitch, tempo)
            path = f'{speaker}/{video}/{utterance:05d}.wav'
            write_wave(folder / path, scenes.record(rng, scene, speech))
            utterances.append(Utterance(kind, speaker, video, path, len(speech) / RATE, gender))
    return utterances


def write_musan(
    root: Path, rng: np.random.Generator, category: str, number: int, synthesiser: Synthesiser
) -> None:
    """Writes one file of noise, of music or of speech by a talker who is in no other set."""
    subset, shortest, longest = MUSAN[category]
    samples = int(rng.uniform(shortest, longest) * RATE)
    if category == 'noise':
        wave = scenes.draw_noise(rng, scenes.NOISES[number % len(scenes.NOISES)], samples)
    elif category == 'music':
        wave = scenes.draw_music(rng, samples)
    else:
        wave = synthesiser.speak(draw_voice(rng, 'fm'[number % 2], spread=1.0), rng, samples)
    name = f'{category}-{subset}-{number:04d}.wav'
    write_wave(root / 'musan' / category / subset / name, 0.5 * wave / np.abs(wave).max())


def write_room(root: Path, rng: np.random.Generator, number: int) -> None:
    """Writes the impulse responses of one room in the layout of simulated_rirs."""
    sizes = list(scenes.ROOM_SIZES)
    size, name = sizes[number % len(sizes)], f'Room{number // len(sizes) + 1:03d}'
    room = scenes.draw_room(rng, size)
    folder = root / 'RIRS_NOISES' / 'simulated_rirs' / size / name
    for position in range(1, RIRS_PER_ROOM + 1):
        write_wave(folder / f'{name}-{position:05d}.wav', 0.9 * scenes.draw_rir(rng, room))


def write_wave(path: Path, wave: np.ndarray) -> None:
    """Writes (L,) floats below full scale as 16 kHz PCM-16, under a temporary name first."""
    with replacing(path) as temporary:
        soundfile.write(temporary, wave, RATE, format='WAV', subtype='PCM_16')
