"""One epoch of each phase, and validation."""

import torch

from shared.augmentations.augment import augment_in_turn
from shared.datasets.items import to_device
from shared.datasets.voxceleb import known_name
from shared.evaluation.extraction import extract
from shared.evaluation.scoring import cosine, segment_cosine
from shared.evaluation.segments import cut_segments
from shared.evaluation.verification import score_record
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
    """Records of a list: 'tta', with `full` also 'full' and 'full+tta'; scores of the last.

    TTA: mean cosine over all pairs of crops. full+TTA: mean of that and of whole files' cosine.
    """
    embed = Embedder(student, head, full, args).to(args['device']).eval()
    trials = trial_files.trials
    with torch.compiler.set_stance('force_eager'):  # every length would be compiled anew
        embeddings = extract(embed, trial_files.loader(), len(trials.files), args['device'])
    crops = embeddings[:, int(full) :]  # (N, S, D)
    scores = {'tta': segment_cosine(crops, trials.enrol, trials.test)}
    if full:
        scores['full'] = cosine(embeddings[:, 0], trials.enrol, trials.test)
        scores['full+tta'] = (scores['full'] + scores['tta']) / 2
    records = {
        crop: score_record(
            values.numpy(),
            trials,
            known_name=known_name(len(trials)),
            eer_rule=args['eer_rule'],
            crop=crop,
            resamples=resamples,
            converted=trial_files.converted,
        )
        for crop, values in scores.items()
    }
    return records, list(scores.values())[-1].numpy()


class Embedder(torch.nn.Module):
    """Whole files (B, L) to one embedding of each crop, after that of the file where `full`."""

    def __init__(self, student, head, full, args):
        super().__init__()
        self.student, self.head, self.full = student, head, full
        self.count, self.size = args['num_seg'], args['seg_size']

    def forward(self, waves, lengths):
        crops = cut_segments(waves, lengths, self.count, self.size)  # (B, S, L)
        embeddings = self.head(self.student(crops.flatten(0, 1)).states)
        embeddings = embeddings.unflatten(0, crops.shape[:2])  # (B, S, D)
        if not self.full:
            return embeddings
        whole = self.head(*self.student(waves, lengths))
        return torch.cat([whole.unsqueeze(1), embeddings], dim=1)
