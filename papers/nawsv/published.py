"""Reads and writes the files of the authors' layout, in which a run exports its own too.

A file is the bare state of one module, each key behind `module.` (spec nawsv 3.5).
"""

from losses import EApn
from shared.models.adapters import AdapterSettings
from shared.models.ssl_config import HUBERT_BASE, WAVLM_BASE
from shared.published.layout import Form, Layout, Published
from shared.published.speaker_forms import classifier_form, ecapa_form, linear_form, student_form

__all__ = ['Published', 'from_published', 'read', 'to_published']

ADAPTER = {'down': 'adapter.down', 'up': 'adapter.up'}
CRITERION = {'weight': 'fc', 'class_weights': 'ce.weight'}


def student(base, own):
    """A student's file begins with the family of the model it was made from."""
    family = base.family
    return student_form(base, f'{family}.', ADAPTER, AdapterSettings(), marks=(family,), own=own)


LAYOUT = Layout(
    (
        student(WAVLM_BASE, 'rel_attn_embed'),
        student(HUBERT_BASE, ''),
        ecapa_form('backend', 'a back-end'),
        linear_form('head', 'a linear head'),
        classifier_form('criterion', 'an AAM criterion', CRITERION, ('fc', 'ce')),
        Form('e_apn', 'the scale and bias of E-APN', ('b',), lambda _: {}, EApn, str),
    ),
    hint='students begin with wavlm or hubert',
)
read, from_published, to_published = LAYOUT.read, LAYOUT.from_published, LAYOUT.to_published
