"""What is learnt from what: pseudo-labels, of which the loss tells the wrong ones (spec 4).

augmented crop -> WavLM -> MHFA -> AAM-softmax on the pseudo-label; losses above the gate are not
learnt. clean crop -> the same network, without gradient -> a confident prediction replaces the label
of a sample above the gate. All weights are pulled towards the pre-trained ones.
"""

import torch
import torch.nn.functional as F

from losses import gate_and_correct, level_of, objective, pull, shares
from shared.framework import Framework
from shared.losses.aam_softmax import plain_logits


class GatedFineTuning(Framework):
    """WavLM and its back-end on pseudo-labels with dynamic loss gate and label correction.

    Of WavLM the Transformer layers learn (quirk 16); dropout and LayerDrop stay on in all of it.
    """

    def __init__(self, encoder, backend, criterion, args):
        super().__init__()
        self.encoder, self.backend, self.criterion = encoder, backend, criterion
        self.lc, self.lc_threshold = args['lc'], args['lc_threshold']
        self.lc_temperature = args['lc_temperature']
        self.weight, self.pull_squared = args['pull'], args['pull_squared']
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(name.startswith('encoder.layers.'))

    def pull_towards(self, pretrained, device):
        """Keeps the weights (an encoder's state) towards which those that learn are pulled."""
        # no buffers, which DDP would send round in every step
        self.pretrained = [pretrained[name].to(device, copy=True) for name, _ in self.pulled()]

    def pulled(self):
        """Names and parameters of WavLM that learn."""
        return [(n, p) for n, p in self.encoder.named_parameters() if p.requires_grad]

    def groups(self, lr_mhfa, lr_transformer, llrd):
        """Back-end and classifier, then each layer with its rate (spec 3.5, 6)."""
        rest = [*self.backend.parameters(), *self.criterion.parameters()]
        layers = self.encoder.parameters_by_depth()[1:]
        return [
            {'name': 'mhfa', 'params': rest, 'first_lr': lr_mhfa},
            *(
                {'name': f'layer {i}', 'params': layer, 'first_lr': lr_transformer * llrd**i}
                for i, layer in enumerate(layers)
            ),
        ]

    def networks(self):
        """State of the parts of a checkpoint."""
        names = ('encoder', 'backend', 'criterion')
        return {name: self.get_submodule(name).state_dict() for name in names}

    def embed(self, waves):
        """Embeddings (B, D) of crops (B, L)."""
        return self.backend(self.encoder(waves).states)

    def forward(self, waves, clean, labels, log_gate, correct):
        """What to minimise and to log, the losses (B,), and what became of the samples.

        `weights`: in a batch of several parts the AAM loss of each counts by its samples; that makes
        the sum of L / sg(L) what it is of the whole, where each also counts by its sg(L).

        Args:
            waves: (B, L) augmented.
            clean: (B, L) the same crops as they are.
            labels: (B,) pseudo-labels.
            log_gate: largest log loss that is learnt.
            correct: whether labels above the gate may be replaced.
        """
        embeddings = self.embed(waves)
        losses, logits = self.criterion(embeddings, labels)
        clean_logits = plain = None
        if correct and self.lc != 'none':
            with torch.no_grad():
                own = self.embed(clean).to(self.criterion.weight.dtype)
                with torch.autocast(own.device.type, enabled=False):  # to be divided by 0.1
                    # plain products: no margin, no unit lengths (4.4)
                    clean_logits = F.linear(own, self.criterion.weight)
            if self.lc == 'soft':
                plain = plain_logits(embeddings, self.criterion.weight, self.criterion.scale)
        gated = gate_and_correct(
            losses,
            logits,
            clean_logits,
            labels,
            log_gate,
            plain_logits=plain,
            sure=self.lc_threshold,
            temperature=self.lc_temperature,
        )
        now = [parameter for _, parameter in self.pulled()]
        distance = pull(now, self.pretrained, squared=self.pull_squared)
        level = level_of(gated.loss)
        found = {'loss': objective(gated.loss, distance, self.weight, level=level)}
        found |= {'aam_loss': gated.loss, 'pull': distance, **shares(gated, logits)}
        found['weights'] = {'loss': gated.count * level, 'aam_loss': gated.count}
        return found, losses, gated._replace(loss=None, count=None)  # the rest is of each sample
