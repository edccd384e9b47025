"""What every training does around its epochs: folders, schedules, validation, the average."""

from pathlib import Path

from arguments import rows_of
from data import needs_teacher
from shared import ddp
from shared.averaging import average
from shared.loop import Loop
from shared.optim.accumulation import check_batches
from shared.weight_files import load_weights
from train import Schedule, validate

SHOWN = ('loss', 'aam_loss', 'kd_loss', 'accuracy', 'valid_eer', 'utterances_per_second')
RATE_FOR = 64  # utterances that `lr` is of (spec 5.2)


def loop_of(title, loader, args, **objects):
    """The training loop of a network, in its folder of the run."""
    return Loop(
        Path(args['path_log']) / title,
        loader,
        max_bad_share=args['max_bad_share'],
        keep=max(args['keep_checkpoints'], args['num_avg']),
        save_minutes=args['save_minutes'],
        **objects,
    )


def check_sizes(args):
    """Refuses batches of this run that its processes cannot divide."""
    rows = rows_of(args) if args['phase'] != 'teacher' else {}
    sizes = {f'batch_size ({a}, {b})': row['batch_size'] for (a, b), row in rows.items()}
    if needs_teacher(args) and not args['path_teacher']:
        sizes['teacher_batch_size'] = args['teacher_batch_size']
    batches = {name: (size, args['accumulate']) for name, size in sizes.items()}
    check_batches(batches, ddp.world_size())


def student_schedule(args):
    """Spec 5.2 and 5.3."""
    return Schedule(
        args['epoch'],
        args['lr'],
        args['lr_last'],
        args['warmup'],
        args['batch_size'] / RATE_FOR,
        args['margin'],
        args['margin_start'],
        args['margin_fixed'],
    )


def teacher_schedule(args):
    """As Microsoft's with WavLM frozen, as far as it is known (spec 3.5)."""
    first = args['teacher_margin_epoch']
    return Schedule(
        args['teacher_epoch'],
        args['teacher_lr'],
        args['teacher_lr_last'],
        args['teacher_warmup'],
        1.0,
        args['teacher_margin'],
        first,
        first,
    )


def end_epoch(title, epoch, metrics, loop, system, corpus, logger, args):
    """Scores the validation list by plain cosine, logs and saves; it chooses nothing."""
    (record, *_), _ = validate(system, corpus.valid, args)
    metrics['valid_eer'] = record['eer']
    loop.log_epoch(title, epoch, metrics, logger, SHOWN)
    loop.end_epoch(metrics, value=-epoch)


def finish(loop, framework, args, name, published):
    """Averages the last epochs (spec 5.4); writes <name>.pt in the published layout."""

    if loop.finished:  # its epochs may have been tidied away
        return loop.folder / f'{name}.pt'

    def states():
        last = len(loop.history)
        epochs = range(max(last - args['num_avg'], 0) + 1, last + 1)
        files = [loop.folder / f'epoch_{epoch:04d}.pt' for epoch in epochs]
        load_weights(framework, average(files), 'average')
        return {name: published(framework)}

    return loop.export(states)[name]
