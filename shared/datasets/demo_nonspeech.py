"""Environmental sounds for the demo, in the layout of Nonspeech100: a flat folder of 20 kHz wavs.

Of other kinds than the noises of the demo corpus, so that they test what was never trained on.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shared.datasets.derived import make_files
from shared.datasets.musan import write_pcm16

RATE = 20000  # Hz, as Nonspeech100 is distributed
SECONDS = (3.0, 8.0)
PEAK = 0.5
VERSION = 1  # raise it when the same seed gives other files


def make_nonspeech(folder: str | Path, *, seed: int = 0, count: int = 20, workers: int = 0) -> Path:
    """Writes `n1.wav` to `n<count>.wav`, mono PCM-16, once; called by every rank (`make_files`).

    Raises:
        UserError: the folder holds other data, or sounds of another seed or count.
    """
    make_files(
        [f'n{number}' for number in range(1, count + 1)],
        Sounds(seed),
        folder=folder,
        settings={'made': 'demo nonspeech', 'version': VERSION, 'seed': seed, 'count': count},
        workers=workers,
        title='demo environmental sounds',
        max_skipped=0.0,
    )
    return Path(folder)


class Sounds:
    """Maker of the sounds; the kinds take turns."""

    def __init__(self, seed: int):
        self.seed = seed

    def targets(self, source: str) -> Sequence[str]:
        """One file a sound."""
        return [f'{source}.wav']

    def make(self, source: str, missing: Sequence[str], folder: Path) -> None:
        """Draws the sound from (seed, number) alone."""
        number = int(source[1:])
        rng = np.random.default_rng([self.seed, number])
        kind = KINDS[(number - 1) % len(KINDS)]
        wave = kind(rng, int(rng.uniform(*SECONDS) * RATE))
        write_pcm16(folder / missing[0], PEAK * wave / np.abs(wave).max(), RATE)


def bells(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Struck metal (L,): inharmonic partials that ring on, a stroke every half second or so."""
    partials = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.74, 3.0, 3.76, 4.07])  # of a church bell
    base, decay = rng.uniform(250, 900), rng.uniform(1.5, 5)  # Hz, 1/s
    wave = np.zeros(samples)
    for start in events(rng, samples, rate=2.0):
        time = np.arange(samples - start) / RATE
        levels = rng.uniform(0.2, 1, len(partials))
        for partial, level in zip(partials, levels):
            ring = np.exp(-decay * np.sqrt(partial) * time)
            wave[start:] += level * ring * np.sin(2 * np.pi * base * partial * time)
    return wave


def siren(rng: np.random.Generator, samples: int) -> np.ndarray:
    """A horn (L,) whose pitch swings up and down, or jumps between two notes."""
    time = np.arange(samples) / RATE
    swing = np.sin(2 * np.pi * rng.uniform(0.3, 3) * time + rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.5:
        swing = np.sign(swing)
    pitch = rng.uniform(500, 900) * 2 ** (rng.uniform(0.2, 0.6) * swing)  # Hz
    return np.tanh(3 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE))


def birds(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Songs (L,): short whistles, each with a glide and a trill of its own."""
    wave = np.zeros(samples)
    for start in events(rng, samples, rate=5.0):
        length = min(int(rng.uniform(0.06, 0.3) * RATE), samples - start)
        time = np.arange(length) / RATE
        trill = rng.uniform(0, 400) * np.sin(2 * np.pi * rng.uniform(15, 40) * time)
        pitch = rng.uniform(2200, 5500) + rng.uniform(-6000, 6000) * time + trill  # Hz
        note = np.sin(2 * np.pi * np.cumsum(pitch) / RATE)
        wave[start : start + length] += rng.uniform(0.3, 1) * np.hanning(length) * note
    return wave


def crickets(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Chirping insects (L,): high tones in bursts of pulses, several animals at once."""
    time = np.arange(samples) / RATE
    wave = np.zeros(samples)
    for _ in range(rng.integers(2, 5)):
        tone = np.sin(2 * np.pi * rng.uniform(3000, 5500) * time)
        pulses = np.maximum(np.sin(2 * np.pi * rng.uniform(25, 45) * time), 0)
        phase = rng.uniform(0, 2 * np.pi)
        bursts = np.sin(2 * np.pi * rng.uniform(1, 3) * time + phase) > rng.uniform(-0.3, 0.5)
        wave += rng.uniform(0.3, 1) * tone * pulses * bursts
    return wave


def bubbles(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Dripping and pouring water (L,): every bubble a short tone that rises as it fades."""
    wave = np.zeros(samples)
    for start in events(rng, samples, rate=rng.uniform(10, 60)):
        length = min(int(0.08 * RATE), samples - start)
        time = np.arange(length) / RATE
        pitch = rng.uniform(400, 3000) * (1 + rng.uniform(2, 8) * time)  # Hz
        drop = np.exp(-time * rng.uniform(40, 120)) * np.sin(2 * np.pi * np.cumsum(pitch) / RATE)
        wave[start : start + length] += rng.uniform(0.1, 1) * drop
    return wave


def engine(rng: np.random.Generator, samples: int) -> np.ndarray:
    """A motor (L,) that speeds up and slows down: a pulse train through two resonances."""
    from scipy.signal import lfilter  # here, as it takes a second to load

    time = np.arange(samples) / RATE
    swing = np.sin(2 * np.pi * rng.uniform(0.1, 0.5) * time + rng.uniform(0, 2 * np.pi))
    turns = np.cumsum(rng.uniform(25, 70) * 2 ** (0.5 * swing)) / RATE
    wave = np.diff(np.floor(turns), prepend=0.0) * rng.uniform(0.6, 1, samples)
    wave += 0.01 * rng.standard_normal(samples)
    for centre in rng.uniform((150, 900), (600, 3500)):  # Hz
        radius, angle = 0.97, 2 * np.pi * centre / RATE
        wave = lfilter([1.0], [1, -2 * radius * np.cos(angle), radius**2], wave)
    return wave


def beeps(rng: np.random.Generator, samples: int) -> np.ndarray:
    """An alarm or a ringing telephone (L,): two square-like tones in a fixed rhythm."""
    time = np.arange(samples) / RATE
    rate, warble = rng.uniform(0.5, 3), rng.uniform(8, 20)  # Hz
    low = rng.uniform(700, 2000)
    pitch = np.where(np.sin(2 * np.pi * warble * time) > 0, low, low * rng.uniform(1.1, 1.5))
    tone = np.tanh(2 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE))
    return tone * ((time * rate) % 1 < rng.uniform(0.3, 0.7))


KINDS = (bells, siren, birds, crickets, bubbles, engine, beeps)


def events(rng: np.random.Generator, samples: int, rate: float) -> list[int]:
    """First samples of events, at 0 and then at random with `rate` a second on average."""
    count = 1 + int(rate * samples / RATE)
    return [0, *map(int, np.sort(rng.integers(samples, size=count - 1)))]
