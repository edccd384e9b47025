"""TensorBoard event files."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from shared.log._interface import ExperimentLogger


class TensorboardLogger(ExperimentLogger):
    """Event files under `path`; `tensorboard --logdir` shows them.

    A continued run opens a further event file in the same folder, as TensorBoard expects.
    """

    def __init__(self, path: str | Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(path))

    def log_metrics(self, values: dict[str, float], step: int | None = None) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_arguments(self, arguments: dict[str, Any]) -> None:
        rows = [f'| {key} | {value} |' for key, value in arguments.items()]
        self._writer.add_text('arguments', '\n'.join(['| argument | value |', '|---|---|', *rows]))

    def log_text(self, name: str, text: str) -> None:
        self._writer.add_text(name, text)

    def log_image(self, name: str, image: bytes, step: int | None = None) -> None:
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(image)).convert('RGB'))
        self._writer.add_image(name, pixels, step, dataformats='HWC')

    def curves(self) -> None:
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()
