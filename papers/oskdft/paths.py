"""The files a run needs, and those of `--demo`."""

from pathlib import Path

from shared import ddp
from shared.datasets import demo
from shared.demo_ssl import model
from shared.errors import UserError


def needed_paths(args):
    """What has to be there before anything is built, by the name of its argument."""
    names = ['path_ssl', 'path_test', 'trials_test', 'published']
    if not args['eval'] or args['as_norm']:  # the cohort is drawn from the training speakers
        names += ['path_train', 'list_train']
    if not args['eval']:
        names += ['path_kd']
        names += ['path_musan', 'path_rir'] if args['DA_p'] else []
        names += ['path_valid', 'trials_valid'] if args['selection'] == 'valid' else []
    return {name: args[name] for name in names}


def use_demo_corpus(args):
    """Builds corpus and pre-trained model of `--demo`, once, and points the paths at them."""
    root = Path(args['path_scripts']).parents[1] / args['path_demo']
    corpus = demo.make(root)
    pretrained = model.make(root / 'models' / 'wavlm_small', corpus, device=args['device'])
    if ddp.is_main():
        print(model.describe(pretrained), flush=True)
    args.update(
        path_ssl=str(pretrained),
        path_train=str(corpus.train),
        list_train=str(corpus.train_list),
        path_test=str(corpus.vox1),
        trials_test=(str(corpus.trials['O']),),
        path_musan=str(corpus.musan),
        path_rir=str(corpus.rirs),
    )


def own_files(args):
    """Student and back-end of this run's last system.

    Raises:
        UserError: it is not there yet.
    """
    folder = Path(args['path_log']) / f'seed{args["seeds"][-1]}' / 'oskdft'
    files = [folder / f'{kind}.pt' for kind in ('student', 'backend')]
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        raise UserError(f'{missing[0]}: not there; train first, or name files with --published')
    return files
