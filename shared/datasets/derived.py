"""Many derived files from many sources: in parallel, each whole or absent, continued when killed.

The folder keeps a record: `manifest.unfinished.json` (the settings) from the first file on, which
becomes `manifest.json` (settings, and counts of every finished list of sources) after the last.
"""

import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

import torch
from tqdm import tqdm

from shared import ddp
from shared.datasets.decoding import AudioError
from shared.datasets.items import DataError
from shared.datasets.lists import listing
from shared.errors import UserError
from shared.files import remove_unfinished, write_text

MANIFEST, UNFINISHED, SKIPPED = 'manifest.json', 'manifest.unfinished.json', 'skipped.txt'
GIVE_UP = 100  # bad sources over the share: looking at the rest would only take time
CHUNK = 32  # sources handed to a process at a time, at most
AHEAD = 4  # chunks waiting for each process
PRELOADED = [__name__, 'shared.datasets.reading']

_worker: tuple['Maker', Path]  # of a process of the pool


class Maker(Protocol):
    """What is made of one source. Worker processes get a pickled copy.

    A file may depend on the maker and its source alone, so that it is the same in any order.
    """

    def targets(self, source: str) -> Sequence[str]:
        """The files of this source, relative to the folder."""

    def make(self, source: str, missing: Sequence[str], folder: Path) -> None:
        """Writes the targets that are `missing`, each through `files.replacing`.

        Raises:
            AudioError: the source cannot be used; it is skipped and listed.
        """


@runtime_checkable
class GroupMaker(Maker, Protocol):
    """A maker for which several sources at a time cost less than one by one."""

    def make_group(self, missing: Mapping[str, Sequence[str]], folder: Path) -> Mapping[str, str]:
        """As `make` for every source of `missing`; returns why, for those that cannot be used."""


@dataclass(frozen=True)
class Manifest:
    """What is in `folder`: `files` made of `sources`, of which `skipped` could not be used."""

    folder: Path
    sources: int
    files: int
    skipped: int


def make_files(
    sources: Sequence[str],
    maker: Maker,
    *,
    folder: str | Path,
    settings: Mapping[str, Any],
    workers: int,
    title: str,
    max_skipped: float = 0.01,
) -> Manifest:
    """Makes the files of every source; returns at once where the folder has them all.

    Called by every rank: rank 0 makes, the others wait. Files that are there are kept, so a killed
    call is continued by the next, and another list of sources adds to a complete folder. Sources
    that cannot be used are listed in `skipped.txt`, and are tried again by the next call.

    Args:
        sources: names, such as paths relative to a folder that the maker knows.
        maker: see `Maker`; defined at the top level of a module.
        folder: where the targets go; new, or of an earlier call.
        settings: everything but the source that a file depends on (plain values; seed included).
        workers: processes, one thread each; 0 works in this one.
        title: of the progress bar and of messages.
        max_skipped: part of the sources, from 0 to 1, that may be skipped.

    Raises:
        UserError: no sources; the folder was made with other settings or by someone else; too many
            bad sources; disk full; a worker killed.
    """
    manifest = None
    if ddp.is_main():
        folder, wanted = Path(folder), json.loads(json.dumps(dict(settings)))
        lists, digest = finished_lists(folder, wanted, title), digest_of(sources)
        if not sources:
            raise UserError(f'{folder}: nothing to make, the list of sources is empty ({title})')
        before = lists.get(digest)
        again = _skipped(folder, sources) if before and before['skipped'] else []
        if before is None or again:
            if not lists:
                _write_record(folder, wanted, lists)
            remove_unfinished(folder)
            todo, allowed = again or sources, int(max_skipped * len(sources))
            files, skipped = _make_all(todo, maker, folder, workers, title, allowed)
            files += before['files'] if before else 0
            lists[digest] = {'sources': len(sources), 'files': files, 'skipped': skipped}
            if lists[digest] != before:
                _write_record(folder, wanted, lists)
                os.replace(folder / UNFINISHED, folder / MANIFEST)
        manifest = Manifest(folder, **lists[digest])
    return ddp.broadcast_object(manifest)


def digest_of(names: Sequence[str]) -> str:
    """16 hexadecimal digits that stand for a set of names, in any order."""
    text = '\n'.join(sorted(names)).encode('utf-8', 'surrogateescape')
    return hashlib.sha256(text).hexdigest()[:16]


def finished_lists(folder: Path, wanted: Mapping[str, Any], title: str) -> dict[str, dict]:
    """Counts of every finished list of sources, by digest; makes sure that adding harms nothing."""
    for record in (folder / MANIFEST, folder / UNFINISHED):
        if not record.exists():
            continue
        try:
            found = json.loads(record.read_text())
            there, lists = found['settings'], found['lists']
        except (ValueError, KeyError, TypeError, OSError):
            raise UserError(f'{record}: is not a readable record; name another folder') from None
        differing = [
            f'{key}: {there.get(key)} there, {wanted.get(key)} wanted'
            for key in {**wanted, **there}
            if there.get(key) != wanted.get(key)
        ]
        if differing:
            raise UserError(
                f'{folder} was made with other settings ({"; ".join(differing)}); '
                f'name another folder for: {title}'
            )
        return lists if record.name == MANIFEST else {}
    # Hidden files are no one's data: a killed `replacing` leaves one.
    if folder.is_dir() and any(name[0] != '.' for name in os.listdir(folder)):
        raise UserError(
            f'{folder} holds {listing(folder)}, but no {MANIFEST}: it was not made here; '
            f'name another folder for: {title}'
        )
    return {}


