"""One epoch of each phase, and validation."""

from shared import ddp
from shared.augmentations.augment import augment_in_turn
from shared.datasets.items import to_device
from shared.datasets.voxceleb import known_name
from shared.evaluation.crops import verify_by_crops
from shared.losses.class_weights import weight_sum
from shared.models.ssl_backends import SslSpeakerEncoder
from shared.optim.accumulation import Gradients
from shared.optim.schedules import cosine as cosine_lr
from shared.optim.schedules import set_lr
from shared.precision import autocast


def warmup_epoch(title, loop, parallel, optimizer, args):
    """Hint loss and E-APN on pairs: a clean utterance, and another of its speaker in noise."""
    parallel.train()
    precision = autocast(args['device'], args['amp'])
    gradients = Gradients(parallel, optimizer, precision)  # in one part: E-APN looks at all pairs
    for batch in loop.batches(title):
        batch = to_device(batch, args['device'])
        clean, reference = batch['waves'].unbind(1)  # (B, L) each
        noisy = augment_in_turn(batch)[:, 1]
        if args['noisy_reference']:  # Q1: the released code adds the noise in place
            reference = noisy
        losses = gradients(clean, noisy, reference)
        optimizer.step()
        loop.meters.update(losses)
    return {**loop.means(), 'lr': args['warmup_lr']}


def finetune_epoch(title, epoch, loop, parallel, optimizer, args):
    """AAM-softmax with top-k penalty on speakers."""
    parallel.train()
    parts, weights = args['accumulate'], ddp.unwrap(parallel).class_weights
    gradients = Gradients(parallel, optimizer, autocast(args['device'], args['amp']), parts)
    lr = cosine_lr(args['lr'], args['lr_min'], epoch - 1, args['epoch'])
    set_lr(optimizer, lr)
    for batch in loop.batches(title):
        batch = to_device(batch, args['device'])
        waves = augment_in_turn(batch).squeeze(1)  # (B, L)
        total = weight_sum(batch['labels'], weights) / parts
        losses = gradients(waves, batch['labels'], total)
        optimizer.step()
        loop.meters.update(losses)
    return {**loop.means(), 'lr': lr}


def validate(student, head, trial_files, args, resamples=0, full=False):
    """Records of a list by crops, with `full` also by whole files; scores of the last (spec 6)."""
    return verify_by_crops(
        SslSpeakerEncoder(student, head),
        trial_files,
        count=args['num_seg'],
        size=args['seg_size'],
        full=full,
        device=args['device'],
        known_name=known_name(len(trial_files.trials)),
        eer_rule=args['eer_rule'],
        resamples=resamples,
    )
