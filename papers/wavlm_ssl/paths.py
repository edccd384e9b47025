"""The files a run needs and leaves, and those of `--demo`."""

from pathlib import Path

from shared import ddp
from shared.datasets import demo
from shared.demo_ssl import model
from shared.errors import UserError


def needed_paths(args):
    """What has to be there before anything is built, by the name of its argument.

    Raises:
        UserError: embeddings and labels, which only --phase cluster takes together.
    """
    if args['embeddings'] and args['labels']:
        raise UserError('embeddings, labels: begin with one of them; both are for --phase cluster')
    names = ['path_ssl', 'path_test', 'trials_test', 'published', 'embeddings', 'labels']
    if not args['eval']:
        names += ['path_train', 'list_train', 'path_musan', 'path_rir', 'path_valid']
        names += ['trials_valid']
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
    """The newest model of this run's last seed.

    Raises:
        UserError: there is none yet.
    """
    folder = Path(args['path_log']) / f'seed{args["seeds"][-1]}'
    for number in range(args['rounds'], -1, -1):
        for step in (f'lmft{number}', f'round{number}'):
            if (folder / step / 'model.pt').exists():
                return folder / step / 'model.pt'
    raise UserError(
        f'{folder}: no model.pt in lmft or round*; train first, or name a file with --published'
    )
