"""Room impulse responses of RIRS_NOISES, simulated and real.

Layouts: `simulated_rirs/{smallroom,mediumroom,largeroom}/RoomNNN/RoomNNN-NNNNN.wav` and
`real_rirs_isotropic_noises/*.wav`, whose noise recordings are left out (spec lgl 2.1).
Apache 2.0: https://www.openslr.org/28/
"""

import os
from pathlib import Path

import numpy as np

from shared.datasets.items import DataError
from shared.datasets.lists import existing, listing
from shared.datasets.musan import audio_below, is_folder
from shared.datasets.reading import AudioError, AudioReader

PARTS = ('simulated_rirs', 'real_rirs_isotropic_noises')


class Rirs:
    """The responses below a folder; `files` (files,) bytes, relative to `root`, sorted.

    Args:
        path: simulated_rirs, real_rirs_isotropic_noises, or RIRS_NOISES for both; any other folder
            is searched as it is.
        reader: how responses are read.

    Raises:
        DataError: no response below the folder.
    """

    def __init__(self, path: str | Path, reader: AudioReader):
        self.root, self.reader = existing(path, 'RIR folder'), reader
        parts = [part for part in PARTS if is_folder(self.root / part)] or ['.']
        files = np.concatenate([audio_below(self.root, part) for part in parts])
        responses = [name for name in files.tolist() if b'noise' not in os.path.basename(name)]
        self.files = np.array(responses, dtype='S')
        if not responses:
            raise DataError(
                f'{self.root}: no .wav or .flac response below it; expected simulated_rirs, '
                f'real_rirs_isotropic_noises or the folder of both; it holds {listing(self.root)}'
            )

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One response, uniformly drawn, float32 (K,), first channel, as recorded.

        Raises:
            AudioError: unreadable or silent.
        """
        path = self.root / os.fsdecode(self.files[rng.integers(len(self.files))])
        with self.reader.open(path, channel=0) as audio:
            rir = audio.read(0, audio.length)
        if not rir.any():
            raise AudioError(f'{path}: the response is silent')
        return rir
