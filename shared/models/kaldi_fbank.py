"""Log-mel features as Kaldi defines them, computed in batches on the model's device."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from shared.models.frame_checks import check_waves
from shared.models.masks import frame_mask, masked_mean, zero_padding

CPU_ROWS = 4  # worked on at a time, so that what is in between stays in the processor's cache
FLOOR = torch.finfo(torch.float32).eps  # 1.1920929e-7, of the filter outputs (spec enskd 2.5)
FULL_SCALE = 32768  # Kaldi's waves are 16-bit numbers


class KaldiFbank(nn.Module):
    """Kaldi's log-mel filter bank, each band's mean over the utterance subtracted, no gradient.

    Source: spec enskd 2.5, equal to torchaudio.compliance.kaldi.fbank. Only frames that fit; of
    each frame: dither, own mean subtracted, pre-emphasis, symmetric window, zero-padded to a power
    of two, power spectrum, triangles that are linear in mel = 1127 ln(1 + f / 700), natural
    logarithm. No energy. Always computed in fp32, under autocast as well; only the product with the
    triangles is TF32 (1e-3 of the logarithm) where the run allows TF32. It has no state to save.

    Args:
        n_mels: F, number of filters.
        dither: standard deviation of the normal noise added to every frame in training mode, in
            units of a 16-bit sample, from torch's generator of the device; none in eval mode.
        rate: samples per second of the waves.
        frame_ms: milliseconds of a frame.
        shift_ms: milliseconds between two frames.
        window: 'hamming', or 'povey': Kaldi's own, Hann to the power of 0.85.
        f_min: Hz, lower edge of the first filter; the last one ends at half the rate.
        pre_emphasis: coefficient of the previous sample.
        subtract_mean: whether each band loses its mean over the utterance's own frames.
    """

    filters: Tensor  # (F, n_fft/2 + 1)
    window: Tensor  # (win,)

    def __init__(
        self,
        n_mels: int = 80,
        dither: float = 0.0,
        rate: int = 16000,
        frame_ms: float = 25,
        shift_ms: float = 10,
        window: Literal['hamming', 'povey'] = 'hamming',
        f_min: float = 20.0,
        pre_emphasis: float = 0.97,
        subtract_mean: bool = True,
    ):
        super().__init__()
        win = int(rate * frame_ms / 1000)
        self.hop = int(rate * shift_ms / 1000)
        self.n_fft = 1 << (win - 1).bit_length()
        self.dither = dither
        self.pre_emphasis = pre_emphasis
        self.subtract_mean = subtract_mean
        filters = mel_triangles(n_mels, self.n_fft, rate, f_min)
        self.register_buffer('filters', filters, persistent=False)
        self.register_buffer('window', symmetric_window(window, win), persistent=False)

    @property
    def shortest(self) -> int:
        """Samples below which an utterance has no frame."""
        return len(self.window)

    def forward(self, waves: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Turns waves into features; a padded row gets what it would get alone.

        Args:
            waves: (B, L) in -1..1; what lies past a row's length is ignored.
            lengths: (B,) samples of each row, on any device; None when all rows are full.

        Returns:
            Features (B, F, T), zero past a row's end, and its frames (B,), None without lengths.

        Raises:
            ValueError: a wave is shorter than `shortest`, or a length does not fit. Lengths that
                already live on a GPU are not read back: a row too short has 0 frames instead,
                which makes its embedding NaN.
        """
        check_waves(waves, lengths, self.shortest)
        rows = len(waves) if waves.is_cuda else CPU_ROWS
        with torch.no_grad(), torch.autocast(waves.device.type, enabled=False):
            parts = waves.to(self.window.dtype).split(max(rows, 1))
            features = torch.cat([self._log_mel(self._frames(part)) for part in parts])
            frames, mask = None, None
            if lengths is not None:
                lengths = lengths.to(waves.device, non_blocking=True)
                fit = 1 + (lengths - self.shortest) // self.hop
                frames = fit * (lengths >= self.shortest)
                mask = frame_mask(frames, features.shape[-1])
            if self.subtract_mean:
                features -= masked_mean(features, mask)
            return zero_padding(features, mask), frames

    def _frames(self, waves: Tensor) -> Tensor:
        """Frames without their mean, pre-emphasised and windowed, (B, L) -> (B, T, win)."""
        frames = (waves * FULL_SCALE).unfold(-1, len(self.window), self.hop)
        if self.training and self.dither:
            noise = torch.randn_like(frames)  # overlapping frames do not share it
            frames = torch.add(frames, noise, alpha=self.dither)
        frames = frames - frames.mean(-1, keepdim=True)
        out = torch.empty_like(frames)
        # x[j] - 0.97 x[j - 1], within the frame; its first sample is its own predecessor
        out[..., 0] = (1 - self.pre_emphasis) * frames[..., 0]
        torch.sub(frames[..., 1:], frames[..., :-1], alpha=self.pre_emphasis, out=out[..., 1:])
        return out.mul_(self.window)

    def _log_mel(self, frames: Tensor) -> Tensor:
        """Logarithm of the filter outputs, (B, T, win) -> (B, F, T)."""
        spectrum = torch.fft.rfft(frames, n=self.n_fft)
        power = spectrum.real.square() + spectrum.imag.square()  # (B, T, n_fft/2 + 1)
        return (power @ self.filters.T).clamp_(min=FLOOR).log_().transpose(1, 2)


def mel_triangles(n_mels: int, n_fft: int, rate: int, f_min: float) -> Tensor:
    """Triangles whose edges are equally spaced, and which are linear, in mel (spec enskd 2.5).

    mel = 1127 ln(1 + f / 700), f in Hz; the edges run from `f_min` to half the rate. Computed in
    fp32, as everyone does it: in float64 weights would differ by 1e-5, weak bins by 2e-4.

    Returns:
        (F, n_fft/2 + 1); the last column, the Nyquist frequency, is zero.

    Raises:
        ValueError: `f_min` is not within 0 and half the rate.
    """
    if not 0 <= f_min < rate / 2:
        raise ValueError(f'f_min {f_min} Hz must be at least 0 and below {rate / 2} Hz')
    low, high = (1127 * math.log(1 + f / 700) for f in (f_min, rate / 2))
    edges = low + torch.arange(n_mels + 2)[:, None] * ((high - low) / (n_mels + 1))
    hertz = torch.arange(n_fft // 2 + 1) * (rate / n_fft)
    mel = 1127 * (1 + hertz / 700).log()
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]  # (F, 1)
    triangles = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre))
    triangles[:, -1] = 0
    return triangles.clamp(min=0)


def symmetric_window(name: str, win: int) -> Tensor:
    """The window whose first and last of `win` points are equal, (win,).

    Raises:
        ValueError: unknown name.
    """
    if name == 'hamming':
        return torch.hamming_window(win, periodic=False)
    if name == 'povey':
        return torch.hann_window(win, periodic=False).pow(0.85)
    raise ValueError(f"window {name!r} is unknown: 'hamming' or 'povey'")
