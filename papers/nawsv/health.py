"""`--doctor`: what this paper reads and asks of the machine, for shared/doctor."""

from pathlib import Path

from conditions import needed_paths, use_demo_corpus
from phases import batches
from published import read
from shared.datasets.machine import workers_for
from shared.datasets.musan import CATEGORIES
from shared.datasets.noisy_sets import HOP, PIECE, half
from shared.doctor import examination
from shared.doctor.plan import (
    Corpora,
    Load,
    Weights,
    checkpoint_bytes,
    weight_numbers,
)
from shared.models.ssl_checkpoints import read_ssl

ORIGIN = 'hf download microsoft/wavlm-base-plus (facebook/hubert-base-ls960, ...)'
PUBLISHED = {  # spec 3.5
    'ed55f5c99168adba48601d9b5b7e8536d5f2b87695a2e511ae6d25ecf99afc84': 'warm student, VoxCeleb1',
    '56f53da9f82cd3d1a67cd1abdb07a3da1500e55e4c7c42ad97e71b61705715c3': 'warm student, VoxCeleb2',
    '8ef3bc9808f9a9beb2db21257217ea3d412f69d71e709f491049b293d339704b': 'student, VoxCeleb1',
    '85ae51270728dde82fcfa2576ad4789ffd02ae8dccd4f7f3644f27a04e91c211': 'back-end, VoxCeleb1',
    '33ac0182bc4365f9bf20b71e79be6c9e8c2eb0ea0dde66112df076bf0253134a': 'student, VoxCeleb2',
    '7c178ad7b9c1de62645529c25f1af39a13d1825100c06abd8128884905330f51': 'back-end, VoxCeleb2',
}


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
        sources={'nonspeech': args['path_nonspeech']} if args['path_nonspeech'] else {},
        musan_name=half,
        tolerated=args['max_bad_share'],
        published=not args['demo'],
    )
    copies = len(args['test_snrs']) * (len(CATEGORIES) + bool(args['path_nonspeech']))
    used, samples = batches(args), {'batch_size': args['large_crop_size']}
    samples['warmup_batch_size'] = 2 * args['crop_size']  # a pair
    load = Load(
        args['path_log'],
        batches={name: (size, samples[name]) for name, (size, _) in used.items()},
        parts={name: parts for name, (_, parts) in used.items()},
        workers=workers_for(args['num_workers']),
        cache_gib=args['cache_gib'],
        checkpoints=checkpoint_bytes(
            weight_numbers(args['path_ssl']),
            phases=(2 + args['compare']) * len(args['seeds']),
            keep=args['keep_checkpoints'],
        ),
        made={
            args['path_noisy']: lambda facts: copies * facts.test_bytes,
            args['path_musan_split']: lambda facts: PIECE / HOP * facts.musan_bytes,
        },
        gpu=not args['demo'] and args['usable_gpu'] != '',
    )
    weights = [Weights('path_ssl', args['path_ssl'], read_ssl, ORIGIN)]
    weights += [
        Weights('published', file, read, 'exp_logs of the authors', digests=PUBLISHED)
        for file in args['published']
    ]
    examination.examine(corpora, load, weights, device=args['device'], full=args['doctor_full'])
