"""One epoch on pseudo-labels, embeddings of the training set, and validation."""

from shared import ddp
from shared.augmentations.augment import augment
from shared.datasets.items import to_device
from shared.datasets.voxceleb import known_name
from shared.evaluation.crops import verify_by_crops
from shared.evaluation.extraction import extract
from shared.evaluation.verification import verify
from shared.optim.accumulation import Gradients
from shared.optim.schedules import exponential_steps
from shared.precision import autocast


def finetune_epoch(title, epoch, done, gate, loop, parallel, optimizer, args):
    """AAM-softmax on pseudo-labels behind the gate; `done` epochs came before this phase's."""
    parallel.train()
    precision = autocast(args['device'], args['amp'])
    gradients = Gradients(parallel, optimizer, precision, args['accumulate'])
    for group in optimizer.param_groups:
        group['lr'] = exponential_steps(group['first_lr'], args['lr_decay'], 1, done + epoch)
    correct = done + epoch >= args['lc_epoch']
    for batch in loop.batches(title):
        batch = to_device(batch, args['device'])
        waves, clean = augment(batch).unbind(1)  # (B, L) each
        found, losses, gated = gradients(waves, clean, batch['labels'], gate.log_gate, correct)
        # With nothing learnt, moments and weight decay would still move the weights (quirk 6).
        # To know waits for the device, so only gated epochs ask.
        if not gate.active or ddp.all_reduce((gated.kept | gated.corrected).sum()) > 0:
            optimizer.step()
        gate.record.note(batch['index'], losses, gated)
        del found['loss']  # 1 and the pull: what is minimised has the gradient of a logarithm
        loop.meters.update(found)
    means = loop.means()
    learnt = means['kept'] + means['corrected']
    means['accuracy'] = 100 * means.pop('hits') / max(learnt, 1e-12)  # of what is learnt
    means |= {f'{name} %': 100 * means.pop(name) for name in ('kept', 'corrected')}
    rates = {f'lr_{g["name"]}': g['lr'] for g in optimizer.param_groups[:2]}
    threshold = {'threshold': gate.log_gate} if gate.active else {}
    return {**means, **threshold, **rates}


def embeddings_of(embed, corpus, args, noisy=False):
    """Raw embeddings (N, D) of every training file, whole; a row of NaN for an unreadable one."""
    return embed_whole(embed, corpus.whole_loader(), len(corpus.train), args, noisy)


def embed_whole(embed, loader, count, args, noisy=False):
    """Embeddings (N, D) of N files, whole."""
    embed.to(args['device']).eval()
    if noisy:  # quirk 4: with dropout and LayerDrop
        for part in embed.children():
            part.train()
    return extract(embed, loader, count, args['device'])


def validate(embed, trial_files, args, resamples=0, full=True, cohort=None):
    """Records of a list by crops, whole files and both (`verify_by_crops`), and scores of the last."""
    return verify_by_crops(
        embed,
        trial_files,
        count=args['num_eval'],
        size=args['eval_frames'] * 160 + 240,  # samples, as the crops of training (spec 2.2)
        full=full,
        device=args['device'],
        known_name=known_name(len(trial_files.trials)),
        eer_rule=args['eer_rule'],
        resamples=resamples,
        cohort=cohort,
        cohort_name=None if cohort is None else 'means of the pseudo-speakers',
        top_k=args['cohort_top'] if cohort is None else min(args['cohort_top'], len(cohort)),
    )


def validate_whole(embed, trial_files, args, resamples=0):
    """Record of a list by whole files alone, as DINO is scored (spec 8.2), and the scores (M,)."""
    trials = trial_files.trials
    return verify(
        embed_whole(embed, trial_files.loader(), len(trials.files), args),
        trials,
        known_name=known_name(len(trials)),
        eer_rule=args['eer_rule'],
        resamples=resamples,
        converted=trial_files.converted,
    )
