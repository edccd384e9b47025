"""What the files of the demo corpus depend on: change a value here and the corpus is another one."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass

from shared.errors import UserError

VERSION = 1  # raise it when the same settings give other files
MAX_SPEAKERS = 10000  # a set: VoxCeleb2's names are id0xxxx, VoxCeleb1's id1xxxx


@dataclass(frozen=True)
class Difficulty:
    """What keeps error rates away from 0 and from 50 %.

    `voice_spread` scales how far apart speakers are drawn: 1 is about as far as the variants that
    espeak-ng ships, 0 leaves two voices, one a gender. `channel_db` is the colouring of a video's
    channel (dB, standard deviation of its cosines over mel); it hides the speaker from long-term
    spectra and rewards what ignores the channel. `snr_db` is the range of a video's
    signal-to-noise ratio. `mood` is how much a speaker's pitch (in 50ths of an octave) and tempo
    (percent) change from video to video, which keeps pitch alone from telling people apart.

    Measured on O at the default sizes, EER in percent: cosine of mean and deviation of log-mels /
    the same after an LDA trained on the training speakers / an LDA that also sees MFCC covariances
    and pitch: (1.0, 2, (10, 25), 4) 44.3 / 8.2 / 3.7; (0.7, 4, (5, 20), 6) 48.9 / 20.6 / 11.2;
    (0.5, 5, (0, 15), 8) 49.9 / 28.7 / 17.0. The defaults lie between the first two:
    at (0.6, 2.5, (5, 20), 4) clusters of contrastive embeddings had a purity of 55 % instead of
    67 %, and learning from them gained little.
    """

    voice_spread: float = 1.0
    channel_db: float = 3.0
    snr_db: tuple[float, float] = (5.0, 20.0)
    mood: float = 5.0

    def __post_init__(self):
        if self.voice_spread < 0 or self.channel_db < 0 or self.mood < 0:
            raise UserError(f'demo corpus: {self} must not be negative')
        if not self.snr_db[0] <= self.snr_db[1]:
            raise UserError(f'demo corpus: snr_db {self.snr_db} must be (from, to)')


@dataclass(frozen=True)
class Settings:
    """Sizes, seed and difficulty; the arguments of `demo.make`."""

    seed: int = 0
    train_speakers: int = 100
    valid_speakers: int = 20
    test_speakers: int = 40
    videos: int = 4  # per speaker
    utterances_per_video: int = 4
    seconds: tuple[float, float] = (2.5, 6.0)  # one utterance in ten is up to twice as long
    trials: int = 4000  # per list, half of them targets; fewer where there are no more pairs
    musan_files: tuple[int, int, int] = (60, 16, 20)  # noise, speech, music
    rooms: int = 24  # three impulse responses each
    difficulty: Difficulty = Difficulty()

    def __post_init__(self):
        speakers = (self.train_speakers, self.valid_speakers, self.test_speakers)
        if min(speakers) < 2 or max(speakers[0], speakers[1] + speakers[2]) > MAX_SPEAKERS:
            raise UserError(
                f'demo corpus: train, valid and test speakers {speakers} must be at least 2 each '
                f'and at most {MAX_SPEAKERS} in VoxCeleb2 and in VoxCeleb1'
            )
        if self.videos < 2:
            raise UserError(f'demo corpus: {self.videos} video a speaker gives no target trial')
        if self.utterances_per_video < 1 or self.trials < 2:
            raise UserError('demo corpus: utterances_per_video must be 1, trials 2 or more')
        if not 0.5 <= self.seconds[0] <= self.seconds[1]:
            raise UserError(f'demo corpus: seconds {self.seconds} must be 0.5 <= from <= to')
        if min(*self.musan_files, self.rooms) < 1:
            raise UserError('demo corpus: musan_files and rooms must be 1 or more')

    def as_json(self) -> dict:
        """As stored in corpus.json: plain values and the version of the generator."""
        return json.loads(json.dumps({'version': VERSION, **dataclasses.asdict(self)}))

    def name(self) -> str:
        """A folder name for these settings alone, such as 'demo-0f3a9c21'."""
        text = json.dumps(self.as_json(), sort_keys=True)
        return f'demo-{hashlib.sha256(text.encode()).hexdigest()[:8]}'
