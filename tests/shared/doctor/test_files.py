"""What the doctor finds in folders of audio."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_trees import told, tree, wav

from shared.datasets.lists import sizes_below
from shared.doctor import files as doctor_files
from shared.doctor.files import (
    Files,
    Opening,
    audio_below,
    empty_files,
    ffmpeg,
    first_folders,
    opened,
)
from shared.errors import UserError


def names_of(root):
    return sizes_below(root)[0]


def opening(root, **kind):
    return Opening('training', root, **kind)


def look(root, **kind):
    return told(opened(names_of(root), opening(root, **kind)))


def test_rows_are_those_of_the_paths_in_any_order():
    names = np.array([b'b/1.wav', b'a/10.wav', b'a/2.wav'])
    files = Files(Path(), names, np.zeros(3))
    asked = np.array([b'a/2.wav', b'a/1.wav', b'b/1.wav', b'z', b'a/10.wav', b'a/2.wav'])
    assert files.rows(asked).tolist() == [2, -1, 0, -1, 1, 2]
    assert files.rows(names).tolist() == [0, 1, 2]
    assert files.there(asked).tolist() == [b'a/2.wav', b'b/1.wav', b'a/10.wav', b'a/2.wav']
    assert Files(Path(), names[:0], np.zeros(0)).rows(asked).tolist() == [-1] * 6


def test_first_folders_are_those_of_a_naive_split():
    rng = np.random.default_rng(0)
    names = [f'id{rng.integers(30)}/{"v" * rng.integers(3)}/{i}.wav' for i in range(200)]
    expected = sorted({name.split('/')[0].encode() for name in names})
    assert first_folders(np.array(names, dtype='S')) == expected
    assert first_folders(np.array([b'bare.wav', b'a/b.wav'])) == [b'', b'a']
    assert first_folders(np.array([], dtype='S1')) == []


def test_good_files_are_one_line(tmp_path):
    root = tree(tmp_path, 'a/1.wav', 'a/2.flac', 'b/3.wav')
    odd, fine, _ = look(root)
    assert odd == [] and fine == ['ok      training: 3 files opened and read']


def test_a_sample_is_seeded_and_full_opens_all(tmp_path, monkeypatch):
    root = tree(tmp_path, *(f'a/{i}.wav' for i in range(9)), seconds=0.05)
    seen = []
    monkeypatch.setattr(doctor_files, '_look', lambda channel, path: seen.append(path.name) or [])
    assert look(root, sampled=4)[1] == ['ok      training: 4 files (of 9) opened and read']
    look(root, sampled=4)
    assert sorted(seen[:4]) == sorted(seen[4:]) and len(set(seen)) == 4
    assert look(root, sampled=4, full=True)[1] == ['ok      training: 9 files opened and read']


def header_only(root):
    (root / 'a/0.wav').write_bytes((root / 'a/1.wav').read_bytes()[:44])


def cut_wav(root):
    path = root / 'a/0.wav'
    path.write_bytes((root / 'a/1.wav').read_bytes()[:3000])


def cut_flac(root):
    whole = wav(root / 'a/0.flac', seconds=3).read_bytes()
    (root / 'a/0.flac').write_bytes(whole[: len(whole) // 2])


def not_finite(root):
    wav(root / 'a/0.wav', fill=np.nan, subtype='FLOAT')


def text(root):
    (root / 'a/0.wav').write_text('<html>not here</html>')


@pytest.mark.parametrize(
    'spoil, message',
    [
        (header_only, 'cut short, 0 of 16000 bytes'),
        (cut_wav, 'cut short, 2956 of 16000 bytes'),
        (cut_flac, 'cut short'),
        (not_finite, 'holds NaN or infinite samples'),
        (text, 'cannot be opened as audio'),
    ],
    ids=lambda value: getattr(value, '__name__', 'message'),
)
def test_a_bad_file_is_named_with_its_reason(tmp_path, spoil, message):
    root = tree(tmp_path, 'a/1.wav')
    spoil(root)
    odd, fine, _ = look(root)
    assert len(odd) == 1 and fine == []
    assert odd[0].startswith('error   training: 1 of the 2 files looked at cannot be used: ')
    assert message in odd[0] and odd[0].endswith('or leave them out of the list')


def test_the_end_of_a_long_file_is_read_too(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_files, 'END', 1000)
    whole = wav(tmp_path / 'a/1.flac', seconds=3).read_bytes()
    (tmp_path / 'a/1.flac').write_bytes(whole[: len(whole) - 2000])
    assert 'cannot be used' in look(tmp_path)[0][0]
    silent = np.zeros(48000)
    silent[20000] = 1  # in the middle, which is not looked at
    soundfile.write(tmp_path / 'a/1.flac', silent, 16000)
    assert 'digital silence' in look(tmp_path)[0][0]
    silent[47999] = 1
    soundfile.write(tmp_path / 'a/1.flac', silent, 16000)
    assert look(tmp_path)[0] == []


def test_few_bad_files_are_a_warning_where_a_run_passes_over_them(tmp_path):
    root = tree(tmp_path, 'a/1.wav', 'a/2.wav', 'a/3.wav')
    text(root)
    assert look(root, tolerated=0.25)[0][0].startswith('warning')
    assert look(root, tolerated=0.24)[0][0].startswith('error')


@pytest.mark.parametrize(
    'kind, message',
    [
        ({'rate': 44100}, '1 of the 2 files looked at are not at 16000 Hz, and are resampled'),
        ({'channels': 2}, '1 of the 2 files looked at have several channels, whose mean is taken'),
        ({'fill': 0.0}, '1 of the 2 files looked at are digital silence'),
    ],
    ids=['rate', 'channels', 'silence'],
)
def test_an_odd_file_is_a_warning_with_its_fix(tmp_path, kind, message):
    root = tree(tmp_path, 'a/1.wav')
    odd_one = wav(root / 'a/0.wav', **kind)
    (line,), fine, _ = look(root)
    assert line.startswith('warning training: ') and message in line and str(odd_one) in line
    assert ('prepare convert' in line) == ('fill' not in kind) and fine == []


def test_channels_do_not_matter_where_one_is_taken_nor_does_a_source_of_any_kind(tmp_path):
    root = tree(tmp_path, 'a/1.wav', channels=4)
    assert look(root, channel=0)[0] == []
    wav(root / 'a/2.wav', rate=8000)
    assert len(look(root)[0]) == 2 and look(root, any_kind=True)[0] == []


def test_empty_files_and_links_to_nowhere_are_found_by_size(tmp_path):
    root = tree(tmp_path, 'a/1.wav', 'a/2.wav')
    (root / 'a/3.wav').touch()
    (root / 'a/4.flac').write_bytes(b'fLaC')
    (root / 'b').mkdir()
    (root / 'b/5.wav').symlink_to(root / 'gone.wav')
    files = Files(root, *sizes_below(root))
    links, empty = told(empty_files(files, 'training', 0.0))[0]
    assert links.startswith(f'error   training: {root}: 1 of 5 links lead to no file: b/5.wav;')
    assert '2 of 5 files hold no audio: a/3.wav, a/4.flac;' in empty
    odd = told(empty_files(files, 'training', 0.2))[0]
    assert [line.split()[0] for line in odd] == ['warning', 'error']


def test_other_formats_are_an_error_with_the_command_that_converts_them(tmp_path):
    root = tree(tmp_path / 'aac', 'id00012/v/1.wav')
    for name in ('id00012/v/1.m4a', 'id00012/v/2.m4a', 'id00012/v/text.txt'):
        (root / name).write_bytes(b'x')
    odd, fine, files = told(audio_below('training', root))
    assert odd == [
        f'error   training: {root}/id00012/v/2.m4a and others are neither wav nor FLAC, so they are '
        f'not seen; python -m shared.datasets.prepare convert {root} {root}_wav'
    ]
    assert len(fine) == 1 and fine[0].startswith('ok      ffmpeg: /')
    assert len(files) == 1
    os.remove(root / 'id00012/v/2.m4a')  # the other one has its wav beside it
    assert told(audio_below('training', root))[0] == []


def test_a_machine_without_ffmpeg_is_a_warning(monkeypatch):
    def none_here():
        raise UserError('no ffmpeg runs here: install it')

    monkeypatch.setattr(doctor_files, 'find_ffmpeg', none_here)
    assert ffmpeg().line() == 'warning ffmpeg: no ffmpeg runs here: install it'


def test_endings_in_capitals_are_an_error(tmp_path):
    root = tree(tmp_path, 'a/1.wav')
    (root / 'a/2.WAV').write_bytes(b'x')
    (line,), *_ = told(audio_below('training', root))
    assert 'a/2.WAV and others: endings in capitals are not seen; rename them' in line


def test_a_folder_without_audio_is_an_error(tmp_path):
    (tmp_path / 'a').mkdir()
    odd, _, files = told(audio_below('training', tmp_path))
    assert files is None and odd == [
        f'error   training: {tmp_path}: no .wav or .flac in it; '
        'give the folder that holds the speaker folders'
    ]


def test_only_some_of_many_folders_are_searched_for_other_formats(tmp_path, monkeypatch):
    root = tree(tmp_path, *(f's{i}/1.wav' for i in range(6)), seconds=0.01)
    monkeypatch.setattr(doctor_files, 'PEEKED', 2)
    for i in range(6):
        (root / f's{i}/9.mp3').write_bytes(b'x')
    assert 'neither wav nor FLAC' in told(audio_below('training', root))[0][0]
    walked = []
    real = os.walk
    monkeypatch.setattr(
        doctor_files.os, 'walk', lambda top, **kind: walked.append(top) or real(top, **kind)
    )
    told(audio_below('training', root))
    assert len(walked) == 1  # the first already has one
