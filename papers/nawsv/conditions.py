"""What is made from the corpora once, and the conditions a system is tested in."""

import json
from pathlib import Path
from typing import NamedTuple

from preprocessing import noisy_test_sets, split_musan
from shared import ddp
from shared.datasets import demo, voxceleb
from shared.datasets.demo_nonspeech import make_nonspeech
from shared.datasets.trial_files import TrialFiles, drawn_trials
from shared.demo_ssl.model import make as small_wavlm

VALID_TRIALS = 20000  # drawn of each kind when there is no validation list


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
    if ddp.is_main():
        demo.make(root)
    ddp.barrier()
    corpus = demo.make(root)
    nonspeech = make_nonspeech(root / 'Nonspeech100')
    pretrained = small_wavlm(root / 'models' / 'wavlm_small', corpus, device=args['device'])
    if ddp.is_main():
        found = json.loads((pretrained / 'pretraining.json').read_text())['probe']
        print(
            'small WavLM, EER % of a linear probe on unseen speakers: '
            f'{found["pretrained"]["eer"]:.2f} pre-trained, {found["random"]["eer"]:.2f} as initialised',
            flush=True,
        )
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
    workers = args['num_workers']
    musan_train, musan_test = split_musan(args['path_musan'], args['path_musan_split'], workers)
    first, *others = [voxceleb.read_trials(path, args['path_test']) for path in args['trials_test']]
    roots = noisy_test_sets(
        first.files,
        args['path_test'],
        args['path_noisy'],
        musan_test,
        args['path_nonspeech'],
        snrs=args['test_snrs'],
        seed=args['noise_seed'],
        exact_snr=args['exact_snr'],
        workers=workers,
    )
    tests = {'clean': Condition(trial_files(first, args['path_test'], args))}
    for name, root in roots.items():
        noise, snr = name.rsplit('_', 1)
        tests[name] = Condition(trial_files(first, root, args), noise, int(snr))
    for trials in others:
        tests[trials.name] = Condition(trial_files(trials, args['path_test'], args))
    return musan_train, tests


def validation_list(tests, args):
    """The list that every epoch is scored on; only `selection` lets it choose anything."""
    if args['selection'] != 'valid':
        return tests['clean'].files
    root, given = args['path_valid'], args['trials_valid']
    if given:
        return trial_files(voxceleb.read_trials(given, root), root, args)
    kept = Path(args['path_log']) / 'lists' / 'valid_trials.txt'
    return trial_files(drawn_trials(root, kept, VALID_TRIALS, args['seeds'][0]), root, args)


def trial_files(trials, root, args):
    """Trials with the loader of their files below a root."""
    return TrialFiles(
        trials, root, budget_seconds=args['eval_seconds'], workers=args['num_workers']
    )
