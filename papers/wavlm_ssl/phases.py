"""What every step of the recipe does around its epochs: folders, gate, validation, the end."""

from pathlib import Path

import numpy as np
import torch

import plots
from gate import UNSEEN, LossRecord, fit_gate
from losses import NO_GATE, SMALLEST
from shared import ddp
from shared.errors import UserError
from shared.files import replacing
from shared.loop import Loop
from train import validate

SHOWN = (
    'loss',
    'dino_loss',
    'spread',
    'aam_loss',
    'accuracy',
    'kept %',
    'corrected %',
    'threshold',
)
SHOWN = (*SHOWN, 'valid_eer', 'utterances_per_second')


def due(phase, output, args):
    """Whether a step has to be run now: its output is not there, and it is of the kind asked for.

    Raises:
        UserError: it comes before what was asked for.
    """
    if ddp.broadcast_object(output.exists()):
        return False
    if args['phase'] not in ('all', phase):
        raise UserError(f'{output}: is not there; it comes first: run --phase {phase}')
    return True


def loop_of(step, seed, loader, args, **objects):
    """The training loop of a step of one seed, in its folder of the run."""
    return Loop(
        Path(args['path_log']) / f'seed{seed}' / step,
        loader,
        max_bad_share=args['max_bad_share'],
        keep=args['keep_checkpoints'],
        save_minutes=args['save_minutes'],
        **objects,
    )


def end_epoch(title, epoch, metrics, loop, embed, corpus, logger, args):
    """Scores the validation list by crops, logs and saves; the last epoch is kept (spec 6)."""
    records, _ = validate(embed, corpus.valid, args, full=False)
    metrics['valid_eer'] = records['tta']['eer']
    loop.log_epoch(title, epoch, metrics, logger, SHOWN)
    loop.end_epoch(metrics, value=-epoch)


class DynamicGate:
    """The threshold of the running epoch, and the record the next one comes from (spec 4.2).

    A part of a checkpoint.

    Args:
        count: utterances of the training list.
        device: of the losses.
    """

    def __init__(self, count, device):
        self.record = LossRecord(count, device)
        self.log_gate = NO_GATE

    @property
    def active(self):
        """Whether a threshold has been found."""
        return self.log_gate != NO_GATE

    def begin(self, epoch, args):
        """Sets the threshold from the losses of the epoch before; the old one where there is none."""
        losses = self.record.values()
        if epoch >= args['gate_epoch'] and np.isfinite(losses).any():
            found = fit_gate(losses).threshold
            if found is not None:
                seen = losses[np.isfinite(losses)]
                least = np.quantile(np.maximum(seen, SMALLEST), args['gate_least'])
                self.log_gate = max(found, float(np.log(least)))
        self.record.clear()

    def write_losses(self, file):
        """Leaves the last epoch's losses (N,), which large-margin fine-tuning begins with."""
        losses = self.record.values()
        if ddp.is_main():
            with replacing(file) as temporary, temporary.open('wb') as stream:
                np.savez(stream, losses=losses)
        ddp.barrier()

    def load_losses(self, file):
        """Begins with the losses of another phase's last epoch (quirk 2)."""
        state = self.record.state_dict()
        losses = torch.from_numpy(np.load(file)['losses'])
        losses = torch.where(losses.isnan(), UNSEEN, losses)
        self.record.load_state_dict({**state, 'losses': losses})

    def state_dict(self):
        return {'log_gate': self.log_gate, 'record': self.record.state_dict()}

    def load_state_dict(self, state):
        self.log_gate = state['log_gate']
        self.record.load_state_dict(state['record'])


def gate_report(epoch, metrics, gate, labels, corpus, loop):
    """Draws what the gate did in an epoch and so far; returns how right what it let pass was."""
    losses, (kept, corrected, learnt) = gate.record.values(), gate.record.fates_and_labels()
    new, right, found = np.where(corrected, learnt, -1), None, {}
    if len(corpus.train.speaker_ids) > 1:  # true speakers, for the eye only: nothing learns of them
        found = plots.precisions(labels, corpus.train.speakers, kept, new)
        right = plots.right_labels(labels, corpus.train.speakers)
    if ddp.is_main():
        folder, title = loop.folder / 'plots', f'{loop.folder.name}, epoch {epoch}'
        log_losses = np.log(np.maximum(losses, SMALLEST))
        threshold = gate.log_gate if gate.active else None
        plots.draw_gate(
            folder / f'gate_{epoch:02d}.png',
            log_losses,
            fit_gate(losses),
            title,
            threshold=threshold,
            right=right,
        )
        history = [*loop.history, {'epoch': epoch, **metrics, **found}]
        plots.draw_shares(folder / 'shares.png', history, loop.folder.name)
    return found
