"""A recipe on two processes that meets a fault: `python fault_run.py FOLDER FAULT`.

It trains FOLDER/whole undisturbed, then FOLDER/parts with the fault: `full`, a disk that takes no
more bytes from a step of the second epoch on, or `nan`, a bad number in a batch of rank 1. With
`none` it goes on, and says whether both are equal.
"""

import resource
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from shared import ddp, ranks
from shared.datasets.crops import CropSet, shuffled_loader
from shared.datasets.items import Sample, Utterances
from shared.datasets.samplers import sample_rng
from shared.framework import Framework
from shared.loop import Loop
from shared.weight_files import read

SIZE, BATCH, STEP = 100, 8, 5  # twelve steps an epoch; the fault's in the second


class Noise(CropSet):
    """Waves without files; one of them has a NaN in the second epoch, if told so."""

    bad = -1

    def sample(self, epoch, index):
        wave = sample_rng(self.seed, epoch, index).standard_normal((1, 50)).astype(np.float32)
        if (epoch, index) == (2, self.bad):
            wave[0, 0] = np.nan
        return Sample(wave, label=index % 2, index=index)


class Toy(Framework):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(50, 40), nn.Dropout(0.5), nn.Linear(40, 1))

    def forward(self, waves):
        return self.net(waves.squeeze(1)).pow(2).mean()


def train(folder, fault):
    torch.manual_seed(ddp.rank())
    names = np.array([b'%d.wav' % i for i in range(SIZE)])
    data = Noise(Utterances(Path('/data'), names, np.arange(SIZE) % 2, ('a', 'b')), seed=3)
    loader = shuffled_loader(data, BATCH, 4, workers=0)
    if fault == 'nan':
        loader.batch_sampler.set_position(2, STEP - 1)
        own = next(iter(loader.batch_sampler))
        data.bad = ddp.gather_objects(own)[1][0][1]  # the first utterance of rank 1
    framework = Toy()
    parallel = framework.distribute('cpu')
    optimizer = torch.optim.Adam(framework.learnable())
    loop = Loop(folder, loader, save_minutes=0.0, framework=framework, optimizer=optimizer)
    for epoch in loop.epochs(2):
        for step, batch in enumerate(loop.batches(f'train {epoch}'), loop.batches_done + 1):
            if fault == 'full' and ddp.is_main() and (epoch, step) == (2, STEP):
                resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
            optimizer.zero_grad()
            loss = parallel(batch['waves'])
            loss.backward()
            optimizer.step()
            loop.meters.update({'loss': loss})
        metrics = {'loss': loop.means()['loss']}
        loop.end_epoch(metrics, value=-epoch)
    loop.finish()


def equal(one, other):
    """Of states: nested dicts and lists of tensors and numbers."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def run(rank, args, experiment_args):
    folder = experiment_args['folder']
    train(folder / 'whole', 'none')
    train(folder / 'parts', experiment_args['fault'])
    if ddp.is_main():
        whole, parts = (read(folder / name / 'last.pt') for name in ('whole', 'parts'))
        print('equal' if equal(whole, parts) else 'different')


if __name__ == '__main__':
    fault = {'folder': Path(sys.argv[1]), 'fault': sys.argv[2]}
    ranks.spawn(run, {'usable_gpu': ''}, fault, 2)
