"""The command: every sub-command once, its summary, its errors and its exit status."""

import hashlib
import re
import tarfile
import zipfile

import numpy as np
import pytest
import soundfile

from shared.datasets import voxceleb
from shared.datasets.items import DataError
from shared.datasets.musan import CATEGORIES
from shared.datasets.noisy_sets import noisy_test_sets, split_musan
from shared.datasets.prepare import RUNS, main
from shared.datasets.prepare_options import parser

RATE = 16000


def write(path, seconds=0.2, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE))
    soundfile.write(path, wave, RATE, subtype='PCM_16')


@pytest.fixture
def wavs(tmp_path):
    """Six speakers with two videos of two utterances."""
    for s in range(6):
        for u in range(4):
            write(tmp_path / 'wav' / f'id{s}' / f'v{u // 2}' / f'{u}.wav', seed=4 * s + u)
    return tmp_path / 'wav'


@pytest.fixture
def trials(wavs):
    path = wavs.parent / 'trials.txt'
    path.write_text('1 id0/v0/0.wav id0/v1/2.wav\n0 id0/v0/0.wav id1/v0/1.wav\n')
    return path


@pytest.fixture
def musan(tmp_path):
    for number, category in enumerate(CATEGORIES):
        for i in range(2):
            write(tmp_path / 'musan' / category / 'x' / f'{category}-x-{i:04d}.wav', 8.5, number)
    return tmp_path / 'musan'


@pytest.fixture
def prepare(capsys):
    """`prepare('list', folder, ...)`: (exit status, what it printed, its error)."""

    def run(*command):
        status = main([str(word) for word in command])
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err

    return run


def lines(path):
    return path.read_text().splitlines()


def test_prepare_unpacks_converts_and_lists(wavs, tmp_path, prepare):
    with zipfile.ZipFile(tmp_path / 'vox.zip', 'w') as archive:
        for path in sorted(wavs.rglob('*.wav')):
            archive.write(path, f'dev/{path.relative_to(wavs.parent)}')
    data = (tmp_path / 'vox.zip').read_bytes()
    for i in range(2):
        (tmp_path / f'vox_parta{"ab"[i]}').write_bytes(
            data[i * 50000 : (i + 1) * 50000 + i * len(data)]
        )
    (tmp_path / 'md5.txt').write_text(f'{hashlib.md5(data).hexdigest()} vox.zip')
    out, md5 = tmp_path / 'out', ('--md5', tmp_path / 'md5.txt')
    status, said, _ = prepare('unpack', tmp_path / 'vox_partaa', '--out', out, *md5)
    assert (status, said) == (0, [f'{out}: 24 files, 24 of them new; MD5 of vox.zip is right'])

    converted = ('convert', out / 'dev' / 'wav', out / 'flac', '--format', 'flac', '--workers', 1)
    status, said, _ = prepare(*converted)
    assert (status, said) == (0, [f'{out / "flac"}: 24 files of 24'])

    status, said, _ = prepare('list', out / 'flac', '--out', tmp_path / 'train.txt')
    assert status == 0
    assert said == [f'{tmp_path / "train.txt"}: 24 utterances of 6 speakers (4 to 4 each), 0.0 h']
    assert lines(tmp_path / 'train.txt')[0] == 'id0 id0/v0/0.flac 0.2'


def test_prepare_convert_tells_of_bad_and_of_other_files(wavs, tmp_path, prepare):
    (wavs / 'id0' / 'v0' / 'bad.m4a').write_text('no audio')
    (wavs / 'readme').write_text('x')
    command = ('convert', wavs, tmp_path / 'out', '--workers', 1)
    status, said, error = prepare(*command)
    assert (status, said) == (1, [])
    assert error.startswith('prepare convert: converting to wav: 1 of 25 files cannot be used, 0 m')
    assert error.count('\n') == 1
    status, said, _ = prepare(*command, '--max_skipped', 0.1)
    assert status == 0 and said == [
        f'{tmp_path / "out"}: 24 files of 25',
        f'1 could not be converted: {tmp_path / "out" / "skipped.txt"} says why',
        f'1 files of {wavs} are no audio and were left alone',
    ]


