"""Stage 0, DINO: a student sees every crop, its slow average, the teacher, the long ones (spec 8).

Recipe A is RDINO, with a regulariser against redundant dimensions (8.2); recipe B plain DINO (8.3).
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from shared.framework import Framework
from shared.losses.dino import DinoLoss, RedundancyLoss
from shared.models.dino_head import DinoHead
from shared.models.ecapa_chained import ChainedEcapa
from shared.models.frontend import LogMel
from shared.models.speaker_encoder import SpeakerEncoder
from shared.precision import compile_methods

WINDOWS = {'rdino': 'hann', 'dino': 'hamming'}  # 8.1, 8.3


class Dino(Framework):
    """Student and teacher, an encoder with a head each; they learn no labels.

    Both stay in train mode: the teacher's batch statistics are those of its own batches (8.1).

    Args:
        encoder: a `SpeakerEncoder`, waves -> embeddings (B, D); the teacher starts as a copy.
        head: embeddings -> logits and what the regulariser sees.
        criterion: DINO loss.
        redundancy: regulariser, or None.
    """

    def __init__(self, encoder, head, criterion, redundancy=None):
        super().__init__()
        self.student = nn.ModuleDict({'encoder': encoder, 'head': head})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.criterion, self.redundancy = criterion, redundancy

    def groups(self, weight_decay):
        """Learnable tensors: matrices decay, biases and norms do not (8.1)."""
        matrices = [p for p in self.learnable() if p.ndim > 1]
        vectors = [p for p in self.learnable() if p.ndim <= 1]
        return [
            {'params': matrices, 'weight_decay': weight_decay},
            {'params': vectors, 'weight_decay': 0.0},
        ]

    def networks(self):
        """State of what the phase hands on: the teacher's encoder, without head (8.1)."""
        return {'encoder': self.teacher['encoder'].state_dict()}

    def forward(self, long, short, reg_weight=1.0):
        """Losses of B utterances, and the teacher's logits (G * B, K) for the centre.

        Args:
            long: global crops (B, G, L).
            short: local crops (B, V, l).
            reg_weight: lambda_e, of the regulariser.
        """
        count = long.shape[1]
        # crop-major: all utterances of crop 0, then of crop 1; one batch for the BN a length
        long, short = (crops.transpose(0, 1).flatten(0, 1) for crops in (long, short))
        encoder, head = self.student['encoder'], self.student['head']
        long, _ = encoder.frontend(long)  # knows no weights: the teacher's is the same
        logits, wide = head(torch.cat([encoder.network(long), encoder(short)]))
        with torch.no_grad():
            embeddings = self.teacher['encoder'].network(long)
            targets, wide_target = self.teacher['head'](embeddings)
        loss = dino_loss = self.criterion(logits, targets, count)
        losses = {'dino_loss': dino_loss, 'spread': spread(embeddings)}
        if self.redundancy is not None:
            # the regulariser sees the global crops only
            losses['reg_loss'] = self.redundancy(wide[: len(long)], wide_target, count)
            loss = dino_loss + reg_weight * losses['reg_loss']
        return {'loss': loss, **losses}, targets

    @torch.no_grad()
    def update_teacher(self, momentum):
        """theta_t <- m theta_t + (1 - m) theta_s, parameters alone (8.1, quirk 30)."""
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for theirs, ours in pairs:
            theirs.lerp_(ours, 1 - momentum)


def spread(embeddings):
    """How far unit-length embeddings (N, D) lie apart: 0 all alike (collapsed), 1 no mean at all."""
    return 1 - F.normalize(embeddings.float()).mean(0).square().sum()


def dino_encoder(args):
    """Log-mels normalised per band and utterance, and the chained ECAPA-TDNN (8.1)."""
    frontend = LogMel(
        pre_emphasis=0, f_min=0, f_max=8000, window=WINDOWS[args['dino']], unit_variance=True
    )
    network = ChainedEcapa(
        width=args['dino_width'],
        mfa_width=args['dino_mfa_width'],
        attention_width=args['dino_attention_width'],
        se_width=args['dino_se_width'],
        dim=args['dino_embed_size'],
    )
    return SpeakerEncoder(frontend, network)


def dino_framework(args):
    """Student, teacher and losses, freshly initialised."""
    head = DinoHead(
        args['dino_embed_size'],
        hidden=args['dino_hidden'],
        bottleneck=args['dino_bottleneck'],
        outputs=args['dino_outputs'],
        regulariser=args['dino_regulariser'] or None,
    )
    criterion = DinoLoss(
        args['dino_outputs'],
        student_temperature=args['student_temperature'],
        teacher_temperature=args['teacher_temperature'],
        centre_momentum=args['centre_momentum'],
    )
    redundancy = None
    if args['dino_regulariser']:
        redundancy = RedundancyLoss(args['reg_divisor'], args['reg_std'], args['reg_cov'])
    framework = Dino(dino_encoder(args), head, criterion, redundancy)
    if args['compile']:
        for side in (framework.student, framework.teacher):
            compile_methods(side['encoder'].network, 'forward')
    return framework
