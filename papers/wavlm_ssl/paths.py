"""The files a run needs and leaves, and those of `--demo`."""

import re
from pathlib import Path

from shared import ddp
from shared.datasets import demo
from shared.demo_ssl import model
from shared.errors import UserError


def needed_paths(args):
    """What has to be there before anything is built, by the name of its argument."""
    names = ['path_test', 'trials_test', 'published', 'embeddings', 'labels']
    if not args['eval'] or args['as_norm']:  # its cohort is of the training files
        names += ['path_train', 'list_train']
    if not args['eval']:
        names += ['path_musan', 'path_rir', 'path_ssl', 'path_valid', 'trials_valid']
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


def models_of(seed, args):
    """What the trainings of a seed have left, in the order of the recipe: of DINO, WavLM and MHFA.

    Those of a run with other `rounds` are among them.
    """
    folder = Path(args['path_log']) / f'seed{seed}'
    found = {}
    for file in folder.glob('*/model.pt'):
        if name := re.fullmatch(r'(round|lmft)(\d+)', file.parent.name):
            found[int(name[2]), name[1] == 'lmft'] = file
    files = [*folder.glob('dino/encoder.pt'), *(found[place] for place in sorted(found))]
    return ddp.broadcast_object(files)


def labels_of(file, args):
    """The pseudo-labels that a model was trained on: those of its run, or of --labels.

    Raises:
        UserError: they are not there.
    """
    file = Path(file)
    number = re.sub(r'\D', '', file.parent.name)
    labels = Path(args['labels'] or file.parents[1] / 'labels' / f'{number}.txt')
    if not labels.exists():
        raise UserError(f'{file}: AS-norm needs pseudo-speakers, which --labels names')
    return labels


def last_model(args):
    """The newest model of this run's last seed.

    Raises:
        UserError: there is none yet.
    """
    files = [file for file in models_of(args['seeds'][-1], args) if file.name == 'model.pt']
    if not files:
        raise UserError(
            f'{args["path_log"]}/seed{args["seeds"][-1]}: no model.pt in lmft or round*; train '
            'first, or name a file with --published'
        )
    return files[-1]
