"""What every step of the recipe does around its epochs: folders, gate, validation, the end."""

from pathlib import Path

import numpy as np
import torch

import plots
from gate import UNSEEN, LossRecord, fit_gate
from losses import NO_GATE, SMALLEST
from published import to_published
from shared import ddp
from shared.errors import UserError
from shared.files import replacing
from shared.loop import Loop
from shared.weight_files import write
from train import validate

SHOWN = (  # of DINO, of fine-tuning, of both
    *('loss', 'dino_loss', 'spread'),
    *('aam_loss', 'accuracy', 'kept %', 'corrected %', 'threshold'),
    *('valid_eer', 'utterances_per_second'),
)


def due(seed, steps, args):
    """The steps to be run now, as output and work: those whose output is not there.

    With --phase the first of them alone, and only if it is of this kind. Where one is not because
    the kind was done already, a line says what comes next.

    Raises:
        UserError: another kind comes before the first step of the one asked for.
    """
    asked, done = args['phase'], set()
    for phase, output, work in steps:
        if ddp.broadcast_object(output.exists()):
            done.add(phase)
            continue
        if asked == 'all':
            yield output, work
            continue
        if asked == phase:
            yield output, work
        elif asked not in done:
            raise UserError(f'{output}: is not there; it comes first: run --phase {phase}')
        elif ddp.is_main():
            print(f'seed{seed}: {asked} is done; next: --phase {phase}', flush=True)
        return
    if asked != 'all' and ddp.is_main():
        print(f'seed{seed}: the whole recipe is done', flush=True)


def loop_of(step, seed, loader, args, keep=0, **objects):
    """The training loop of a step of one seed, in its folder of the run; `keep` epochs at least."""
    return Loop(
        Path(args['path_log']) / f'seed{seed}' / step,
        loader,
        max_bad_share=args['max_bad_share'],
        keep=max(args['keep_checkpoints'], keep),
        save_minutes=args['save_minutes'],
        **objects,
    )


def end_epoch(title, epoch, metrics, loop, embed, corpus, logger, args):
    """Scores the validation list by crops, logs and saves; the last epoch is kept (spec 6)."""
    records, _ = validate(embed, corpus.valid, args, full=False)
    metrics['valid_eer'] = records['tta']['eer']
    loop.log_epoch(title, epoch, metrics, logger, SHOWN)
    loop.end_epoch(metrics, value=-epoch)


def keep_model(epoch, framework, loop):
    """Leaves the weights of an epoch as the authors do: how many were meant is open (quirk 1)."""
    if ddp.is_main():
        state = to_published(framework.state_dict())
        write(state, loop.folder / f'model_epoch{epoch}.pt')


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
        self._fitted = None  # to the record as it is

    @property
    def active(self):
        """Whether a threshold has been found."""
        return self.log_gate != NO_GATE

    def fit(self):
        """The mixture of a whole epoch's losses, fitted once, by rank 0; every rank calls it."""
        if self._fitted is None:
            losses = self.record.values()
            self._fitted = ddp.broadcast_object(fit_gate(losses) if ddp.is_main() else None)
        return self._fitted

    def begin(self, epoch, args):
        """Sets the threshold from the losses of the epoch before; the old one where there is none."""
        losses = self.record.values()
        if epoch >= args['gate_epoch'] and np.isfinite(losses).any():
            found = self.fit().threshold
            if found is not None:
                seen = losses[np.isfinite(losses)]
                least = np.quantile(np.maximum(seen, SMALLEST), args['gate_least'])
                self.log_gate = max(found, float(np.log(least)))
            elif ddp.is_main():  # quirk 8
                stays = f'stays at {self.log_gate:.4g}' if self.active else 'stays open'
                print(f'epoch {epoch}: no crossing between the means, the gate {stays}', flush=True)
        self.record.clear()
        self._fitted = None

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
        self._fitted = None

    def state_dict(self):
        return {'log_gate': self.log_gate, 'record': self.record.state_dict()}

    def load_state_dict(self, state):
        self.log_gate = state['log_gate']
        self.record.load_state_dict(state['record'])
        self._fitted = None


def gate_report(epoch, metrics, gate, labels, corpus, loop):
    """Draws what the gate did in an epoch and so far; returns how right what it let pass was."""
    losses, (kept, corrected, learnt) = gate.record.values(), gate.record.fates_and_labels()
    fitted = gate.fit()
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
            fitted,
            title,
            threshold=threshold,
            right=right,
        )
        history = [*loop.history, {'epoch': epoch, **metrics, **found}]
        plots.draw_shares(folder / 'shares.png', history, loop.folder.name)
    return found