def _write_record(folder: Path, settings: Mapping[str, Any], lists: dict[str, dict]) -> None:
    record = {'settings': settings, 'lists': lists}
    write_text(folder / UNFINISHED, json.dumps(record, indent=1) + '\n')


def _make_all(
    sources: Sequence[str],
    maker: Maker,
    folder: Path,
    workers: int,
    title: str,
    allowed: int,
) -> tuple[int, int]:
    """Makes what is missing; numbers of files and of skipped sources, of which some are allowed."""
    files, bad = 0, {}
    with tqdm(total=len(sources), desc=title, unit='file', disable=None) as bar:
        for source, made, error in _results(sources, maker, folder, workers):
            bar.update()
            files += made
            if error is not None:
                bad[source] = error
                if len(bad) > max(allowed, GIVE_UP):
                    break
    _list_skipped(folder / SKIPPED, bad, sources)
    if len(bad) > allowed:
        raise UserError(
            f'{title}: {len(bad)} of {len(sources)} files cannot be used, {allowed} may be; '
            f'the first: {next(iter(bad.values()))}; all are listed in {folder / SKIPPED}: '
            'mend them, then run the same command again'
        )
    return files, len(bad)


def _skipped(folder: Path, sources: Sequence[str]) -> list[str]:
    """Those of the sources that `skipped.txt` lists, in its order."""
    here = set(sources)
    listed = [line.partition('\t')[0] for line in _lines(folder / SKIPPED)]
    return [source for source in listed if source in here]


def _list_skipped(path: Path, bad: dict[str, str], sources: Sequence[str]) -> None:
    """Lines `source<tab>why`; those of other lists of sources stay."""
    here, old = set(sources), _lines(path)
    kept = [line for line in old if line.partition('\t')[0] not in here]
    new = sorted(kept + [f'{source}\t{why}' for source, why in bad.items()])
    if new != old:
        write_text(path, ''.join(f'{line}\n' for line in new))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding='utf-8').splitlines() if path.exists() else []


def _results(
    sources: Sequence[str], maker: Maker, folder: Path, workers: int
) -> Iterator[tuple[str, int, str | None]]:
    """(source, files it has, why it was skipped) of every source, in any order."""
    if workers < 1:
        for first in range(0, len(sources), CHUNK):
            yield from _make_chunk(sources[first : first + CHUNK], maker, folder)
        return
    size = max(1, min(CHUNK, len(sources) // (16 * workers)))
    # forkserver: the caller may hold CUDA or threads, and the libraries are imported once for all.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOADED)
    processes = min(workers, len(sources))
    pool = ProcessPoolExecutor(processes, context, _start_worker, (maker, folder))
    waiting: set[Future] = set()
    try:
        for first in range(0, len(sources), size):
            waiting.add(pool.submit(_make_chunk_here, sources[first : first + size]))
            if len(waiting) >= AHEAD * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield from future.result()
        for future in waiting:
            yield from future.result()
    except BrokenProcessPool:
        raise UserError(
            f'{folder}: a worker process was killed (out of memory?); run the same command again '
            'to go on, with fewer workers'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(maker: Maker, folder: Path) -> None:
    """One thread; signals are the parent's to handle."""
    global _worker
    _worker = maker, folder
    torch.set_num_threads(1)
    ddp.leave_signals_to_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the one that started it is killed: the pool alone would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make_chunk_here(sources: Sequence[str]) -> list[tuple[str, int, str | None]]:
    return list(_make_chunk(sources, *_worker))


def _make_chunk(
    sources: Sequence[str], maker: Maker, folder: Path
) -> Iterator[tuple[str, int, str | None]]:
    if not isinstance(maker, GroupMaker):
        yield from (_make_one(source, maker, folder) for source in sources)
        return
    targets = {source: maker.targets(source) for source in sources}
    missing = {source: _missing(names, folder) for source, names in targets.items()}
    missing = {source: names for source, names in missing.items() if names}
    bad = maker.make_group(missing, folder) if missing else {}
    for source, names in targets.items():
        yield source, 0 if source in bad else len(names), bad.get(source)


def _make_one(source: str, maker: Maker, folder: Path) -> tuple[str, int, str | None]:
    try:
        targets = maker.targets(source)
        if missing := _missing(targets, folder):
            maker.make(source, missing, folder)
    except AudioError as error:
        return source, 0, str(error)
    return source, len(targets), None


def _missing(targets: Sequence[str], folder: Path) -> list[str]:
    return [target for target in targets if not (folder / _inside(target)).exists()]


def _inside(target: str) -> str:
    path = PurePosixPath(target)
    if path.is_absolute() or '..' in path.parts:
        raise DataError(f'{target}: leads out of the folder it belongs in; correct the list')
    return target
