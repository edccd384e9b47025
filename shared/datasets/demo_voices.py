"""Synthetic speakers and what they say: voices drawn at random, spoken by espeak-ng.

A voice is an espeak-ng voice variant (formants, pitch, voice quality) written on the fly, so there
are as many speakers as wanted and none of them is a person.
"""

import _ctypes
import ctypes
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import espeakng_loader
import numpy as np

RATE = 16000  # Hz, of every file of the corpus
ESPEAK_RATE = 22050  # Hz, espeak-ng's own
RESAMPLE = (320, 441)  # 22,050 Hz -> 16,000 Hz
WORDS_PER_BLOCK = 18  # text handed to espeak-ng at once: about 6 s

# speak_lib.h of espeak-ng 1.52
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
CHARS_UTF8 = 1
PARAMETER_RATE, PARAMETER_PITCH = 1, 3  # words per minute; 0-99 with 50 as the voice was written

ACCENTS = (
    'en',
    'en-US',
    'en-029',
    'en-GB-scotland',
    'en-GB-x-gbclan',
    'en-GB-x-gbcwmd',
    'en-GB-x-rp',
)
NOUNS = (
    'river mountain teacher window garden market doctor engine castle forest kitchen letter bottle '
    'summer winter island bridge captain village station painter hammer blanket ocean thunder '
    'pencil farmer monkey tiger rabbit pigeon basket candle mirror pocket ticket carpet cottage '
    'factory hospital library museum orchestra passenger soldier sailor shepherd tailor uncle '
    'valley wagon yard zebra apple banana cabbage dinner evening finger goat harbour iceberg '
    'jacket kettle ladder magnet needle oyster parcel queen ribbon saddle tunnel umbrella violin '
    'whistle student neighbour customer lawyer judge actor singer writer dancer driver pilot '
    'cousin daughter brother mother father child crowd choir team army newspaper telephone camera '
    'computer bicycle motorway airport theatre cinema stadium school church office chocolate'
).split()
ADJECTIVES = (
    'quick lazy bright purple golden silent noisy gentle angry clever foolish hungry thirsty '
    'ancient modern broken shiny dusty rusty frozen burning narrow wide heavy light bitter sweet '
    'sour salty smooth rough cheap precious famous lonely cheerful gloomy honest crooked '
    'enormous tiny yellow green orange silver wooden plastic sharp blunt early late strange'
).split()
VERBS = (
    'carries follows watches paints repairs borrows forgets remembers chases discovers describes '
    'admires builds catches delivers examines finishes gathers hides invites joins kicks launches '
    'measures notices offers pushes questions reaches sells throws understands visits welcomes '
    'answers believes chooses draws enjoys feeds guards holds judges keeps leaves mentions'
).split()
PLACES = (
    'behind beneath beside near under above across around against towards without before after '
    'inside outside between among beyond opposite along'
).split()
OPENINGS = (
    'yesterday tomorrow sometimes usually suddenly perhaps however meanwhile today often nobody '
    'again indeed therefore finally'
).split()
ARTICLES = 'the a this that every another my your our their his her some one'.split()


@dataclass(frozen=True)
class Voice:
    """One synthetic speaker.

    `gender` is 'f' or 'm' (the base class of the voice), `variant` the text of an espeak-ng voice
    variant, `accent` an espeak-ng English voice, `words_per_minute` the speaking rate.
    """

    gender: str
    variant: str
    accent: str
    words_per_minute: int


def draw_voice(rng: np.random.Generator, gender: str, spread: float) -> Voice:
    """Draws a speaker from continuous distributions around a female or a male centre.

    `spread` scales every standard deviation: 0 gives two voices (one a gender) with one accent,
    1 about the variety of espeak-ng's own variants.
    """
    pitch = (165.0 if gender == 'f' else 105.0) * 2 ** (0.22 * spread * rng.standard_normal())  # Hz
    tract = (107.0 if gender == 'f' else 98.0) + 4.0 * spread * rng.standard_normal()  # percent
    excursion = pitch * (1.45 + 0.12 * spread * rng.standard_normal())  # Hz, top of the pitch range
    lines = [
        'language variant',
        'name demo',
        f'gender {"female" if gender == "f" else "male"}',
        f'pitch {pitch:.0f} {excursion:.0f}',
    ]
    for formant in range(6):  # percent of the default: frequency, height, width
        frequency = tract + 3.0 * spread * rng.standard_normal()
        height = 100 + 14 * spread * rng.standard_normal()
        width = 110 + 16 * spread * rng.standard_normal()
        lines.append(
            f'formant {formant} {frequency:.0f} {max(height, 40):.0f} {max(width, 60):.0f}'
        )
    tilt = spread * rng.standard_normal()  # espeak-ng's tone: amplitude (0-255) at Hz
    lines += [
        f'tone 600 {170 + 15 * tilt:.0f} 1200 {135:.0f} 2000 {110 - 12 * tilt:.0f}',
        f'roughness {int(np.clip(2 + 1.5 * spread * rng.standard_normal(), 0, 6))}',
        f'flutter {max(2 + 2 * spread * rng.standard_normal(), 0):.0f}',
        f'consonants {max(100 + 12 * spread * rng.standard_normal(), 50):.0f}',
    ]
    if rng.random() < 0.4:  # a breathy voice: amplitudes of noise at the formants
        breath = spread * rng.uniform(1, 5)
        lines += [
            f'breath 0 {breath:.0f} {breath:.0f} {breath:.0f} 2 2 2 2',
            'breathw 150 150 200 200 400 400 400 400',
        ]
    return Voice(
        gender=gender,
        variant='\n'.join(lines) + '\n',
        accent=ACCENTS[rng.integers(len(ACCENTS))] if rng.random() < spread else ACCENTS[0],
        words_per_minute=int(np.clip(175 + 14 * spread * rng.standard_normal(), 110, 260)),
    )


