"""One-step knowledge distillation and fine-tuning, OS-KDFT (Heo et al., Interspeech 2023).

https://arxiv.org/abs/2305.17394. A large self-supervised speech model verifies speakers well and is
too heavy to deploy. A student made of its first layers learns two things in the same step: to
imitate its hidden states, and with small adapters in its layers to tell speakers apart. The
adapters take what the two tasks do not share; only that branch runs afterwards.

    python main.py                          every visible GPU, or the CPU
    torchrun --nproc_per_node 4 main.py     the same under torchrun
    python main.py --doctor                 looks at data, weights and machine first
    python main.py --demo                   minutes on two cores, on a built-in synthetic corpus
    python main.py --phase compare          also the teacher fine-tuned, the student without
                                            distillation, and first distilled, then fine-tuned
    python main.py --eval --published student.pt,backend.pt     score the authors' files

Killed anywhere, the same command continues there.
"""

from functools import partial
from pathlib import Path

import torch

import train
from arguments import get_args
from data import Corpus, loading
from evaluation import results, score
from framework import OneStep
from health import examine
from paths import needed_paths, own_files, use_demo_corpus
from phases import end_epoch, finish, loop_of
from shared import ddp, log, ranks
from shared.checkpoint import once
from shared.datasets.trial_files import trial_lists, validation_files
from shared.files import require_paths
from shared.losses.class_weights import class_weights
from shared.optim.accumulation import check_batches
from shared.seed import set_seed
from systems import (
    backend_of,
    criterion_of,
    kd_of,
    speaker_encoder,
    student_in,
    student_of,
    system_of,
    teacher_of,
)


def run(rank, args, experiment_args):
    set_seed(args['seeds'][0], args['deterministic'])
    folder = Path(args['path_log'])

    if args['demo']:
        use_demo_corpus(args)
    require_paths(needed_paths(args))
    tests = trial_lists(args['trials_test'], args['path_test'], **loading(args))
    if args['eval']:
        where, seed = folder / 'evaluation', args['seeds'][-1]
        system = system_of(args['published'] or own_files(args), args)
        plain = {**args, 'DA_p': 0.0, 'path_kd': None}  # the cohort is not augmented
        corpus = Corpus(plain, tests[0]) if args['as_norm'] else None
        scored = score('oskdft', seed, system, tests, corpus, where, args)
        return results([{**scored, 'folder': where}], tests, where, args)

    check_batches({'batch_size': (args['batch_size'], args['accumulate'])}, ddp.world_size())

    # logger
    log.check_same_run(folder, experiment_args, ignore=('seeds', 'rows', 'accumulate'))
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
    valid = tests[0]
    if args['selection'] == 'valid':
        kept = folder / 'lists' / 'valid_trials.txt'
        given, seed = args['trials_valid'], args['seeds'][0]
        valid = validation_files(args['path_valid'], given, kept, seed=seed, **loading(args))
    corpus = Corpus(args, valid)
    if ddp.is_main():
        print(corpus.describe(), flush=True)

    # each seed: OS-KDFT; to compare, what it is measured against
    scored, lists = [], [files.trials.sha256 for files in tests]
    for seed in args['seeds']:
        for row in args['rows'] if args['phase'] == 'compare' else ('oskdft',):
            system, where = SYSTEMS[row](seed, corpus, logger, args)
            measure = partial(score, row, seed, system, tests, corpus, where, args)
            found = once(where / 'scores.json', measure, key=lists)
            scored.append({**found, 'folder': where})
    logger.finish()

    # results
    results(scored, tests, folder, args)


def os_kdft(seed, corpus, logger, args):
    """The student distilled and fine-tuned in the same steps."""
    return learn('oskdft', seed, student_of, ('kd', 'sv'), corpus, logger, args)


def teacher_alone(seed, corpus, logger, args):
    """The whole pre-trained model, fine-tuned."""
    return learn('teacher', seed, partial(teacher_of, learns=True), ('sv',), corpus, logger, args)


def student_alone(seed, corpus, logger, args):
    """The same student, fine-tuned without a teacher."""
    return learn('student', seed, student_of, ('sv',), corpus, logger, args)


def two_steps(seed, corpus, logger, args):
    """The same student, first distilled without speakers, then fine-tuned without a teacher."""
    _, where = learn('distilled', seed, student_of, ('kd',), corpus, logger, args)
    start = partial(student_of, weights=student_in(where))
    return learn('two_steps', seed, start, ('sv',), corpus, logger, args)


SYSTEMS = {
    'teacher': teacher_alone,
    'student': student_alone,
    'two_steps': two_steps,
    'oskdft': os_kdft,
}


def learn(phase, seed, make_student, branches, corpus, logger, args):
    """Trains a student in one branch or both; returns what runs at inference, and the folder."""
    set_seed(seed + 1000 * ddp.rank(), args['deterministic'])
    student = make_student(args)
    parts, system, total = {}, None, args['distil_epoch']
    if 'kd' in branches:
        teacher = teacher_of(args)
        parts.update(teacher=teacher, kd=kd_of(args, student, teacher))
    if 'sv' in branches:
        backend, total = backend_of(args, student), args['epoch']
        system = speaker_encoder(student, backend, args)
        labels = torch.from_numpy(corpus.train.speakers)
        parts.update(
            backend=backend,
            criterion=criterion_of(args, corpus.speakers),
            class_weights=class_weights(labels, corpus.speakers),
        )
    framework = OneStep(student, **parts)
    parallel = framework.distribute(args['device'], args['sync_bn'])
    optimizer = torch.optim.Adam(
        framework.groups(), lr=args['lr'], weight_decay=args['weight_decay']
    )
    loader = corpus.loader(seed)
    loop = loop_of(phase, seed, loader, args, framework=framework, optimizer=optimizer)

    title = f'seed{seed}/{phase}'
    for epoch in loop.epochs(total):
        metrics = train.train_epoch(
            f'{title} {epoch}', epoch, total, loop, parallel, optimizer, args
        )
        end_epoch(title, epoch, metrics, loop, system, corpus, logger, args)
    finish(loop, framework)
    return system, loop.folder


if __name__ == '__main__':
    args, system_args, experiment_args = get_args()
    ranks.launch(examine if args['doctor'] or args['doctor_full'] else run, args, experiment_args)
