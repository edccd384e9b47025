"""Utterances in tar shards: any of them read at once, through an index; and the writing of shards.

In a shard an utterance is consecutive members, `<key>.spk` (its speaker) and `<key>.<suffix>` (its
audio), as wespeaker packs them (spec enskd 2.2); a key often ends in `.wav` itself. Taken are wav and
FLAC: libsndfile's crops of lossy formats differ from the whole file's samples. What one gets is
ordinary `Utterances`, whose paths lead into the tars (file_parts.py).
"""

import os
import random
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO, FileIO
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from shared import ddp
from shared.datasets.file_parts import part_name
from shared.datasets.items import DataError, Utterances
from shared.datasets.lists import AUDIO, Columns
from shared.datasets.tars import Member, members, safe_name
from shared.files import replacing, write_text

VERSION = 1  # of the index file
AHEAD = 4  # tars waiting for each thread
LIST, SHARD, SPEAKERS = 'shard.list', 'shards/shards_{:09d}.tar', 'utt2spk'  # spec enskd 2.1, 2.2


class Shard(NamedTuple):
    """The n utterances of one tar in columns, and the tar's bytes and time of change.

    `keys` and `speakers` (n,) are bytes; the audio of each is at [offset, offset + size), (n,).
    """

    keys: np.ndarray
    speakers: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    stamp: tuple[int, int]


def read_shards(tars: Sequence[str | Path], kept: str | Path, workers: int = 8) -> Utterances:
    """The utterances of tar shards, in the order of their keys' parts, as of an unpacked folder.

    So the numbers of utterances, and all that is drawn by them, depend neither on the packing nor
    on the order of the tars. A name is `<tar>/<first byte>+<bytes>/<key>`. Seconds are not known.

    Args:
        tars: the shards, all or some.
        kept: file of the index. Rank 0 makes it once (only headers are read) and then looks again
            into tars that have changed; every rank reads it.
        workers: threads that read headers.

    Raises:
        DataError: no tars or a tar twice, an unusable one (see `tars.members`), an utterance
            without speaker or audio, members of another kind, a key that occurs twice, a file
            `kept` that is no index.
    """
    names = [str(Path(tar).absolute()) for tar in tars]
    for name, times in Counter(names).most_common(1):
        if times > 1:
            raise DataError(f'{name}: is listed twice')
    if not names:
        raise DataError('no shards: list some tars')
    if ddp.is_main():
        known = _load(kept)
        new = [name for name in names if name not in known or known[name].stamp != _stamp(name)]
        if new or list(known) != names:
            known.update(_look(new, workers))
            _save(kept, {name: known[name] for name in names})
    ddp.barrier()
    index = _load(kept)
    if not index:
        raise DataError(
            f'{kept}: index of the shards is not here: give a folder all machines share'
        )
    return _utterances(index)


