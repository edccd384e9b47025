"""What every sink can do; a sink overrides what it has a use for."""

import re
import warnings
from typing import Any

from shared.log.redaction import redact


class ExperimentLogger:
    """One destination of what a run says. Names are `<split>/<quantity>`, such as 'valid/eer'.

    `LoggerList` has already removed secrets from whatever arrives here.
    """

    essential = False  # True: its failure ends the run; False: it costs a warning and the sink

    @property
    def title(self) -> str:
        """What a warning calls this sink."""
        return type(self).__name__.removesuffix('Logger')

    def log_metrics(self, values: dict[str, float], step: int | None = None) -> None:
        """Numbers that belong to one step; None counts each quantity's own values."""

    def log_arguments(self, arguments: dict[str, Any]) -> None:
        """What the run is: the experiment's arguments, never the system's."""

    def log_text(self, name: str, text: str) -> None:
        """A text of any length."""

    def log_image(self, name: str, image: bytes, step: int | None = None) -> None:
        """A picture, as the bytes of a PNG file."""

    def save_model(self, name: str, state_dict: dict) -> None:
        """Weights for later use; resuming is the business of checkpoints."""

    def curves(self) -> None:
        """Draws what was logged so far, where the sink does not do so by itself."""

    def finish(self) -> None:
        """Completes what is pending; nothing is logged afterwards."""


def warn(text: str) -> None:
    """One warning without secrets."""
    warnings.warn(redact(text), RuntimeWarning, stacklevel=3)


def one_line(error: BaseException) -> str:
    """Type and first telling line of an error; services like to write pages with colours."""
    lines = re.sub(r'\x1b\[[0-9;]*m', '', str(error)).splitlines()
    telling = [line.strip() for line in lines if ' ' in line.strip()] or lines or ['']
    return f'{type(error).__name__}: {telling[0][:200]}'
