"""`--doctor`: what this paper reads and asks of the machine, for shared/doctor."""

from pathlib import Path

from checks import batches as used_batches
from checks import check_together
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

ORIGIN = "hf download microsoft/wavlm-base-plus, or WavLM-Base+.pt of Microsoft's unilm"
PUBLISHED = {  # spec 3.6
    '0178a115dc0a43a94a71287e51d1df5016c2aeefc04169548dad40ac8a6e67da': (
        "model000000018.model, the authors' best"
    )
}


def examine(rank, args, experiment_args):
    """Trains nothing; exit status 1 where something would spoil the run."""
    if args['demo']:
        use_demo_corpus(args)
    check_together(args)  # batches are among the findings
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
    crops = {
        'dino_batch_size': 2 * args['global_size'] + args['locals'] * args['local_size'],
        'batch_size': 2 * (args['max_frames'] * 160 + 240),
        'lmft_batch_size': 2 * (args['lmft_frames'] * 160 + 240),
    }
    load = Load(
        args['path_log'],
        batches={name: (args[name], crops[name]) for name in used_batches(args)},
        parts={'batch_size': args['accumulate'], 'lmft_batch_size': args['accumulate']},
        workers=workers_for(args['num_workers']),
        cache_gib=args['cache_gib'],
        checkpoints=checkpoint_bytes(
            weight_numbers(args['path_ssl']),
            phases=(2 + args['rounds'] + bool(args['lmft_epochs'])) * len(args['seeds']),
            keep=args['keep_checkpoints'],
        ),
        least={} if args['eval'] else {'centroids': args['centroids']},
        gpu=not args['demo'] and args['usable_gpu'] != '',
    )
    weights = []
    if needed.get('path_ssl'):
        weights.append(Weights('path_ssl', args['path_ssl'], read_ssl, ORIGIN, fits=is_wavlm))
    if args['published']:
        origin = "the authors' Google Drive"
        weights.append(Weights('published', args['published'], read, origin, digests=PUBLISHED))
    examination.examine(corpora, load, weights, device=args['device'], full=args['doctor_full'])


def is_wavlm(found, facts):
    """What is wrong with a pre-trained model; '' if nothing is."""
    family = found.config.family
    return '' if family == 'wavlm' else f'a {family}, not a WavLM'
