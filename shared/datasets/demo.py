"""The demo corpus: synthetic speech in the layouts of VoxCeleb, MUSAN and RIRS_NOISES.

    python -m shared.datasets.demo --root /tmp/demo --train_speakers 1000

builds it alone. The same settings give the same files, whatever the number of processes. It can
show that a method learns; its error rates say nothing about human voices.
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from shared import ddp
from shared.datasets.demo_parts import Utterance, plan, write_parts
from shared.datasets.demo_settings import Difficulty, Settings
from shared.errors import UserError
from shared.files import remove_unfinished, write_text

TRIAL_LISTS = {  # name: the sets it draws from, as VoxCeleb1-O, -E and -H do
    'valid': ('valid',),
    'O': ('test',),
    'E': ('valid', 'test'),
    'H': ('valid', 'test'),  # non-targets of the same gender
}
DEFAULT = Settings()


@dataclass(frozen=True)
class DemoCorpus:
    """Where the parts of a corpus are.

    `train` is the VoxCeleb2 folder and `train_list` its list (speaker, path, seconds); `vox1` the
    merged VoxCeleb1/wav that every list in `trials` ('valid', 'O', 'E', 'H') is relative to;
    `speakers` counts the speakers of 'train', 'valid' and 'test', who are all different.
    """

    root: Path
    train: Path
    train_list: Path
    vox1: Path
    trials: dict[str, Path]
    musan: Path
    rirs: Path
    speakers: dict[str, int]


def make(
    root: Path | str,
    *,
    seed: int = DEFAULT.seed,
    train_speakers: int = DEFAULT.train_speakers,
    valid_speakers: int = DEFAULT.valid_speakers,
    test_speakers: int = DEFAULT.test_speakers,
    videos: int = DEFAULT.videos,
    utterances_per_video: int = DEFAULT.utterances_per_video,
    seconds: tuple[float, float] = DEFAULT.seconds,
    trials: int = DEFAULT.trials,
    musan_files: tuple[int, int, int] = DEFAULT.musan_files,
    rooms: int = DEFAULT.rooms,
    difficulty: Difficulty = DEFAULT.difficulty,
    processes: int = 2,
) -> DemoCorpus:
    """Builds the corpus below `root`, or returns at once where it is complete (design 4.5).

    An interrupted build is finished by the next call with the same settings, which
    `demo_settings.Settings` describes. Audio is 16 kHz mono PCM-16. Rank 0 builds, the others wait.

    Raises:
        UserError: impossible settings, or `root` holds a corpus of other settings or other data.
    """
    settings = Settings(
        seed=seed,
        train_speakers=train_speakers,
        valid_speakers=valid_speakers,
        test_speakers=test_speakers,
        videos=videos,
        utterances_per_video=utterances_per_video,
        seconds=seconds,
        trials=trials,
        musan_files=musan_files,
        rooms=rooms,
        difficulty=difficulty,
    )
    corpus = corpus_at(Path(root).absolute(), settings)
    if ddp.is_main() and not is_complete(corpus, settings):
        build(corpus, settings, processes)
    ddp.barrier()
    return corpus


def corpus_at(root: Path, settings: Settings) -> DemoCorpus:
    """The paths of a corpus, built or not."""
    return DemoCorpus(
        root=root,
        train=root / 'VoxCeleb2',
        train_list=root / 'train_list.txt',
        vox1=root / 'VoxCeleb1' / 'wav',
        trials={name: root / 'trials' / f'vox1_{name}.txt' for name in TRIAL_LISTS},
        musan=root / 'musan',
        rirs=root / 'RIRS_NOISES' / 'simulated_rirs',
        speakers={
            'train': settings.train_speakers,
            'valid': settings.valid_speakers,
            'test': settings.test_speakers,
        },
    )


def is_complete(corpus: DemoCorpus, settings: Settings) -> bool:
    """Whether the corpus is all there; if not, makes sure that building it harms nothing."""
    wanted = settings.as_json()
    for record in (corpus.root / 'corpus.json', unfinished_record(corpus)):
        if record.exists():
            found = json.loads(record.read_text())
            differing = [
                f'{key}: {found.get(key)} there, {value} wanted'
                for key, value in wanted.items()
                if found.get(key) != value
            ]
            if differing:
                raise UserError(
                    f'{corpus.root} holds a demo corpus of other settings '
                    f'({"; ".join(differing)}); name another root'
                )
            return record.name == 'corpus.json'
    for folder in (corpus.train, corpus.vox1.parent, corpus.musan, corpus.rirs.parent):
        if folder.exists():
            raise UserError(f'{folder} is not of a demo corpus; name another root for the demo')
    return False


def unfinished_record(corpus: DemoCorpus) -> Path:
    """The settings of a corpus while it is being built; renamed to corpus.json at the end."""
    return corpus.root / 'corpus.unfinished.json'


def build(corpus: DemoCorpus, settings: Settings, processes: int) -> None:
    """Writes the audio, then the lists, then corpus.json."""
    remove_unfinished(corpus.root)
    write_text(unfinished_record(corpus), json.dumps(settings.as_json(), indent=1) + '\n')
    utterances: list[Utterance] = []
    with tqdm(total=len(plan(settings)), desc='demo corpus', unit='part') as progress:
        for written in write_parts(corpus.root, settings, processes):
            utterances += written
            progress.update()
    train = [u for u in utterances if u.kind == 'train']
    lines = sorted(f'{u.speaker} {u.path} {u.seconds:.3f}\n' for u in train)
    write_text(corpus.train_list, ''.join(lines))
    for number, (name, kinds) in enumerate(TRIAL_LISTS.items()):
        rng = np.random.default_rng([settings.seed, 1000, number])  # 1000: apart from any KINDS
        chosen = [u for u in utterances if u.kind in kinds]
        lines = draw_trials(rng, chosen, settings.trials, same_gender=name == 'H')
        write_text(corpus.trials[name], ''.join(lines))
    os.replace(unfinished_record(corpus), corpus.root / 'corpus.json')


def draw_trials(
    rng: np.random.Generator, utterances: list[Utterance], count: int, same_gender: bool
) -> list[str]:
    """Draws trials in VoxCeleb's format, lines of `1 path path`, no pair twice.

    Targets pair different videos of a speaker, non-targets different speakers (of one gender when
    `same_gender`); half each, and fewer than `count` where there are not so many pairs.
    """
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_speaker.setdefault(utterance.speaker, []).append(utterance)
    speakers = list(by_speaker.values())
    lines: list[str] = []
    for target in (True, False):
        pairs: dict[frozenset, str] = {}
        for _ in range(20 * count):  # an end for small corpora, which run out of pairs
            first, second = (speakers[k] for k in rng.integers(len(speakers), size=2))
            enrol = first[rng.integers(len(first))]
            test = first[rng.integers(len(first))] if target else second[rng.integers(len(second))]
            if target:
                wanted = enrol.video != test.video
            else:
                wanted = first is not second and (not same_gender or enrol.gender == test.gender)
            if wanted:
                line = f'{int(target)} {enrol.path} {test.path}\n'
                pairs.setdefault(frozenset((enrol.path, test.path)), line)
            if len(pairs) == count // 2:
                break
        lines += pairs.values()
    return [lines[k] for k in rng.permutation(len(lines))]


def main() -> None:
    """Command line: every setting is an option; the default root is named after the settings."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--root', type=Path, help='default: a folder named after the settings')
    parser.add_argument('--processes', type=int, default=2)
    for name, value in {**vars(DEFAULT), **vars(DEFAULT.difficulty)}.items():
        if isinstance(value, tuple):
            parser.add_argument(f'--{name}', type=type(value[0]), nargs=len(value), default=value)
        elif name != 'difficulty':
            parser.add_argument(f'--{name}', type=type(value), default=value)
    options = vars(parser.parse_args())
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    root, processes = options.pop('root'), options.pop('processes')
    try:
        knobs = {name: options.pop(name) for name in vars(DEFAULT.difficulty)}
        options['difficulty'] = Difficulty(**knobs)
        make(root or Path(Settings(**options).name()), processes=processes, **options)
    except UserError as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()
