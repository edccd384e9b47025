"""Builds the networks from `args`: students, the teacher, and what runs at inference."""

from functools import partial

import torch
from torch import nn

from framework import Distillation
from losses import enskd_loss, kl_loss
from models import ContinuousAam, MaskedFeatures, Teacher
from shared import ddp
from shared.errors import UserError
from shared.evaluation.extraction import extract
from shared.losses.aam_topk import AamSoftmaxTopK
from shared.models.campplus import CamPlusPlus
from shared.models.kaldi_fbank import KaldiFbank
from shared.models.resnet import ResNet34
from shared.models.speaker_encoder import SpeakerEncoder
from shared.models.ssl_backends import EcapaSmallBackEnd, SslSpeakerEncoder
from shared.models.ssl_checkpoints import ssl_encoder
from shared.models.tdnn import XVector
from shared.precision import compile_methods
from shared.published import students, unispeech

NETWORKS = {'xvector': XVector, 'resnet34': ResNet34, 'campplus': CamPlusPlus}
CHECKED = 512  # clean training crops that a teacher has to recognise


def student_of(args):
    """Log-mels, masked where the arguments say so, and a small network, freshly initialised."""
    network = NETWORKS[args['student']](args['embed_size'], **widths_of(args))
    if args['channels_last']:
        network.to(memory_format=torch.channels_last)
    if args['compile']:
        compile_methods(network, 'forward')
    return speaker_encoder(network, args)


def widths_of(args):
    """Sizes of a student that is not as wide as the published one."""
    channels = args['channels']
    if channels is None:
        return {}
    if args['student'] == 'xvector':
        return {'width': channels, 'last_width': 3 * channels}
    return {'width' if args['student'] == 'resnet34' else 'head_width': channels}


def speaker_encoder(network, args):
    """What runs at inference: waves to embeddings."""
    frontend = KaldiFbank(dither=args['dither'])
    if args['spec_aug_p'] > 0:
        frontend = MaskedFeatures(frontend, args['spec_aug_p'], *args['spec_aug_size'])
    return SpeakerEncoder(frontend, network)


def distillation(args, classes, teacher=None):
    """A student with its classifier, and what it learns of the teacher."""
    if args['speed_perturb']:
        classes = 3 * classes
    criterion = ContinuousAam(classes, args['embed_size'], args['margin'], args['scale'])
    label_loss = projection = None
    if args['kd'] == 'cosine':
        theirs = teacher.criterion.weight.shape[1]
        if theirs != args['embed_size']:
            projection = nn.Linear(args['embed_size'], theirs)
    elif args['kd'] != 'none':
        label_loss = label_loss_of(args)
    return Distillation(
        student_of(args), criterion, teacher, label_loss, projection, args['kd_logits'] == 'plain'
    )


def label_loss_of(args):
    """(logits, teacher's logits, labels) -> `Distilled`."""
    if args['kd'] == 'kl':
        return partial(kl_loss, temperature=args['temperature'])
    gamma = args['gamma'] if args['kd'] == 'enskd' else 1.0
    return partial(enskd_loss, gamma=gamma, temperature=args['temperature'])


def teacher_of(file, corpus, args):
    """The teacher of a file, whose classes have to be those of the training list.

    Raises:
        UserError: they are not, or the file has no classifier.
    """
    found = unispeech.read(file)
    head = found.beside.get('classifier')
    advice = 'train one for this list with --path_teacher none'
    if head is None:
        raise UserError(f'{file}: has no classifier, so there are no logits to learn; {advice}')
    weight = head.state['weight']
    if len(weight) != corpus.classes:
        raise UserError(
            f'{file}: knows {len(weight):,} speakers, the training list has {corpus.classes:,}; '
            f'give the list it was trained on (VoxCeleb2 dev: 5,994), or {advice}'
        )
    criterion = ContinuousAam(*weight.shape, args['teacher_margin'], args['scale'])
    with torch.no_grad():
        criterion.weight.copy_(weight)
    teacher = Teacher(found.module(), criterion, args['teacher_amp']).to(args['device']).eval()
    share = recognised(teacher, corpus, args)
    if ddp.is_main():
        print(f'{file}: recognises {100 * share:.1f} % of clean training crops', flush=True)
    if not share >= args['least_recognised']:  # NaN fails, too
        raise UserError(
            f'{file}: recognises {100 * share:.1f} % of clean training crops, not '
            f'{100 * args["least_recognised"]:g} % (least_recognised): its speakers are in another '
            f'order, or are others; give the list it was trained on, or {advice}'
        )
    if args['compile']:
        compile_methods(teacher.network, 'forward')
    return teacher


def recognised(teacher, corpus, args):
    """Share of some clean crops, from all over the list, that the teacher's classifier gets right."""
    count = len(corpus.train)
    rows = torch.linspace(0, count - 1, min(CHECKED, count)).long()
    loader = corpus.clean_loader(rows.numpy())
    embeddings = extract(teacher.network, loader, len(rows), args['device'])
    heard = embeddings.isfinite().all(1)
    logits = teacher.plain_logits(embeddings[heard].to(args['device']))
    speakers = torch.from_numpy(corpus.train.speakers)[rows[heard]]
    return (logits.argmax(1).cpu() == speakers).float().mean().item()


def untrained_teacher(args, classes):
    """WavLM, frozen, with a fresh ECAPA-TDNN and classifier, to be trained first (spec 3.5)."""
    encoder = ssl_encoder(args['path_ssl'])
    backend = EcapaSmallBackEnd(
        encoder.states, encoder.width, args['teacher_embed_size'], args['teacher_width']
    )
    criterion = AamSoftmaxTopK(
        classes,
        args['teacher_embed_size'],
        args['teacher_margin'],
        args['scale'],
        top_k=args['teacher_top_k'],
        top_k_margin=args['teacher_top_k_margin'],
    )
    network = SslSpeakerEncoder(encoder, backend)
    if args['compile']:
        compile_methods(network, 'forward')
    framework = Distillation(network, criterion)
    framework.freeze('student.encoder', saved=False)
    return framework


def system_of(file, args):
    """A student of a run's file or the authors'."""
    return speaker_encoder(students.read(file).module(), args)
