"""Neptune: offline, or on a server of your own (the hosted service closed in March 2026)."""

import base64
import binascii
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.log._interface import ExperimentLogger
from shared.log.files import kept_id

INIT_SECONDS = 30.0
FINISH_SECONDS = 120.0
CLOSED = 'neptune.ai'  # this host and those under it


class NeptuneLogger(ExperimentLogger):
    """A Neptune run.

    `NEPTUNE_MODE=offline` records under the run folder's `neptune/`; `neptune sync` sends it to a
    server. Otherwise the server is the one that made the token (its address is inside). A continued
    run keeps its id (`neptune_id.txt`).

    Args:
        path_log: the run folder.
        name: of the run.
        project: its name without the user.
        tags: of the run.
        description: of the run.
        user: or workspace that the project belongs to.
        token: for this process only; None uses `NEPTUNE_API_TOKEN`.

    Raises:
        ConnectionError: no token, a token of the closed service, or no answer in time.
    """

    def __init__(
        self,
        path_log: str | Path,
        name: str,
        project: str,
        tags: list[str],
        description: str,
        *,
        user: str,
        token: str | None = None,
    ) -> None:
        Path(path_log).mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get('NEPTUNE_MODE') or 'async'
        if mode not in ('offline', 'debug'):
            _check_server(token or os.environ.get('NEPTUNE_API_TOKEN'))
        # both are read by the client, the first when it is imported
        os.environ.setdefault('NEPTUNE_RETRIES_TIMEOUT', '20')
        os.environ.setdefault('NEPTUNE_DATA_DIRECTORY', str(Path(path_log).resolve() / 'neptune'))
        run_id = kept_id(Path(path_log) / 'neptune_id.txt')
        import neptune

        def start():
            return neptune.init_run(
                project=f'{user}/{project}',
                api_token=token,
                mode=mode,
                custom_run_id=run_id,
                name=name,
                description=description,
                tags=tags,
                source_files=[],
                git_ref=False,
                capture_stdout=False,
                capture_stderr=False,
                capture_traceback=False,
                capture_hardware_metrics=False,
            )

        self._run = _in_time(start, INIT_SECONDS)

    def log_metrics(self, values: dict[str, float], step: int | None = None) -> None:
        for name, value in values.items():
            self._run[name].append(value, step=step)

    def log_arguments(self, arguments: dict[str, Any]) -> None:
        from neptune.utils import stringify_unsupported

        self._run['arguments'] = stringify_unsupported(arguments)

    def log_text(self, name: str, text: str) -> None:
        self._run[f'text/{name}'] = text

    def log_image(self, name: str, image: bytes, step: int | None = None) -> None:
        from neptune.types import File

        picture = File.from_content(image, extension='png')
        if step is None:
            self._run[name].upload(picture)
        else:
            self._run[name].append(picture, step=step)

    def finish(self) -> None:
        self._run.stop(seconds=FINISH_SECONDS)


def _check_server(token: str | None) -> None:
    """Says at once what the client would find out in a minute."""
    closed = 'the hosted service closed in March 2026: NEPTUNE_MODE=offline or your own server'
    if not token:
        raise ConnectionError(f'no token, and {closed}')
    try:
        address = json.loads(base64.b64decode(token))['api_address']
    except (binascii.Error, ValueError, KeyError, TypeError):
        raise ConnectionError('the token is not one that a Neptune server makes') from None
    host = address.split('://')[-1].split('/')[0].split(':')[0]
    if host == CLOSED or host.endswith(f'.{CLOSED}'):
        raise ConnectionError(f'{host}: {closed}')


def _in_time(start: Callable[[], Any], seconds: float) -> Any:
    """What `start` returns, or ConnectionError when that takes longer; it is then abandoned."""
    outcome: dict[str, Any] = {}

    def attempt() -> None:
        try:
            outcome['run'] = start()
        except Exception as error:
            outcome['error'] = error

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if 'error' in outcome:
        raise outcome['error']
    if 'run' not in outcome:
        raise ConnectionError(f'no answer within {seconds:g} s')
    return outcome['run']
