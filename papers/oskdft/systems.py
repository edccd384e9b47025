"""Builds the networks from `args`: pre-trained, from a run, or from files of the authors."""

from dataclasses import replace

import torch

from losses import DistilHubertLoss, HintLoss, LastStateLoss, LinearSoftmax
from models import FitStudent
from published import from_published, read
from shared.errors import UserError
from shared.losses.aam_softmax import AamSoftmax
from shared.models.adapters import AdapterSettings
from shared.models.span_masks import SpanMasks
from shared.models.ssl_backends import EcapaBackEnd, LinearBackEnd, SslSpeakerEncoder
from shared.models.ssl_checkpoints import read_ssl, ssl_encoder
from shared.precision import compile_methods
from shared.weight_files import load_weights
from shared.weight_files import read as read_state

# what the released code does not copy from the teacher (9.1-7)
POSITIONS = ('encoder.pos_conv_embed', 'encoder.layer_norm', 'masked_spec_embed')


def teacher_of(args, learns=False):
    """The pre-trained model; where it learns to be compared with its student, with masks."""
    teacher = ssl_encoder(
        args['path_ssl'],
        masks=masks_of(args) if learns else None,
        checkpointing=args['checkpointing'] and learns,
        normalise_wave=args['normalise_wave'],
    )
    if args['compile']:
        compile_methods(teacher, 'encode' if learns else 'forward')
    return teacher


def student_of(args, weights=None):
    """Some layers of the pre-trained model, or a thinner one from scratch; with adapters."""
    settings = AdapterSettings(
        width=args['adapter_size'],
        activation=args['adapter_activation'],
        noise=args['adapter_noise'],
        norm=args['adapter_norm'],
        scale=args['adapter_scale'],
        residual=args['adapter_residual'],
        zero_up=args['adapter_zero'],
        input='stream',
    )
    if args['student'] == 'fithubert':
        student = FitStudent(
            replace(read_ssl(args['path_ssl']).config, normalise_wave=args['normalise_wave']),
            layers=args['fit_layers'],
            width=args['fit_width'],
            adapters=settings,
            masks=masks_of(args),
        )
    else:
        student = ssl_encoder(
            args['path_ssl'],
            layers=args['copied_layers'],
            adapters=settings,
            masks=masks_of(args),
            checkpointing=args['checkpointing'],
            fresh=() if args['copy_positions'] else POSITIONS,
            normalise_wave=args['normalise_wave'],
        )
    if weights is not None:
        load_weights(student, weights, 'student')
    if args['compile']:
        compile_methods(student, 'encode')
    return student


def masks_of(args):
    """Spans of frames hidden while a network learns (spec 3.1)."""
    return SpanMasks(time_prob=args['mask_time_prob'], time_length=args['mask_time_length'])


def kd_of(args, student, teacher):
    """The loss of the KD branch."""
    if args['kd'] == 'last':
        if student.width != teacher.width:
            raise UserError(f'kd last: widths {student.width} and {teacher.width} differ')
        return LastStateLoss(args['kd_scale'])
    if args['kd'] == 'hints':
        paired = student.states == student.layers == teacher.layers  # a cut one has one more
        if not paired or student.width != teacher.width:
            raise UserError(
                'kd hints: a student fithubert with the layers and width of its teacher'
            )
        return HintLoss(args['hint_lambda'])
    if max(args['target_layers']) > teacher.layers:
        raise UserError(
            f'target_layers {args["target_layers"]}: the teacher has {teacher.layers} layers'
        )
    return DistilHubertLoss(
        student.width,
        teacher.width,
        args['target_layers'],
        args['cos_lambda'],
        args['kd_cosine'],
    )


def backend_of(args, student):
    """From hidden states to an embedding: linear (system B) or ECAPA-TDNN (system A)."""
    if args['backend'] == 'linear':
        return LinearBackEnd(student.states, student.width, args['embed_size'])
    return EcapaBackEnd(
        student.states if args['weighted_sum'] else None,
        student.width,
        args['embed_size'],
        channels=args['ecapa_width'],
        mfa_width=args['ecapa_mfa_width'],
        attention_width=args['ecapa_attention_width'],
        se_width=args['ecapa_se_width'],
    )


def criterion_of(args, speakers):
    """The speaker classifier."""
    if args['criterion'] == 'ce':
        return LinearSoftmax(speakers, args['embed_size'])
    return AamSoftmax(speakers, args['embed_size'], args['aam_margin'], args['aam_scale'])


def student_in(folder):
    """The weights of the student that a phase of this run has left."""
    file = folder / 'student.pt'
    entries = read_state(file)
    ours = 'time_reduction.weight' in entries  # of the thin student
    return entries if ours else from_published(entries, file).state


def system_of(files, args):
    """Student and back-end of a run's files or the authors', given in any order."""
    if args['student'] == 'fithubert' and not args['published']:
        student = student_of(args, read_state(files[0]))
        return speaker_encoder(student, read(files[1]).module(), args)
    found = {one.kind: one for one in (read(file, **reading(args)) for file in files)}
    if not {'student', 'backend'} <= found.keys():
        raise UserError(
            'published: a student and its back-end are needed; '
            f'{", ".join(map(str, files)) or "no file"} holds {", ".join(found) or "nothing"}'
        )
    config = replace(read_ssl(args['path_ssl']).config, normalise_wave=args['normalise_wave'])
    return speaker_encoder(found['student'].module(config), found['backend'].module(), args)


def reading(args):
    """What no weight of a student tells about its adapters."""
    names = ('activation', 'scale', 'residual')
    return {name: args[f'adapter_{name}'] for name in names}


def speaker_encoder(student, backend, args):
    """What runs at inference: the SV branch."""
    if args['mixed_branches']:
        return MixedBranches(student, backend, args['num_seg'])
    return SslSpeakerEncoder(student, backend)


class MixedBranches(SslSpeakerEncoder):
    """System A as it was scored: the first half of a file's crops skips the adapters (9.1-1).

    The evaluation kept splitting batches in two branches, and its batches were the crops of a file.
    """

    def __init__(self, student, backend, crops):
        super().__init__(student, backend)
        self.crops = crops

    def forward(self, waves, lengths=None):
        if lengths is not None:  # a file alone: no first half
            return super().forward(waves, lengths)
        number = torch.arange(len(waves), device=waves.device) % self.crops
        return self.backend(self.encoder(waves, adapt=number >= self.crops // 2).states)
