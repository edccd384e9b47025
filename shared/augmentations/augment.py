"""What a collated batch asks for, done on its device (design 4.2: workers read, it computes)."""

from torch import Tensor

from shared.augmentations.distortion import apply_gain, clip_amplitude
from shared.augmentations.noise import add_noise
from shared.augmentations.reverb import reverberate


def augment(batch: dict) -> Tensor:
    """Reverberates, adds noise (spec lgl 2.4, 2.5), clips, applies gains; returns waves (B, V, L).

    `batch` holds waves (B, V, L); rir (R, K), rir_row (R,); noise (M, L), noise_row (M,), noise_snr
    (M,) in dB; clip_ratio, clip_row (P,); gain (G, L), gain_row (G,), with row b * V + v for view v
    of utterance b (`datasets.items.collate`). Nothing is drawn here, and the host never waits for
    the device.
    """
    rows = _reverberated(batch)
    rows = add_noise(rows, batch['noise'], batch['noise_row'], batch['noise_snr'])
    return _distorted(rows, batch)


def augment_in_turn(batch: dict) -> Tensor:
    """As `augment`, but each noise of a row is scaled against the mixture so far.

    Babble, then music on top of it: the second SNR is that of speech and babble together (spec nawsv
    2.7). The noises stand in turns, noise_turns (a list) tells how many in each.
    """
    rows, turns = _reverberated(batch), batch['noise_turns']
    parts = (batch[name].split(turns) for name in ('noise', 'noise_row', 'noise_snr'))
    for noise, row, snr in zip(*parts):
        rows = add_noise(rows, noise, row, snr)
    return _distorted(rows, batch)


def _reverberated(batch: dict) -> Tensor:
    rows = batch['waves'].flatten(0, 1)  # (B * V, L)
    return reverberate(rows, batch['rir'], batch['rir_row'])


def _distorted(rows: Tensor, batch: dict) -> Tensor:
    rows = clip_amplitude(rows, batch['clip_row'], batch['clip_ratio'])
    rows = apply_gain(rows, batch['gain_row'], batch['gain'])
    return rows.view_as(batch['waves'])  # (B, V, L)
