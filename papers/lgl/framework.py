"""What is learnt from what.

Stage I:  waves -> encoder -> embeddings of three views -> contrastive loss, and behind a gradient
reversal the augmentation discriminator. Stage II: waves -> encoder -> AAM-softmax -> loss gate.
"""

import torch
import torch.nn.functional as F

from losses import gated_mean
from shared.framework import Framework
from shared.models.gradient_reversal import reverse_gradient


class Contrastive(Framework):
    """Stage I: pulls two crops of an utterance together, pushes other utterances apart."""

    def __init__(self, encoder, criterion):
        super().__init__()
        self.encoder = encoder
        self.criterion = criterion

    def forward(self, waves):
        """Returns the losses and the embeddings (a, s, p), (B, D) each.

        a and s are different crops with the same augmentation, p is the crop of s with another;
        waves (B, 3, L) holds them in this order.
        """
        a, s, p = (self.encoder(view) for view in waves.unbind(1))  # three batches for the BN
        loss, accuracy = self.criterion(a, p)
        return {'speaker_loss': loss, 'accuracy': accuracy}, (a, s, p)


class Adversary(Framework):
    """Augmentation-adversarial training: do two embeddings share their augmentation?"""

    def __init__(self, discriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, a, s, p):
        """Cross-entropy of telling [a, s], same augmentation, from [a, p]."""
        pairs = torch.cat([torch.cat([a, s], dim=1), torch.cat([a, p], dim=1)])  # (2B, 2D)
        same = torch.arange(2 * len(a), device=a.device) < len(a)
        with torch.autocast(a.device.type, enabled=False):  # small, and its loss counts thrice
            return F.cross_entropy(self.discriminator(pairs.float()), same.long())

    def fool(self, a, s, p):
        """The same loss for the encoder, which learns to increase it; nothing is learnt here."""
        self.requires_grad_(False)
        loss = self(*(reverse_gradient(x) for x in (a, s, p)))
        self.requires_grad_(True)
        return loss


class GatedClassification(Framework):
    """Stage II: pseudo-labels, of which only those with a small loss are learnt."""

    def __init__(self, encoder, classifier):
        super().__init__()
        self.encoder = encoder
        self.classifier = classifier

    def forward(self, waves, labels, gate):
        """Losses of waves (B, L) with pseudo-labels (B,); shares are of all samples.

        `weights`: the mean loss of a part of a batch counts by its selected samples.
        """
        sample_losses, logits = self.classifier(self.encoder(waves), labels)
        loss, mask, count = gated_mean(sample_losses, gate)
        hits = mask & (logits.argmax(1) == labels)
        shares = {'selected': mask.float().mean(), 'hits': hits.float().mean()}
        return {'loss': loss, **shares, 'weights': {'loss': count}}
