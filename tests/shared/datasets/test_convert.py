"""Audio of any kind to wav and FLAC, by ffmpeg: the same tree, continued, bad files told."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile

from shared.datasets import convert as module
from shared.datasets.convert import convert, find_ffmpeg, reason
from shared.datasets.decoding import Pcm16Wav, open_file
from shared.errors import UserError

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
SECONDS = (0.3, 0.7, 1.1, 0.5)
BAD = {  # ffmpeg's own reason, or ours
    'id1/bad/cut.m4a': 'moov atom not found',
    'id1/bad/empty.m4a': 'is empty \\(0 bytes\\)',
    'id1/bad/fast.m4a': 'is cut short',
    'id1/bad/picture.m4a': 'holds no audio',
    'id1/bad/text.wav': 'Invalid data found when processing input',
    'id1/bad/silent.wav': 'holds no samples',
}


def ffmpeg(*command, **options):
    subprocess.run([FFMPEG, '-v', 'error', '-y', *command], check=True, **options)


def encode(path, seconds, *options, seed=0):
    """Noise as ffmpeg encodes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(seed).normal(0, 3000, int(16000 * seconds)).astype('<i2')
    raw = ('-f', 's16le', '-ar', '16000', '-ac', '1', '-i', '-')
    ffmpeg(*raw, *options, str(path), input=wave.tobytes())


@pytest.fixture(scope='module')
def m4a(tmp_path_factory):
    """Eight speakers with five m4a files each, of four lengths; 'whole' without, 'some' with bad ones."""
    root = tmp_path_factory.mktemp('m4a')
    for i, seconds in enumerate(SECONDS):
        encode(root / f'{i}.m4a', seconds, seed=i)
    for i in range(40):
        target = root / 'whole' / f'id{i % 8}' / 'v' / f'{i:05d}.m4a'
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / f'{i % 4}.m4a', target)
    shutil.copytree(root / 'whole', root / 'some')
    bad = root / 'some' / 'id1' / 'bad'
    bad.mkdir()
    (bad / 'cut.m4a').write_bytes((root / '1.m4a').read_bytes()[:2500])
    (bad / 'empty.m4a').touch()
    ffmpeg('-i', str(root / '2.m4a'), '-c', 'copy', '-movflags', '+faststart', str(root / 'f.m4a'))
    (bad / 'fast.m4a').write_bytes((root / 'f.m4a').read_bytes()[:5000])
    picture = ('-f', 'lavfi', '-i', 'color=s=16x16:d=0.1', '-c:v', 'mpeg4', '-f', 'mp4')
    ffmpeg(*picture, str(bad / 'picture.m4a'))
    (bad / 'text.wav').write_text('hello')
    soundfile.write(bad / 'silent.wav', np.zeros(0), 16000, subtype='PCM_16')
    return root


def names(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob('*') if path.is_file())


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('form', ['wav', 'flac'])
def test_convert_gives_the_same_tree_at_16_khz(m4a, tmp_path, form):
    made, others = convert(m4a / 'whole', tmp_path / 'out', form=form)
    assert (made.sources, made.files, made.skipped, others) == (40, 40, 0, 0)
    expected = [name.replace('.m4a', f'.{form}') for name in names(m4a / 'whole')]
    assert [name for name in names(tmp_path / 'out') if name.endswith(form)] == expected
    for i, name in enumerate(sorted(expected, key=lambda name: name[-10:])[:4]):
        info = soundfile.info(tmp_path / 'out' / name)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, 'PCM_16')
        # the encoder pads to whole frames of 1024 samples
        assert 0 <= info.frames - int(16000 * SECONDS[i]) < 2048
        if form == 'wav':
            assert isinstance(open_file(tmp_path / 'out' / name), Pcm16Wav)


def test_convert_of_several_files_at_once_gives_what_one_by_one_gives(m4a, tmp_path, monkeypatch):
    convert(m4a / 'whole', tmp_path / 'group')
    monkeypatch.setattr(module, 'GROUP', 1)
    convert(m4a / 'whole', tmp_path / 'one')
    for name in names(tmp_path / 'one'):
        assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'group' / name).read_bytes()


def test_convert_again_does_nothing(m4a, tmp_path, monkeypatch):
    convert(m4a / 'some', tmp_path, max_skipped=0.5, workers=2)
    before, runs = times(tmp_path), []
    run = subprocess.run
    monkeypatch.setattr(subprocess, 'run', lambda *a, **k: runs.append(a) or run(*a, **k))
    made, _ = convert(m4a / 'some', tmp_path, max_skipped=0.5)
    assert (made.files, made.skipped) == (40, len(BAD))
    assert times(tmp_path) == before
    assert sum(str(tmp_path) in str(run) for run in runs) < 10  # the bad ones alone


