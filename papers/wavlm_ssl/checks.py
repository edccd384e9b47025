"""What would end a run after hours, looked for before it begins; all raise a `UserError`."""

from shared import ddp
from shared.errors import UserError
from shared.models.ssl_checkpoints import read_ssl
from shared.optim.accumulation import check_batches


def check_arguments(args):
    """What contradicts itself, or the number of processes."""
    check_together(args)
    parts = {'dino_batch_size': 1}  # looks at whole batches
    sizes = {name: (args[name], parts.get(name, args['accumulate'])) for name in batches(args)}
    check_batches(sizes, ddp.world_size())


def check_together(args):
    """What contradicts itself."""
    if args['published'] and not args['eval']:
        raise UserError('published: a file to be scored, which needs --eval')
    if args['embeddings'] and args['labels']:
        raise UserError('embeddings, labels: begin with one of them; both are for --phase cluster')


def check_model(args):
    """A pre-trained model of another family: its weights could not be stored as the authors do."""
    family = read_ssl(args['path_ssl']).config.family
    if family != 'wavlm':
        raise UserError(f'path_ssl {args["path_ssl"]}: a {family}, not a WavLM')


def check_corpus(args, corpus):
    """Too few utterances or clusters."""
    embedded = args['rounds'] > 0 or not begun(args)
    if embedded and args['centroids'] > len(corpus.train):
        raise UserError(
            f'{len(corpus.train)} training utterances cannot make {args["centroids"]} centroids: '
            'lower centroids (22 utterances each) and clusters (1.25 a speaker)'
        )
    clustered, classes = embedded or args['embeddings'], args['clusters'] or args['centroids']
    for name in batches(args):
        if args[name] > len(corpus.train):
            raise UserError(
                f'{name} {args[name]}: there are {len(corpus.train)} training utterances'
            )
        if clustered and name != 'dino_batch_size' and args[name] > classes:
            raise UserError(
                f'{name} {args[name]}: {classes} clusters do not fill it, as each comes once'
            )


def begun(args):
    """The file that a run begins with instead of DINO, if any."""
    return args['embeddings'] or args['labels']


def batches(args):
    """Names of the batch sizes that will be used."""
    if args['eval']:
        return []
    used = {'dino_batch_size': not begun(args), 'batch_size': True}
    used['lmft_batch_size'] = args['lmft_epochs'] > 0
    return [name for name in used if used[name]]
