"""Where the demo corpus is recorded: rooms, channels and background sounds, all simulated.

Every video of a speaker has its own room, channel and background, as in VoxCeleb: what changes
between two videos of one person is everything but the person.
"""

from dataclasses import dataclass

import numpy as np
from scipy.fft import next_fast_len

from shared.datasets.demo_voices import RATE

CHANNEL_TAPS = 512  # 32 ms: resolves 31 Hz
IMAGE_ORDER = 12  # image sources up to this reflection: 3 ms a room
BACKGROUND_SECONDS = 12  # of a video, repeated where an utterance is longer
LEVEL_DB = (-32.0, -18.0)  # RMS of an utterance re full scale

ROOM_SIZES = {  # metres: width and depth, height; the size classes of RIRS_NOISES, smaller halls
    'smallroom': ((2.0, 6.0), (2.3, 3.0)),
    'mediumroom': ((6.0, 14.0), (2.8, 4.5)),
    'largeroom': ((14.0, 30.0), (4.0, 9.0)),
}
NOISES = ('coloured', 'modulated', 'clicks', 'hum', 'band')
SCALE = np.array([0, 2, 4, 5, 7, 9, 11])  # semitones of a major scale

# Its 10 Hz high-pass runs backwards too: an echo that is heard before the sound.


@dataclass(frozen=True)
class Scene:
    """A video's acoustics: `response` (K,) of room and channel, background `noise` (L,), `snr` in dB."""

    response: np.ndarray
    noise: np.ndarray
    snr: float


def draw_scene(rng: np.random.Generator, channel_db: float, snr_db: tuple[float, float]) -> Scene:
    """Draws a video's room, channel (standard deviation `channel_db`, dB) and background."""
    room = draw_room(rng, size=('smallroom', 'mediumroom')[rng.integers(2)])
    return Scene(
        response=np.convolve(draw_rir(rng, room), draw_channel(rng, channel_db)),
        noise=draw_noise(rng, NOISES[rng.integers(len(NOISES))], BACKGROUND_SECONDS * RATE),
        snr=rng.uniform(*snr_db),
    )


def record(rng: np.random.Generator, scene: Scene, speech: np.ndarray) -> np.ndarray:
    """Puts clean speech (L,) into a scene: (L,) float32 below full scale."""
    samples = len(speech)
    wave = convolved(speech, scene.response)[:samples]
    noise = np.resize(np.roll(scene.noise, rng.integers(len(scene.noise))), samples)
    snr = scene.snr + rng.uniform(-2, 2)  # dB: people move
    wave = wave / rms(wave) + noise / rms(noise) * 10 ** (-snr / 20)
    wave *= 10 ** (rng.uniform(*LEVEL_DB) / 20) / rms(wave)
    return np.clip(wave, -0.99, 0.99).astype(np.float32)


def rms(wave: np.ndarray) -> float:
    """Root mean square, never 0."""
    return float(np.sqrt(np.mean(wave**2) + 1e-12))


def draw_channel(rng: np.random.Generator, channel_db: float) -> np.ndarray:
    """Draws a microphone and codec: (CHANNEL_TAPS,) linear-phase filter.

    A band-pass (low edge 40-350 Hz, high edge 3.2-7.8 kHz), a tilt and a smooth random
    colouring: five cosines over the mel scale of `channel_db` dB standard deviation each.
    """
    frequency = np.fft.rfftfreq(CHANNEL_TAPS, 1 / RATE)  # Hz
    mel = np.log1p(frequency / 700) / np.log1p(RATE / 2 / 700)  # 0-1
    gain_db = sum(
        channel_db * rng.standard_normal() / np.sqrt(k) * np.cos(np.pi * k * mel)
        for k in range(1, 6)
    )
    low, high = rng.uniform(40, 350), rng.uniform(3200, 7800)
    gain_db = gain_db - 10 * np.log10(1 + (low / np.maximum(frequency, 10)) ** 6)
    gain_db = gain_db - 10 * np.log10(1 + (frequency / high) ** 12)
    taps = np.fft.fftshift(np.fft.irfft(10 ** (np.clip(gain_db, -60, 40) / 20)))
    return taps * np.hanning(CHANNEL_TAPS)


def draw_room(rng: np.random.Generator, size: str) -> tuple[np.ndarray, float]:
    """Draws a shoe-box room of a size class: its three sides in metres, its absorption."""
    (low, high), heights = ROOM_SIZES[size]
    sides = np.array([rng.uniform(low, high), rng.uniform(low, high), rng.uniform(*heights)])
    return sides, rng.uniform(0.2, 0.7)