def test_convert_tells_of_bad_files_with_the_reason(m4a, tmp_path):
    made, _ = convert(m4a / 'some', tmp_path / 'out', max_skipped=0.5)
    assert (made.sources, made.files, made.skipped) == (46, 40, 6)
    lines = (tmp_path / 'out' / 'skipped.txt').read_text().splitlines()
    for line, (name, why) in zip(lines, sorted(BAD.items()), strict=True):
        assert re.fullmatch(f'{name}\t.*{name}: .*{why}', line)
    wavs = [name for name in names(tmp_path / 'out') if name.endswith('.wav')]
    assert len(wavs) == 40 and not list((tmp_path / 'out').rglob('.*'))


def test_convert_stops_at_too_many_bad_files_and_goes_on_once_they_are_mended(m4a, tmp_path):
    source = shutil.copytree(m4a / 'some', tmp_path / 'in')
    with pytest.raises(
        UserError, match='converting to wav: 6 of 46 files cannot be used, 0 may be'
    ):
        convert(source, tmp_path / 'out')
    for name in BAD:
        if name.endswith('.m4a'):
            shutil.copyfile(m4a / '0.m4a', source / name)
    assert convert(source, tmp_path / 'out', max_skipped=0.1)[0].skipped == 2
    for name in BAD:  # also those that were allowed are tried again
        if name.endswith('.wav'):
            encode(source / name, 0.2)
    made, _ = convert(source, tmp_path / 'out', max_skipped=0.1)
    assert (made.files, made.skipped) == (46, 0)
    assert (tmp_path / 'out' / 'skipped.txt').read_text() == ''


KILLED = """#!/bin/sh
# the ffmpeg of this test: the third call with work waits until it is killed
if [ "$1" = -version ]; then exit 0; fi
echo call >> '{marks}'
if [ "$(wc -l < '{marks}')" -eq 3 ] && [ ! -e '{go}' ]; then exec sleep 30; fi
exec '{ffmpeg}' "$@"
"""


@pytest.mark.slow
def test_convert_that_was_killed_is_continued_by_the_same_command(m4a, tmp_path, monkeypatch):
    marks, go, folder = tmp_path / 'marks', tmp_path / 'go', tmp_path / 'bin'
    folder.mkdir()
    fake = folder / 'ffmpeg'
    fake.write_text(KILLED.format(marks=marks, go=go, ffmpeg=FFMPEG))
    fake.chmod(0o755)
    monkeypatch.setenv('PATH', str(folder), prepend=os.pathsep)
    command = [sys.executable, '-m', 'shared.datasets.prepare', 'convert', m4a / 'some']
    command += [tmp_path / 'out', '--max_skipped', '0.5', '--workers', '1']
    root = Path(__file__).parents[3]
    process = subprocess.Popen(list(map(str, command)), cwd=root, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not marks.exists() or len(marks.read_text().splitlines()) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / 'out').rglob('id*/*/*.wav')}
    assert 0 < len(done) < 40 and not (tmp_path / 'out' / 'manifest.json').exists()
    for path in done:  # whole, each of them
        assert soundfile.info(path).frames > 0
    go.touch()
    made, _ = convert(m4a / 'some', tmp_path / 'out', max_skipped=0.5)
    assert (made.files, made.skipped) == (40, 6)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    convert(m4a / 'some', tmp_path / 'once', max_skipped=0.5)
    for name in names(tmp_path / 'once'):
        if name.endswith('.wav'):
            once, twice = tmp_path / 'once' / name, tmp_path / 'out' / name
            assert once.read_bytes() == twice.read_bytes()


def test_convert_links_wavs_that_need_no_change_and_decodes_the_others(tmp_path):
    wave = np.random.default_rng(0).normal(0, 0.1, 8000)
    for name, rate, channels, subtype in (
        ('same.wav', 16000, 1, 'PCM_16'),
        ('rate.wav', 8000, 1, 'PCM_16'),
        ('stereo.wav', 16000, 2, 'PCM_16'),
        ('float.wav', 16000, 1, 'FLOAT'),
        ('UPPER.WAV', 16000, 1, 'PCM_16'),
        ('flac.flac', 16000, 1, 'PCM_16'),
    ):
        path = tmp_path / 'in' / 'id1' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.stack([wave] * channels, axis=1), rate, subtype=subtype)
    (tmp_path / 'in' / 'id1' / 'link.wav').symlink_to('same.wav')
    convert(tmp_path / 'in', tmp_path / 'out')
    sources, made = tmp_path / 'in' / 'id1', tmp_path / 'out' / 'id1'
    assert (made / 'same.wav').samefile(sources / 'same.wav')
    assert (made / 'link.wav').samefile(sources / 'same.wav')
    assert (made / 'UPPER.wav').samefile(sources / 'UPPER.WAV')
    expected = soundfile.read(sources / 'same.wav')[0]
    for name, error in (('stereo', 2e-4), ('float', 4e-5), ('flac', 4e-5)):
        found, rate = soundfile.read(made / f'{name}.wav')
        assert rate == 16000 and np.abs(found - expected).max() <= error
    assert abs(soundfile.info(made / 'rate.wav').frames - 16000) < 40


