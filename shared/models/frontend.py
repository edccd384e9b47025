"""Log-mel features computed on the model's device."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from shared.models.frame_checks import check_waves
from shared.models.masks import frame_mask, masked_mean, zero_padding
from shared.models.ssl_pooling import instance_norm

WINDOWS = {'hamming': torch.hamming_window, 'hann': torch.hann_window}


class LogMel(nn.Module):
    """Log-mel filter bank, each band normalised over the utterance, without gradient.

    Source: the front-end of the TDNN speaker encoders (spec lgl 3): pre-emphasis with one
    reflected sample, centred STFT with a periodic Hamming window, power spectrum, HTK mel
    triangles without normalisation, natural logarithm, mean over the frames subtracted. Without
    pre-emphasis, 0 to 8000 Hz and with `unit_variance` that of spec wavlm_ssl 8.1.
    Always computed in fp32, under autocast as well. It has no state to save.

    Args:
        pre_emphasis: coefficient of the previous sample; 0: none.
        n_fft: samples of one Fourier transform.
        win: samples of the window, centred in `n_fft`.
        hop: samples between two frames.
        n_mels: F, number of filters.
        f_min: Hz, lower edge of the first filter.
        f_max: Hz, upper edge of the last filter.
        floor: added to the filter outputs before the logarithm.
        rate: samples per second of the waves.
        window: 'hamming' or 'hann', periodic.
        unit_variance: also divides each band by its standard deviation (instance norm).
    """

    filters: Tensor  # (F, n_fft/2 + 1)
    window: Tensor  # (win,)

    def __init__(
        self,
        pre_emphasis: float = 0.97,
        n_fft: int = 512,
        win: int = 400,
        hop: int = 160,
        n_mels: int = 80,
        f_min: float = 20.0,
        f_max: float = 7600.0,
        floor: float = 1e-6,
        rate: int = 16000,
        window: Literal['hamming', 'hann'] = 'hamming',
        unit_variance: bool = False,
    ):
        super().__init__()
        self.pre_emphasis = pre_emphasis
        self.n_fft = n_fft
        self.hop = hop
        self.floor = floor
        self.unit_variance = unit_variance
        filters = melscale_fbanks(n_fft // 2 + 1, f_min, f_max, n_mels, rate, mel_scale='htk')
        self.register_buffer('filters', filters.T.contiguous(), persistent=False)
        self.register_buffer('window', WINDOWS[window](win), persistent=False)

    @property
    def shortest(self) -> int:
        """Samples below which an utterance cannot be reflected at its ends."""
        return self.n_fft // 2 + 1

    def forward(self, waves: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Turns waves into features; a padded row gets what it would get alone.

        Args:
            waves: (B, L); what lies past a row's length is ignored.
            lengths: (B,) samples of each row, on any device; None when all rows are full.

        Returns:
            Features (B, F, T), zero past a row's end, and its frames (B,), None without lengths.

        Raises:
            ValueError: a wave is shorter than `shortest`, or a length does not fit. Lengths that
                already live on a GPU are not read back: a row too short has 0 frames instead,
                which makes its embedding NaN.
        """
        check_waves(waves, lengths, self.shortest)
        with torch.no_grad(), torch.autocast(waves.device.type, enabled=False):
            if lengths is not None:
                lengths = lengths.to(waves.device, non_blocking=True)
            padded = self._reflect(self._emphasise(waves.to(self.window.dtype)), lengths)
            features = (self.filters @ self._power(padded) + self.floor).log()
            if lengths is None:
                return self._normalise(features, None), None
            frames = (1 + lengths // self.hop) * (lengths >= self.shortest)
            mask = frame_mask(frames, features.shape[-1])
            return self._normalise(features, mask), frames

    def _normalise(self, features: Tensor, mask: Tensor | None) -> Tensor:
        if self.unit_variance:
            return instance_norm(features, mask)
        return zero_padding(features - masked_mean(features, mask), mask)

    def _emphasise(self, waves: Tensor) -> Tensor:
        if not self.pre_emphasis:
            return waves
        # the sample before the first is reflected: y[0] = x[0] - 0.97 x[1]
        previous = torch.cat([waves[:, 1:2], waves[:, :-1]], dim=1)
        return waves - self.pre_emphasis * previous

    def _reflect(self, waves: Tensor, lengths: Tensor | None) -> Tensor:
        """Reflects n_fft/2 samples at both ends, (B, L) -> (B, L + n_fft), each at its own end."""
        half = self.n_fft // 2
        padded = F.pad(waves, (half, half), mode='reflect')
        if lengths is None:
            return padded
        after = torch.arange(half, device=waves.device)
        end = lengths.unsqueeze(1)  # (B, 1)
        tail = waves.gather(1, (end - 2 - after).clamp(min=0))  # (B, n_fft/2)
        return padded.scatter_(1, half + end + after, tail)

    def _power(self, padded: Tensor) -> Tensor:
        """Power spectrum (B, n_fft/2 + 1, T)."""
        spectrum = torch.stft(
            padded,
            n_fft=self.n_fft,
            hop_length=self.hop,
            win_length=len(self.window),
            window=self.window,
            center=False,
            return_complex=True,
        )
        return spectrum.real.square() + spectrum.imag.square()
