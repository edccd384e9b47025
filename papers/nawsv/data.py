"""The corpora of NAW-SV, and what one training sample is in each phase (workers only read)."""

import numpy as np

from shared import ddp
from shared.augmentations.reverb import unit_energy
from shared.datasets.crops import CropSet, shuffled_loader
from shared.datasets.items import Sample
from shared.datasets.loading import train_loader, with_substitute
from shared.datasets.machine import describe_workers, workers_for
from shared.datasets.memory import keep_in_memory
from shared.datasets.musan import Musan, NoiseRange
from shared.datasets.reading import AudioReader
from shared.datasets.rirs import Rirs
from shared.datasets.samplers import DistinctBatches, sample_rng
from shared.datasets.trial_files import training_list

NOISES = (('noise',), ('speech',), ('music',), ('speech', 'music'))  # equally likely
PAIR_ATTEMPTS = 10


class NoisyCrops(CropSet):
    """What the samples of both phases share: crops and MUSAN noise (spec 2.2, 2.4)."""

    def __init__(self, utterances, musan, args, seed):
        super().__init__(utterances, seed)
        self.musan = musan
        self.ranges = {
            'noise': NoiseRange(args['snr']),
            'speech': NoiseRange(args['snr'], args['babble']),
            'music': NoiseRange(args['snr']),
        }

    def noises(self, kind, view, size, rng):
        """The noises of NOISES[kind]; each is meant for the mixture of those before it."""
        drawn = self.musan.noises(NOISES[kind], size, rng, self.ranges)
        return [(view, noise, snr) for noise, snr in drawn]


class PairSet(NoisyCrops):
    """Warm-up: clean crops of two utterances of a speaker, and noise for the second (spec 2.7)."""

    def __init__(self, utterances, musan, args, seed):
        super().__init__(utterances, musan, args, seed)
        self.size = args['crop_size']

    def __getitem__(self, key):
        epoch, first, second = key

        def sample(attempt):
            return self.sample(epoch, *self.pair(first, second, attempt))

        return with_substitute(sample, 0, PAIR_ATTEMPTS)

    def pair(self, first, second, attempt):
        """The pair, or where its audio is bad two other utterances.

        They are of that speaker; in the last attempts of any, as it may have no others.
        """
        if attempt == 0:
            return first, second
        rng, speakers = sample_rng(self.seed, attempt, first), self.utterances.speakers
        if attempt >= PAIR_ATTEMPTS - 3:
            several = np.flatnonzero(np.bincount(speakers)[speakers] > 1)
            first = rng.choice(several)
        same = np.flatnonzero(speakers == speakers[first])
        return tuple(int(i) for i in rng.choice(same, size=2, replace=False))

    def sample(self, epoch, first, second):
        """Views (2, L): clean, and clean with the noise that makes it the noisy one."""
        rng = sample_rng(self.seed, epoch, first)
        waves = np.stack([self.crop(i, self.size, rng) for i in (first, second)])
        sample = Sample(waves, label=int(self.utterances.speakers[first]), index=first)
        sample.noises = self.noises(int(rng.integers(len(NOISES))), 1, self.size, rng)
        sample.converted = self.reader.take_converted()
        return sample


class LabelledCrops(NoisyCrops):
    """Fine-tuning: one crop and its speaker; with probability DA_p noise or a room (spec 2.8)."""

    def __init__(self, utterances, musan, rirs, args, seed):
        super().__init__(utterances, musan, args, seed)
        self.rirs, self.augmented = rirs, args['DA_p']
        self.size, self.large_size = args['crop_size'], args['large_crop_size']
        self.large_after = args['large_margin_epoch']

    def sample(self, epoch, index):
        """One utterance, a function of (seed, epoch, index) alone."""
        rng = sample_rng(self.seed, epoch, index)
        size = self.large_size if epoch > self.large_after else self.size
        wave = self.crop(index, size, rng)
        sample = Sample(wave[None], label=int(self.utterances.speakers[index]), index=index)
        if rng.random() < self.augmented:
            kind = int(rng.integers(len(NOISES) + 1))
            if kind == len(NOISES):
                sample.rirs.append((0, unit_energy(self.rirs.draw(rng))))
            else:
                sample.noises = self.noises(kind, 0, size, rng)
        sample.converted = self.reader.take_converted()
        return sample


class Corpus:
    """Train list, MUSAN's train part and rooms, checked on construction; `tests` of `conditions`.

    `valid` is the list that every epoch is scored on.
    """

    def __init__(self, args, valid, musan_train):
        self.args, self.valid = args, valid
        self.musan = Musan(musan_train, AudioReader())
        self.rirs = Rirs(args['path_rir'], AudioReader())
        self.memory = keep_in_memory(args['cache_gib'], self.musan, self.rirs)
        self.workers = workers_for(args['num_workers'])
        kept = f'{args["path_log"]}/lists/train.txt'
        self.train = training_list(args['path_train'], args['list_train'], kept)
        self.speakers = len(self.train.speaker_ids)

    def describe(self):
        """One line: what was found."""
        noises = ', '.join(f'{len(files):,} {name}' for name, files in self.musan.files.items())
        return (
            f'train: {len(self.train):,} utterances of {self.speakers:,} speakers, '
            f'{np.nansum(self.train.seconds) / 3600:.1f} h; each epoch is scored on '
            f'{self.valid.trials.name}, {len(self.valid.trials):,} trials; '
            f'MUSAN: {noises}; {len(self.rirs.files):,} RIRs, {self.memory}; '
            f'{describe_workers(self.args["num_workers"])}'
        )

    def pair_loader(self, seed):
        """Warm-up: (B, 2, L) waves, noise for the second view; no speaker twice (spec 2.7)."""
        args = self.args
        sampler = DistinctBatches(
            self.train.speakers,
            args['warmup_batch_size'],
            seed,
            ddp.rank(),
            ddp.world_size(),
            most=args['max_seg_per_spk'],
            each=2,
        )
        data = PairSet(self.train, self.musan, args, seed)
        return train_loader(data, sampler, self.workers)

    def labelled_loader(self, seed):
        """Fine-tuning: (B, 1, L) waves with speakers."""
        args = self.args
        data = LabelledCrops(self.train, self.musan, self.rirs, args, seed + 1)
        return shuffled_loader(data, args['batch_size'], seed + 1, self.workers)
