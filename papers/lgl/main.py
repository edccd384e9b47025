"""Self-supervised speaker recognition with loss-gated learning (Tao et al., ICASSP 2022).

https://arxiv.org/abs/2110.03869. Stage I learns an encoder by contrast. Stage II clusters its
embeddings, trains a classifier on the cluster labels until it stops improving ("T"), then goes on
with the samples whose loss is below a gate ("L"): these carry the reliable labels. The improved
encoder makes the next labels, five times.

    python main.py                          every visible GPU, or the CPU
    torchrun --nproc_per_node 4 main.py     the same under torchrun
    python main.py --doctor                 looks at data, weights and machine first
    python main.py --demo                   minutes on two cores, on a built-in synthetic corpus
    python main.py --eval --published FILE  score a checkpoint of the authors' code

Killed anywhere, the same command continues there.
"""

from functools import partial
from pathlib import Path

import torch

import data
import train
from arguments import get_args
from evaluation import evaluate, score
from framework import Adversary, Contrastive, GatedClassification
from health import examine
from losses import NO_GATE, phase_over
from models import AugmentationDiscriminator, encoder_of
from phases import batches, end_epoch, epochs_left, epochs_of, finish, loop_of
from published import weights_of
from shared import ddp, log, ranks
from shared.checkpoint import once
from shared.errors import UserError
from shared.files import require_paths
from shared.losses.aam_softmax import AamSoftmax
from shared.losses.contrastive import ContrastiveLoss
from shared.optim.accumulation import check_batches
from shared.seed import set_seed
from shared.weight_files import load_weights, read, write


def run(rank, args, experiment_args):
    set_seed(args['rand_seed'], args['deterministic'])
    folder = Path(args['path_log'])

    if args['demo']:
        data.use_demo_corpus(args)
    require_paths(data.needed_paths(args))
    tests = data.trial_lists(args)
    if args['eval']:
        encoder = encoder_of(args, weights_of(args['published'] or folder / 'encoder.pt'))
        return evaluate(encoder, tests, folder / 'evaluation', [], args)

    check_batches(batches(args), ddp.world_size())

    # logger
    changing = ('contrastive_epoch', 'iterations', 'accumulate')
    log.check_same_run(folder, experiment_args, ignore=changing)
    builder = log.LoggerList.Builder(
        args['name'], args['project'], args['tags'], args['description'], args['path_scripts'], args
    )
    builder.use_local_logger(args['path_log'])
    # builder.use_tensorboard_logger()
    # builder.use_wandb_logger(args['wandb_entity'], args['wandb_group'])
    # builder.use_neptune_logger(args['neptune_user'])
    logger = builder.build()
    logger.log_arguments(experiment_args)

    # data
    corpus = data.Corpus(args, tests)
    if ddp.is_main():
        print(corpus.describe(), flush=True)

    # Stage I: contrastive learning, next to the encoder as initialised
    untrained = partial(score, 'untrained', encoder_of(args), corpus, args)
    table = [once(folder / 'untrained.json', untrained, key=tests[0].trials.sha256)]
    stage_one = best = args['published'] or contrastive(corpus, logger, table, args)

    # Stage II: cluster, train ("T"), train with the loss gate ("L")
    iterations = 0 if args['phase'] == 'contrastive' else args['iterations']
    for iteration in range(1, iterations + 1):
        if epochs_left(table, args) == 0:
            break
        labels, quality, new = pseudo_labels(iteration, best, corpus, logger, args)
        if new and args['phase'] == 'cluster':
            break
        start = stage_one if args['restart'] == 'contrastive' else best
        best = classify(iteration, NO_GATE, labels, start, corpus, logger, table, args)
        table[-1].update(quality)
        if args['lgl'] and epochs_left(table, args):
            gate = args['gates'][iteration - 1]
            best = classify(iteration, gate, labels, best, corpus, logger, table, args)

    # results
    encoder = encoder_of(args, weights_of(best))
    if ddp.is_main():
        write(encoder.network.state_dict(), folder / 'encoder.pt')
    logger.finish()
    evaluate(encoder, tests, folder, table, args)


