"""Small folders of audio for the tests of what looks at them."""

import numpy as np
import soundfile


def wav(path, seconds=0.5, rate=16000, channels=1, fill=None, subtype='PCM_16'):
    """Writes a file of noise, or of one value; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = round(seconds * rate)
    values = np.random.default_rng(len(path.name)).uniform(-0.5, 0.5, (frames, channels))
    if fill is not None:
        values[:] = fill
    soundfile.write(path, values, rate, subtype=subtype)
    return path


def tree(root, *names, **kind):
    """Files below `root`, such as 'id10001/v/1.wav'; returns `root`."""
    for name in names:
        wav(root / name, **kind)
    return root


def told(check):
    """(lines of the findings that are not ok, lines of those that are, result) of a check."""
    odd, fine = [], []
    while True:
        try:
            finding = next(check)
        except StopIteration as end:
            return odd, fine, end.value
        (fine if finding.level == 'ok' else odd).append(finding.line())
