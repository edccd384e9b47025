"""What is learnt from what: a small student from speakers and from a frozen teacher (spec enskd 1).

augmented crop -> log-mels -> student -> AAM-softmax on the speaker     -> L_cls
the same crop  -> WavLM-Large and ECAPA-TDNN -> its own AAM-softmax     -> target of L_kd
Label-level losses compare the logits, the embedding-level one the embeddings. L = L_cls + w L_kd;
the teacher learns nothing.
"""

import torch
from torch import nn

from losses import cosine_loss
from shared.framework import Framework
from shared.losses.aam_softmax import plain_logits


class Distillation(Framework):
    """A speaker network and its classifier, which learn from labels and from a teacher.

    Args:
        student: waves (B, L) to embeddings (B, D).
        criterion: its classifier, with a margin.
        teacher: a `Teacher`; None: labels alone.
        label_loss: (logits, teacher's logits, labels) -> `Distilled`; None: embeddings are compared.
        projection: student's embeddings to the teacher's size, where they differ.
        plain: whether the logits are compared without margins.
    """

    def __init__(
        self, student, criterion, teacher=None, label_loss=None, projection=None, plain=False
    ):
        super().__init__()
        self.student, self.criterion, self.teacher = student, criterion, teacher
        self.label_loss, self.plain = label_loss, plain
        self.projection = projection or nn.Identity()
        if teacher is not None:
            self.freeze('teacher', saved=False)

    def forward(self, waves, labels, kd_weight=1.0):
        """Losses of B utterances: waves (B, L) in -1..1, labels (B,), w of the KD loss."""
        embeddings = self.student(waves)
        each, logits = self.criterion(embeddings, labels)
        loss = aam_loss = each.mean()
        losses = {'aam_loss': aam_loss}
        if self.teacher is not None:
            kd_loss, parts = self.distil(waves, labels, embeddings, logits)
            losses |= {'kd_loss': kd_loss, **parts}
            loss = aam_loss + kd_weight * kd_loss
        losses['accuracy'] = 100 * (logits.argmax(1) == labels).float().mean()
        return {'loss': loss, **losses}

    def distil(self, waves, labels, embeddings, logits):
        """L_kd, and its parts for the log."""
        with torch.no_grad():
            theirs = self.teacher.embed(waves)
        if self.label_loss is None:
            return cosine_loss(self.projection(embeddings), theirs), {}
        if self.plain:
            head = self.criterion
            logits = plain_logits(embeddings, head.weight, head.scale)
            target = self.teacher.plain_logits(theirs)
        else:
            target = self.teacher.logits(theirs, labels)
        found = self.label_loss(logits, target, labels)
        return found.loss, {'target_kd': found.target, 'non_target_kd': found.non_target}