def contrastive(corpus, logger, table, args):
    """Stage I; returns the file with its best weights."""
    set_seed(args['rand_seed'], args['deterministic'])  # a phase does not depend on earlier ones
    framework = Contrastive(encoder_of(args), ContrastiveLoss())
    adversary = Adversary(AugmentationDiscriminator(args['embed_size']))
    parallel = framework.distribute(args['device'], args['sync_bn'])
    critic = adversary.distribute(args['device'], args['sync_bn'])
    optimizer = torch.optim.Adam(framework.learnable(), lr=args['contrastive_lr'])
    critic_optimizer = torch.optim.Adam(adversary.learnable(), lr=args['contrastive_lr'])
    networks = {'framework': framework, 'adversary': adversary}
    optimizers = {'optimizer': optimizer, 'critic_optimizer': critic_optimizer}
    loop = loop_of('contrastive', corpus.contrastive_loader(), args, **networks, **optimizers)
    if args['phase'] in ('cluster', 'classify') and not loop.finished:
        raise UserError(f'{loop.folder}: Stage I is not finished; run --phase contrastive first')
    done = len(loop.history)
    if loop.finished and done < args['contrastive_epoch']:
        raise UserError(f'{loop.folder}: ended at epoch {done}; for more change `name`')

    for epoch in loop.epochs(args['contrastive_epoch']):
        metrics = train.contrastive_epoch(
            epoch, loop, parallel, critic, optimizer, critic_optimizer, args
        )
        end_epoch(metrics, 'contrastive', epoch, loop, framework.encoder, corpus, logger, args)
    return finish('contrastive', loop, framework.encoder, corpus, table, args)


def pseudo_labels(iteration, best, corpus, logger, args):
    """Cluster ids of the training set, their quality, and whether they were made just now."""
    path = Path(args['path_log']) / 'labels' / f'{iteration}.txt'
    new = ddp.broadcast_object(not path.exists())
    if new:
        labels, quality = train.cluster(encoder_of(args, weights_of(best)), corpus, args)
        logger.log_metrics({f'cluster/{name}': x for name, x in quality.items()}, iteration)
        if ddp.is_main():
            data.write_labels(path, corpus.train, labels, quality)
        ddp.barrier()
    return *data.read_labels(path, corpus.train), new


def classify(iteration, gate, labels, start, corpus, logger, table, args):
    """A phase of Stage II, "T" or, with a gate, "L"; returns the file with its best weights.

    "T" starts from an encoder and a new classifier, "L" from the best epoch of "T" with the Adam
    moments of its last epoch, as the authors' code does.
    """
    set_seed(args['rand_seed'], args['deterministic'])
    name = f'{iteration}T' if gate == NO_GATE else f'{iteration}L'
    width = args['width_last'] if iteration == args['iterations'] else None
    framework = GatedClassification(
        encoder_of(args, width=width),
        AamSoftmax(args['clusters'], args['embed_size'], args['margin'], args['scale']),
    )
    parallel = framework.distribute(args['device'], args['sync_bn'])
    optimizer = torch.optim.Adam(framework.learnable(), lr=args['lr'])
    if gate != NO_GATE:
        load_weights(framework, read(start), start)
        optimizer.load_state_dict(read(start.with_name('last.pt'))['objects']['optimizer'])
    elif width is None:  # a C=1024 encoder cannot start from C=512: it starts afresh
        load_weights(framework.encoder.network, weights_of(start), start)
    loader = corpus.labelled_loader(labels, phase=2 * iteration + (gate != NO_GATE))
    loop = loop_of(name, loader, args, framework=framework, optimizer=optimizer)
    if args['phase'] == 'cluster' and not loop.finished:
        raise UserError(f'{loop.folder}: not finished; run --phase classify first')

    before = epochs_of(table)
    for epoch in loop.epochs(min(args['phase_epoch_max'], epochs_left(table, args))):
        eers = [past['valid_eer'] for past in loop.history]
        if phase_over(eers, args['patience'], args['phase_epoch_min']):
            break
        title = f'{name} {epoch}'
        metrics = train.classification_epoch(title, loop, parallel, optimizer, gate, args)
        step = before + epoch
        end_epoch(metrics, 'classification', step, loop, framework.encoder, corpus, logger, args)
    return finish(name, loop, framework.encoder, corpus, table, args)


if __name__ == '__main__':
    args, system_args, experiment_args = get_args()
    ranks.launch(examine if args['doctor'] or args['doctor_full'] else run, args, experiment_args)
