"""`--doctor`: what this paper reads and asks of the machine, for shared/doctor."""

from pathlib import Path

from paths import needed_paths, use_demo_corpus
from published import read
from shared.datasets.machine import workers_for
from shared.doctor import examination
from shared.doctor.plan import (
    Corpora,
    Load,
    Weights,
    checkpoint_bytes,
    weight_numbers,
)
from shared.models.ssl_checkpoints import read_ssl
from systems import reading

ORIGIN = 'hf download microsoft/wavlm-base-plus (facebook/hubert-base-ls960, ...)'


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
        more={'other speech': needed['path_kd']} if needed.get('path_kd') else {},
        tolerated=args['max_bad_share'],
        published=not args['demo'],
    )
    views = 2 if args['DA_p'] or args['path_kd'] else 1
    rows = args['rows'] if args['phase'] == 'compare' else ('oskdft',)
    phases = len(rows) + ('two_steps' in rows)
    load = Load(
        args['path_log'],
        batches={}
        if args['eval']
        else {'batch_size': (args['batch_size'], views * args['crop_size'])},
        parts={'batch_size': args['accumulate']},
        workers=workers_for(args['num_workers']),
        cache_gib=args['cache_gib'],
        checkpoints=checkpoint_bytes(  # at most: a student is smaller than its teacher
            weight_numbers(args['path_ssl']),
            phases=phases * len(args['seeds']),
            keep=args['keep_checkpoints'],
        ),
        gpu=not args['demo'] and args['usable_gpu'] != '',
    )
    weights = [Weights('path_ssl', args['path_ssl'], read_ssl, ORIGIN)]
    for file in args['published']:
        weights.append(
            Weights('published', file, lambda path: read(path, **reading(args)), 'of the authors')
        )
    examination.examine(corpora, load, weights, device=args['device'], full=args['doctor_full'])
