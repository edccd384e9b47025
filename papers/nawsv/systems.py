"""Builds the networks from `args`: pre-trained, from a run, or from files of the authors."""

from dataclasses import replace

from published import read
from shared.errors import UserError
from shared.models.adapters import AdapterSettings
from shared.models.ssl_backends import EcapaBackEnd, LinearBackEnd
from shared.models.ssl_checkpoints import read_ssl, ssl_encoder
from shared.models.ssl_encoder import SpanMasks
from shared.precision import compile_methods
from shared.weight_files import load_weights

# what the released code forgets to take from the pre-trained model (Q2)
POSITIONS = ('encoder.pos_conv_embed', 'encoder.layer_norm', 'masked_spec_embed')


def teacher_of(args):
    """The pre-trained model as it is; it hears raw waves, whatever its own recipe says."""
    teacher = ssl_encoder(args['path_ssl'], normalise_wave=False)
    if args['compile']:
        compile_methods(teacher, 'encode')
    return teacher


def student_of(args, phase, weights=None, adapters=True):
    """The pre-trained model with adapters and the masks of a phase; `weights` replace all of it."""
    if weights is not None:  # that of the comparison has no adapters
        adapters = any('.adapter.' in name for name in weights)
    settings = AdapterSettings(width=args['adapter_hidden_size'], activation='elu')
    student = ssl_encoder(
        args['path_ssl'],
        adapters=settings if adapters else None,
        masks=masks_of(args, phase),
        checkpointing=args['checkpointing'],
        fresh=POSITIONS if args['partial_pretrained'] and adapters else (),
        normalise_wave=False,
    )
    if weights is not None:
        load_weights(student, weights, 'student')
    if args['compile']:
        compile_methods(student, 'encode')
    return student


def masks_of(args, phase):
    """Spans of frames and channels hidden from the student while it learns (spec 3.2)."""
    if phase == 'warmup':
        return SpanMasks(
            time_prob=args['mask_time_prob'],
            time_length=args['mask_time_length'],
            feature_prob=args['mask_feature_prob'],
            feature_length=args['mask_feature_length'],
        )
    return SpanMasks(
        time_prob=args['finetune_mask_time_prob'], time_length=args['finetune_mask_time_length']
    )


def head_of(args, student):
    """The linear head of the warm-up."""
    return LinearBackEnd(student.layers + 1, student.width, args['embed_size'])


def backend_of(args, student):
    """The ECAPA-TDNN of the fine-tuning."""
    return EcapaBackEnd(
        student.layers + 1,
        student.width,
        args['embed_size'],
        channels=args['ecapa_width'],
        mfa_width=args['ecapa_mfa_width'],
        attention_width=args['ecapa_attention_width'],
        se_width=args['ecapa_se_width'],
    )


def system_of(files, args):
    """Student, and back-end or head, of a run's files or the authors', given in any order.

    What no weight tells, such as strides, is that of the pre-trained model.
    """
    found = {one.kind: one for one in map(read, files)}
    if 'student' not in found or not {'backend', 'head'} & found.keys():
        raise UserError(
            'published: a student and its back-end (or head) are needed; '
            f'{", ".join(map(str, files)) or "no file"} holds {", ".join(found) or "nothing"}'
        )
    config = replace(read_ssl(args['path_ssl']).config, normalise_wave=False)
    return found['student'].module(config), found.get('backend', found.get('head')).module()


def student_in(files):
    """The weights of the student among some files."""
    for one in map(read, files):
        if one.kind == 'student':
            return one.state
    raise UserError(f'published: no student among {", ".join(map(str, files))}')
