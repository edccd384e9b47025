"""One epoch, its learning rates and weights, and validation."""

from shared import ddp
from shared.augmentations.augment import augment_in_turn
from shared.datasets.items import to_device
from shared.datasets.voxceleb import known_name
from shared.evaluation.crops import verify_by_crops
from shared.losses.class_weights import weight_sum
from shared.optim.accumulation import Gradients
from shared.optim.schedules import cosine
from shared.precision import autocast


def train_epoch(title, epoch, total, loop, parallel, optimizer, args):
    """KD and speaker classification in one step, or what the phase has of them."""
    parallel.train()
    parts, weights = args['accumulate'], ddp.unwrap(parallel).class_weights
    gradients = Gradients(parallel, optimizer, autocast(args['device'], args['amp']), parts)
    rates, kd_weight = learning_rates(epoch, total, args), kd_weight_of(epoch, total, args)
    for group in optimizer.param_groups:
        group['lr'] = rates[group['name']]
    if args['rebuild_adam'] and loop.batches_done == 0:
        optimizer.state.clear()  # 9.1-5: the authors build a new Adam for each epoch
    for batch in loop.batches(title):
        batch = to_device(batch, args['device'])
        views = augment_in_turn(batch)  # (B, 1 or 2, L)
        clean, waves = views[:, 0], views[:, -1]
        kd_waves = clean if args['path_kd'] else None  # other speech; else that of the SV branch
        total = None if weights is None else weight_sum(batch['labels'], weights) / parts
        losses = gradients(waves, batch['labels'], clean, kd_waves, kd_weight, total)
        optimizer.step()
        loop.meters.update(losses)
    means = loop.means()
    weight = {'kd_weight': kd_weight} if 'kd_loss' in means else {}
    return {**means, **weight, **{f'lr_{name}': rate for name, rate in rates.items()}}


def learning_rates(epoch, total, args):
    """Rate of each group of parameters in an epoch, counted from 1 (spec 5.1).

    Half a cosine for back-end and classifier, times `adapter_lr_factor` for the adapters. The
    student's rises towards it for `student_warmup` epochs, then falls by `student_lr_decay` from
    the last of them on. System B (5.2): one constant rate.
    """

    def rate(e):
        return cosine(args['lr'], args['lr_min'], e - 1, total)

    speakers, warmup = rate(epoch), args['student_warmup']
    if warmup == 0:
        student = speakers
    elif epoch <= warmup:
        student = speakers * epoch / (warmup + 1)
    else:
        fall = args['student_lr_decay'] ** (epoch - warmup)
        student = rate(warmup) * warmup / (warmup + 1) * fall
    adapters = args['adapter_lr_factor'] * speakers
    return {'student': student, 'adapters': adapters, 'speakers': speakers}


def kd_weight_of(epoch, total, args):
    """kappa = (E - e) / E: the KD loss fades out; 1 where it does not (spec 4.2)."""
    return (total - epoch) / total if args['kd_fades'] else 1.0


def validate(system, trial_files, args, resamples=0, full=True, cohort=None):
    """Records of a list by crops, whole files and both (`verify_by_crops`), and scores of the last."""
    return verify_by_crops(
        system,
        trial_files,
        count=args['num_seg'],
        size=args['seg_size'],
        full=full,
        device=args['device'],
        known_name=known_name(len(trial_files.trials)),
        eer_rule=args['eer_rule'],
        resamples=resamples,
        cohort=cohort,
        top_k=args['cohort_top'] if cohort is None else min(args['cohort_top'], len(cohort)),
    )
