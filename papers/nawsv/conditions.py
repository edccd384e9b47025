"""What is made from the corpora once, and the conditions a system is tested in."""

from pathlib import Path
from typing import NamedTuple

from shared import ddp
from shared.datasets import demo
from shared.datasets.demo_nonspeech import make_nonspeech
from shared.datasets.machine import workers_for
from shared.datasets.noisy_sets import noisy_test_sets, split_musan
from shared.datasets.trial_files import TrialFiles, trial_lists, validation_files
from shared.demo_ssl import model


class Condition(NamedTuple):
    """Trials to score, and the noise that is in their files."""

    files: TrialFiles
    noise: str | None = None
    snr: int | None = None  # dB


def use_demo_corpus(args):
    """Builds corpus and pre-trained model of `--demo`, once, and points the paths at them.

    The trials are those of the smallest list, 20 unseen speakers: each condition scores them.
    """
    root = Path(args['path_scripts']).parents[1] / args['path_demo']
    corpus = demo.make(root)
    nonspeech = make_nonspeech(root / 'Nonspeech100')
    pretrained = model.make(root / 'models' / 'wavlm_small', corpus, device=args['device'])
    if ddp.is_main():
        print(model.describe(pretrained), flush=True)
    args.update(
        path_ssl=str(pretrained),
        path_train=str(corpus.train),
        list_train=str(corpus.train_list),
        path_test=str(corpus.vox1),
        trials_test=(str(corpus.trials['valid']),),
        path_musan=str(corpus.musan),
        path_rir=str(corpus.rirs),
        path_nonspeech=str(nonspeech),
        path_musan_split=str(root / 'musan_split'),
        path_noisy=str(root / 'test_noise'),
    )


def needed_paths(args):
    """What has to be there before anything is built."""
    names = ['path_ssl', 'path_test', 'trials_test', 'published', 'path_musan', 'path_nonspeech']
    if not args['eval']:
        names += ['path_train', 'list_train', 'path_rir']
        names += ['path_valid', 'trials_valid'] if args['selection'] == 'valid' else []
    return {name: args[name] for name in names}


def prepare(args):
    """Makes MUSAN's split and the noisy test sets; returns the former's train part and `tests`.

    `tests` maps names to a `Condition`: the first list of `trials_test` 'clean', in every noise
    and SNR ('speech_5'), and further lists by their names.
    """
    # Q17: seeded for each file, resumed when interrupted
    workers = workers_for(args['num_workers'])
    musan_train, musan_test = split_musan(args['path_musan'], args['path_musan_split'], workers)
    first, *others = trial_lists(args['trials_test'], args['path_test'], **loading(args))
    roots = noisy_test_sets(
        first.trials.files,
        args['path_test'],
        args['path_noisy'],
        musan_test,
        args['path_nonspeech'],
        snrs=args['test_snrs'],
        seed=args['noise_seed'],
        exact_snr=args['exact_snr'],
        workers=workers,
    )
    tests = {'clean': Condition(first)}
    for name, root in roots.items():
        noise, snr = name.rsplit('_', 1)
        files = TrialFiles(first.trials, root, **loading(args))
        tests[name] = Condition(files, noise, int(snr))
    for files in others:
        tests[files.trials.name] = Condition(files)
    return musan_train, tests


def validation_list(tests, args):
    """The list that every epoch is scored on; only `selection` lets it choose anything."""
    if args['selection'] != 'valid':
        return tests['clean'].files
    kept = Path(args['path_log']) / 'lists' / 'valid_trials.txt'
    given, seed = args['trials_valid'], args['seeds'][0]
    return validation_files(args['path_valid'], given, kept, seed=seed, **loading(args))


def loading(args):
    """How the files of a list are read."""
    workers = workers_for(args['num_workers'])
    return {'budget_seconds': args['eval_seconds'], 'workers': workers}