def write_shards(
    utterances: Utterances, folder: str | Path, per_shard: int = 1000, seed: int = 42
) -> Path:
    """Packs utterances as wespeaker does, shuffled once; their files are kept byte by byte.

    Writes `shards/shards_%09d.tar`, `utt2spk` (key = path below the root) and, last, `shard.list`
    with paths that start from `folder`. Equal utterances and seed give equal bytes.

    Args:
        utterances: what to pack, of a folder or a list of files.
        folder: of the set; made where it is not.
        per_shard: utterances in a tar (spec enskd 2.2).
        seed: of the order (spec enskd 2.2).

    Returns:
        The path of `shard.list`.

    Raises:
        DataError: there is such a list already, a file cannot be read or is of a kind that is
            not decoded, a name is unsafe or holds blanks; `UserError` when the disk is full.
    """
    folder = Path(folder)
    for name in (LIST, SPEAKERS):
        if (folder / name).exists():
            raise DataError(f'{folder / name}: is there already: give another folder')
    lines = [_line(utterances, row) for row in range(len(utterances))]
    order = list(range(len(lines)))
    random.Random(seed).shuffle(order)
    names = [SHARD.format(number) for number in range(-(-len(order) // per_shard))]
    hidden = not ddp.is_main() or None
    for number, name in enumerate(tqdm(names, desc='pack', unit='shard', disable=hidden)):
        with replacing(folder / name) as temporary, tarfile.open(temporary, 'w') as tar:
            for row in order[number * per_shard : (number + 1) * per_shard]:
                key, speaker = lines[row].split()
                _add(tar, f'{key}.spk', speaker.encode())
                _add(tar, key + os.path.splitext(key)[1], _bytes(utterances.path(row)))
    write_text(folder / SPEAKERS, ''.join(f'{line}\n' for line in lines))
    write_text(folder / LIST, ''.join(f'{name}\n' for name in names))
    return folder / LIST


def _line(utterances: Utterances, row: int) -> str:
    """`key speaker`, for utt2spk."""
    key = safe_name(utterances.name(row), utterances.root)
    line = f'{key} {utterances.speaker_ids[utterances.speakers[row]]}'
    if not key.endswith(AUDIO) or len(line.split()) != 2:
        raise DataError(
            f'{utterances.path(row)}: cannot be packed: must end in one of '
            f'{", ".join(AUDIO)}, its name and speaker without blanks'
        )
    return line


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from None


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))


def _utterances(shards: dict[str, Shard]) -> Utterances:
    """All rows, sorted, their paths below the folder that all tars share."""
    if not any(len(shard.keys) for shard in shards.values()):
        raise DataError(f'{", ".join(list(shards)[:3])}: no utterance in all shards')
    keys = np.concatenate([shard.keys for shard in shards.values()])
    # By parts, as folders are walked: a slash comes before whatever a name may hold.
    order = np.argsort(np.char.replace(keys, b'/', b'\1'), kind='stable')
    tar_of = np.repeat(np.arange(len(shards)), [len(shard.keys) for shard in shards.values()])
    names = list(shards)
    twice = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if len(twice):
        first, second = order[twice[0] : twice[0] + 2]
        raise DataError(
            f'{names[tar_of[second]]}: {os.fsdecode(keys[second])} is there twice, or also in '
            f'{names[tar_of[first]]}'
        )
    speakers = np.concatenate([shard.speakers for shard in shards.values()])
    offsets = np.concatenate([shard.offsets for shard in shards.values()])
    sizes = np.concatenate([shard.sizes for shard in shards.values()])
    root = os.path.commonpath([os.path.dirname(name) for name in names])
    below = [str(Path(name).relative_to(root)) for name in names]
    columns = Columns()
    for row in order.tolist():
        name = part_name(below[tar_of[row]], offsets[row], sizes[row], os.fsdecode(keys[row]))
        columns.add(speakers[row].decode(), name)
    return columns.utterances(Path(root))


def _look(tars: list[str], workers: int) -> dict[str, Shard]:
    """What is in these tars; threads, because this waits for the disk."""
    found: dict[str, Shard] = {}
    bar = tqdm(total=len(tars), desc='index', unit='shard', disable=None)
    chunk = AHEAD * max(workers, 1)
    with ThreadPoolExecutor(max(workers, 1)) as pool, bar:
        for first in range(0, len(tars), chunk):
            some = tars[first : first + chunk]
            found.update(zip(some, pool.map(_shard, some)))
            bar.update(len(some))
    return found


def _shard(tar: str) -> Shard:
    keys, speakers, places = [], [], []
    stamp = _stamp(tar)
    with FileIO(tar) as file:
        for key, group in groupby(members(file, tar), lambda member: _split(member, tar)[0]):
            speaker, audio = _sample(key, list(group), file, tar)
            keys.append(os.fsencode(key))
            speakers.append(speaker)
            places.append((audio.offset, audio.size))
    table = np.array(places, dtype=np.int64).reshape(-1, 2)
    return Shard(np.array(keys, 'S'), np.array(speakers, 'S'), table[:, 0], table[:, 1], stamp)


def _stamp(tar: str) -> tuple[int, int]:
    try:
        found = os.stat(tar)
    except OSError as error:
        raise DataError(f'{tar}: shard cannot be read ({error.strerror})') from None
    return found.st_size, found.st_mtime_ns


def _split(member: Member, tar: str) -> tuple[str, str]:
    """Key and suffix, parted at the last dot (spec enskd 2.2)."""
    key, suffix = os.path.splitext(member.name)
    if suffix != '.spk' and suffix not in AUDIO:
        raise DataError(
            f'{tar}: member {member.name} is neither a speaker (.spk) nor decoded audio '
            f'({", ".join(AUDIO)}): convert it or leave it out'
        )
    return key, suffix


def _sample(key: str, group: list[Member], file: FileIO, tar: str) -> tuple[bytes, Member]:
    """Speaker and audio of an utterance, from its consecutive members."""
    labels = [member for member in group if member.name.endswith('.spk')]
    if len(labels) != 1 or len(group) != 2:
        raise DataError(
            f'{tar}: {key} has {len(labels)} .spk and {len(group) - len(labels)} audio members in '
            'a row: one of each is needed'
        )
    speaker = os.pread(file.fileno(), min(labels[0].size, 1024), labels[0].offset).strip()
    try:
        words = speaker.decode().split()
    except UnicodeDecodeError:
        words = []
    if len(words) != 1:
        raise DataError(f'{tar}: {labels[0].name} must hold one speaker, not {speaker[:60]!r}')
    return speaker, next(member for member in group if member not in labels)


def _save(kept: str | Path, shards: dict[str, Shard]) -> None:
    columns = [shard[:4] for shard in shards.values()]
    table: dict[str, Any] = {'version': VERSION}
    for name, parts in zip(Shard._fields, zip(*columns)):
        table[name] = np.concatenate(parts)
    table['stamps'] = np.array([shard.stamp for shard in shards.values()])
    table['counts'] = np.array([len(shard.keys) for shard in shards.values()])
    table['tars'] = np.array([os.fsencode(name) for name in shards])
    with replacing(kept) as temporary, open(temporary, 'wb') as file:
        np.savez_compressed(file, **table)


def _load(kept: str | Path) -> dict[str, Shard]:
    """What the index file says, in its order; nothing where there is none or one of old."""
    try:
        with np.load(kept) as file:
            table = dict(file)
        if table['version'] != VERSION:
            return {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        raise DataError(f'{kept}: is no index of shards: give another name, or remove it') from None
    cuts = np.cumsum(table['counts'])[:-1]
    columns = [np.split(table[name], cuts) for name in Shard._fields[:4]]
    stamps = [(int(size), int(changed)) for size, changed in table['stamps']]
    names = [os.fsdecode(name) for name in table['tars']]
    return {name: Shard(*row) for name, *row in zip(names, *columns, stamps)}
