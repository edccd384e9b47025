"""VoxCeleb1 in one folder: its development and test parts come apart, Vox1-E and Vox1-H need both."""

import filecmp
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from shared.datasets.items import DataError, Utterances
from shared.datasets.voxceleb import read_folder
from shared.errors import UserError
from shared.files import replacing


@dataclass(frozen=True)
class Merged:
    """What `folder` holds: `speakers` of which `new` came by this call."""

    folder: Path
    speakers: int
    new: int


def merge(parts: Iterable[str | Path], out: str | Path, copy: bool = False) -> Merged:
    """Brings the speakers of several folders into one, as links; a second call does nothing.

    A speaker that two folders have with the same files is taken from the first.

    Args:
        parts: folders of speakers.
        out: new, or of an earlier call; none of the parts.
        copy: copies the files, for a disk without links.

    Raises:
        DataError: no speakers in a folder; a speaker in two folders with different files; a
            speaker in `out` that is not of these folders.
        UserError: the disk is full or not writable.
    """
    out = Path(out)
    sources: dict[str, tuple[Path, list[str]]] = {}  # speaker -> where, and its files
    for part in map(Path, parts):
        read = read_folder(part)
        here, there = out.resolve(), part.resolve()
        if here == there or here.is_relative_to(there) or there.is_relative_to(here):
            raise UserError(f'{out}: and {part} hold one another: name a folder beside it')
        if not (part / read.speaker_ids[0]).is_dir():
            raise DataError(f'{part}: is packed: merge folders, then pack the one of both')
        for speaker, names in _by_speaker(read).items():
            before = sources.setdefault(speaker, (part, names))
            if before[0] != part and not _same(before, (part, names)):
                raise DataError(
                    f'{part / speaker}: and {before[0] / speaker} hold different files under one '
                    'speaker: they are of different corpora, or one is incomplete'
                )
    make = _copy if copy else _link
    new = 0
    for speaker, (part, names) in tqdm(sources.items(), 'merging', unit='speaker', disable=None):
        new += make(part / speaker, out / speaker, [n.partition('/')[2] for n in names])
    return Merged(out, len(sources), new)


def _by_speaker(read: Utterances) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {speaker: [] for speaker in read.speaker_ids}
    for i, speaker in enumerate(read.speakers.tolist()):
        names[read.speaker_ids[speaker]].append(read.name(i))
    return names


def _same(one: tuple[Path, list[str]], other: tuple[Path, list[str]]) -> bool:
    """Whether two folders hold the same files of a speaker, byte by byte."""
    if one[1] != other[1]:
        return False
    return all(filecmp.cmp(one[0] / name, other[0] / name, shallow=False) for name in one[1])


def _link(source: Path, target: Path, names: list[str]) -> bool:
    """Links a speaker's folder, relatively: both may move together. Whether it was not there."""
    if os.path.lexists(target):
        if target.is_symlink() and target.resolve() == source.resolve():
            return False
        raise DataError(
            f'{target}: is there, and is no link to {source}: name a new folder, or --copy as before'
        )
    with replacing(target) as temporary:
        above = target.parent.resolve()
        temporary.symlink_to(os.path.relpath(source.resolve(), above), target_is_directory=True)
    return True


def _copy(source: Path, target: Path, names: list[str]) -> bool:
    """Copies the files of a speaker that are not there yet; whether there were such."""
    if target.is_symlink():
        raise DataError(f'{target}: is a link: name a new folder, or leave --copy out as before')
    new = False
    for name in names:
        if not (target / name).exists():
            with replacing(target / name) as temporary:
                shutil.copyfile(source / name, temporary)
            new = True
    return new
