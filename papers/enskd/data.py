"""The corpora of EnSKD, and what one training sample is (spec 2; workers only read)."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from arguments import rows_of
from shared import ddp
from shared.augmentations.reverb import unit_energy
from shared.datasets.crops import CropSet, shuffled_loader
from shared.datasets.decoding import AudioError
from shared.datasets.items import Sample
from shared.datasets.loading import loader, whole_utterances
from shared.datasets.machine import describe_workers, workers_for
from shared.datasets.memory import keep_in_memory
from shared.datasets.musan import CATEGORIES, Musan, NoiseRange
from shared.datasets.reading import AudioReader
from shared.datasets.rirs import Rirs
from shared.datasets.samplers import sample_rng
from shared.datasets.trial_files import training_list
from shared.datasets.wespeaker_lists import is_raw_or_shard_list, read_list

SPEEDS = (Fraction(1), Fraction(9, 10), Fraction(11, 10))  # each but the first makes new classes
ROOM_SHARE = 0.5  # of the augmented crops; the others get a noise (spec 2.4)
CLEAN_BATCH = 64  # crops


def samples_of(frames):
    """Samples that give this many frames of 25 ms, one every 10 ms (spec 2.3-7)."""
    return (frames - 1) * 160 + 400


class LabelledCrops(CropSet):
    """A crop and its speaker; some of them with a room or a noise, never both (spec 2.3, 2.4)."""

    def __init__(self, utterances, musan, rirs, size, args, seed):
        super().__init__(utterances, seed)
        self.musan, self.rirs, self.size = musan, rirs, size
        self.augmented, self.speeds = args['DA_p'], SPEEDS if args['speed_perturb'] else SPEEDS[:1]
        self.ranges = {name: NoiseRange(args[f'snr_{name}']) for name in CATEGORIES}
        if self.augmented:
            files = np.array([len(musan.files[name]) for name in CATEGORIES])
            self.shares = files / files.sum()  # every file equally likely

    def sample(self, epoch, index):
        """One utterance, a function of (seed, epoch, index) alone."""
        rng = sample_rng(self.seed, epoch, index)
        speed = int(rng.integers(len(self.speeds)))
        wave = self.crop(index, self.size, rng, self.speeds[speed])
        label = int(self.utterances.speakers[index]) + speed * len(self.utterances.speaker_ids)
        sample = Sample(wave[None], label=label, index=index)
        if rng.random() < self.augmented:
            if rng.random() < ROOM_SHARE:
                sample.rirs.append((0, unit_energy(self.rirs.draw(rng))))
            else:
                category = CATEGORIES[rng.choice(len(CATEGORIES), p=self.shares)]
                drawn = self.musan.several(category, self.size, rng, self.ranges[category])
                sample.noises = [(0, noise, snr) for noise, snr in drawn]
        sample.converted = self.reader.take_converted()
        return sample


class CleanCrops(Dataset):
    """Batches of one crop of each utterance as it is, drawn by its number alone (spec 6.1, 8.2-17).

    This rank's share of them; `index` of a batch is the place in `rows`.

    Args:
        utterances: what is cropped.
        rows: (N,) numbers of the utterances.
        size: samples.
        seed: of the crops.
    """

    def __init__(self, utterances, rows, size, seed):
        self.utterances, self.rows, self.size, self.seed = utterances, rows, size, seed
        starts = range(0, len(rows), CLEAN_BATCH)
        self.starts = starts[ddp.rank() :: ddp.world_size()]
        self.reader = AudioReader()

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, number):
        waves, index, skipped, start = [], [], [], self.starts[number]
        for place in range(start, min(start + CLEAN_BATCH, len(self.rows))):
            row = int(self.rows[place])
            rng = sample_rng(self.seed, 0, row)
            try:
                waves.append(self.reader.crop(self.utterances.path(row), self.size, rng))
                index.append(place)
            except AudioError as error:
                skipped.append(str(error))
        return {
            'index': torch.tensor(index, dtype=torch.int64),
            'waves': torch.from_numpy(np.array(waves, dtype=np.float32).reshape(-1, self.size)),
            'lengths': torch.full((len(index),), self.size),
            'skipped': skipped,
        }


def names_its_files(args):
    """Whether the training list is one of wespeaker's, which needs no folder to start from."""
    given = args['list_train']
    if args['utt2spk'] is not None:
        return True
    return bool(given) and Path(given).exists() and is_raw_or_shard_list(given)


def training_set(args):
    """The training utterances of a folder, a list of VoxCeleb's kind or one of wespeaker's (2.2)."""
    given, lists = args['list_train'], Path(args['path_log']) / 'lists'
    if names_its_files(args):
        return read_list(given, lists / 'shards', utt2spk=args['utt2spk'])
    return training_list(args['path_train'], given, lists / 'train.txt')


def needs_teacher(args):
    """Whether this run has a student that learns from one."""
    return args['phase'] == 'teacher' or any(kd != 'none' for _, kd in rows_of(args))


def augments(args):
    """Whether something that this run trains hears rooms or noise."""
    if args['eval']:
        return False
    shares = [row['DA_p'] for row in rows_of(args).values() if args['phase'] != 'teacher']
    if needs_teacher(args) and not args['path_teacher']:
        shares.append(args['teacher_DA_p'])
    return max(shares, default=0) > 0


class Corpus:
    """Train list and what the recipe adds to it, checked on construction.

    `valid` is the list that every epoch is scored on; `classes` counts the speakers. `musan` and
    `rirs` are None where nothing is augmented.
    """

    def __init__(self, args, valid):
        self.args, self.valid = args, valid
        augmented = augments(args)
        self.musan = Musan(args['path_musan'], AudioReader()) if augmented else None
        self.rirs = Rirs(args['path_rir'], AudioReader()) if augmented else None
        self.memory = keep_in_memory(args['cache_gib'], self.musan, self.rirs)
        self.workers = workers_for(args['num_workers'])
        self.train = training_set(args)
        self.classes = len(self.train.speaker_ids)

    def describe(self):
        """One line: what was found."""
        seconds = self.train.seconds
        hours = '' if seconds is None else f', {np.nansum(seconds) / 3600:.1f} h'
        found = [
            f'train: {len(self.train):,} utterances of {self.classes:,} speakers{hours}',
            f'each epoch is scored on {self.valid.trials.name}, {len(self.valid.trials):,} trials',
        ]
        if self.musan:
            noises = (f'{len(self.musan.files[name]):,} {name}' for name in CATEGORIES)
            found.append(
                f'MUSAN: {", ".join(noises)}; {len(self.rirs.files):,} RIRs, {self.memory}'
            )
        return '; '.join([*found, describe_workers(self.args['num_workers'])])

    def loader(self, seed, args, frames):
        """(B, 1, L) waves with speakers, of B = args['batch_size'] utterances."""
        size = samples_of(frames)
        data = LabelledCrops(self.train, self.musan, self.rirs, size, args, seed)
        return shuffled_loader(data, args['batch_size'], seed, self.workers)

    def clean_loader(self, rows, seed=0):
        """A crop of each utterance of these numbers, as it is; this rank's share."""
        size = samples_of(self.args['frames'])
        data = CleanCrops(self.train, rows, size, seed)
        return loader(data, self.workers)

    def whole_loader(self):
        """Every training file once and whole, this rank's share."""
        return whole_utterances(self.train, **loading(self.args), on_error='skip')


def loading(args):
    """How whole files are read."""
    workers = workers_for(args['num_workers'])
    return {'budget_seconds': args['eval_seconds'], 'workers': workers}
