"""What both phases do around their epochs: folders, validation, the end."""

from pathlib import Path

from tqdm import tqdm

from published import to_published
from shared import ddp
from shared.checkpoint import write
from shared.loop import Loop
from train import validate


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
    """Ends a phase at its chosen epoch; writes its networks as the authors name their entries.

    Returns the files.
    """
    loop.load_best()
    files = {kind: loop.folder / f'{kind}.pt' for kind in framework.networks()}
    if not loop.finished:
        if ddp.is_main():
            for kind, state in framework.networks().items():
                write(to_published(kind, state), files[kind])
            if loop.skipped.files or loop.skipped.converted:
                tqdm.write(f'{loop.folder}: {loop.skipped.summary()}')
        loop.finish({'epochs': len(loop.history)})
    return list(files.values())
