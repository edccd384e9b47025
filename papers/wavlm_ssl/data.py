"""The corpora of the recipe, and what one training sample is in each stage (workers only read)."""

import numpy as np

from shared import ddp
from shared.augmentations.reverb import power_db_gain, unit_energy
from shared.datasets.crops import CropSet, shuffled_loader
from shared.datasets.items import Sample
from shared.datasets.loading import train_loader, whole_utterances
from shared.datasets.machine import describe_workers, workers_for
from shared.datasets.memory import keep_in_memory
from shared.datasets.musan import CATEGORIES, Musan, NoiseRange
from shared.datasets.reading import AudioReader
from shared.datasets.rirs import Rirs
from shared.datasets.samplers import DistinctBatches, sample_rng
from shared.datasets.trial_files import training_list

KINDS = ('nothing', 'room', 'music', 'speech', 'noise', 'speech and music')  # draw 0 ... 5 of 2.3
# a crop of DINO: (room, noise) and how often (spec 8.2, 8.3)
ROOM_NOISE = ((False, False), (True, False), (False, True), (True, True))
SHARES = {'rdino': (1 / 6, 1 / 8, 3 / 8, 1 / 3), 'dino': (1 / 4, 1 / 4, 1 / 4, 1 / 4)}
GLOBALS = 2  # crops that the teacher sees too


class NoisyCrops(CropSet):
    """What the samples of both stages share: rooms, and MUSAN noise added to the clean crop."""

    def __init__(self, utterances, musan, rirs, args, seed):
        super().__init__(utterances, seed)
        self.musan, self.rirs = musan, rirs
        self.snr = {name: args[f'snr_{name}'] for name in CATEGORIES}

    def add_noise(self, sample, view, category, rng, files=(1, 1)):
        """Every file is crop-long, wrapped where short, and has an SNR of its own."""
        drawn = NoiseRange(self.snr[category], files)
        noises = self.musan.several(category, sample.waves.shape[1], rng, drawn)
        sample.noises += [(view, noise, snr) for noise, snr in noises]


class LabelledCrops(NoisyCrops):
    """Fine-tuning: waves (2, L), a crop augmented and the same crop clean, and its pseudo-label.

    `labels` (N,) of the train list; what has -1 is left out. A sample's index is its number in the
    train list. `max_frames` of args is the length; each draw of 2.3 is equally likely.
    """

    def __init__(self, utterances, labels, musan, rirs, args, seed):
        self.rows = np.flatnonzero(labels >= 0)
        super().__init__(utterances.select(self.rows), musan, rirs, args, seed)
        self.labels = labels[self.rows]
        self.size = args['max_frames'] * 160 + 240  # spec 2.2
        self.babble, self.babble_music = args['babble'], args['babble_music']

    def sample(self, epoch, index):
        """One utterance, a function of (seed, epoch, index) alone."""
        rng = sample_rng(self.seed, epoch, index)
        wave = self.crop(index, self.size, rng)
        row, label = int(self.rows[index]), int(self.labels[index])
        sample = Sample(np.stack([wave, wave]), label=label, index=row)
        self.augment(sample, KINDS[rng.integers(len(KINDS))], rng)
        sample.converted = self.reader.take_converted()
        return sample

    def augment(self, sample, kind, rng):
        """View 0 (spec 2.3)."""
        if kind == 'room':
            sample.rirs.append((0, unit_energy(self.rirs.draw(rng))))
        both = self.babble_music == 'both'  # quirk 10: as coded the babble is lost, music stays
        if kind == 'speech' or (kind == 'speech and music' and both):
            self.add_noise(sample, 0, 'speech', rng, self.babble)
        if kind in ('music', 'speech and music'):
            self.add_noise(sample, 0, 'music', rng)
        if kind == 'noise':
            self.add_noise(sample, 0, 'noise', rng)


