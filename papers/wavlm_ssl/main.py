"""Speaker verification without labels, from DINO to WavLM (Miara et al., Interspeech 2024).

https://arxiv.org/abs/2406.02285. DINO learns a first embedding of speakers from audio alone. Its
clusters are pseudo-speakers, on which WavLM with an attentive back-end (MHFA) is fine-tuned as if
they were true ones. Wrong labels show as large losses: a mixture of two Gaussians gives a gate in
each epoch, above which a sample is left out, or gets the label the network is sure of. Better
embeddings make better clusters, twice; long crops and a large margin end the recipe.

    python main.py                          every visible GPU, or the CPU
    torchrun --nproc_per_node 4 main.py     the same under torchrun
    python main.py --doctor                 looks at data, weights and machine first
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
from checks import check_arguments, check_corpus, check_model
from data import Corpus, loading
from dino import dino_framework
from dino_training import dino_epoch, dino_optimizer, handed_on, kept_epochs, last_epoch
from evaluation import evaluate, measured, results
from framework import GatedFineTuning
from health import examine
from labels import cluster_files
from paths import last_model, needed_paths, use_demo_corpus
from phases import DynamicGate, due, end_epoch, gate_report, keep_model, loop_of
from published import read, to_published
from shared import ddp, log, ranks
from shared.datasets.embeddings import labels_for, read_labels
from shared.datasets.trial_files import trial_lists, validation_files
from shared.files import require_paths
from shared.seed import set_seed
from shared.weight_files import load_weights
from steps import cluster, embed
from systems import WavlmSpeaker, backend_of, criterion_of, encoder_of


def run(rank, args, experiment_args):
    set_seed(args['seeds'][0], args['deterministic'])
    folder = Path(args['path_log'])

    if args['phase'] == 'cluster' and args['embeddings'] and args['labels']:
        return cluster_files(args['embeddings'], args['labels'], args)
    check_arguments(args)
    if args['demo']:
        use_demo_corpus(args)
    require_paths(needed_paths(args))
    tests = trial_lists(args['trials_test'], args['path_test'], **loading(args))
    if args['eval']:
        return evaluate(args['published'] or last_model(args), tests, args)
    log.check_same_run(folder, experiment_args, ignore=('seeds', 'rounds', 'accumulate'))
    check_model(args)

    # data
    valid, kept = tests[0], folder / 'lists' / 'valid_trials.txt'
    if args['path_valid']:
        given, seed = args['trials_valid'], args['seeds'][0]
        valid = validation_files(args['path_valid'], given, kept, seed=seed, **loading(args))
    corpus = Corpus(args, valid)
    check_corpus(args, corpus)
    if ddp.is_main():
        print(corpus.describe(), flush=True)

    # logger
    builder = log.LoggerList.Builder(
        args['name'], args['project'], args['tags'], args['description'], args['path_scripts'], args
    )
    builder.use_local_logger(args['path_log'])
    # builder.use_tensorboard_logger()
    # builder.use_wandb_logger(args['wandb_entity'], args['wandb_group'])
    # builder.use_neptune_logger(args['neptune_user'])
    logger = builder.build()
    logger.log_arguments(experiment_args)

    # each seed: the whole recipe; with --phase its next step alone
    scored = []
    for seed in args['seeds']:
        for output, work in due(seed, recipe(seed, args), args):
            work(output, seed, corpus, logger, args)
            ddp.barrier()
            measured(seed, corpus, tests, args)
        scored += measured(seed, corpus, tests, args)
    logger.finish()

    # results
    results(scored, tests, folder, args)


def recipe(seed, args):
    """Its steps: the name for --phase, what the step leaves, and what makes it."""
    folder, given = Path(args['path_log']) / f'seed{seed}', args['embeddings'] or args['labels']

    # DINO, or embeddings or labels from elsewhere
    newest = folder / 'dino' / 'encoder.pt'
    if not given:
        yield 'dino', newest, train_dino

    # pseudo-labels and fine-tuning, each round from the pre-trained WavLM
    for number in range(args['rounds'] + 1):
        source, labels = folder / f'embeddings/{number}.pt', folder / f'labels/{number}.txt'
        if given and number == 0:
            source = Path(given)
        else:
            yield 'embed', source, partial(embed, newest)
        yield 'cluster', labels, partial(cluster, source)
        newest = folder / f'round{number}' / 'model.pt'
        yield 'finetune', newest, partial(finetune, labels, None)

    # large-margin fine-tuning; of a run with more rounds it is another
    if args['lmft_epochs'] > 0:
        name = f'lmft{args["rounds"]}'
        yield 'lmft', folder / name / 'model.pt', partial(finetune, labels, newest)


def train_dino(output, seed, corpus, logger, args):
    """Stage 0: self-distillation without labels."""
    set_seed(seed + 1000 * ddp.rank(), args['deterministic'])
    framework = dino_framework(args)
    parallel = framework.distribute(args['device'], args['sync_bn'])
    optimizer = dino_optimizer(framework, args)
    loader, title = corpus.dino_loader(seed), f'seed{seed}/dino'
    objects = {'framework': framework, 'optimizer': optimizer}
    loop = loop_of('dino', seed, loader, args, keep=kept_epochs(args), **objects)
    for epoch in loop.epochs(last_epoch(args)):
        metrics = dino_epoch(f'{title} {epoch}', epoch, loop, parallel, optimizer, args)
        teacher = framework.teacher['encoder']
        end_epoch(title, epoch, metrics, loop, teacher, corpus, logger, args)
    loop.export(partial(handed_on, framework, loop, args))


def finetune(labels_file, start, output, seed, corpus, logger, args):
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
    groups = framework.groups(args['lr_mhfa'], args['lr_transformer'], args['llrd'])
    optimizer = torch.optim.AdamW(groups, lr=args['lr_mhfa'], weight_decay=args['weight_decay'])
    loader, title = corpus.labelled_loader(labels, seed, lmft=large), f'seed{seed}/{step}'
    loop = loop_of(step, seed, loader, args, framework=framework, optimizer=optimizer, gate=gate)
    for epoch in loop.epochs(args['lmft_epochs'] if large else args['epoch']):
        if loop.batches_done == 0:
            gate.begin(done + epoch, args)
        metrics = train.finetune_epoch(
            f'{title} {epoch}', epoch, done, gate, loop, parallel, optimizer, args
        )
        metrics |= gate_report(epoch, metrics, gate, labels, corpus, loop)
        if large:
            keep_model(epoch, framework, loop)
        end_epoch(title, epoch, metrics, loop, system, corpus, logger, args)
    gate.write_losses(loop.folder / 'losses.npz')
    loop.export(lambda: {'model': to_published(framework.state_dict())})


if __name__ == '__main__':
    args, system_args, experiment_args = get_args()
    ranks.launch(examine if args['doctor'] or args['doctor_full'] else run, args, experiment_args)
