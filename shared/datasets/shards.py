"""Tar shards of utterances: what is in one, and the writing of them.

In a shard an utterance is consecutive members, `<key>.spk` (its speaker) and `<key>.<suffix>` (its
audio), as wespeaker packs them (spec enskd 2.2), where a key often ends in `.wav` itself; or
`<key>.<suffix>` beside others that are not looked at, as webdataset has it. Taken are wav and FLAC:
libsndfile's crops of lossy formats differ from the whole file's samples.
"""

import os
import random
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from shared import ddp
from shared.datasets.headers import HEADER, form
from shared.datasets.items import DataError, Utterances
from shared.datasets.lists import AUDIO, bad_line, lines
from shared.datasets.outer_files import LocalFile, Stamp, Window, is_url, open_outer, place_of
from shared.datasets.tars import Member, members, safe_name
from shared.files import replacing, write_text

LIST, SHARD, SPEAKERS = 'shard.list', 'shards/shards_{:09d}.tar', 'utt2spk'  # spec enskd 2.1, 2.2
AHEAD = 4  # tars waiting for each thread
READ_AHEAD = 32  # files read at a time while a shard is written
WINDOW, REMOTE_WINDOW = 4096, 65536  # bytes read at once around headers
Rows = list[tuple[Path, str, str]]  # file, key, speaker of the utterances of a shard
LOSSY = ('.m4a', '.mp3', '.aac', '.ogg', '.opus', '.wma', '.mp4')


class Shard(NamedTuple):
    """The n utterances of one tar in columns, in its order, and the tar's stamp.

    `names` and `speakers` (n,) are bytes, a speaker empty where there is none; the audio of each
    is at [offset, offset + size), (n,); `forms` (n, 3) is what `headers.form` tells of it.
    """

    names: np.ndarray
    speakers: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    forms: np.ndarray
    stamp: Stamp


def listed_tars(list_path: str | Path, root: str | Path | None = None) -> list[str]:
    """Paths and URLs of a shard.list; relative paths start from `root`, by default its folder.

    Raises:
        DataError: no line, or a line that is no path.
    """
    above, tars = Path(list_path).absolute().parent if root is None else Path(root), []
    for number, fields in lines(list_path):
        if len(fields) != 1:
            raise bad_line(list_path, number, fields, 'must be the path of a tar')
        tars.append(place_of(fields[0], above, list_path))
    if not tars:
        raise DataError(f'{list_path}: is empty; lines must be paths of tars')
    return tars


def look_into(tars: Sequence[str], workers: int) -> Iterator[Shard]:
    """What is in each of these tars, from headers alone; threads, because this waits for the disk.

    Raises:
        DataError: an unusable tar (see `tars.members`), an utterance without audio or with two.
    """
    bar = tqdm(total=len(tars), desc='index', unit='shard', disable=None)
    chunk = AHEAD * max(workers, 1)
    with ThreadPoolExecutor(max(workers, 1)) as pool, bar:
        for first in range(0, len(tars), chunk):
            for shard in pool.map(_shard, tars[first : first + chunk]):
                bar.update()
                yield shard


def _shard(tar: str) -> Shard:
    outer = open_outer(tar)
    file = Window(outer, REMOTE_WINDOW if is_url(tar) else WINDOW)
    names, speakers, table = [], [], []
    for key, group in groupby(members(file, tar), lambda member: os.path.splitext(member.name)[0]):
        speaker, audio = _sample(key, list(group), file, tar)
        suffix = os.path.splitext(audio.name)[1]
        names.append(os.fsencode(key if key.endswith(suffix) else audio.name))
        speakers.append(speaker)
        head = file.pread(min(audio.size, HEADER), audio.offset)
        table.append((audio.offset, audio.size, *form(head, audio.size)))
    places = np.array(table, dtype=np.int64).reshape(-1, 5)
    offsets, sizes, forms = places[:, 0], places[:, 1], places[:, 2:]
    names_of, speakers_of = np.array(names, 'S'), np.array(speakers, 'S')
    return Shard(names_of, speakers_of, offsets, sizes, forms, outer.stamp)


