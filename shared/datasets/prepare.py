"""From downloaded archives to the lists a recipe starts from; `--help` tells, docs/data.md shows."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.datasets import corpus_lists, noisy_sets, voxceleb
from shared.datasets.archives import unpack
from shared.datasets.convert import convert
from shared.datasets.derived import SKIPPED
from shared.datasets.machine import cores
from shared.datasets.musan import split_musan
from shared.datasets.prepare_options import parser
from shared.datasets.voxceleb_layout import merge
from shared.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command; exit status 0, 1 (an error, in one line) or 2 (a wrong command line)."""
    given = parser().parse_args(argv)
    try:
        for line in RUNS[given.command](given):
            print(line, flush=True)
    except (UserError, OSError) as error:
        print(f'prepare {given.command}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'prepare {given.command}: stopped; the same command goes on', file=sys.stderr)
        return 130
    return 0


def _unpack(given) -> Iterator[str]:
    made = unpack(given.archive, given.out, given.md5, given.workers)
    checked = f'; {made.checked} is right' if made.checked else ''
    yield f'{made.folder}: {made.files:,} files, {made.written:,} of them new{checked}'


def _convert(given) -> Iterator[str]:
    made, others = convert(
        given.source,
        given.out,
        form=given.format,
        rate=given.rate,
        workers=given.workers,
        max_skipped=given.max_skipped,
    )
    yield f'{made.folder}: {made.files:,} files of {made.sources:,}'
    if made.skipped:
        yield f'{made.skipped:,} could not be converted: {made.folder / SKIPPED} says why'
    if others:
        yield f'{others:,} files of {given.source} are no audio and were left alone'


def _merge(given) -> Iterator[str]:
    made = merge([given.dev, given.test], given.out, given.copy)
    yield f'{made.folder}: {made.speakers:,} speakers, {made.new:,} of them new'


def _list(given) -> Iterator[str]:
    made = corpus_lists.train_list(
        given.folder,
        given.out,
        exclude=given.exclude,
        min_seconds=given.min_seconds,
        workers=given.workers,
    )
    yield made.describe()


def _trials(given) -> Iterator[str]:
    if given.sha256 and len(given.files) > 1:
        raise UserError('--sha256 is of one list: name one')
    for path in given.files:
        yield corpus_lists.describe_trials(path, given.root, given.sha256)


def _musan(given) -> Iterator[str]:
    if given.halves:
        for half in noisy_sets.split_musan(given.source, given.out, cores()):
            yield f'{half}: a half of MUSAN in pieces'
    else:
        yield f'{given.out}: {split_musan(given.source, given.out):,} pieces'


def _rirs(given) -> Iterator[str]:
    count, bad = corpus_lists.rir_index(given.folder, given.out, given.workers)
    yield f'{given.out}: {count:,} responses'
    if bad:
        yield f'{len(bad):,} cannot be used and were left out, the first: {bad[0]}'


def _noisy(given) -> Iterator[str]:
    lists = [voxceleb.read_trials(path, given.root) for path in given.trials]
    musan = Path(given.musan)
    split = given.musan_split or musan.with_name(f'{musan.name}_split')
    _, musan_test = noisy_sets.split_musan(musan, split, given.workers)
    for trials in lists:  # one by one: a recipe that asks for one of them finds it finished
        roots = noisy_sets.noisy_test_sets(
            trials.files,
            given.root,
            given.out,
            musan_test,
            given.nonspeech,
            snrs=given.snrs,
            seed=given.seed,
            exact_snr=given.exact_snr,
            workers=given.workers,
        )
        yield f'{given.out}: {len(trials.files):,} files of {trials.name} in {", ".join(roots)}'


def _own(given) -> Iterator[str]:
    made = corpus_lists.own_lists(
        given.folder,
        given.out,
        valid_speakers=given.valid_speakers,
        train=not given.eval_only,
        trials=given.trials,
        seed=given.seed,
        workers=given.workers,
    )
    if made.train:
        yield made.train.describe()
    targets = int(made.trials.labels.sum())
    yield (
        f'{made.trials_path}: {targets:,} target and {len(made.trials) - targets:,} other trials '
        f'of {made.speakers} speakers, {len(made.trials.files):,} files'
    )


def _pack(given) -> Iterator[str]:
    from shared.datasets.packed import pack

    packed = pack(given.source, given.out, per_shard=given.per_shard, seed=given.seed)
    yield f'{packed.root}: {len(packed.names):,} files in shards'


def _index(given) -> Iterator[str]:
    from shared.datasets.packed import index

    packed = index(given.tars, given.out)
    yield f'{packed.root}: {len(packed.names):,} files'


RUNS = {
    'unpack': _unpack,
    'convert': _convert,
    'merge': _merge,
    'list': _list,
    'trials': _trials,
    'musan': _musan,
    'rirs': _rirs,
    'noisy': _noisy,
    'own': _own,
    'pack': _pack,
    'index': _index,
}


if __name__ == '__main__':
    sys.exit(main())