def test_prepare_merges(wavs, tmp_path, prepare):
    write(tmp_path / 'test' / 'id9' / 'v' / '0.wav')
    status, said, _ = prepare('merge', wavs, tmp_path / 'test', '--out', tmp_path / 'all')
    assert (status, said) == (0, [f'{tmp_path / "all"}: 7 speakers, 7 of them new'])
    assert voxceleb.read_folder(tmp_path / 'all').speaker_ids[-1] == 'id9'


def test_prepare_lists_without_the_speakers_of_trials(wavs, trials, tmp_path, prepare):
    out = tmp_path / 'train.txt'
    status, said, _ = prepare('list', wavs, '--out', out, '--exclude', trials)
    assert status == 0 and said[0].endswith('; left out: 8 excluded')
    assert {line.split()[0] for line in lines(out)} == {'id2', 'id3', 'id4', 'id5'}


def test_prepare_tells_what_trial_lists_are(wavs, trials, prepare):
    digest = hashlib.sha256(trials.read_bytes()).hexdigest()
    status, said, _ = prepare('trials', trials, '--root', wavs, '--sha256', digest)
    assert status == 0 and '2 trials, 1 target, 3 files' in said[0] and digest in said[0]
    assert len(prepare('trials', trials, trials)[1]) == 2
    assert prepare('trials', trials, trials, '--sha256', digest)[0] == 1
    status, said, error = prepare('trials', trials, '--sha256', '0' * 64)
    assert (status, said) == (1, []) and error.startswith(f'prepare trials: {trials}: SHA-256 is')


def test_prepare_splits_musan_in_both_ways(musan, tmp_path, prepare):
    status, said, _ = prepare('musan', musan, tmp_path / 'pieces')
    assert (status, said) == (0, [f'{tmp_path / "pieces"}: 12 pieces'])  # 2 of 8.5 s, 6 files
    status, said, _ = prepare('musan', musan, tmp_path / 'halves', '--halves')
    assert status == 0
    assert [path.name for path in (tmp_path / 'halves').iterdir() if path.is_dir()] != []
    assert said[0] == f'{tmp_path / "halves" / "train"}: a half of MUSAN in pieces'
    assert len(list((tmp_path / 'halves' / 'test').rglob('*.wav'))) == 3


def test_prepare_indexes_responses(tmp_path, prepare):
    write(tmp_path / 'rirs' / 'a.wav')
    (tmp_path / 'rirs' / 'b.wav').write_text('no audio')
    status, said, _ = prepare('rirs', tmp_path / 'rirs', '--out', tmp_path / 'rirs.txt')
    assert (status, said[0]) == (0, f'{tmp_path / "rirs.txt"}: 1 responses')
    assert said[1].startswith('1 cannot be used and were left out, the first: ')
    assert lines(tmp_path / 'rirs.txt') == ['a.wav 0.2 16000 1']


def test_prepare_makes_the_noisy_sets_that_a_recipe_finds_finished(wavs, trials, musan, prepare):
    out = wavs.parent / 'noisy'
    command = ['noisy', trials, '--root', wavs, '--musan', musan, '--out', out, '--snrs', 0, 10]
    status, said, _ = prepare(*command, '--workers', 1)
    assert status == 0
    assert said == [
        f'{out}: 3 files of trials in noise_0, noise_10, speech_0, speech_10, music_0, music_10'
    ]
    assert len(list(out.rglob('*.wav'))) == 18
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    _, test = split_musan(musan, musan.with_name('musan_split'), 0)
    files = voxceleb.read_trials(trials).files
    noisy_test_sets(files, wavs, out, test, snrs=(0, 10))
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before


def test_prepare_noisy_has_the_defaults_of_the_recipe(paper):
    arguments = paper('nawsv').arguments
    given = parser().parse_args(
        ['noisy', 'x', '--root', 'x', '--musan', '/data/musan', '--out', 'x']
    )
    _, system, experiment = arguments.get_args([])
    assert tuple(given.snrs) == experiment['test_snrs']
    assert given.seed == experiment['noise_seed'] and given.exact_snr == experiment['exact_snr']
    assert f'{given.musan}_split' == system['path_musan_split']


