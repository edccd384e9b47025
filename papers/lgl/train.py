"""One epoch of each stage, and the two passes without gradient: validation, clustering."""

import numpy as np
import torch.nn.functional as F

from losses import NO_GATE
from shared import ddp
from shared.augmentations.augment import augment
from shared.clustering.kmeans import kmeans
from shared.clustering.metrics import nmi, purity
from shared.datasets.items import to_device
from shared.datasets.voxceleb import known_name
from shared.evaluation.extraction import extract
from shared.evaluation.verification import verify
from shared.optim.accumulation import Gradients
from shared.optim.schedules import exponential_steps, set_lr
from shared.precision import autocast


def contrastive_epoch(epoch, loop, parallel, critic, optimizer, critic_optimizer, args):
    """Stage I: contrastive loss; the discriminator and the encoder play against each other."""
    parallel.train()
    critic.train()
    decay, every = args['lr_decay'], args['lr_decay_epoch']
    lr = exponential_steps(args['contrastive_lr'], decay, every, epoch)
    set_lr(optimizer, lr)  # the discriminator's never decays
    for batch in loop.batches(f'contrastive {epoch}'):
        waves = augment(to_device(batch, args['device']))  # (B, 3, L)
        with autocast(args['device'], args['amp']):
            losses, embeddings = parallel(waves)

            # the discriminator learns to recognise shared augmentation
            critic_loss = critic(*(x.detach() for x in embeddings))
        critic_optimizer.zero_grad(set_to_none=True)
        critic_loss.backward()
        critic_optimizer.step()

        # the encoder learns to hide it from the discriminator just improved
        with autocast(args['device'], args['amp']):
            aat_loss = ddp.unwrap(critic).fool(*embeddings)
        loss = losses['speaker_loss'] + args['aat_weight'] * aat_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

        loop.meters.update({'loss': loss, 'aat_loss': aat_loss, **losses})
    return {**loop.means(), 'lr': lr}


def classification_epoch(title, loop, parallel, optimizer, gate, args):
    """Stage II: AAM-softmax on pseudo-labels; only losses up to the gate are learnt."""
    parallel.train()
    precision = autocast(args['device'], args['amp'])
    gradients = Gradients(parallel, optimizer, precision, args['accumulate'])
    for batch in loop.batches(title):
        batch = to_device(batch, args['device'])
        waves = augment(batch).squeeze(1)  # (B, L)
        losses = gradients(waves, batch['labels'], gate)
        # With nothing selected Adam would still move, by its momentum. Reading `selected` waits
        # for the device, so only gated phases do it.
        if gate == NO_GATE or ddp.all_reduce(losses['selected']) > 0:
            optimizer.step()
        loop.meters.update(losses)
    means = loop.means()
    hits, selected = means.pop('hits'), means.pop('selected')
    accuracy = 100 * hits / max(selected, 1e-12)  # of the selected samples
    return {**means, 'accuracy': accuracy, 'selected': 100 * selected}


def validate(encoder, trial_files, args, resamples=0):
    """Embeds each file of a list whole and scores its trials: (record, scores)."""
    encoder.to(args['device']).eval()
    trials = trial_files.trials
    embeddings = extract(encoder, trial_files.loader(), len(trials.files), args['device'])
    return verify(
        embeddings,
        trials,
        known_name=known_name(len(trials)),
        eer_rule=args['eer_rule'],
        resamples=resamples,
        converted=trial_files.converted,
    )


def cluster(encoder, corpus, args):
    """Pseudo-labels (N,), -1 for unreadable files, and their quality in percent."""
    encoder.eval()
    loader, count = corpus.clustering_loader(), len(corpus.train)
    embeddings = F.normalize(extract(encoder, loader, count, args['device']))
    readable = ~embeddings.isnan().any(1).numpy()
    labels = np.full(count, -1)
    if ddp.is_main():
        labels[readable], _ = kmeans(
            embeddings.numpy()[readable],
            args['clusters'],
            seed=args['cluster_seed'],
            spherical=args['spherical'],
        )
    labels = ddp.broadcast_object(labels)
    kept = labels >= 0
    true = corpus.train.speakers[kept]  # a diagnostic only: nothing learns from it
    found = labels[kept]
    return labels, {'NMI %': nmi(true, found), 'purity %': purity(true, found)}
