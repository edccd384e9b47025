"""Reads and writes the files of the authors' layout, in which a run exports its own too.

A file is the bare state of one module, each key behind `module.` (spec oskdft 3.6): of system B
student, back-end, KD heads and classifier, of system A student and ECAPA-TDNN with its classifier.
"""

import re
from dataclasses import replace

from losses import DistilHubertLoss
from shared import weight_files
from shared.errors import UserError
from shared.models.adapters import AdapterSettings
from shared.models.ssl_config import HUBERT_BASE, WAVLM_BASE, XLSR_53
from shared.published.layout import Form, Layout, Published, axis, plain_entries
from shared.published.speaker_forms import classifier_form, ecapa_form, linear_form, student_form

__all__ = ['Published', 'from_published', 'read', 'to_published']

# 'norm' is theirs in system A only; in B it is a name of ours
ADAPTER_A = {
    'norm': 'sv_adapter.adapter_layer_norm_before',
    'down': 'sv_adapter.down_proj',
    'up': 'sv_adapter.up_proj',
}
ADAPTER_B = {part: f'os_kdft_adapter.{part}' for part in ('norm', 'down', 'up')}
# spec 3.2, 3.3: pre-norm layers give the adapter the sum after attention
RELU = AdapterSettings(activation='relu', input='stream')
ELU = AdapterSettings(activation='elu', input='stream')
SCALED = AdapterSettings(activation='relu', input='stream', norm=True, scale=0.1)
TARGETS = (4, 8, 12)  # layers of the teacher that the three heads of system B predict
INSIDE = 'softmax_loss.'  # the classifier in the ECAPA-TDNN of system A

CROSS_ENTROPY = {'weight': 'fc.weight', 'bias': 'fc.bias', 'class_weights': 'cce.weight'}
ENTROPY_MARKS = ('fc.weight', 'fc.bias', 'cce')
AAM = {'weight': 'fc', 'class_weights': 'ce.weight'}  # of B's library
AAM_INSIDE = {'weight': f'{INSIDE}weight', 'class_weights': f'{INSIDE}ce.weight'}


def heads_sizes(entries):
    """Sizes of the KD heads; which layers they predict no weight tells, unless there are three."""
    heads = len({m[1] for key in entries if (m := re.match(r'predict_layer\.(\d+)\.', key))})
    return {
        'width': axis(entries, 'predict_layer.0.0.weight', 1, 768),
        'teacher_width': axis(entries, 'predict_layer.0.2.weight', 0, 768),
        'targets': TARGETS if heads == len(TARGETS) else tuple(range(1, heads + 1)),
    }


def heads_name(name):
    """Theirs of 'heads.0.2.weight'."""
    return name.replace('heads.', 'predict_layer.', 1)


STUDENTS = (
    student_form(WAVLM_BASE, 'wavlm.', ADAPTER_B, ELU, marks=('wavlm',), own='gru_rel_pos_const'),
    student_form(
        XLSR_53,
        '',
        ADAPTER_A,
        SCALED,
        marks=('feature_extractor', 'feature_projection', 'encoder', 'masked_spec_embed'),
        own='conv_layers.0.conv.bias',
    ),
    student_form(HUBERT_BASE, 'hubert.', ADAPTER_B, RELU, marks=('hubert',)),
)
ECAPA = ecapa_form('backend', 'an ECAPA-TDNN', last_state=True)
LAYOUT = Layout(
    (
        *STUDENTS,
        ECAPA,
        linear_form('backend', 'a linear back-end', last_state=True),
        Form(
            'kd_loss',
            'KD heads',
            ('predict_layer',),
            heads_sizes,
            DistilHubertLoss,
            heads_name,
        ),
        classifier_form('ft_loss', 'a classifier', CROSS_ENTROPY, ENTROPY_MARKS, own='bias'),
        classifier_form('ft_loss', 'an AAM classifier', AAM, ('fc', 'ce')),
    ),
    hint='students begin with wavlm or hubert, or with no name of a model',
)
CLASSIFIER = classifier_form('ft_loss', 'the classifier of an ECAPA-TDNN', AAM_INSIDE, ())
to_published = LAYOUT.to_published


def read(path, **adapters):
    """Reads a file strictly, with or without `module.`, in either spelling of the weight norm.

    `adapters` are fields of `AdapterSettings` that a student was trained with and no weight tells,
    where they differ from the published: activation, and for the authors' files of system A
    residual=True (9.1-2). A classifier inside an ECAPA-TDNN is `beside['ft_loss']` of it.

    Raises:
        UserError: the file cannot be read, or its entries are not those of spec oskdft 3.6.
    """
    return from_published(weight_files.read(path), path, **adapters)


def from_published(entries, source, **adapters):
    """The inverse of `to_published`, as `read`; `source` is named in errors."""
    plain = plain_entries(entries, source)
    form, inside = LAYOUT.form_of(plain, source), {}
    if form is ECAPA:
        inside = {key: plain.pop(key) for key in list(plain) if key.startswith(INSIDE)}
    found = form.read(plain, source)
    if inside:
        found.beside['ft_loss'] = classifier = CLASSIFIER.read(inside, source)
        sizes = classifier.sizes['dim'], found.sizes['embed_size']
        if len(set(sizes)) > 1:
            raise UserError(f'{source}: its classifier is of {sizes[0]}, not {sizes[1]} features')
    if adapters and found.sizes.get('adapters'):
        settings = replace(found.sizes['adapters'], **adapters)
        found = replace(found, sizes=found.sizes | {'adapters': settings})
    return found
