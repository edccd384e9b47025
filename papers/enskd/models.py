"""The teacher, the classifier of teacher and student, and features with masks."""

import math

import torch
from torch import nn

from shared.augmentations.spec_augment import DRAWS, spec_augment
from shared.losses.aam_softmax import AamSoftmax, plain_logits
from shared.precision import autocast


class Teacher(nn.Module):
    """A trained speaker network with the classifier it was trained with (spec 3.5).

    Its logits have the margin on the true speaker, as the student's (spec 3.5 e, quirk 12).

    Args:
        network: waves (B, L) to embeddings (B, D).
        criterion: AAM-softmax with its class weights.
        amp: bf16 autocast of the network.
    """

    def __init__(self, network, criterion, amp=False):
        super().__init__()
        self.network, self.criterion, self.amp = network, criterion, amp

    def embed(self, waves):
        """Embeddings (B, D) of crops (B, L), float32."""
        with autocast(waves.device.type, self.amp):
            return self.network(waves).float()

    @torch.no_grad()
    def logits(self, embeddings, labels):
        """s cos (B, C), the true speaker's with the margin."""
        return self.criterion(embeddings, labels)[1]

    @torch.no_grad()
    def plain_logits(self, embeddings):
        """s cos (B, C)."""
        return plain_logits(embeddings, self.criterion.weight, self.criterion.scale)


class ContinuousAam(AamSoftmax):
    """AAM-softmax that is continuous where angle + margin reaches pi: beyond, c - (1 - cos m) (4.1)."""

    def __init__(self, classes, dim, margin=0.2, scale=32.0):
        super().__init__(classes, dim, margin, scale)
        nn.init.xavier_uniform_(self.weight)  # spec 3.4

    def _with_margin(self, cosine):
        beyond = cosine <= -math.cos(self.margin)
        return torch.where(
            beyond, cosine - (1 - math.cos(self.margin)), super()._with_margin(cosine)
        )


class MaskedFeatures(nn.Module):
    """A front-end some of whose features lose a span of frames and one of bands, in training."""

    def __init__(self, frontend, share, most_frames, most_bands):
        super().__init__()
        self.frontend, self.share = frontend, share
        self.most = most_frames, most_bands

    def forward(self, waves, lengths=None):
        features, frames = self.frontend(waves, lengths)
        if self.training:
            draws = torch.rand(len(waves), DRAWS, device=waves.device)
            features = spec_augment(features, draws, self.share, *self.most)
        return features, frames
