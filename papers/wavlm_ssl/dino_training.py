"""How DINO is trained: an epoch, its schedules, and whose weights are handed on (spec 8.1 to 8.3)."""

import torch

from shared import ddp
from shared.augmentations.augment import augment
from shared.averaging import average
from shared.datasets.items import to_device
from shared.optim.schedules import cosine_momentum, set_lr, warmup_cosine
from shared.precision import autocast
from shared.weight_files import load_weights

AVERAGED = 10  # epochs, of plain DINO (8.3)


def last_epoch(args):
    """The last one to train: those after the epoch that is handed on would change nothing."""
    return args['dino_take'] or args['dino_epoch']


def kept_epochs(args):
    """How many of the last epochs `handed_on` needs."""
    return AVERAGED if args['dino_take'] == 0 else 1


def handed_on(framework, loop, args):
    """State of the teacher's encoder, of the last epoch or as the mean of the last `AVERAGED`."""
    if args['dino_take'] == 0:
        epochs = range(1, len(loop.history) + 1)[-AVERAGED:]
        files = [loop.folder / f'epoch_{epoch:04d}.pt' for epoch in epochs]
        load_weights(framework, average(files), f'{loop.folder}: mean of {len(files)} epochs')
    return framework.networks()


def dino_optimizer(framework, args):
    """SGD, as both authors; `dino_epoch` sets the rate of each step."""
    groups = framework.groups(args['dino_weight_decay'])
    return torch.optim.SGD(groups, lr=args['dino_lr'], momentum=0.9)


def dino_epoch(title, epoch, loop, parallel, optimizer, args):
    """One pass over the utterances, counted from 1."""
    parallel.train()
    method, steps = ddp.unwrap(parallel), len(loop.loader)
    reg_weight = regulariser_weight(epoch, args)
    first = (epoch - 1) * steps + loop.batches_done
    for step, batch in enumerate(loop.batches(title), first):
        lr, momentum = schedules(step, steps, args)
        set_lr(optimizer, lr)
        batch = to_device(batch, args['device'])
        long, short = augment(batch), augment(batch['locals'])  # each crop on its own
        with autocast(args['device'], args['amp']):
            losses, targets = parallel(long, short, reg_weight)
        optimizer.zero_grad(set_to_none=True)
        losses['loss'].backward()
        if epoch <= args['freeze_last_epoch']:
            method.student['head'].last_layer.weight.grad = None  # not even its decay
        clip_each(method.learnable(), args['dino_clip'])
        optimizer.step()
        method.update_teacher(momentum)
        method.criterion.update_centre(targets)  # the loss of this step used the old one
        loop.meters.update(losses)
    lr, momentum = schedules(epoch * steps - 1, steps, args)
    return {**loop.means(), 'lr': lr, 'teacher_momentum': momentum, 'reg_weight': reg_weight}


def schedules(step, steps, args):
    """Learning rate and the teacher's momentum at a step (from 0), `steps` an epoch (8.2)."""
    warmup, total = args['dino_warmup'] * steps, args['dino_epoch'] * steps
    lr = warmup_cosine(args['dino_lr'], args['dino_lr_min'], step, warmup, total)
    return lr, cosine_momentum(args['dino_momentum'], step, total)


def regulariser_weight(epoch, args):
    """lambda_e: a line over the first `reg_epochs` epochs, both ends included, then constant."""
    low, high = args['reg_weight']
    return low + (high - low) * min((epoch - 1) / max(args['reg_epochs'] - 1, 1), 1)


@torch.no_grad()
def clip_each(parameters, limit):
    """Scales each tensor's gradient to a norm of `limit` at most, without asking the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(limit / (norm + 1e-6)).clamp(max=1) for norm in norms])