def _sample(
    key: str, group: list[Member], file: LocalFile | Window, tar: str
) -> tuple[bytes, Member]:
    """Speaker, b'' where there is none, and audio of an utterance, from its consecutive members."""
    labels = [member for member in group if member.name.endswith('.spk')]
    audio = [member for member in group if member.name.endswith(AUDIO)]
    if len(audio) != 1 or len(labels) > 1:
        lossy = next((member.name for member in group if member.name.endswith(LOSSY)), None)
        raise DataError(
            f'{tar}: {key} has {len(labels)} .spk and {len(audio)} audio members '
            f'({", ".join(AUDIO)}) in a row: one of each is needed'
            + (f'; convert {lossy} to one of them' if lossy else '')
        )
    if not labels:
        return b'', audio[0]
    speaker = file.pread(min(labels[0].size, 1024), labels[0].offset).strip()
    try:
        words = speaker.decode().split()
    except UnicodeDecodeError:
        words = []
    if len(words) != 1 or not words[0].isprintable():
        raise DataError(f'{tar}: {labels[0].name} must hold one speaker, not {speaker[:60]!r}')
    return speaker, audio[0]


def write_shards(
    utterances: Utterances, folder: str | Path, per_shard: int = 1000, seed: int = 42
) -> Path:
    """Packs utterances as wespeaker does, shuffled once; their files are kept byte by byte.

    Writes `shards/shards_%09d.tar`, `utt2spk` (key = path below the root) and, last, `shard.list`
    with paths that start from `folder`. Equal utterances and seed give equal bytes. Whole shards
    that are there already stay, so a call that was interrupted can be repeated.

    Args:
        utterances: what to pack, of a folder or a list of files.
        folder: of the set; made where it is not.
        per_shard: utterances in a tar (spec enskd 2.2).
        seed: of the order (spec enskd 2.2).

    Returns:
        The path of `shard.list`.

    Raises:
        DataError: the folder holds other shards or lists, a file cannot be read or is of a kind
            that is not decoded, a name is unsafe or holds blanks; `UserError` when the disk is full.
    """
    folder = Path(folder)
    labels = [_line(utterances, row) for row in range(len(utterances))]
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    names = [SHARD.format(number) for number in range(-(-len(order) // per_shard))]
    lists = {
        SPEAKERS: ''.join(f'{line}\n' for line in labels),
        LIST: ''.join(f'{name}\n' for name in names),
    }
    for name, text in lists.items():
        if (folder / name).exists() and (folder / name).read_text(encoding='utf-8') != text:
            raise _others(folder / name)
    hidden = not ddp.is_main() or None
    for number, name in enumerate(tqdm(names, desc='pack', unit='shard', disable=hidden)):
        rows = order[number * per_shard : (number + 1) * per_shard]
        shard: Rows = []
        for row in rows:
            key, speaker = labels[row].split()
            shard.append((utterances.path(row), key, speaker))
        if (folder / name).exists():
            _require_same(folder / name, shard)
        else:
            _write(folder / name, shard)
    for name, text in lists.items():
        if not (folder / name).exists():
            write_text(folder / name, text)
    return folder / LIST


def _write(path: Path, rows: Rows) -> None:
    with (
        replacing(path) as temporary,
        tarfile.open(temporary, 'w') as tar,
        ThreadPoolExecutor(READ_AHEAD // 2) as pool,
    ):
        for first in range(0, len(rows), READ_AHEAD):
            some = rows[first : first + READ_AHEAD]
            for (file, key, speaker), content in zip(some, pool.map(_bytes, some)):
                _add(tar, f'{key}.spk', speaker.encode())
                _add(tar, key + file.suffix, content)


def _require_same(path: Path, rows: Rows) -> None:
    """That a shard holds these utterances, as far as names and sizes tell."""
    file = LocalFile(path)
    found = [(m.name, m.size) for m in members(Window(file, WINDOW), path)]
    wanted: list[tuple[str, int]] = []
    for source, key, speaker in rows:
        wanted += [(f'{key}.spk', len(speaker.encode())), (key + source.suffix, _size(source))]
    if found != wanted:
        raise _others(path)


def _others(path: Path) -> DataError:
    return DataError(
        f'{path}: is there already, of other files or another seed: give another folder'
    )


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


def _bytes(row: tuple[Path, str, str]) -> bytes:
    try:
        return row[0].read_bytes()
    except OSError as error:
        raise DataError(f'{row[0]}: cannot be read ({error.strerror})') from None


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from None


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, BytesIO(content))
