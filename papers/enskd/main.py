"""Knowledge distillation with emphasised non-target speakers, EnSKD (Truong et al., ICASSP 2024).

https://arxiv.org/abs/2309.14838. A large speaker network that is sure of every training speaker has
little to say about the others: in the divergence of its posteriors from a small student's, what it
knows of the non-target speakers is weighted by 1 - p(target), nearly 0. EnSKD splits the divergence
in a target and a non-target part and weighs the latter by a constant.

    python main.py                          every visible GPU, or the CPU
    torchrun --nproc_per_node 4 main.py     the same under torchrun
    python main.py --doctor                 looks at data, weights and machine first
    python main.py --demo                   minutes on two cores, on a built-in synthetic corpus
    python main.py --phase compare          the paper's table: every student with every loss
    python main.py --preset xvector_kl      one system of it; --preset matched_xvector_kl
    python main.py --eval --published avg_model.pt      score the authors' file

Killed anywhere, the same command continues there.
"""

from functools import partial
from pathlib import Path

import torch

import train
from arguments import get_args, rows_of
from data import Corpus, loading, needs_teacher
from evaluation import results, score
from health import examine
from losses import ramp
from paths import last_model, needed_paths, use_demo_corpus
from phases import check_sizes, end_epoch, finish, loop_of, student_schedule, teacher_schedule
from shared import ddp, log, ranks
from shared.checkpoint import once
from shared.datasets.trial_files import trial_lists, validation_files
from shared.files import require_paths
from shared.published import students, unispeech
from shared.seed import set_seed
from systems import distillation, speaker_encoder, system_of, teacher_of, untrained_teacher


def run(rank, args, experiment_args):
    set_seed(args['seeds'][0], args['deterministic'])
    folder = Path(args['path_log'])

    if args['demo']:
        use_demo_corpus(args)
    require_paths(needed_paths(args))
    tests = trial_lists(args['trials_test'], args['path_test'], **loading(args))
    if args['eval']:
        where, file = folder / 'evaluation', args['published'] or last_model(args)
        corpus = Corpus(args, tests[0]) if args['as_norm'] else None
        found, seed = students.read(file), args['seeds'][-1]
        pair = (found.kind, '' if args['published'] else args['kd'])
        system = speaker_encoder(found.module(), args)
        scored = score(pair, seed, system, tests, corpus, where, args)
        return results([{**scored, 'folder': where}], tests, where, args)

    check_sizes(args)
    log.check_same_run(folder, experiment_args, ignore=('seeds', 'student', 'kd', 'accumulate'))

    # data
    valid, kept = tests[0], folder / 'lists' / 'valid_trials.txt'
    if args['path_valid']:
        given, seed = args['trials_valid'], args['seeds'][0]
        valid = validation_files(args['path_valid'], given, kept, seed=seed, **loading(args))
    corpus = Corpus(args, valid)
    if ddp.is_main():
        print(corpus.describe(), flush=True)

    # teacher: a file, looked at before the run has a folder, or trained on the same speakers
    needed, teacher = needs_teacher(args), None
    if needed and args['path_teacher']:
        teacher = teacher_of(args['path_teacher'], corpus, args)

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
    if needed and teacher is None:
        teacher = teacher_of(train_teacher(corpus, logger, args), corpus, args)

    # each seed: a student; to compare, every student with every loss
    scored, lists = [], [files.trials.sha256 for files in tests]

    def measure(pair, seed, system, where):
        found = partial(score, pair, seed, system, tests, corpus, where, args)
        scored.append({**once(where / 'scores.json', found, key=lists), 'folder': where})

    if teacher is not None and args['phase'] != 'train':
        measure(('teacher', ''), 0, teacher.network, folder / 'teacher')
    for seed in args['seeds'] if args['phase'] != 'teacher' else ():
        for pair, own in rows_of(args).items():
            measure(pair, seed, *distil(seed, teacher, corpus, logger, own))
    logger.finish()

    # results
    results(scored, tests, folder, args)


def distil(seed, teacher, corpus, logger, args):
    """Trains a student with one loss; returns what runs at inference, and its folder."""
    set_seed(seed + 1000 * ddp.rank(), args['deterministic'])
    framework = distillation(args, corpus.classes, teacher if args['kd'] != 'none' else None)
    parallel = framework.distribute(args['device'], args['sync_bn'])
    schedule = student_schedule(args)
    optimizer = sgd(framework, schedule, args['weight_decay'])
    loader = corpus.loader(seed, args, args['frames'])
    title = f'seed{seed}/{args["student"]}_{args["kd"]}'
    loop = loop_of(title, loader, args, framework=framework, optimizer=optimizer)

    label_level = framework.label_loss is not None
    for epoch in loop.epochs(schedule.epochs):
        kd_weight = ramp(epoch, args['kd_warmup']) if label_level else 1.0  # 4.3, 4.5
        metrics = train.train_epoch(
            f'{title} {epoch}', epoch, schedule, kd_weight, loop, parallel, optimizer, args
        )
        end_epoch(title, epoch, metrics, loop, framework.student, corpus, logger, args)

    def published(average):
        weight = average.criterion.weight.detach()
        return students.to_published(average.student.network.state_dict(), weight)

    file = finish(loop, framework, args, 'avg_model', published)
    return system_of(file, args), loop.folder


def train_teacher(corpus, logger, args):
    """Trains back-end and classifier on a frozen WavLM (spec 3.5); returns their file."""
    args = {
        **args,
        'speed_perturb': False,
        'DA_p': args['teacher_DA_p'],
        'batch_size': args['teacher_batch_size'],
    }
    seed = 0  # one teacher, whatever the seeds of its students
    set_seed(seed + 1000 * ddp.rank(), args['deterministic'])
    framework = untrained_teacher(args, corpus.classes)
    parallel = framework.distribute(args['device'], args['sync_bn'])
    schedule = teacher_schedule(args)
    optimizer = sgd(framework, schedule, args['teacher_weight_decay'])
    loader = corpus.loader(seed, args, args['teacher_frames'])
    loop = loop_of('teacher', loader, args, framework=framework, optimizer=optimizer)
    for epoch in loop.epochs(schedule.epochs):
        metrics = train.train_epoch(
            f'teacher {epoch}', epoch, schedule, 0.0, loop, parallel, optimizer, args
        )
        end_epoch('teacher', epoch, metrics, loop, framework.student, corpus, logger, args)

    def published(average):
        weight = average.criterion.weight.detach()
        return unispeech.to_published(average.student.state_dict(), weight)

    return finish(loop, framework, args, 'teacher', published)


def sgd(framework, schedule, weight_decay):
    """Spec 5.1; the schedule sets the rate of each step."""
    return torch.optim.SGD(
        framework.learnable(),
        lr=schedule.lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=weight_decay,
    )


if __name__ == '__main__':
    args, system_args, experiment_args = get_args()
    ranks.launch(examine if args['doctor'] or args['doctor_full'] else run, args, experiment_args)
