"""`--doctor`: what this paper reads and asks of the machine, for shared/doctor."""

from functools import partial
from pathlib import Path

from arguments import of_row
from data import names_its_files, samples_of, training_set
from paths import needed_paths, use_demo_corpus
from shared.datasets.machine import workers_for
from shared.doctor import examination
from shared.doctor.plan import Corpora, Load, Weights, checkpoint_bytes
from shared.models.ssl_checkpoints import read_ssl
from shared.published import students, unispeech

TEACHER = {  # spec 3.8
    '51f07e3b94d9e0262a6a675ef5a087be3dd09e8c62e9d886827f44f82fe7f94b': (
        "wavlm_large_finetune.pth of Microsoft's UniSpeech"
    )
}
ORIGINS = {
    'path_teacher': 'row "WavLM large, fix pre-train: No" of UniSpeech/downstreams/speaker_verification',
    'path_ssl': 'hf download microsoft/wavlm-large, or WavLM-Large.pt of unilm/wavlm',
    'published': "a student's file of the authors, or avg_model.pt of a run",
}
LARGEST = 17_000_000  # numbers: CAM++ and a classifier of 17,982 x 512 (spec 3)


def examine(rank, args, experiment_args):
    """Trains nothing; exit status 1 where something would spoil the run."""
    if args['demo']:
        use_demo_corpus(args)
    own = names_its_files(args)
    needed = needed_paths(args)
    corpora = Corpora(
        needed,
        train=needed.get('path_train'),
        train_list=None if own else needed.get('list_train'),
        read_train=partial(training_set, args) if own else None,
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
    pairs = [(args['student'], args['kd'])]
    if args['phase'] == 'compare':
        pairs = [(student, kd) for student in args['students'] for kd in args['losses']]
    crop, rows = samples_of(args['frames']), [of_row(args, *pair) for pair in pairs]
    batches = {
        f'batch_size ({row["student"]}, {row["kd"]})': (row['batch_size'], crop) for row in rows
    }
    if 'path_ssl' in needed:  # the teacher is trained first
        crop = samples_of(args['teacher_frames'])
        batches['teacher_batch_size'] = (args['teacher_batch_size'], crop)
    load = Load(
        args['path_log'],
        batches={} if args['eval'] else batches,
        parts=dict.fromkeys(batches, args['accumulate']),
        workers=workers_for(args['num_workers']),
        cache_gib=args['cache_gib'],
        checkpoints=checkpoint_bytes(
            LARGEST,
            phases=1 + len(pairs) * len(args['seeds']),
            keep=args['keep_checkpoints'],
            moments=1,
        ),
        gpu=not args['demo'] and args['usable_gpu'] != '',
    )
    readers = {'path_teacher': unispeech.read, 'path_ssl': read_ssl, 'published': students.read}
    weights = [
        Weights(
            name,
            needed[name],
            read,
            ORIGINS[name],
            digests=TEACHER if name == 'path_teacher' else {},
            fits=same_speakers if name == 'path_teacher' else None,
        )
        for name, read in readers.items()
        if needed.get(name)
    ]
    examination.examine(corpora, load, weights, device=args['device'], full=args['doctor_full'])


def same_speakers(found, facts):
    """What is wrong with the classes of a teacher; '' if nothing is."""
    head = found.beside.get('classifier')
    if head is None:
        return 'has no classifier, so there are no logits to learn'
    known = len(head.state['weight'])
    if facts.speakers in (0, known):
        return ''
    return f'knows {known:,} speakers, the training set has {facts.speakers:,}'
