"""The corpora of LGL, and what one training sample is in each stage (design: workers only read)."""

import json
from pathlib import Path

import numpy as np

from shared.augmentations.reverb import power_db_gain, unit_energy
from shared.datasets import demo, trial_files
from shared.datasets.crops import CropSet, shuffled_loader
from shared.datasets.items import DataError, Sample
from shared.datasets.loading import whole_utterances
from shared.datasets.machine import describe_workers, workers_for
from shared.datasets.memory import keep_in_memory
from shared.datasets.musan import CATEGORIES, Musan, NoiseRange
from shared.datasets.reading import AudioReader
from shared.datasets.rirs import Rirs
from shared.datasets.samplers import sample_rng
from shared.files import write_text


class ContrastiveSet(CropSet):
    """Stage I: two crops of an utterance that do not overlap, in three views.

    Views are (crop 0, profile 0), (crop 1, profile 0), (crop 1, profile 1); a profile is a room, a
    noise file, an SNR. Each profile has a room only (p < 0.25), noise only (p < 0.5) or both.
    """

    def __init__(self, utterances, musan, rirs, args):
        super().__init__(utterances, args['rand_seed'])
        self.musan, self.rirs = musan, rirs
        self.size, self.gain = args['contrastive_crop'], args['rir_gain']
        self.snr = {name: args[f'snr_{name}'] for name in CATEGORIES}

    def sample(self, epoch, index):
        """One utterance, a function of (seed, epoch, index) alone."""
        rng = sample_rng(self.seed, epoch, index)
        with self.reader.open(self.utterances.path(index)) as audio:
            starts = self.two_starts(audio.length, rng)
            crops = [audio.read(start, self.size) for start in rng.permutation(starts)]
        sample = Sample(np.stack([crops[0], crops[1], crops[1]]), label=-1, index=index)
        for views in ((0, 1), (2,)):
            self.add_profile(sample, views, rng)
        sample.converted = self.reader.take_converted()
        return sample

    def two_starts(self, length, rng):
        """Crops with a gap of at least one sample; short files are wrapped around to fit."""
        slack = max(length - 2 * self.size, 2)
        first, second = np.sort(rng.choice(slack, size=2, replace=False))
        return [int(first), int(second) + self.size]

    def add_profile(self, sample, views, rng):
        gain, category = rng.uniform(*self.gain), rng.choice(CATEGORIES)
        snr, p = rng.uniform(*self.snr[category]), rng.random()
        file = rng.integers(len(self.musan.files[category]))
        if p < 0.25 or p >= 0.5:
            rir = power_db_gain(self.rirs.draw(rng), gain)
            sample.rirs += [(view, rir) for view in views]
        if p >= 0.25:  # the file is shared, its crop is drawn for each view
            for view in views:
                noise = self.musan.crop(category, self.size, rng, file=file)
                sample.noises.append((view, noise, snr))


class LabelledCrops(CropSet):
    """Stage II: one crop and its pseudo-label; room and noise are drawn independently.

    `phase` numbers the T and L phases: each draws anew, so that a gate never judges the very
    crops that the phase before has learnt.
    """

    def __init__(self, utterances, labels, musan, rirs, args, phase=1):
        super().__init__(utterances, args['rand_seed'])
        self.labels, self.musan, self.rirs = labels, musan, rirs
        self.size, self.phase = args['crop_size'], phase
        self.reverb_prob, self.noise_prob = args['reverb_prob'], args['noise_prob']
        self.ranges = {name: NoiseRange(args[f'snr_{name}']) for name in ('noise', 'music')}
        self.ranges['speech'] = NoiseRange(args['snr_speech'], args['babble'])

    def sample(self, epoch, index):
        """One utterance, a function of (seed, phase, epoch, index) alone."""
        rng = sample_rng(self.seed, epoch, index, self.phase)
        wave = self.crop(index, self.size, rng)
        sample = Sample(wave[None], label=int(self.labels[index]), index=index)
        if rng.random() < self.reverb_prob:
            sample.rirs.append((0, unit_energy(self.rirs.draw(rng))))
        if rng.random() < self.noise_prob:
            category = rng.choice(CATEGORIES)
            drawn = self.musan.several(category, self.size, rng, self.ranges[category])
            sample.noises = [(0, noise, snr) for noise, snr in drawn]
        sample.converted = self.reader.take_converted()
        return sample


