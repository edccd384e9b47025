"""Speaker verification without labels, from DINO to WavLM (Miara et al., Interspeech 2024).

https://arxiv.org/abs/2406.02285. DINO learns a first embedding of speakers from audio alone. Its
clusters are pseudo-speakers, on which WavLM with an attentive back-end (MHFA) is fine-tuned as if
they were true ones. Wrong labels show as large losses: a mixture of two Gaussians gives a gate in
each epoch, above which a sample is left out, or gets the label the network is sure of. Better
embeddings make better clusters, twice; long crops and a large margin end the recipe.

    python main.py                          every visible GPU, or the CPU
    torchrun --nproc_per_node 4 main.py     the same under torchrun
    python main.py --demo                   minutes on two cores, on a built-in synthetic corpus
    python main.py --phase cluster --embeddings E.pt --labels P.txt    clusters a file, no more
    python main.py --eval --published model000000018.model    score the authors' file

Killed anywhere, the same command continues there.
"""

from functools import partial
from pathlib import Path

import torch

import train
from arguments import get_args
from data import Corpus
from dino import dino_epoch, dino_framework, dino_optimizer
from evaluation import results, score
from framework import GatedFineTuning
from labels import cluster_files
from paths import last_model, needed_paths, use_demo_corpus
from phases import DynamicGate, due, end_epoch, gate_report, loop_of
from published import read, to_published
from shared import ddp, log
from shared.checkpoint import load_weights, once
from shared.datasets.embeddings import labels_for, read_labels
from shared.datasets.trial_files import trial_lists, validation_files
from shared.files import require_paths
from shared.seed import set_seed
from steps import cluster, embed, quality_of
from systems import WavlmSpeaker, backend_of, criterion_of, dino_system, encoder_of, system_of


def run(rank, args, experiment_args):
    set_seed(args['seeds'][0], args['deterministic'])
    folder = Path(args['path_log'])

    if args['phase'] == 'cluster' and args['embeddings'] and args['labels']:
        return cluster_files(args['embeddings'], args['labels'], args)
    if args['demo']:
        use_demo_corpus(args)
    require_paths(needed_paths(args))
    loading = {'budget_seconds': args['eval_seconds'], 'workers': args['num_workers']}
    tests = trial_lists(args['trials_test'], args['path_test'], **loading)
    if args['eval']:
        where, file = folder / 'evaluation', args['published'] or last_model(args)
        scored = score('evaluation', args['seeds'][-1], system_of(file, args), tests, where, args)
        return results([scored], tests, where, args)

    # logger
    log.check_same_run(folder, experiment_args, ignore=('seeds', 'rounds'))
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
    valid, kept = tests[0], folder / 'lists' / 'valid_trials.txt'
    if args['path_valid']:
        given, seed = args['trials_valid'], args['seeds'][0]
        valid = validation_files(args['path_valid'], given, kept, seed=seed, **loading)
    corpus = Corpus(args, valid)
    if ddp.is_main():
        print(corpus.describe(), flush=True)

    # each seed: the whole recipe; with --phase its next step alone
    scored = []
    for seed in args['seeds']:
        scored += recipe(seed, corpus, tests, logger, args)
    logger.finish()

    # results
    if scored:
        results(scored, tests, folder, args)


