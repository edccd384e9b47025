"""One epoch of a student or a teacher, its schedules, and validation."""

from typing import NamedTuple

from shared import ddp
from shared.augmentations.augment import augment
from shared.augmentations.distortion import normalise_peak
from shared.datasets.items import to_device
from shared.datasets.voxceleb import known_name
from shared.evaluation.extraction import extract
from shared.evaluation.verification import verify
from shared.optim.accumulation import Gradients
from shared.optim.schedules import growing_margin, set_lr, warmup_exponential
from shared.precision import autocast


class Schedule(NamedTuple):
    """How a network is trained; of `warmup_exponential` and `growing_margin` (spec 5.2, 5.3)."""

    epochs: int
    lr: float
    lr_last: float
    warmup: int  # epochs
    lr_scale: float
    margin: float  # radians, at last
    margin_start: int  # epoch
    margin_fixed: int  # epoch

    def at(self, step, per_epoch):
        """Learning rate and margin of a step (from 0)."""
        warmup, total = self.warmup * per_epoch, self.epochs * per_epoch
        lr = warmup_exponential(self.lr, self.lr_last, step, warmup, total, self.lr_scale)
        when = self.margin_start, self.margin_fixed
        return lr, growing_margin(step, per_epoch, 0.0, self.margin, *when)


def train_epoch(title, epoch, schedule, kd_weight, loop, parallel, optimizer, args):
    """Speaker classification, and distillation where there is a teacher."""
    parallel.train()
    precision = autocast(args['device'], args['amp'])
    gradients = Gradients(parallel, optimizer, precision, args['accumulate'])
    criterion, steps = ddp.unwrap(parallel).criterion, len(loop.loader)
    first = (epoch - 1) * steps + loop.batches_done
    for step, batch in enumerate(loop.batches(title), first):
        lr, margin = schedule.at(step, steps)
        set_lr(optimizer, lr)
        criterion.set_margin(margin)
        batch = to_device(batch, args['device'])
        waves = augmented(batch)
        losses = gradients(waves, batch['labels'], kd_weight)
        optimizer.step()
        loop.meters.update(losses)
    lr, margin = schedule.at(epoch * steps - 1, steps)
    means = loop.means()
    weight = {'kd_weight': kd_weight} if 'kd_loss' in means else {}
    return {**means, **weight, 'lr': lr, 'margin': margin}


def augmented(batch):
    """Waves (B, L): a room or a noise, and then a peak of 1, in the rows that have one (spec 2.4)."""
    waves = augment(batch).squeeze(1)
    return normalise_peak(waves, batch['rir_row'], batch['noise_row'])


def validate(system, trial_files, args, resamples=0, mean=None, cohort=None, cohort_name=None):
    """Embeds each file of a list whole; records and scores by cosine, and with AS-norm last.

    Args:
        system: waves to embeddings.
        trial_files: the list.
        args: of the run.
        resamples: of the bootstrap.
        mean: (D,) of the training set, subtracted first (spec 6.2).
        cohort: (C, D) mean embeddings of the training speakers, for AS-norm (6.3).
        cohort_name: what they were computed of.
    """
    system.to(args['device']).eval()
    trials = trial_files.trials
    embeddings = extract(system, trial_files.loader(), len(trials.files), args['device'])
    how = {
        'known_name': known_name(len(trials)),
        'eer_rule': args['eer_rule'],
        'mean': mean,
        'resamples': resamples,
        'converted': trial_files.converted,
    }
    found = [verify(embeddings, trials, crop='full', **how)]
    if cohort is not None:
        norm = {'score_norm': 'as-norm', 'cohort': cohort, 'cohort_name': cohort_name}
        top_k = min(args['cohort_top'], len(cohort))
        found.append(verify(embeddings, trials, crop='full, AS-norm', top_k=top_k, **norm, **how))
    return [record for record, _ in found], found[-1][1]
