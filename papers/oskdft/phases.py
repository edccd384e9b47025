"""What every phase does around its epochs: folders, validation, the end."""

from pathlib import Path

from models import FitStudent
from published import to_published
from shared.loop import Loop
from train import validate

SHOWN = ('loss', 'kd_loss', 'sv_loss', 'accuracy', 'valid_eer', 'utterances_per_second')


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


def end_epoch(title, epoch, metrics, loop, system, corpus, logger, args):
    """Scores the validation list, where there is a back-end; logs and saves."""
    if system is not None:
        records, _ = validate(system, corpus.valid, args, full=args['valid_full'])
        metrics['valid_eer'] = records['full+tta' if args['valid_full'] else 'tta']['eer']
    loop.log_epoch(title, epoch, metrics, logger, SHOWN)
    chosen = args['selection'] != 'last' and system is not None  # the lowest value is kept
    loop.end_epoch(metrics, value=metrics['valid_eer'] if chosen else -epoch)


def finish(loop, framework):
    """Ends a phase at its chosen epoch; writes its networks, laid out as the authors' files."""

    def states():
        found = framework.networks()
        plain = isinstance(framework.student, FitStudent)  # no file of it was published
        return {
            kind: state if plain and kind == 'student' else to_published(kind, state)
            for kind, state in found.items()
        }

    return loop.export(states)
