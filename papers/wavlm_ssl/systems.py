"""Builds the networks from `args`: pre-trained, from a run, or from a file of the authors."""

from dataclasses import replace
from pathlib import Path

from dino import dino_encoder
from published import read
from shared import ddp
from shared.losses.aam_softmax import AamSoftmax
from shared.models.mhfa import Mhfa
from shared.models.ssl_backends import SslSpeakerEncoder
from shared.models.ssl_checkpoints import read_ssl, ssl_encoder
from shared.precision import compile_methods
from shared.weight_files import load_weights
from shared.weight_files import read as read_state


def encoder_of(args):
    """The pre-trained model; it hears raw waves and learns without masks (spec 3.2)."""
    encoder = ssl_encoder(
        args['path_ssl'], checkpointing=args['checkpointing'], normalise_wave=False
    )
    if args['compile']:
        compile_methods(encoder, 'encode')
    return encoder


def backend_of(args, encoder):
    """Multi-head factorised attentive pooling of all hidden states (spec 3.3)."""
    return Mhfa(
        encoder.states, encoder.width, args['heads'], args['compression'], args['embed_size']
    )


def criterion_of(args, classes, margin):
    """The pseudo-speaker classifier (spec 3.4, 4.1)."""
    return AamSoftmax(classes, args['embed_size'], margin, args['scale'])


def system_of(file, args):
    """WavLM and MHFA of a run's file or the authors', to embed with."""
    config = None  # that of a Base+, as far as the shapes do not tell
    if Path(args['path_ssl']).exists():
        config = replace(read_ssl(args['path_ssl']).config, normalise_wave=False)
    elif ddp.is_main():
        print(f'path_ssl {args["path_ssl"]} is not there: taken for a WavLM-Base+', flush=True)
    found = read(file).module(config)
    return WavlmSpeaker(found.encoder, found.backend, args['longest'])


def dino_system(file, args):
    """The teacher encoder of DINO, to embed with."""
    encoder = dino_encoder(args)
    load_weights(encoder, read_state(file), file)
    return encoder


class WavlmSpeaker(SslSpeakerEncoder):
    """WavLM and MHFA; of a long file only the beginning is scored (spec 7).

    Args:
        encoder: of hidden states.
        backend: of an embedding.
        longest: samples; None: all.
    """

    def __init__(self, encoder, backend, longest=None):
        super().__init__(encoder, backend)
        self.longest = longest

    def forward(self, waves, lengths=None):
        if lengths is not None and self.longest:
            lengths = lengths.clamp(max=self.longest)
        return super().forward(waves[:, : self.longest], lengths)
