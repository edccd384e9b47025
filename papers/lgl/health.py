"""`--doctor`: what this paper reads and asks of the machine, for shared/doctor."""

from pathlib import Path

from data import needed_paths, use_demo_corpus
from models import encoder_of
from phases import batches
from published import weights_of
from shared.datasets.machine import workers_for
from shared.doctor import examination
from shared.doctor.plan import Corpora, Load, Weights, checkpoint_bytes


def examine(rank, args, experiment_args):
    """Trains nothing; exit status 1 where something would spoil the run."""
    if args['demo']:
        use_demo_corpus(args)
    needed = needed_paths(args)
    corpora = Corpora(
        needed,
        train=needed.get('path_train'),
        train_list=needed.get('list_train'),
        kept_list=Path(args['path_log']) / 'lists' / 'train.txt',
        tests=args['trials_test'],
        test_root=args['path_test'],
        valid_list=needed.get('trials_valid'),
        valid_root=needed.get('path_valid'),
        musan=needed.get('path_musan'),
        rooms=needed.get('path_rir'),
        tolerated=args['max_bad_share'],
        published=not args['demo'],
    )
    numbers = sum(x.numel() for x in encoder_of(args).network.parameters())
    numbers += args['clusters'] * args['embed_size']
    used, samples = batches(args), {'batch_size': args['crop_size']}
    samples['contrastive_batch'] = 3 * args['contrastive_crop']  # three views
    load = Load(
        args['path_log'],
        batches={name: (size, samples[name]) for name, (size, _) in used.items()},
        parts={name: parts for name, (_, parts) in used.items()},
        workers=workers_for(args['num_workers']),
        cache_gib=args['cache_gib'],
        checkpoints=checkpoint_bytes(
            numbers, phases=1 + 2 * args['iterations'], keep=args['keep_checkpoints']
        ),
        least={'clusters': args['clusters']},
        gpu=not args['demo'] and args['usable_gpu'] != '',
    )
    origin = 'a checkpoint of the authors, or best.pt of a run'
    given = args['published']
    weights = [Weights('published', given, weights_of, origin)] if given else []
    examination.examine(corpora, load, weights, device=args['device'], full=args['doctor_full'])
