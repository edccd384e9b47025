"""What every phase of the recipe does around its epochs: validation, end, budget."""

from pathlib import Path

from evaluation import score
from shared.checkpoint import once
from shared.loop import Loop
from train import validate

SHOWN = ('loss', 'accuracy', 'selected', 'valid_eer', 'utterances_per_second')


def epochs_of(table):
    """Epochs of Stage II so far."""
    return sum(row['epochs'] for row in table if row['phase'][0].isdigit())


def epochs_left(table, args):
    """Epochs of Stage II that `epoch_total` still allows."""
    return max((args['epoch_total'] or 10**9) - epochs_of(table), 0)


def batches(args):
    """Batch sizes that this run uses -> utterances, and parts of a process's share."""
    used = {}
    if not args['published']:
        used['contrastive_batch'] = (args['contrastive_batch'], 1)
    if args['phase'] != 'contrastive' and args['iterations']:
        used['batch_size'] = (args['batch_size'], args['accumulate'])
    return {} if args['eval'] else used


def loop_of(name, loader, args, **objects):
    """The training loop of a phase, in its folder of the run."""
    return Loop(
        Path(args['path_log']) / name,
        loader,
        max_bad_share=args['max_bad_share'],
        keep=args['keep_checkpoints'],
        save_minutes=args['save_minutes'],
        **objects,
    )


def end_epoch(metrics, split, step, loop, encoder, corpus, logger, args):
    """Validates, logs and saves; `step` counts the epochs of the stage."""
    metrics['valid_eer'] = validate(encoder, corpus.valid, args)[0]['eer']
    loop.log_epoch(split, step, metrics, logger, SHOWN)
    loop.end_epoch(metrics, value=round(metrics['valid_eer'], 2))  # as the controller sees it


def finish(name, loop, encoder, corpus, table, args):
    """Scores the best epoch of a phase, once for a test list, and adds it to the table."""

    def scored():
        loop.load_best()
        return score(name, encoder, corpus, args)

    row = once(loop.folder / 'scores.json', scored, key=corpus.tests[0].trials.sha256)
    row['epochs'] = len(loop.history)
    row['selected %'] = loop.history[loop.best['epoch'] - 1].get('selected')
    if not loop.finished:
        loop.finish()
    table.append(row)
    return loop.folder / 'best.pt'