class DinoCrops(NoisyCrops):
    """DINO: global crops (2, L), and in `more` the 'locals' (V, l), each augmented by itself.

    args['dino'] is the recipe: 'rdino' (spec 8.2) draws starts without replacement and pads short
    files with zeros; 'dino' (8.3) draws them independently and wraps short files around.
    """

    def __init__(self, utterances, musan, rirs, args, seed):
        super().__init__(utterances, musan, rirs, args, seed)
        self.recipe, self.gain = args['dino'], args['dino_rir_gain']
        self.views = {'globals': (GLOBALS, args['global_size'])}
        self.views['locals'] = args['locals'], args['local_size']

    def sample(self, epoch, index):
        """One utterance, a function of (seed, epoch, index) alone."""
        rng = sample_rng(self.seed, epoch, index)
        with self.reader.open(self.utterances.path(index)) as audio:
            waves = {name: self.crops(audio, *view, rng) for name, view in self.views.items()}
        samples = {name: Sample(wave, label=-1, index=index) for name, wave in waves.items()}
        for crops in samples.values():
            for view in range(len(crops.waves)):
                self.augment(crops, view, rng)
        sample = samples['globals']
        sample.more['locals'] = samples['locals']
        sample.converted = self.reader.take_converted()
        return sample

    def crops(self, audio, count, size, rng):
        """(count, size) from anywhere in an open file."""
        if self.recipe == 'dino':
            length = max(audio.length, self.views['globals'][1] + 1)  # wrapped to this (spec 8.3)
            starts = rng.integers(length - size + 1, size=count)
            return np.stack([audio.read(int(start), size) for start in starts])
        # Of a short file every crop is near the start; elsewhere it would be silent (ours).
        starts = rng.choice(max(audio.length - size, count), size=count, replace=False)
        return np.stack([zero_padded(audio, int(start), size) for start in starts])

    def augment(self, sample, view, rng):
        """A room, noise, both or neither."""
        room, noise = ROOM_NOISE[rng.choice(len(ROOM_NOISE), p=SHARES[self.recipe])]
        if room:
            rir = self.rirs.draw(rng)
            loud = self.recipe == 'rdino'  # gains of up to 7 "dB" on what is not normalised
            rir = power_db_gain(rir, rng.uniform(*self.gain)) if loud else unit_energy(rir)
            sample.rirs.append((view, rir))
        if noise:
            self.add_noise(sample, view, rng.choice(CATEGORIES), rng)


def zero_padded(audio, start, size):
    """`size` samples of an open file, with zeros after its end."""
    wave = np.zeros(size, np.float32)
    inside = max(min(size, audio.length - start), 0)
    wave[:inside] = audio.read(start, inside)
    return wave


class Corpus:
    """Train list, MUSAN and rooms, checked on construction; its labels are used for nothing.

    `valid` is the list that every epoch is scored on. `musan` and `rirs` are None with --eval.
    """

    def __init__(self, args, valid):
        self.args, self.valid = args, valid
        training = not args['eval']
        self.musan = Musan(args['path_musan'], AudioReader()) if training else None
        self.rirs = Rirs(args['path_rir'], AudioReader()) if training else None
        self.memory = keep_in_memory(args['cache_gib'], self.musan, self.rirs)
        self.workers = workers_for(args['num_workers'])
        kept = f'{args["path_log"]}/lists/train.txt'
        self.train = training_list(args['path_train'], args['list_train'], kept)

    def describe(self):
        """One line: what was found."""
        noises = ', '.join(f'{len(self.musan.files[name]):,} {name}' for name in CATEGORIES)
        return (
            f'train: {len(self.train):,} utterances, {np.nansum(self.train.seconds) / 3600:.1f} h; '
            f'each epoch is scored on {self.valid.trials.name}, {len(self.valid.trials):,} trials; '
            f'MUSAN: {noises}; {len(self.rirs.files):,} RIRs, {self.memory}; '
            f'{describe_workers(self.args["num_workers"])}'
        )

    def dino_loader(self, seed):
        """DINO: (B, 2, L) waves, and the same of (B, 4, l) in batch['locals']."""
        args = self.args
        data = DinoCrops(self.train, self.musan, self.rirs, args, seed)
        return shuffled_loader(data, args['dino_batch_size'], seed, self.workers)

    def labelled_loader(self, labels, seed, lmft=False):
        """Fine-tuning: (B, 2, L) waves with pseudo-labels, no label twice in a batch (spec 2.4)."""
        args = self.args
        if lmft:
            args = {**args, 'max_frames': args['lmft_frames']}
        data = LabelledCrops(self.train, labels, self.musan, self.rirs, args, seed)
        sampler = DistinctBatches(
            data.labels,
            args['lmft_batch_size' if lmft else 'batch_size'],
            seed,
            ddp.rank(),
            ddp.world_size(),
            most=args['max_seg_per_spk'],
        )
        return train_loader(data, sampler, self.workers)

    def whole_loader(self, utterances=None):
        """Every training file, or those of `utterances`, once, clean and whole; this rank's share."""
        chosen = self.train if utterances is None else utterances
        return whole_utterances(chosen, **loading(self.args), on_error='skip')


def loading(args):
    """How whole files are read."""
    workers = workers_for(args['num_workers'])
    return {'budget_seconds': args['eval_seconds'], 'workers': workers}
