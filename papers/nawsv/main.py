"""Noise-adaptive warm-up for speaker verification, NAW-SV (Lim et al., Interspeech 2024).

https://doi.org/10.21437/Interspeech.2024-1630. A self-supervised speech model (WavLM, HuBERT) is
made robust to noise before it is fine-tuned: a student with small adapters hears noise, and learns
the hidden states that its frozen copy has for clean speech, and to find the speaker of a noisy
utterance among clean ones. First the adapters learn, then the whole student. Then an ECAPA-TDNN on
its hidden states is trained to verify speakers, with the student frozen at first.

    python main.py                          every visible GPU, or the CPU
    torchrun --nproc_per_node 4 main.py     the same under torchrun
    python main.py --doctor                 looks at data, weights and machine first
    python main.py --demo                   minutes on two cores, on a built-in synthetic corpus
    python main.py --compare true           also without the warm-up
    python main.py --eval --published student.pt,backend.pt     score the authors' files

Killed anywhere, the same command continues there.
"""

from functools import partial
from pathlib import Path

import torch

import train
from arguments import get_args
from conditions import needed_paths, prepare, use_demo_corpus, validation_list
from data import Corpus
from evaluation import results, score
from framework import FineTuning, WarmUp
from health import examine
from losses import EApn
from phases import batches, end_epoch, finish, loop_of
from shared import ddp, log, ranks
from shared.checkpoint import once
from shared.errors import UserError
from shared.files import require_paths
from shared.losses.aam_topk import AamSoftmaxTopK
from shared.losses.class_weights import class_weights
from shared.optim.accumulation import check_batches
from shared.seed import set_seed
from systems import backend_of, head_of, student_in, student_of, system_of, teacher_of


def run(rank, args, experiment_args):
    set_seed(args['seeds'][0], args['deterministic'])
    folder = Path(args['path_log'])

    # data made from the corpora: the two parts of MUSAN, the noisy test sets
    if args['demo']:
        use_demo_corpus(args)
    require_paths(needed_paths(args))
    check_batches(batches(args), ddp.world_size())
    musan_train, tests = prepare(args)
    if args['phase'] == 'prepare':
        return
    if args['eval']:
        where, seed = folder / 'evaluation', args['seeds'][-1]
        own = [
            folder / f'seed{seed}' / 'finetune' / f'{kind}.pt' for kind in ('student', 'backend')
        ]
        networks = system_of(args['published'] or own, args)
        scored = score('NAW-SV', seed, *networks, tests, where, args)
        return results([{**scored, 'folder': where}], tests, where, args)

    # logger
    log.check_same_run(folder, experiment_args, ignore=('seeds', 'compare', 'accumulate'))
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
    corpus = Corpus(args, validation_list(tests, args), musan_train)
    if ddp.is_main():
        print(corpus.describe(), flush=True)

    # each seed: warm-up, then fine-tuning; to compare, fine-tuning alone
    scored = []
    lists = {name: files.trials.sha256 for name, (files, *_) in tests.items()}
    for seed in args['seeds']:
        warm = args['published'] or warm_up(seed, corpus, logger, args)
        starts = {'NAW-SV': warm, 'no warm-up': None} if args['compare'] else {'NAW-SV': warm}
        for system, start in starts.items():
            if args['phase'] != 'warmup':
                student, backend, where = fine_tune(seed, start, corpus, logger, args)
                measure = partial(score, system, seed, student, backend, tests, where, args)
                found = once(where / 'conditions.json', measure, key=lists)
                scored.append({**found, 'folder': where})
    logger.finish()

    # results
    if scored:
        results(scored, tests, folder, args)


def warm_up(seed, corpus, logger, args):
    """Noise-adaptive warm-up; returns the files with student and head."""
    set_seed(seed + 1000 * ddp.rank(), args['deterministic'])
    student = student_of(args, 'warmup')
    head = head_of(args, student)
    e_apn = EApn(gather=args['gather_prototypes'])
    framework = WarmUp(student, teacher_of(args), head, e_apn, args).to(args['device'])
    optimizer = torch.optim.Adam(
        framework.learnable(), lr=args['warmup_lr'], weight_decay=args['weight_decay']
    )
    loader = corpus.pair_loader(seed)
    loop = loop_of('warmup', seed, loader, args, framework=framework, optimizer=optimizer)
    if args['phase'] == 'finetune' and not loop.finished:
        raise UserError(f'{loop.folder}: the warm-up is not finished; run --phase warmup first')

    title, parallel = f'seed{seed}/warmup', None
    for epoch in loop.epochs(args['warmup_epoch']):
        if parallel is None or epoch == args['adapter_epoch'] + 1:
            framework.learn('adapters' if epoch <= args['adapter_epoch'] else 'all')
            parallel = framework.distribute(args['device'], args['sync_bn'])
        if epoch == args['adapter_epoch'] + 1 and loop.batches_done == 0:
            optimizer.state.clear()  # the authors build a new Adam
        metrics = train.warmup_epoch(f'{title} {epoch}', loop, parallel, optimizer, args)
        end_epoch(title, epoch, metrics, loop, student, head, corpus, logger, args)
    return finish(loop, framework)


def fine_tune(seed, start, corpus, logger, args):
    """Trains back-end and classifier, then the student too, then on long crops.

    `start` are files with the student of the warm-up, None for the pre-trained model as it is.
    Returns student, back-end and the folder of the phase.
    """
    set_seed(seed + 1000 * ddp.rank(), args['deterministic'])
    weights = student_in(start) if start else None
    student = student_of(args, 'finetune', weights, adapters=bool(start))
    backend = backend_of(args, student)
    criterion = AamSoftmaxTopK(
        corpus.speakers,
        args['embed_size'],
        args['aam_m'],
        args['aam_s'],
        top_k=args['topk_penalty'][0],
        top_k_margin=args['topk_penalty'][1],
    )
    labels = torch.from_numpy(corpus.train.speakers)
    of_classes = class_weights(labels, corpus.speakers)
    framework = FineTuning(student, backend, criterion, of_classes).to(args['device'])
    optimizer = torch.optim.Adam(
        framework.learnable(), lr=args['lr'], weight_decay=args['weight_decay']
    )
    phase, loader = 'finetune' if start else 'baseline', corpus.labelled_loader(seed)
    loop = loop_of(phase, seed, loader, args, framework=framework, optimizer=optimizer)

    title, parallel = f'seed{seed}/{phase}', None
    for epoch in loop.epochs(args['epoch']):
        if parallel is None or epoch == args['unfreeze_ssl_epoch'] + 1:
            framework.learn('backend' if epoch <= args['unfreeze_ssl_epoch'] else 'all')
            parallel = framework.distribute(args['device'], args['sync_bn'])
        large = epoch > args['large_margin_epoch']  # crops grow with it, in `LabelledCrops`
        criterion.set_margin(args['large_margin'] if large else args['aam_m'])
        metrics = train.finetune_epoch(f'{title} {epoch}', epoch, loop, parallel, optimizer, args)
        end_epoch(title, epoch, metrics, loop, student, backend, corpus, logger, args)
    finish(loop, framework)
    return student, backend, loop.folder


if __name__ == '__main__':
    args, system_args, experiment_args = get_args()
    ranks.launch(examine if args['doctor'] or args['doctor_full'] else run, args, experiment_args)