class Corpus:
    """Every list and folder of the recipe, checked on construction.

    Attributes: `train` (Utterances with seconds), `valid` and `tests` (TrialFiles), `musan`, `rirs`.
    """

    def __init__(self, args, tests):
        self.args, self.tests = args, tests
        lists = Path(args['path_log']) / 'lists'
        self.musan = Musan(args['path_musan'], AudioReader())
        self.rirs = Rirs(args['path_rir'], AudioReader())
        self.memory = keep_in_memory(args['cache_gib'], self.musan, self.rirs)
        self.workers = workers_for(args['num_workers'])
        self.valid = tests[0]
        if args['selection'] != 'test':
            self.valid = trial_files.validation_files(
                args['path_valid'],
                args['trials_valid'],
                lists / 'valid_trials.txt',
                seed=args['rand_seed'],
                **loading(args),
            )
        kept = lists / 'train.txt'
        self.train = trial_files.training_list(args['path_train'], args['list_train'], kept)
        if args['clusters'] > len(self.train):
            raise DataError(
                f'clusters {args["clusters"]}: the train list has {len(self.train)} utterances only'
            )

    def describe(self):
        """One line: what was found."""
        train, files = self.train, self.musan.files
        tests = ', '.join(f'{t.trials.name} {len(t.trials):,}' for t in [self.valid, *self.tests])
        noises = ', '.join(f'{len(files[name]):,} {name}' for name in CATEGORIES)
        return (
            f'train: {len(train):,} utterances, {np.nansum(train.seconds) / 3600:.1f} h; '
            f'trials: {tests}; MUSAN: {noises}; {len(self.rirs.files):,} RIRs, {self.memory}; '
            f'{describe_workers(self.args["num_workers"])}'
        )

    def contrastive_loader(self):
        """Stage I: (B, 3, L) waves."""
        data = ContrastiveSet(self.train, self.musan, self.rirs, self.args)
        return self._loader(data, self.args['contrastive_batch'])

    def labelled_loader(self, labels, phase):
        """Stage II: (B, 1, L) waves with pseudo-labels; -1 marks files left out."""
        kept, args = np.flatnonzero(labels >= 0), self.args
        utterances = self.train.select(kept)
        data = LabelledCrops(utterances, labels[kept], self.musan, self.rirs, args, phase)
        return self._loader(data, args['batch_size'], phase)

    def clustering_loader(self):
        """Every training file once, clean, in batches of about 1600 s (spec 2.6)."""
        truncate = self.args['cluster_audio'] == 'shortest'
        return whole_utterances(
            self.train,
            budget_seconds=1600 if truncate else self.args['eval_seconds'],
            workers=self.workers,
            truncate=truncate,
            on_error='skip',
        )

    def _loader(self, data, batch_size, phase=0):
        seed = self.args['rand_seed'] + phase
        return shuffled_loader(data, batch_size, seed, self.workers)


def trial_lists(args):
    """The lists of `trials_test`, each with the loader of their files."""
    return trial_files.trial_lists(args['trials_test'], args['path_test'], **loading(args))


def loading(args):
    """How the files of a list are read."""
    workers = workers_for(args['num_workers'])
    return {'budget_seconds': args['eval_seconds'], 'workers': workers}


def needed_paths(args):
    """What must be there before anything is built, by the name of its argument."""
    names = ['path_test', 'trials_test', 'published']
    if not args['eval']:
        names += ['path_train', 'list_train', 'path_musan', 'path_rir']
        names += ['path_valid', 'trials_valid'] if args['selection'] == 'valid' else []
    return {name: args[name] for name in names}


def use_demo_corpus(args):
    """Builds the corpus of `--demo`, once, and points the paths at it."""
    root = Path(args['path_scripts']).parents[1] / args['path_demo']
    corpus = demo.make(root)
    args.update(
        path_train=str(corpus.train),
        list_train=str(corpus.train_list),
        path_test=str(corpus.vox1),
        trials_test=tuple(str(corpus.trials[name]) for name in 'OEH'),
        path_valid=str(corpus.vox1),
        trials_valid=str(corpus.trials['valid']),
        path_musan=str(corpus.musan),
        path_rir=str(corpus.rirs),
    )


def write_labels(path, utterances, labels, quality):
    """Lines `path label`, whole or not at all; the quality first, so that labels mean both."""
    write_text(path.with_suffix('.json'), json.dumps(quality))
    lines = [f'{utterances.name(i)} {label}' for i, label in enumerate(labels)]
    write_text(path, '\n'.join(lines) + '\n')


def read_labels(path, utterances):
    """Labels in the order of the utterances, -1 for a file left out, and their quality."""
    with open(path) as file:
        table = dict(line.split() for line in file)
    names = [utterances.name(i) for i in range(len(utterances))]
    unknown = [name for name in names if name not in table]
    if unknown:
        raise DataError(
            f'{path}: no label for {unknown[0]} and {len(unknown) - 1} more: it belongs to another '
            'train list; change `name`'
        )
    labels = np.array([int(table[name]) for name in names], dtype=np.int64)
    return labels, json.loads(path.with_suffix('.json').read_text())
