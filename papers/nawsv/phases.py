"""What both phases do around their epochs: folders, validation, the end."""

from pathlib import Path

from published import to_published
from shared.loop import Loop
from train import validate


def batches(args):
    """Batch sizes that this run uses -> utterances, and parts of a process's share."""
    used = {}
    if not args['published']:
        used['warmup_batch_size'] = (args['warmup_batch_size'], 1)
    if args['phase'] != 'warmup':
        used['batch_size'] = (args['batch_size'], args['accumulate'])
    return {} if args['eval'] or args['phase'] == 'prepare' else used


def loop_of(phase, seed, loader, args, **objects):
    """The training loop of a phase of one seed, in its folder of the run."""
    return Loop(
        Path(args['path_log']) / f'seed{seed}' / phase,
        loader,
        max_bad_share=args['max_bad_share'],
        keep=args['keep_checkpoints'],
        save_minutes=args['save_minutes'],
        **objects,
    )


def end_epoch(title, epoch, metrics, loop, student, head, corpus, logger, args):
    """Scores the validation list by crops, logs and saves."""
    metrics['valid_eer'] = validate(student, head, corpus.valid, args)[0]['tta']['eer']
    loop.log_epoch(title, epoch, metrics, logger)
    last = args['selection'] == 'last'  # the lowest value is kept
    loop.end_epoch(metrics, value=-epoch if last else metrics['valid_eer'])


def finish(loop, framework):
    """Ends a phase at its chosen epoch; returns its files, named and laid out as the authors'."""

    def states():
        return {kind: to_published(kind, state) for kind, state in framework.networks().items()}

    return list(loop.export(states).values())