def recipe(seed, corpus, tests, logger, args):
    """DINO, then rounds of labels and fine-tuning, then a large margin; returns their scores."""
    folder, scored = Path(args['path_log']) / f'seed{seed}', []

    def step(phase, output, work, *more):
        """Runs a step whose output is not there; true where the recipe may go on."""
        if due(phase, output, args):
            work(output, *more, seed, corpus, logger, args)
            ddp.barrier()
            return args['phase'] == 'all'
        return True

    def measure(name, system, **more):
        where = folder / name
        measured = partial(score, name, seed, system, tests, where, args)
        scored.append({**once(where / 'scores.json', measured), **more})

    # DINO, or embeddings from elsewhere
    newest = folder / 'dino' / 'encoder.pt'
    if not (args['embeddings'] or args['labels']):
        if not step('dino', newest, train_dino):
            return scored
        measure('dino', dino_system(newest, args))

    # pseudo-labels and fine-tuning, each round from the pre-trained WavLM
    for number in range(args['rounds'] + 1):
        embeddings, labels = folder / f'embeddings/{number}.pt', folder / f'labels/{number}.txt'
        given = args['embeddings'] or args['labels'] if number == 0 else None
        if not given and not step('embed', embeddings, embed, newest):
            return scored
        source = Path(given) if given else embeddings
        if not step('cluster', labels, cluster, source):
            return scored
        model = folder / f'round{number}' / 'model.pt'
        if not step('finetune', model, finetune, labels, None):
            return scored
        measure(f'round{number}', system_of(model, args), quality=quality_of(labels, corpus))
        newest = model

    # large-margin fine-tuning; of a run with more rounds it is another
    if args['lmft_epochs'] > 0:
        name = f'lmft{args["rounds"]}'
        model = folder / name / 'model.pt'
        if not step('lmft', model, finetune, labels, newest):
            return scored
        measure(name, system_of(model, args))
    return scored


def train_dino(output, seed, corpus, logger, args):
    """Stage 0: self-distillation without labels."""
    set_seed(seed + 1000 * ddp.rank(), args['deterministic'])
    framework = dino_framework(args)
    parallel = framework.distribute(args['device'], args['sync_bn'])
    optimizer = dino_optimizer(framework, args)
    loader, title = corpus.dino_loader(seed), f'seed{seed}/dino'
    loop = loop_of('dino', seed, loader, args, framework=framework, optimizer=optimizer)
    for epoch in loop.epochs(args['dino_epoch']):
        metrics = dino_epoch(f'{title} {epoch}', epoch, loop, parallel, optimizer, args)
        teacher = framework.teacher['encoder']
        end_epoch(title, epoch, metrics, loop, teacher, corpus, logger, args)
    loop.export(framework.networks)


def finetune(output, labels_file, start, seed, corpus, logger, args):
    """Steps 3 and 4: WavLM and MHFA on pseudo-labels; from the model `start` on, large margin."""
    set_seed(seed + 1000 * ddp.rank(), args['deterministic'])
    step, large = output.parent.name, start is not None
    labels = labels_for(corpus.train, *read_labels(labels_file))
    margin, done = (args['lmft_margin'], args['epoch']) if large else (args['margin'], 0)
    encoder = encoder_of(args)
    criterion = criterion_of(args, int(labels.max()) + 1, margin)
    backend = backend_of(args, encoder)
    framework = GatedFineTuning(encoder, backend, criterion, args)
    framework.pull_towards(encoder.state_dict(), args['device'])
    system = WavlmSpeaker(encoder, backend, args['longest'])
    gate = DynamicGate(len(corpus.train), args['device'])
    if large:
        load_weights(framework, read(start).state, start)
        if args['lmft_gate']:
            gate.load_losses(start.parent / 'losses.npz')
    parallel = framework.distribute(args['device'])
    optimizer = torch.optim.AdamW(
        framework.groups(args['lr_mhfa'], args['lr_transformer'], args['llrd']),
        lr=args['lr_mhfa'],
        weight_decay=args['weight_decay'],
    )
    loader, title = corpus.labelled_loader(labels, seed, lmft=large), f'seed{seed}/{step}'
    loop = loop_of(step, seed, loader, args, framework=framework, optimizer=optimizer, gate=gate)
    for epoch in loop.epochs(args['lmft_epochs'] if large else args['epoch']):
        if loop.batches_done == 0:
            gate.begin(done + epoch, args)
        metrics = train.finetune_epoch(
            f'{title} {epoch}', epoch, done, gate, loop, parallel, optimizer, args
        )
        metrics |= gate_report(epoch, metrics, gate, labels, corpus, loop)
        end_epoch(title, epoch, metrics, loop, system, corpus, logger, args)
    gate.write_losses(loop.folder / 'losses.npz')
    loop.export(lambda: {'model': to_published(framework.state_dict())})


if __name__ == '__main__':
    args, system_args, experiment_args = get_args()
    ddp.launch(run, args, experiment_args)
