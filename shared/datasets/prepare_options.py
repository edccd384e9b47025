"""The command line of prepare.py: what each sub-command takes, with examples."""

import argparse

from shared.datasets.convert import ENCODERS
from shared.datasets.machine import cores
from shared.datasets.noisy_sets import SNRS

PROGRAM = 'python -m shared.datasets.prepare'


def parser() -> argparse.ArgumentParser:
    """Of every sub-command; its name is in `command`."""
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        description='From downloaded archives to the lists a recipe starts from: docs/data.md.',
        allow_abbrev=False,
    )
    commands = top.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for add in (
        _unpack,
        _convert,
        _merge,
        _list,
        _trials,
        _musan,
        _rirs,
        _noisy,
        _own,
        _pack,
        _index,
    ):
        add(commands)
    return top


def _command(
    commands, name: str, what: str, *examples: str, workers: int = 0
) -> argparse.ArgumentParser:
    """A sub-command; with --workers, where a default is given."""
    sub = commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + '.',
        epilog='examples:\n' + '\n'.join(f'  {PROGRAM} {name} {line}' for line in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if workers:
        text = f'at work at a time [{workers}]'
        sub.add_argument('--workers', type=_count, default=workers, metavar='N', help=text)
    return sub


def _unpack(commands) -> None:
    sub = _command(
        commands,
        'unpack',
        'unpack a zip or tar, also one in parts, which need no joining; goes on where it was killed',
        'vox2_dev_aac_parta* --out /data/VoxCeleb2',
        'vox1_dev_wav_partaa --md5 vox1_md5.txt --out /data/VoxCeleb1/dev',
        'musan.tar.gz --out /data',
        workers=8,
    )
    sub.add_argument(
        'archive', nargs='+', help='archive or its parts; of one part, those beside it'
    )
    sub.add_argument('--out', required=True, metavar='DIR', help='folder to unpack into')
    sub.add_argument('--md5', metavar='FILE', help='lines `MD5 name`, of the archive or its parts')


def _convert(commands) -> None:
    sub = _command(
        commands,
        'convert',
        'm4a, mp3, wav, ... to 16 kHz mono wav or FLAC, the same tree; goes on where it was killed',
        '/data/VoxCeleb2/dev/aac /data/VoxCeleb2/dev/wav',
        '/data/VoxCeleb2/dev/aac /data/VoxCeleb2/dev/flac --format flac --workers 16',
        workers=cores(),
    )
    sub.add_argument('source', help='folder, searched at any depth; stays as it is')
    sub.add_argument('out', help='new folder, or of an earlier call')
    sub.add_argument('--format', choices=sorted(ENCODERS), default='wav', help='[wav]')
    sub.add_argument('--rate', type=_count, default=16000, metavar='HZ', help='[16000]')
    text = 'part of the files that may be unusable [0.01]'
    sub.add_argument('--max_skipped', type=_part, default=0.01, metavar='PART', help=text)


def _merge(commands) -> None:
    sub = _command(
        commands,
        'merge',
        'VoxCeleb1 dev and test in one folder, as links: Vox1-E and Vox1-H need both',
        '/data/VoxCeleb1/dev/wav /data/VoxCeleb1/test/wav --out /data/VoxCeleb1/wav',
    )
    sub.add_argument('dev', help='folder of speakers')
    sub.add_argument('test', help='folder of other speakers')
    sub.add_argument('--out', required=True, metavar='DIR', help='folder of all of them')
    sub.add_argument('--copy', action='store_true', help='copy instead of linking')


def _list(commands) -> None:
    sub = _command(
        commands,
        'list',
        'a train list, lines `speaker path seconds`',
        '/data/VoxCeleb2/dev/wav --out /data/VoxCeleb2/train.txt',
        '/data/VoxCeleb1/wav --exclude /data/VoxCeleb1/veri_test2.txt --out /data/VoxCeleb1/dev.txt',
        workers=64,
    )
    sub.add_argument('folder', help='of speakers')
    sub.add_argument('--out', required=True, metavar='FILE', help='the list')
    text = 'trial lists whose speakers are left out'
    sub.add_argument('--exclude', nargs='+', default=(), metavar='FILE', help=text)
    text = 'shorter utterances are left out [0]'
    sub.add_argument('--min_seconds', type=float, default=0.0, metavar='S', help=text)


def _trials(commands) -> None:
    sub = _command(
        commands,
        'trials',
        'which published list a file is, its counts and SHA-256',
        '/data/VoxCeleb1/veri_test2.txt /data/VoxCeleb1/list_test_hard2.txt',
        '/data/VoxCeleb1/veri_test2.txt --root /data/VoxCeleb1/wav',
    )
    sub.add_argument('files', nargs='+', help='lines `label file file` or `file file label`')
    sub.add_argument('--root', metavar='DIR', help='look for the files below this folder')
    sub.add_argument('--sha256', metavar='HEX', help='what it must be')


def _musan(commands) -> None:
    sub = _command(
        commands,
        'musan',
        'MUSAN in pieces of 5 s, which are read faster than whole files',
        '/data/musan /data/musan_5s',
        '/data/musan /data/musan_split --halves',
    )
    sub.add_argument('source', help='MUSAN as it is distributed')
    sub.add_argument('out', help='new folder, or of an earlier call')
    sub.add_argument('--halves', action='store_true', help='a train and a test half, by number')


def _rirs(commands) -> None:
    sub = _command(
        commands,
        'rirs',
        'an index of room responses, lines `path seconds rate channels`; says which are no use',
        '/data/RIRS_NOISES/simulated_rirs --out /data/rirs.txt',
        workers=8,
    )
    sub.add_argument('folder', help='RIRS_NOISES, a part of it, or any folder of responses')
    sub.add_argument('--out', required=True, metavar='FILE', help='the index')


def _noisy(commands) -> None:
    sub = _command(
        commands,
        'noisy',
        'noisy copies of the files of trial lists, in every noise and at every SNR',
        '/data/VoxCeleb1/veri_test2.txt --root /data/VoxCeleb1/wav --musan /data/musan '
        '--out /data/VoxCeleb1/test_noise',
        workers=cores(),
    )
    sub.add_argument('trials', nargs='+', help='trial lists')
    sub.add_argument('--root', required=True, metavar='DIR', help='folder of their files')
    sub.add_argument('--musan', required=True, metavar='DIR', help='MUSAN as it is distributed')
    sub.add_argument('--musan_split', metavar='DIR', help='its halves, made first [<musan>_split]')
    sub.add_argument('--nonspeech', metavar='DIR', help='Nonspeech100: noise of a fourth kind')
    sub.add_argument(
        '--out', required=True, metavar='DIR', help='about 19 GB for Vox1-O at five SNRs'
    )
    sub.add_argument(
        '--snrs', nargs='+', type=int, default=SNRS, metavar='DB', help='[0 5 10 15 20]'
    )
    sub.add_argument('--seed', type=int, default=0, help='[0]')
    sub.add_argument(
        '--exact_snr', action='store_true', help='no level floor: quiet files get as much noise'
    )


def _own(commands) -> None:
    sub = _command(
        commands,
        'own',
        'lists of your own corpus: train.txt, and valid_trials.txt of other speakers',
        '/data/mine --out /data/mine_lists',
        '/data/mine --out /data/mine_lists --eval_only',
        workers=64,
    )
    sub.add_argument('folder', help='<speaker>/<utterance>.wav, or one folder deeper; .flac too')
    sub.add_argument('--out', required=True, metavar='DIR', help='folder of the lists')
    text = 'speakers in the trials [a tenth, 2 to 40]'
    sub.add_argument('--valid_speakers', type=_count, metavar='N', help=text)
    text = 'every speaker goes in trials.txt, none trains'
    sub.add_argument('--eval_only', action='store_true', help=text)
    text = 'of each kind, at most [20000]'
    sub.add_argument('--trials', type=_count, default=20000, metavar='N', help=text)
    sub.add_argument('--seed', type=int, default=42, help='[42]')


def _pack(commands) -> None:
    sub = _command(
        commands,
        'pack',
        'any folder of wav or FLAC in tar shards, taken wherever that folder is',
        '/data/VoxCeleb2/dev/wav /data/VoxCeleb2/dev/packed',
    )
    sub.add_argument('source', help='speakers, MUSAN, responses, test files, ...')
    sub.add_argument('out', help='new folder, or of an earlier call')
    text = 'files in a shard [1000]'
    sub.add_argument('--per_shard', type=_count, default=1000, metavar='N', help=text)
    sub.add_argument('--seed', type=int, default=42, help='of their order [42]')


def _index(commands) -> None:
    sub = _command(
        commands,
        'index',
        'an index of shards made elsewhere, here or at any URL that fsspec knows',
        'shards/*.tar --out /data/packed',
        's3://bucket/vox2/0000.tar s3://bucket/vox2/0001.tar --out /data/vox2_packed',
    )
    sub.add_argument('tars', nargs='+', help='paths or URLs')
    sub.add_argument('--out', required=True, metavar='DIR', help='folder of the index')


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text}: a whole number, 1 or more')
    return int(text)


def _part(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text}: a number from 0 to 1')
    return value