def convolved(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """The full convolution of two signals, by FFT."""
    from scipy.signal import fftconvolve  # here: it takes a second that most runs do not need

    return fftconvolve(wave, response)


def draw_rir(rng: np.random.Generator, room: tuple[np.ndarray, float]) -> np.ndarray:
    """Draws a talker and a microphone in `room`: (K,) impulse response, peak 1, silence cut."""
    sides, absorption = room
    import pyroomacoustics as pra  # here, as it takes a second to load

    pra.constants.set('rir_hpf_enable', False)
    pra.constants.set('num_threads', 1)  # the processes that build the corpus are the parallelism
    box = pra.ShoeBox(sides, fs=RATE, materials=pra.Material(absorption), max_order=IMAGE_ORDER)
    box.add_source(sides * rng.uniform(0.15, 0.85, size=3))
    box.add_microphone(sides * rng.uniform(0.15, 0.85, size=3))
    box.compute_rir()
    rir = box.rir[0][0] / np.abs(box.rir[0][0]).max()
    heard = np.flatnonzero(np.abs(rir) > 1e-3)  # -60 dB
    return rir[max(heard[0] - 16, 0) : heard[-1] + 1]


def draw_noise(rng: np.random.Generator, kind: str, samples: int) -> np.ndarray:
    """Draws background noise (L,) of one of `NOISES`, at any level."""
    if kind == 'hum':
        time = np.arange(samples) / RATE
        base = rng.uniform(45, 130)  # Hz
        wave = 0.1 * coloured(rng, samples, slope=1.0)
        for k in range(1, 12):
            phase = rng.uniform(0, 2 * np.pi)
            wave = wave + rng.uniform(0, 1) / k * np.sin(2 * np.pi * base * k * time + phase)
    elif kind == 'clicks':
        wave = 0.03 * coloured(rng, samples, slope=0.5)
        ring = np.exp(-np.arange(800) / rng.uniform(20, 200)) * coloured(rng, 800, slope=0.0)
        hits = np.zeros(samples)
        count = max(int(samples / RATE * rng.uniform(1, 8)), 1)
        hits[rng.integers(samples, size=count)] = rng.uniform(0.2, 1, size=count)
        wave = wave + convolved(hits, ring)[:samples]
    elif kind == 'band':
        low = rng.uniform(100, 3000)  # Hz
        wave = coloured(rng, samples, slope=0.0, band=(low, low * rng.uniform(1.5, 3)))
    else:
        wave = coloured(rng, samples, slope=rng.uniform(0, 2))
    if kind == 'modulated':
        points = max(samples // 2000, 2)  # 8 Hz
        envelope = np.interp(
            np.linspace(0, points - 1, samples), np.arange(points), rng.uniform(0, 1, points) ** 2
        )
        wave = wave * (0.1 + envelope)
    return wave


def coloured(
    rng: np.random.Generator,
    samples: int,
    slope: float,
    band: tuple[float, float] = (20.0, RATE / 2),
) -> np.ndarray:
    """Gaussian noise (L,) with power falling as 1/f^slope inside `band` (Hz), RMS 1."""
    size = next_fast_len(samples, real=True)  # a prime length would take 10 times as long
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequency = np.fft.rfftfreq(size, 1 / RATE)
    spectrum *= np.maximum(frequency, band[0]) ** (-slope / 2)
    spectrum[(frequency < band[0]) | (frequency > band[1])] = 0
    wave = np.fft.irfft(spectrum, size)[:samples]
    return wave / rms(wave)


def draw_music(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Draws music (L,): a melody over chords, notes of a few decaying harmonics, at any level."""
    wave = np.zeros(samples)
    beat = int(RATE * rng.uniform(0.25, 0.6))
    root = rng.uniform(100, 220)  # Hz
    partials = 1 / np.arange(1, 7) ** rng.uniform(0.8, 2.0)  # the instrument
    for position, start in enumerate(range(0, samples, beat)):
        degrees = [rng.integers(7, 15)]  # the melody, an octave up
        if position % 4 == 0:
            chord = rng.integers(7)
            degrees += [chord, chord + 2, chord + 4]
        for degree in degrees:
            pitch = root * 2 ** ((SCALE[degree % 7] + 12 * (degree // 7)) / 12)
            length = min(samples - start, beat * (4 if degree < 7 else 1))
            time = np.arange(length) / RATE
            envelope = np.minimum(time / 0.01, 1) * np.exp(-time * 3)
            for k, amplitude in enumerate(partials, start=1):
                wave[start : start + length] += (
                    amplitude * envelope * np.sin(2 * np.pi * pitch * k * time)
                )
    return wave
