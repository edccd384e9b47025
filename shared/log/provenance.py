"""Where a number came from: source, commit, environment. Nothing here fails for want of git."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import shared
from shared.log.redaction import redact, redact_source

LEFT_OUT = {'__pycache__', 'results', 'runs', 'wandb', 'node_modules', 'build', 'dist'}
GIT_SECONDS = 20.0  # a network file system may be slow, a run must start anyway


def environment() -> dict:
    """Python, packages, machine, GPUs and the command line, without secrets."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    installed = {dist.metadata['Name']: dist.version for dist in metadata.distributions()}
    return {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'cuda': torch.version.cuda,
        'cudnn': torch.backends.cudnn.version(),
        'gpus': gpus,
        'machine': f'{platform.system()} {platform.release()} {platform.machine()}',
        'command': redact([sys.executable, *sys.argv]),
        'packages': dict(sorted((str(k), v) for k, v in installed.items())),
    }


def commit(folder: Path) -> tuple[str, str]:
    """The commit that `folder` is checked out at, and its uncommitted changes as a patch.

    Returns:
        Text for `commit.txt`, and the patch ('' when clean or without git). Without git the text
        is of SV_REVISION, which images set.
    """
    head = _git(folder, 'rev-parse', 'HEAD')
    if head is None and (revision := os.environ.get('SV_REVISION')):  # an image has no git
        return f'{revision} (image)\n', ''
    if head is None:
        return 'no git commit: the scripts folder holds the source\n', ''
    status = _git(folder, 'status', '--porcelain') or ''
    if not status.strip():
        return f'{head.strip()}\n', ''
    untracked = sum(line.startswith('??') for line in status.splitlines())
    changed = len(status.splitlines()) - untracked
    note = f'dirty: {changed} files changed (diff.patch), {untracked} untracked\n'
    patch = _git(folder, 'diff', 'HEAD', '--no-color') or ''
    return f'{head.strip()}\n{note}', redact_source(patch)


def sources(path_scripts: Path) -> dict[str, bytes]:
    """The .py files of a recipe's folder and of `shared`, by relative path, without secrets."""
    found: dict[str, bytes] = {}
    package = Path(next(iter(shared.__path__)))
    for root, prefix in ((Path(path_scripts), ''), (package, 'shared')):
        for path in sorted(root.rglob('*.py')):
            inner = path.relative_to(root)
            hidden = any(part.startswith('.') for part in inner.parts)
            if not hidden and not LEFT_OUT & set(inner.parts[:-1]):
                text = path.read_bytes().decode('utf-8', 'surrogateescape')
                clean = redact_source(text).encode('utf-8', 'surrogateescape')
                found[(Path(prefix) / inner).as_posix()] = clean
    return found


def _git(folder: Path, *words: str) -> str | None:
    """What git says, None when it cannot say anything."""
    command = ['git', '-C', str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, timeout=GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode('utf-8', 'replace')
