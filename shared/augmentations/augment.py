"""What a collated batch asks for, done on its device (design 4.2: workers read, it computes)."""

from torch import Tensor

from shared.augmentations.noise import add_noise
from shared.augmentations.reverb import reverberate


def augment(batch: dict) -> Tensor:
    """Reverberates, then adds noise (spec lgl 2.4, 2.5); returns the waves (B, V, L).

    `batch` holds waves (B, V, L); rir (R, K), rir_row (R,); noise (M, L), noise_row (M,), noise_snr
    (M,) in dB, with row b * V + v for view v of utterance b. Nothing is drawn here, and the host
    never waits for the device.
    """
    waves = batch['waves']
    rows = waves.flatten(0, 1)  # (B * V, L)
    rows = reverberate(rows, batch['rir'], batch['rir_row'])
    rows = add_noise(rows, batch['noise'], batch['noise_row'], batch['noise_snr'])
    return rows.view_as(waves)
