"""Reads and writes WavLM + MHFA checkpoints of the authors' layout (spec wavlm_ssl 3.6).

Theirs is a bare state of 259 tensors: WavLM under Microsoft's names, MHFA, classifier. What their
other program, sslsv, stores below `model` is read too, without what trained it.
"""

from functools import partial

from shared import weight_files
from shared.losses.aam_softmax import AamSoftmax
from shared.models.adapters import AdapterSettings
from shared.models.mhfa import Mhfa
from shared.models.ssl_backends import SslSpeakerEncoder
from shared.models.ssl_config import WAVLM_BASE
from shared.models.ssl_encoder import SslEncoder
from shared.models.ssl_names import hugging_face_names
from shared.published.layout import Form, Layout, Published, axis
from shared.published.speaker_forms import student_form
from shared.published.wavlm_names import microsoft_name

__all__ = ['Published', 'from_published', 'read', 'to_published']

WAVLM, MHFA, CLASSIFIER = '__S__.model.', '__S__.backend.', '__L__.'
SSLSV_WAVLM, SSLSV_MHFA = 'encoder.upstream.upstream.model.', 'encoder.pooling.'
SSLSV_MARKS = ('encoder.upstream', 'encoder.pooling')
SHAPES = student_form(WAVLM_BASE, '', {}, AdapterSettings(), marks=())  # what they tell of a WavLM


class Trained(SslSpeakerEncoder):
    """What a file holds: an embedder of waves (B, L), and the classifier it was trained with.

    Args:
        config: of the WavLM.
        mhfa: sizes of the `Mhfa`.
        classes: C; None: no classifier.

    Raises:
        ValueError: an MHFA of other than the states of the WavLM.
    """

    def __init__(self, config, mhfa, classes=None):
        super().__init__(SslEncoder(config), Mhfa(**mhfa))
        if mhfa['states'] != config.layers + 1:
            raise ValueError(f'{mhfa["states"]} states of an encoder with {config.layers} layers')
        if classes is not None:
            self.criterion = AamSoftmax(classes, mhfa['dim'])


def theirs(ours, wavlm, mhfa):
    """Name of an entry of `Trained` in a file with these prefixes."""
    part, _, name = ours.partition('.')
    if part != 'encoder':
        return {'backend': mhfa, 'criterion': CLASSIFIER}[part] + name
    return wavlm + microsoft_name(name, 'group')


def sizes(entries, wavlm, mhfa):
    """Keyword arguments of the `Trained` that takes the entries of a file."""
    inner = {k.removeprefix(wavlm): x for k, x in entries.items() if k.startswith(wavlm)}
    config = SHAPES.sizes(hugging_face_names(inner))['config']
    return {
        'config': config,
        'mhfa': {
            'states': axis(entries, f'{mhfa}weights_k', 0, config.layers + 1),
            'width': axis(entries, f'{mhfa}cmp_linear_k.weight', 1, 768),
            'heads': axis(entries, f'{mhfa}att_head.weight', 0, 64),
            'compression': axis(entries, f'{mhfa}cmp_linear_k.weight', 0, 128),
            'dim': axis(entries, f'{mhfa}pooling_fc.weight', 0, 256),
        },
        'classes': len(entries[key]) if (key := f'{CLASSIFIER}weight') in entries else None,
    }


def form(wavlm, mhfa, marks):
    """The layout with these prefixes."""
    names = {'wavlm': wavlm, 'mhfa': mhfa}
    how = partial(sizes, **names), Trained, partial(theirs, **names)
    return Form('speaker', 'a WavLM with MHFA', marks, *how)


LAYOUT = Layout(
    (form(WAVLM, MHFA, ('__S__', '__L__')), form(SSLSV_WAVLM, SSLSV_MHFA, SSLSV_MARKS)),
    hint='those begin with __S__.model, __S__.backend and __L__; WavLM-Base+.pt is no such file',
)


def read(path):
    """Reads a file strictly, with or without `module.`, in either spelling of the weight norm.

    Raises:
        UserError: the file cannot be read, or its entries are not those of spec 3.6.
    """
    return from_published(weight_files.read(path), path)


def from_published(entries, source):
    """The inverse of `to_published`, as `read`; `source` is named in errors."""
    if isinstance(entries, dict) and isinstance(entries.get('model'), dict):
        entries = entries['model']  # 3.6 d
        if any(str(key).startswith(SSLSV_MHFA) for key in entries):  # momentum copy, heads, losses
            entries = {k: x for k, x in entries.items() if str(k).startswith('encoder.')}
    return LAYOUT.from_published(entries, source)


def to_published(state):
    """The state of a `Trained` as the authors store it: without `module.`."""
    entries = LAYOUT.forms[0].write(state)
    return {key.removeprefix('module.'): value for key, value in entries.items()}
