"""Bottleneck adapters that run in parallel to a layer's feed-forward block."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]]
ACTIVATIONS = {'elu': F.elu, 'relu': F.relu, 'gelu': F.gelu}
INPUTS = ('normed', 'stream')
INIT_STD = 0.02  # spec nawsv 3.2: as every linear layer of the encoder


@dataclass(frozen=True)
class AdapterSettings:
    """Shape of the adapters (specs nawsv 3.2, oskdft 3.2 and 3.3).

    Raises:
        ValueError: an unknown activation or input, an impossible width or noise range.
    """

    width: int = 64  # of the bottleneck
    activation: str = 'elu'  # WavLM students 'elu', HuBERT students of OS-KDFT 'relu'
    noise: tuple[float, float] = (0.0, 0.0)  # range of the noise's std / mean |z|; (0.1, 0.5)
    norm: bool = False  # a layer norm of its own before `down`
    scale: float = 1.0  # of what `up` returns; with norm and residual 0.1 (oskdft 3.3)
    residual: bool = False  # adds its own input once more (oskdft 9.1-2)
    zero_up: bool = False  # starts as zero, but for the residual (oskdft 9.1-3)
    input: str = 'normed'  # of pre-norm layers: what the feed-forward block reads, or 'stream'

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'activation {self.activation!r} is none of {tuple(ACTIVATIONS)}')
        if self.input not in INPUTS:
            raise ValueError(f'input {self.input!r} is none of {INPUTS}')
        if self.width < 1:
            raise ValueError(f'width {self.width} must be at least 1')
        if not 0 <= self.noise[0] <= self.noise[1]:
            raise ValueError(f'noise {self.noise} must be a range (lowest, highest), 0 or more')


class ParallelAdapter(nn.Module):
    """Norm -> down -> activation -> noise while training -> up -> scale -> residual.

    Norm, scale and residual where the settings have them.

    The noise (spec oskdft 3.2) is Gaussian; its standard deviation is drawn once a call, on the
    device, uniformly from `noise` times the mean of |z| over the rows that are adapted.

    Args:
        dim: D, width of the layer.
        settings: of the bottleneck.
    """

    def __init__(self, dim: int, settings: AdapterSettings):
        super().__init__()
        self.settings = settings
        self.norm = nn.LayerNorm(dim) if settings.norm else nn.Identity()
        self.down = nn.Linear(dim, settings.width)
        self.up = nn.Linear(settings.width, dim)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=INIT_STD)
            nn.init.zeros_(linear.bias)
        self.mute()

    def mute(self) -> None:
        """Sets the weights of `up` to zero if the settings ask for it (`zero_up`)."""
        if self.settings.zero_up:
            nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor, adapt: Tensor | None = None) -> Tensor:
        """What is added to the layer's output, (B, T, D) of x (B, T, D).

        `adapt` (B,) bool: zero, without any gradient, for rows where it is false; None: all rows.
        """
        z = ACTIVATIONS[self.settings.activation](self.down(self.norm(x)))
        rows = None if adapt is None else adapt[:, None, None]
        if self.training and self.settings.noise[1] > 0:
            z = z + self._noise(z.detach(), rows)
        y = self.up(z)
        if self.settings.scale != 1:
            y = self.settings.scale * y
        if self.settings.residual:
            y = x + y
        return y if rows is None else torch.where(rows, y, 0)

    def _noise(self, z: Tensor, rows: Tensor | None) -> Tensor:
        low, high = self.settings.noise
        level = z.abs()
        if rows is None:
            level = level.mean()
        else:  # clamp: no row is adapted
            counted = (rows.sum() * z[0].numel()).clamp(min=1)
            level = torch.where(rows, level, 0).sum() / counted
        std = level * torch.empty_like(level).uniform_(low, high)
        return torch.randn_like(z) * std
