"""Files of embeddings and of pseudo-labels, in the layouts that toolkits exchange."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from shared.datasets.items import DataError, Utterances
from shared.datasets.lists import bad_line, lines
from shared.files import replacing, write_text

PARTS = 3  # speaker / session / file


def key(name: str) -> str:
    """The last three parts of a path: how both kinds of file name an utterance."""
    return '/'.join(name.replace('\\', '/').strip('/').split('/')[-PARTS:])


def write_embeddings(path: str | Path, names: Sequence[str], table: np.ndarray) -> None:
    """Writes a dict `key -> (1, D) float32` (spec wavlm_ssl 1.2), in the order of the rows.

    The entries are views of one table, which is written once.

    Args:
        path: file to write.
        names: N paths of utterances, of which the last three parts are kept.
        table: (N, D).

    Raises:
        DataError: counts that differ, no embeddings, non-finite ones, keys that occur twice.
    """
    rows = torch.from_numpy(np.ascontiguousarray(table, dtype=np.float32))
    if rows.ndim != 2 or len(rows) != len(names):
        raise DataError(f'{path}: {len(names)} names for a table {tuple(rows.shape)}')
    keys = [key(name) for name in names]
    _check(path, keys, rows.numpy())
    with replacing(path) as temporary:
        torch.save(dict(zip(keys, rows.split(1))), temporary)


def read_embeddings(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Reads a dict `name -> (1, D)`, as published, and by whatever program written.

    Returns:
        N names cut to their last three parts and the table (N, D) float32, in the file's order.

    Raises:
        DataError: not readable, not such a dict, shapes that differ, non-finite values, keys that
            occur twice.
    """
    try:
        entries = torch.load(path, map_location='cpu', weights_only=True)
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror}): give a file') from None
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = (str(error).strip().splitlines() or [repr(error)])[0][:120]
        if reason.startswith('Weights only'):  # torch goes on to advise opening it nonetheless
            reason = 'it holds more than tensors and plain values'
        raise DataError(f'{path}: no file of embeddings ({reason})') from None
    if not isinstance(entries, dict) or not entries:
        raise DataError(f'{path}: must be a dict of utterance -> (1, D), not {_kind(entries)}')
    table = np.empty((0, 0), dtype=np.float32)
    for row, (name, value) in enumerate(entries.items()):
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.ndim != 2:
            raise DataError(f'{path}: {name!r} is {_kind(value)}, not a tensor of shape (1, D)')
        if row == 0:
            table = np.empty((len(entries), value.shape[1]), dtype=np.float32)
        if value.shape != (1, table.shape[1]):
            raise DataError(
                f'{path}: {name} has shape {tuple(value.shape)}, expected (1, {table.shape[1]})'
            )
        table[row] = value[0].float().numpy()
    keys = [key(name) for name in entries]
    _check(path, keys, table)
    return keys, table


def write_labels(path: str | Path, names: Sequence[str], labels: np.ndarray) -> None:
    """Writes `cluster key` a line (spec wavlm_ssl 1.2), in the order of the names.

    Args:
        path: file to write.
        names: N paths of utterances, of which the last three parts are kept.
        labels: (N,) int, from 0.

    Raises:
        DataError: counts that differ, a negative label, keys that occur twice.
    """
    labels = np.asarray(labels)
    if labels.shape != (len(names),) or (len(labels) and labels.min() < 0):
        raise DataError(f'{path}: needs one cluster number from 0 for each of {len(names)} names')
    keys = [key(name) for name in names]
    _check_unique(path, keys)
    rows = [f'{label} {name}\n' for label, name in zip(labels.tolist(), keys)]
    write_text(path, ''.join(rows))


def read_labels(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Reads a list of labels, `cluster key` a line, or a train list, `speaker path [... seconds]`.

    Where column 1 holds anything but numbers, its names become their numbers in sorted order.

    Returns:
        N names cut to their last three parts and their labels (N,) int64.

    Raises:
        DataError: no such file, nothing in it, or the first line that is wrong.
    """
    found: dict[str, str] = {}
    used: dict[str, str] = {}  # one string a label, not one a line
    width = 0
    for number, fields in lines(path):
        width = width or len(fields)
        seconds = width == 2 or _is_number(fields[-1])
        if width < 2 or len(fields) != width or not seconds:
            raise bad_line(path, number, fields, 'must be `label path [... seconds]`')
        if _is_number(fields[0]) and not _is_count(fields[0]):
            raise bad_line(
                path, number, fields, 'must begin with a cluster number from 0, or a name'
            )
        name = key(fields[1])
        if name in found:
            raise bad_line(path, number, fields, 'repeats an utterance')
        found[name] = used.setdefault(fields[0], fields[0])
    if not found:
        raise DataError(f'{path}: lists no utterance')
    if all(map(_is_count, used)):
        numbers = {label: int(label) for label in used}
    else:
        numbers = {label: number for number, label in enumerate(sorted(used))}
    labels = (numbers[label] for label in found.values())
    return list(found), np.fromiter(labels, np.int64, len(found))


def coverage(utterances: Utterances, names: Sequence[str]) -> tuple[int, int]:
    """How many utterances the names contain, and how many of the names are no utterance.

    Args:
        utterances: of a corpus.
        names: keys as read.
    """
    keys = [key(utterances.name(i)) for i in range(len(utterances))]
    given, here = set(names), set(keys)
    return sum(name in given for name in keys), len(given - here)


def labels_for(utterances: Utterances, names: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Class of each utterance: the clusters that occur among them, numbered 0.. in their order.

    Args:
        utterances: N of them.
        names: keys as read.
        labels: clusters of these keys.

    Returns:
        (N,) int64, -1 where the names do not contain an utterance.

    Raises:
        DataError: they contain none.
    """
    cluster = dict(zip(names, np.asarray(labels).tolist()))
    found = [cluster.get(key(utterances.name(i)), -1) for i in range(len(utterances))]
    classes = np.array(found, dtype=np.int64)
    if (classes < 0).all():
        here = utterances.name(0) if len(utterances) else 'nothing'
        there = next(iter(names), 'nothing')
        raise DataError(
            f'no utterance below {utterances.root} has a pseudo-label: files are named like '
            f'{key(here)}, labels like {there}; give the labels of this corpus'
        )
    used, dense = np.unique(classes, return_inverse=True)
    return dense.reshape(-1) - int(used[0] < 0)


def _check(path: str | Path, keys: list[str], table: np.ndarray) -> None:
    if table.size == 0:
        raise DataError(f'{path}: no embeddings')
    bad = np.flatnonzero(~np.isfinite(table.sum(axis=1)))  # (N,), no (N, D) copy
    if len(bad):
        raise DataError(
            f'{path}: {len(bad)} of {len(table)} embeddings are not finite, first {keys[bad[0]]}'
        )
    _check_unique(path, keys)


def _check_unique(path: str | Path, keys: list[str]) -> None:
    if len(set(keys)) < len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise DataError(
            f'{path}: {twice} occurs twice, as the last {PARTS} parts of a path: they must differ'
        )


def _is_count(text: str) -> bool:
    """Whether it is a number from 0 that fits into 64 bits."""
    return text.isascii() and text.isdigit() and len(text) < 19


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f'a tensor of shape {tuple(value.shape)}'
    size = f' of {len(value)}' if isinstance(value, dict) else ''
    return type(value).__name__ + size