def test_convert_copies_where_a_link_cannot_be(tmp_path, monkeypatch):
    (tmp_path / 'in').mkdir()
    soundfile.write(tmp_path / 'in' / 'a.wav', np.ones(800) / 2, 16000, subtype='PCM_16')

    def refused(*_):
        raise OSError(18, 'Invalid cross-device link')

    monkeypatch.setattr(os, 'link', refused)
    convert(tmp_path / 'in', tmp_path / 'out')
    assert not (tmp_path / 'out' / 'a.wav').samefile(tmp_path / 'in' / 'a.wav')
    assert (tmp_path / 'out' / 'a.wav').read_bytes() == (tmp_path / 'in' / 'a.wav').read_bytes()


def test_convert_leaves_other_and_hidden_files_alone(m4a, tmp_path):
    source = tmp_path / 'in'
    source.mkdir()
    shutil.copyfile(m4a / '0.m4a', source / 'a.m4a')
    (source / '._a.m4a').write_text('of another system')
    (source / 'meta.csv').write_text('x')
    made, others = convert(source, tmp_path / 'out')
    assert (made.files, others) == (1, 2)


def test_convert_refuses_what_it_cannot_do_before_it_writes(m4a, tmp_path):
    def refused(said, source=tmp_path / 'in', out=tmp_path / 'out'):
        with pytest.raises(UserError, match=said):
            convert(source, out)
        assert not (tmp_path / 'out').exists()

    refused('in: no such folder .folder to convert.')
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'readme').write_text('x')
    refused('in: no audio file below it; it holds readme')
    shutil.copyfile(m4a / '0.m4a', tmp_path / 'in' / 'a.m4a')
    refused('is inside .*: name a folder beside it', out=tmp_path / 'in' / 'out')
    (tmp_path / 'in' / 'a.mp3').touch()
    refused('1 files of another suffix would become the same, the first a.wav')
    (tmp_path / 'in' / 'a.mp3').rename(tmp_path / 'in' / 'b\nc.mp3')
    refused(r"'b\\nc.mp3' is no name for a list: rename it")


def test_convert_refuses_a_folder_of_another_form(m4a, tmp_path):
    convert(m4a / 'whole', tmp_path)
    with pytest.raises(
        UserError, match='was made with other settings .form: wav there, flac wanted'
    ):
        convert(m4a / 'whole', tmp_path, form='flac')


@pytest.mark.parametrize(
    'script, said',
    [
        (
            'echo "av_write: No space left on device" >&2; exit 1',
            'out: cannot be written .*No space',
        ),
        ('kill -9 $$', r'ffmpeg was killed \(signal 9; out of memory\?\)'),
    ],
)
def test_convert_blames_no_file_for_a_full_disk_or_a_killed_ffmpeg(
    m4a, tmp_path, monkeypatch, script, said
):
    fake = tmp_path / 'bin' / 'ffmpeg'
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nif [ "$1" = -version ]; then exit 0; fi\n{script}\n')
    fake.chmod(0o755)
    monkeypatch.setenv('PATH', str(fake.parent), prepend=os.pathsep)
    with pytest.raises(UserError, match=said):
        convert(m4a / 'whole', tmp_path / 'out')
    assert json.loads((tmp_path / 'out' / 'manifest.unfinished.json').read_text())['lists'] == {}
    assert not list((tmp_path / 'out').rglob('*.wav'))


def test_find_ffmpeg_takes_that_of_the_machine_and_passes_over_a_broken_one(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    fake = tmp_path / 'ffmpeg'
    fake.write_text('#!/bin/sh\nexit 0\n')
    fake.chmod(0o755)
    assert find_ffmpeg() == str(fake)
    fake.write_text('#!/bin/sh\nexit 127\n')
    assert find_ffmpeg() == FFMPEG

    def missing():
        raise RuntimeError('No ffmpeg exe could be found')

    monkeypatch.setattr(imageio_ffmpeg, 'get_ffmpeg_exe', missing)
    with pytest.raises(UserError, match='no ffmpeg runs here .*status 127.; No ffmpeg exe'):
        find_ffmpeg()


@pytest.mark.parametrize(
    'said, why',
    [
        ('[aac @ 0x1] [dec:aac @ 0x2] Number of bands\nmore', 'Number of bands'),
        ("\nStream map '' matches no streams.\nTo ignore this", 'holds no audio'),
        ('[in#0/wav @ 0x3] corrupt input packet in stream 0', 'is cut short'),
        ('a\ttab\r', 'a tab'),
        ('', 'ffmpeg gives no reason'),
    ],
)
def test_reason_is_one_line_without_who_says_it(said, why):
    assert reason(said) == why