def test_prepare_makes_lists_of_an_own_corpus(wavs, tmp_path, prepare):
    out = tmp_path / 'lists'
    status, said, _ = prepare('own', wavs, '--out', out, '--trials', 6)
    assert status == 0 and 'train.txt: 16 utterances of 4 speakers' in said[0]
    assert said[1] == (
        f'{out / "valid_trials.txt"}: 6 target and 6 other trials of 2 speakers, 8 files'
    )
    train = voxceleb.read_list(out / 'train.txt', wavs)
    tested = voxceleb.read_trials(out / 'valid_trials.txt', wavs)
    assert not {name.split('/')[0] for name in tested.files} & set(train.speaker_ids)
    status, said, _ = prepare('own', wavs, '--out', tmp_path / 'eval', '--eval_only')
    assert status == 0 and 'trials of 6 speakers, 24 files' in said[0]


def test_prepare_packs_a_folder_and_indexes_shards(wavs, tmp_path, prepare):
    status, said, _ = prepare('pack', wavs, tmp_path / 'packed', '--per_shard', 10)
    assert (status, said) == (0, [f'{tmp_path / "packed"}: 24 files in shards'])
    with tarfile.open(tmp_path / 'a.tar', 'w') as archive:
        for path in sorted(wavs.rglob('*.wav')):
            archive.add(path, path.relative_to(wavs).as_posix())
    status, said, _ = prepare('index', tmp_path / 'a.tar', '--out', tmp_path / 'indexed')
    assert (status, said) == (0, [f'{tmp_path / "indexed"}: 24 files'])
    for name in ('packed', 'indexed'):
        assert len(voxceleb.read_folder(tmp_path / name)) == 24


@pytest.mark.parametrize('command', list(RUNS))
def test_prepare_explains_every_command_with_examples_that_it_takes(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, '--help'])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    examples = said[said.index('examples:') :].splitlines()[1:]
    assert examples
    for example in examples:
        program, _, words = example.strip().partition(f' {command} ')
        assert program == 'python -m shared.datasets.prepare'
        assert parser().parse_args([command, *words.split()]).command == command


@pytest.mark.parametrize(
    'command, said',
    [
        ([], 'the following arguments are required: COMMAND'),
        (['lists'], "invalid choice: 'lists'"),
        (['list', 'x'], 'the following arguments are required: --out'),
        (['list', 'x', '--out', 'y', '--min', '3'], 'unrecognized arguments: --min 3'),
        (['convert', 'x', 'y', '--format', 'mp3'], "invalid choice: 'mp3'"),
        (['convert', 'x', 'y', '--workers', '0'], '0: a whole number, 1 or more'),
        (['convert', 'x', 'y', '--max_skipped', '2'], '2: a number from 0 to 1'),
        (['own', 'x', '--out', 'y', '--trials', 'many'], 'many: a whole number'),
    ],
)
def test_prepare_ends_with_2_for_a_wrong_command_line(command, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2 and said in capsys.readouterr().err


MISSING = {
    'unpack': ['no.zip', '--out', 'new'],
    'convert': ['no', 'new'],
    'merge': ['no', 'no', '--out', 'new'],
    'list': ['no', '--out', 'new'],
    'trials': ['no.txt'],
    'musan': ['no', 'new'],
    'rirs': ['no', '--out', 'new'],
    'noisy': ['no.txt', '--root', 'no', '--musan', 'no', '--out', 'new'],
    'own': ['no', '--out', 'new'],
    'pack': ['no', 'new'],
    'index': ['no.tar', '--out', 'new'],
}


@pytest.mark.parametrize('command', list(RUNS))
def test_prepare_ends_with_1_and_one_line_for_a_missing_path(
    command, prepare, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    status, said, error = prepare(command, *MISSING[command])
    assert (status, said) == (1, [])
    assert re.match(rf'prepare {command}: (.*/)?no(\.zip|\.txt|\.tar)?: .*\n$', error)
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
    'failure, status, said',
    [
        (DataError('x: is wrong; mend it'), 1, 'prepare merge: x: is wrong; mend it'),
        (PermissionError(13, 'Permission denied', 'x'), 1, 'prepare merge: .*Permission denied'),
        (KeyboardInterrupt(), 130, 'prepare merge: stopped; the same command goes on'),
    ],
    ids=['data', 'permission', 'interrupt'],
)
def test_prepare_ends_in_one_line(failure, status, said, prepare, monkeypatch):
    def fails(_):
        raise failure

    monkeypatch.setitem(RUNS, 'merge', fails)
    found, _, error = prepare('merge', 'a', 'b', '--out', 'c')
    assert found == status and error.count('\n') == 1
    assert re.match(said, error)
