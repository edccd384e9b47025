"""The corpora of OS-KDFT, and what one training sample is (spec 2; workers only read)."""

import numpy as np

from shared.augmentations.distortion import CURVES, easing_envelope
from shared.augmentations.reverb import unit_energy
from shared.datasets.crops import CropSet, shuffled_loader
from shared.datasets.items import DataError, Paths, Sample, Utterances
from shared.datasets.lists import existing, listing
from shared.datasets.loading import whole_utterances
from shared.datasets.machine import describe_workers, workers_for
from shared.datasets.memory import keep_in_memory
from shared.datasets.musan import CATEGORIES, Musan, NoiseRange, audio_below
from shared.datasets.reading import AudioReader
from shared.datasets.rirs import Rirs
from shared.datasets.samplers import sample_rng
from shared.datasets.trial_files import training_list

# t = 0 ... 5 of spec 2.3, equally likely; categories of MUSAN are added in turn
KINDS = ('nothing', 'room', ('speech',), ('music',), ('noise',), ('speech', 'music'))


class LabelledCrops(CropSet):
    """A crop and its speaker, as the student hears it; before it what the teacher hears.

    waves (1, L) where both hear the same. Else (2, L): view 0 is the teacher's, view 1 the
    student's. They are one crop, and the student's is augmented (spec 2.3). With `others`, Paths of
    other speech, view 0 is a crop of something else (OS-KDFT2, spec 2.2), and view 1 still has the
    label.
    """

    def __init__(self, utterances, musan, rirs, others, args, seed):
        super().__init__(utterances, seed)
        self.musan, self.rirs, self.others = musan, rirs, others
        self.size, self.augmented = args['crop_size'], args['DA_p']
        self.clip_p, self.clip_ratio = args['clip_p'], args['clip_ratio']
        self.envelope_p, self.floor = args['envelope_p'], args['envelope_floor']
        self.ranges = {name: NoiseRange(args[f'snr_{name}']) for name in ('noise', 'music')}
        self.ranges['speech'] = NoiseRange(args['snr_speech'], args['babble'])
        self.epochs = args['epoch']
        self.order = (0, None)  # epoch and its permutation of `others`

    def sample(self, epoch, index):
        """One utterance, a function of (seed, epoch, index) alone."""
        rng = sample_rng(self.seed, epoch, index)
        wave = self.crop(index, self.size, rng)
        if self.others is not None:
            waves = [self.other(epoch, index, rng), wave]
        else:
            waves = [wave, wave] if self.augmented > 0 else [wave]
        label = int(self.utterances.speakers[index])
        sample = Sample(np.stack(waves), label=label, index=index)
        if rng.random() < self.augmented:
            self.augment(sample, len(waves) - 1, rng)
        sample.converted = self.reader.take_converted()
        return sample

    def other(self, epoch, index, rng):
        """Other speech at first, training speech more and more often: epoch / epochs of all."""
        if rng.random() < epoch / self.epochs:
            return self.crop(int(rng.integers(len(self))), self.size, rng)
        if self.order[0] != epoch:
            shuffle = sample_rng(self.seed, epoch, 0, 1)
            self.order = epoch, shuffle.permutation(len(self.others))
        number = self.order[1][index % len(self.others)]
        return self.reader.crop(self.others[number], self.size, rng)

    def augment(self, sample, view, rng):
        """A room or noises, then clipping, then an envelope (spec 2.3)."""
        kind = KINDS[rng.integers(len(KINDS))]
        if kind == 'room':
            sample.rirs.append((view, unit_energy(self.rirs.draw(rng))))
        elif kind != 'nothing':
            drawn = self.musan.noises(kind, self.size, rng, self.ranges)
            sample.noises = [(view, noise, snr) for noise, snr in drawn]
        if rng.random() < self.clip_p:
            sample.clips.append((view, rng.uniform(*self.clip_ratio)))
        if rng.random() < self.envelope_p:
            curve, reverse = rng.choice(list(CURVES)), rng.random() < 0.5
            floor = rng.uniform(*self.floor)
            sample.gains.append((view, easing_envelope(curve, self.size, floor, reverse)))


class Corpus:
    """Train list and what the recipe adds to it, checked on construction.

    `valid` is the list that every epoch is scored on. `musan` and `rirs` are None where nothing is
    augmented, `others` where the teacher hears no other speech.
    """

    def __init__(self, args, valid):
        self.args, self.valid = args, valid
        augmented = args['DA_p'] > 0
        self.musan = Musan(args['path_musan'], AudioReader()) if augmented else None
        self.rirs = Rirs(args['path_rir'], AudioReader()) if augmented else None
        self.memory = keep_in_memory(args['cache_gib'], self.musan, self.rirs)
        self.others = other_speech(args['path_kd']) if args['path_kd'] else None
        self.workers = workers_for(args['num_workers'])
        kept = f'{args["path_log"]}/lists/train.txt'
        self.train = training_list(args['path_train'], args['list_train'], kept)
        self.speakers = len(self.train.speaker_ids)

    def describe(self):
        """One line: what was found."""
        found = [
            f'train: {len(self.train):,} utterances of {self.speakers:,} speakers, '
            f'{np.nansum(self.train.seconds) / 3600:.1f} h',
            f'each epoch is scored on {self.valid.trials.name}, {len(self.valid.trials):,} trials',
        ]
        if self.musan:
            noises = (f'{len(self.musan.files[name]):,} {name}' for name in CATEGORIES)
            found.append(
                f'MUSAN: {", ".join(noises)}; {len(self.rirs.files):,} RIRs, {self.memory}'
            )
        if self.others:
            found.append(f'other speech for the teacher: {len(self.others):,} files')
        return '; '.join([*found, describe_workers(self.args['num_workers'])])

    def loader(self, seed):
        """(B, V, L) waves with speakers; what the V views are says `LabelledCrops`."""
        args = self.args
        data = LabelledCrops(self.train, self.musan, self.rirs, self.others, args, seed)
        return shuffled_loader(data, args['batch_size'], seed, self.workers)

    def cohort(self, speakers, seed):
        """All utterances of that many random training speakers, numbered anew from 0 (spec 6)."""
        train, rng = self.train, np.random.default_rng(seed)
        present = np.unique(train.speakers)
        chosen = np.sort(rng.choice(present, size=min(speakers, len(present)), replace=False))
        rows = np.flatnonzero(np.isin(train.speakers, chosen))
        return Utterances(
            train.root,
            train.paths[rows],
            np.searchsorted(chosen, train.speakers[rows]),
            tuple(train.speaker_ids[c] for c in chosen),
            train.seconds[rows],
        )

    def whole_loader(self, utterances):
        """Every file once and whole, this rank's share; an unreadable one stops."""
        return whole_utterances(utterances, **loading(self.args))


def loading(args):
    """How whole files are read."""
    workers = workers_for(args['num_workers'])
    return {'budget_seconds': args['eval_seconds'], 'workers': workers}


def other_speech(path):
    """Paths of every audio file below a folder."""
    root = existing(path, 'folder of other speech')
    names = audio_below(root, '.')
    if not len(names):
        raise DataError(f'{root}: no .wav or .flac below it; it holds {listing(root)}')
    return Paths(root, names)
