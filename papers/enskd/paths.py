"""The files a run needs, and those of `--demo`."""

from pathlib import Path

from data import augments, names_its_files, needs_teacher
from shared import ddp
from shared.datasets import demo
from shared.demo_ssl import model
from shared.errors import UserError


def needed_paths(args):
    """What has to be there before anything is built, by the name of its argument."""
    names = ['path_test', 'trials_test', 'published']
    if not args['eval'] or args['as_norm']:  # mean and cohort are of the training set
        names += ['list_train', 'utt2spk'] + ([] if names_its_files(args) else ['path_train'])
    if augments(args):
        names += ['path_musan', 'path_rir']
    if not args['eval']:
        names += ['path_valid', 'trials_valid']
        if needs_teacher(args):
            names.append('path_teacher' if args['path_teacher'] else 'path_ssl')
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


def last_model(args):
    """The averaged student of this run's last seed.

    Raises:
        UserError: it is not there yet.
    """
    seed = f'seed{args["seeds"][-1]}'
    file = Path(args['path_log']) / seed / f'{args["student"]}_{args["kd"]}' / 'avg_model.pt'
    if not file.exists():
        raise UserError(f'{file}: not there; train first, or name a file with --published')
    return file
