"""One epoch of each phase, and validation."""

from shared.augmentations.augment import augment_in_turn
from shared.datasets.items import to_device
from shared.datasets.voxceleb import known_name
from shared.evaluation.crops import verify_by_crops
from shared.models.ssl_backends import SslSpeakerEncoder
from shared.optim.schedules import cosine as cosine_lr
from shared.optim.schedules import set_lr
from shared.precision import autocast


def warmup_epoch(title, loop, parallel, optimizer, args):
    """Hint loss and E-APN on pairs: a clean utterance, and another of its speaker in noise."""
    parallel.train()
    for batch in loop.batches(title):
        batch = to_device(batch, args['device'])
        clean, reference = batch['waves'].unbind(1)  # (B, L) each
        noisy = augment_in_turn(batch)[:, 1]
        if args['noisy_reference']:  # Q1: the released code adds the noise in place
            reference = noisy
        with autocast(args['device'], args['amp']):
            losses = parallel(clean, noisy, reference)
        optimizer.zero_grad(set_to_none=True)
        losses['loss'].backward()
        optimizer.step()
        loop.meters.update(losses)
    return {**loop.means(), 'lr': args['warmup_lr']}


def finetune_epoch(title, epoch, loop, parallel, optimizer, args):
    """AAM-softmax with top-k penalty on speakers."""
    parallel.train()
    lr = cosine_lr(args['lr'], args['lr_min'], epoch - 1, args['epoch'])
    set_lr(optimizer, lr)
    for batch in loop.batches(title):
        batch = to_device(batch, args['device'])
        waves = augment_in_turn(batch).squeeze(1)  # (B, L)
        with autocast(args['device'], args['amp']):
            losses = parallel(waves, batch['labels'])
        optimizer.zero_grad(set_to_none=True)
        losses['loss'].backward()
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
