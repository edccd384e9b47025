"""Audio of any kind as 16 kHz mono wav (PCM-16) or FLAC, the same tree, by ffmpeg in a process pool.

Several files go to one ffmpeg: starting it costs twice what decoding 8 s of m4a does.
"""

import contextlib
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import imageio_ffmpeg

from shared.datasets.decoding import AudioError, Pcm16Wav, open_file
from shared.datasets.derived import Manifest, make_files
from shared.datasets.items import DataError
from shared.datasets.lists import existing, listing
from shared.errors import UserError
from shared.files import replacing

# of files that hold audio; `.mp4` and `.webm` usually a picture too, which is left out
COMPRESSED = ('.m4a', '.aac', '.mp3', '.mp4', '.ogg', '.opus', '.oga', '.webm', '.wma', '.amr')
SUFFIXES = (*COMPRESSED, '.wav', '.flac', '.aif', '.aiff', '.sph', '.au', '.caf')
ENCODERS = {
    'wav': ('-c:a', 'pcm_s16le', '-f', 'wav'),
    # without the 8 KiB that ffmpeg leaves free for titles
    'flac': ('-c:a', 'flac', '-sample_fmt', 's16', '-metadata_header_padding', '0', '-f', 'flac'),
}
GROUP = 16  # files of one ffmpeg; more gains nothing
SECONDS = 600  # an ffmpeg that takes longer hangs
FULL = re.compile('No space left|quota exceeded|Read-only file system', re.IGNORECASE)
STATED = re.compile(r'^(\[[^]]*\] )*')  # who says it, before a line of ffmpeg


def convert(
    source: str | Path,
    out: str | Path,
    *,
    form: str = 'wav',
    rate: int = 16000,
    workers: int = 0,
    max_skipped: float = 0.01,
) -> tuple[Manifest, int]:
    """Every audio file below `source`, at the same place below `out`; how many files were no audio.

    Killed and continued, the files are the same; a second call does nothing. Files that ffmpeg
    cannot decode from beginning to end are listed in `skipped.txt` with its reason, and tried again
    by the next call. PCM-16 wavs that need no change are hard-linked, or copied where that cannot be.

    Args:
        source: folder, searched at any depth.
        out: new, or of an earlier call with the same `form` and `rate`; not inside `source`.
        form: 'wav' or 'flac'.
        rate: Hz.
        workers: processes.
        max_skipped: part of the files, from 0 to 1, that may be unusable.

    Raises:
        UserError: as `make_files`; no ffmpeg; nothing to convert; two files that would become one.
    """
    source = existing(source, 'folder to convert')
    if Path(out).resolve().is_relative_to(source.resolve()):
        raise UserError(f'{out}: is inside {source}: name a folder beside it')
    maker = Conversion(source, form, rate, find_ffmpeg())
    names, others = audio_names(source)
    targets = Counter(target for name in names for target in maker.targets(name))
    twice = [target for target, count in targets.items() if count > 1]
    if twice:
        raise DataError(
            f'{source}: {len(twice)} files of another suffix would become the same, the first '
            f'{twice[0]}: convert one kind, from a folder of its own'
        )
    made = make_files(
        names,
        maker,
        folder=out,
        settings={'made': 'conversion', 'version': 1, 'form': form, 'rate': rate},
        workers=workers,
        title=f'converting to {form}',
        max_skipped=max_skipped,
    )
    return made, others


def audio_names(source: Path) -> tuple[list[str], int]:
    """Audio files below a folder, relative to it, in sorted order, and the number of other files.

    Raises:
        DataError: none; or a name that no list could hold.
    """
    names, others = [], 0
    for folder, folders, files in os.walk(source, followlinks=True):
        folders.sort()
        inside = os.path.relpath(folder, source)
        for name in sorted(files):
            if name.startswith('.') or not name.lower().endswith(SUFFIXES):
                others += 1
                continue
            names.append(name if inside == '.' else f'{inside}/{name}')
    if not names:
        raise DataError(f'{source}: no audio file below it; it holds {listing(source)}')
    strange = next((name for name in names if not name.isprintable()), None)
    if strange is not None:
        raise DataError(f'{source}: {strange!r} is no name for a list: rename it')
    return names, others


def find_ffmpeg() -> str:
    """The ffmpeg of this machine, or the one that imageio-ffmpeg brings along.

    Raises:
        UserError: neither runs.
    """
    whys = []
    for find in (lambda: shutil.which('ffmpeg'), imageio_ffmpeg.get_ffmpeg_exe):
        try:
            if exe := find():
                subprocess.run([exe, '-version'], capture_output=True, check=True)
                return exe
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            whys.append(str(error))
    raise UserError(
        f'no ffmpeg runs here ({"; ".join(whys)}): install it, or pip install imageio-ffmpeg'
    )