def draw_text(rng: np.random.Generator, words: int = WORDS_PER_BLOCK) -> str:
    """Draws English-like sentences of at least `words` words: grammatical, without meaning."""

    def one(of: list[str]) -> str:
        return of[rng.integers(len(of))]

    text: list[str] = []
    while len(text) < words:
        sentence = [one(OPENINGS)] if rng.random() < 0.4 else []
        sentence += [one(ARTICLES), one(ADJECTIVES), one(NOUNS), one(VERBS), one(ARTICLES)]
        sentence += [one(ADJECTIVES)] if rng.random() < 0.5 else []
        sentence += [one(NOUNS), one(PLACES), one(ARTICLES), one(NOUNS)]
        sentence[-1] += '.' if rng.random() < 0.8 else ','
        text += sentence
    return ' '.join(text)


class Synthesiser:
    """espeak-ng in this process; a context manager, or ended with the process.

    The library is global state (one voice, random numbers, oscillator phases that survive from one
    sentence to the next), so it is loaded afresh for every utterance (1 ms): an utterance depends
    on its own arguments alone, whatever was said before it. One synthesiser a process.
    """

    def __init__(self):
        source = Path(espeakng_loader.get_data_path())
        self._folder = tempfile.TemporaryDirectory(prefix='demo_voices_')
        data = Path(self._folder.name) / 'espeak-ng-data'
        (data / 'voices' / '!v').mkdir(parents=True)
        for name in ('phontab', 'phonindex', 'phondata', 'intonations', 'en_dict'):
            shutil.copy(source / name, data / name)
        shutil.copytree(source / 'lang' / 'gmw', data / 'lang' / 'gmw')
        self._data = data
        self._library: ctypes.CDLL | None = None
        # A reference to the callback must outlive every call of the library.
        self._callback = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )(self._receive)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._unload()
        self.close()

    def close(self) -> None:
        """Removes the temporary folder the voices are written to."""
        self._folder.cleanup()

    def speak(
        self, voice: Voice, rng: np.random.Generator, samples: int, pitch=50, tempo=1.0
    ) -> np.ndarray:
        """Speaks random text for exactly `samples` samples at 16 kHz.

        Like an utterance of VoxCeleb, it may end in the middle of a word.

        Args:
            voice: who speaks.
            rng: draws the text and espeak-ng's own random numbers.
            samples: L.
            pitch: 0-99, 50 being the voice's own: the mood of the day.
            tempo: factor on the voice's speaking rate.

        Returns:
            (L,) float32 in [-1, 1].
        """
        library = self._load(seed=int(rng.integers(1, 2**31 - 1)))
        (self._data / 'voices' / '!v' / 'demo').write_text(voice.variant)
        if library.espeak_SetVoiceByName(f'{voice.accent}+demo'.encode()) != 0:
            raise RuntimeError(f'espeak-ng refuses the voice {voice.accent} with {voice.variant!r}')
        library.espeak_SetParameter(PARAMETER_RATE, int(voice.words_per_minute * tempo), 0)
        library.espeak_SetParameter(PARAMETER_PITCH, pitch, 0)
        self._wanted = -(-samples * RESAMPLE[1] // RESAMPLE[0])
        self._blocks: list[np.ndarray] = []
        self._spoken = 0
        while self._spoken < self._wanted:
            text = draw_text(rng).encode()
            before = self._spoken
            library.espeak_Synth(text, len(text) + 1, 0, 1, 0, CHARS_UTF8, None, None)
            if self._spoken == before:
                raise RuntimeError(f'espeak-ng says nothing for {text!r}')
        wave = np.concatenate(self._blocks)[: self._wanted].astype(np.float32) / 2**15
        from scipy.signal import resample_poly  # here, as it takes a second to load

        return resample_poly(wave, *RESAMPLE)[:samples].astype(np.float32)

    def _receive(self, wave, count: int, events) -> int:
        """espeak-ng's callback: keeps a block of sound; returns 1 once there is enough."""
        if count > 0:
            self._blocks.append(np.ctypeslib.as_array(wave, shape=(count,)).copy())
            self._spoken += count
        return int(self._spoken >= self._wanted)

    def _load(self, seed: int) -> ctypes.CDLL:
        self._unload()
        self._library = library = ctypes.CDLL(espeakng_loader.get_library_path())
        path = str(self._data.parent).encode()
        rate = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 200, path, INITIALIZE_DONT_EXIT)
        if rate != ESPEAK_RATE:
            raise RuntimeError(f'espeak-ng did not start (returned {rate}): {self._data}')
        library.espeak_SetSynthCallback(self._callback)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))  # else the clock: flutter and breath
        return library

    def _unload(self) -> None:
        if self._library is not None:
            self._library.espeak_Terminate()
            _ctypes.dlclose(self._library._handle)
            self._library = None