class Conversion:
    """Maker of one converted file a source; see `derived.GroupMaker`.

    Args:
        source: folder of the sources.
        form: 'wav' or 'flac'.
        rate: Hz.
        ffmpeg: the program.
    """

    def __init__(self, source: Path, form: str, rate: int, ffmpeg: str):
        self.source, self.form, self.rate, self.ffmpeg = source.absolute(), form, rate, ffmpeg

    def targets(self, source: str) -> list[str]:
        """The same path with the new suffix."""
        return [str(PurePosixPath(source).with_suffix(f'.{self.form}'))]

    def make(self, source: str, missing: Sequence[str], folder: Path) -> None:
        """One file by an ffmpeg of its own.

        Raises:
            AudioError: ffmpeg's reason, in one line.
        """
        if why := self._encode({source: missing[0]}, folder):
            raise AudioError(f'{self.source / source}: {why}')

    def make_group(self, missing: Mapping[str, Sequence[str]], folder: Path) -> dict[str, str]:
        """Several files an ffmpeg; where it fails each by its own, which tells whose fault it is."""
        bad, todo = {}, {}
        for source, targets in missing.items():
            path = self.source / source
            if path.exists() and not path.stat().st_size:
                bad[source] = f'{path}: is empty (0 bytes)'
            elif not self._link(source, folder / targets[0]):
                todo[source] = targets[0]
        sources = list(todo)
        for first in range(0, len(sources), GROUP):
            group = {source: todo[source] for source in sources[first : first + GROUP]}
            if len(group) > 1 and not self._encode(group, folder):
                continue
            for source, target in group.items():
                try:
                    self.make(source, [target], folder)
                except AudioError as error:
                    bad[source] = str(error)
        return bad

    def _link(self, source: str, target: Path) -> bool:
        """Links or copies a wav that is as it should be; whether it did."""
        if self.form != 'wav' or not source.lower().endswith('.wav'):
            return False
        path = os.path.realpath(self.source / source)
        try:
            file = open_file(path)
        except AudioError:
            return False  # ffmpeg reads more kinds, and says what is wrong
        file.close()
        if not isinstance(file, Pcm16Wav) or (file.samplerate, file.channels) != (self.rate, 1):
            return False
        with replacing(target) as temporary:
            try:
                os.link(path, temporary)
            except OSError:  # another disk, or one without links
                shutil.copyfile(path, temporary)
        return True

    def _encode(self, targets: Mapping[str, str], folder: Path) -> str:
        """Runs ffmpeg; '' when every file is whole and in its place, else why none of them is."""
        command = [self.ffmpeg, '-nostdin', '-hide_banner', '-v', 'error', '-xerror', '-y']
        for source in targets:
            # a file that is really a play list must not reach other places
            command += ['-threads', '1', '-protocol_whitelist', 'file']
            command += ['-i', f'file:{self.source / source}']
        try:
            with contextlib.ExitStack() as stack:
                paths = [stack.enter_context(replacing(folder / t)) for t in targets.values()]
                for number, path in enumerate(paths):
                    command += ['-map', f'{number}:a:0', '-threads', '1', '-ac', '1']
                    command += ['-ar', str(self.rate), '-map_metadata', '-1', '-bitexact']
                    command += [*ENCODERS[self.form], f'file:{path.absolute()}']
                self._run(command, folder)
                for path in paths:
                    require_samples(path)
        except _Failed as failed:
            return str(failed)
        return ''

    def _run(self, command: list[str], folder: Path) -> None:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=SECONDS,
                start_new_session=True,  # Ctrl-C is the caller's: no file is bad because of it
            )
        except subprocess.TimeoutExpired:
            raise _Failed(f'ffmpeg takes more than {SECONDS} s') from None
        said = done.stderr.decode(errors='replace')
        if done.returncode < 0:
            raise UserError(
                f'{folder}: ffmpeg was killed (signal {-done.returncode}; out of memory?); run the '
                'same command again to go on, with fewer workers'
            )
        if FULL.search(said):
            raise UserError(
                f'{folder}: cannot be written ({reason(said)}); free some space, then run the '
                'same command again to go on'
            )
        if done.returncode:
            raise _Failed(reason(said))


class _Failed(Exception):
    """ffmpeg did not make every file of a call."""


def require_samples(path: Path) -> None:
    """ffmpeg makes an empty file of a file without samples, and says nothing."""
    with contextlib.suppress(AudioError):
        file = open_file(path)
        with contextlib.closing(file):
            if file.frames and len(file.read(0, 1, None)):  # a FLAC may promise more than it has
                return
    raise _Failed('holds no samples')


def reason(said: str) -> str:
    """The first of ffmpeg's lines, which names the cause, without who says it."""
    lines = [STATED.sub('', line).strip() for line in said.splitlines()]
    lines = [' '.join(line.split()) for line in lines if line.strip('" .')]
    if not lines:
        return 'ffmpeg gives no reason'
    if 'matches no streams' in lines[0]:
        return 'holds no audio'
    return 'is cut short' if lines[0].startswith('corrupt input packet') else lines[0][:200]
