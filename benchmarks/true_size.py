"""The training steps of the five papers at true size: their own code, with random weights.

A paper's modules have plain names (`train`, `framework`, ...), so each paper gets a process of its
own, started by `of_paper`, in which they can be imported. A `Phase` is what one kind of epoch needs;
`Phase.epoch` is the paper's own function over batches that are given.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from shared.datasets.items import Sample, collate
from shared.models.ssl_backends import EcapaSmallBackEnd, SslSpeakerEncoder
from shared.models.ssl_config import WAVLM_BASE, WAVLM_LARGE, XLSR_53, SslConfig
from shared.models.ssl_encoder import SslEncoder

ROOT = Path(__file__).parents[1]
PAPERS = ('lgl', 'enskd', 'oskdft', 'nawsv', 'wavlm_ssl')
NAMES = {
    'lgl': 'LGL',
    'enskd': 'EnSKD',
    'oskdft': 'OS-KDFT',
    'nawsv': 'NAW-SV',
    'wavlm_ssl': 'wavlm_ssl',
}
VOX1, VOX2 = 1211, 5994  # speakers of the development sets


@dataclass
class Phase:
    """One kind of training step.

    `views` are (crops, samples) of an utterance as the loader gives them, by the name of their part
    of the batch ('' is the batch itself). `data` makes the paper's data set of (utterances, musan,
    rirs). `parts` are the names of the framework's children by what they are for. `embed` makes
    embeddings of whole files. `slower` is what the released code does more.
    """

    name: str
    framework: nn.Module
    optimizers: list[torch.optim.Optimizer]
    epoch: Callable[['Batches'], Any]
    batch_size: int  # over all GPUs
    views: dict[str, tuple[int, int]]
    data: Callable
    parts: dict[str, tuple[str, ...]]
    pairs: bool = False  # the data set is asked for two utterances of a speaker at once
    slower: 'Slower | None' = None
    embed: Callable | None = None
    args: dict = field(default_factory=dict)  # that `epoch` looks at


@dataclass
class Slower:
    """What the released code does and ours does not: attributes of the framework to set for it."""

    what: str
    changes: Callable[[nn.Module], dict[str, Any]]

    @contextmanager
    def applied(self, framework: nn.Module):
        """The framework, doing so."""
        with mock.patch.multiple(framework, **self.changes(framework)):
            yield


class Batches:
    """As much of a `Loop` as an epoch function needs: batches, and a place for its means."""

    def __init__(self, batches: list[dict]):
        self.loader, self.batches_done, self._names = batches, 0, set()
        self.meters = SimpleNamespace(update=lambda values: self._names.update(values))

    def batches(self, title: str) -> Iterable[dict]:
        """The batches, whose entries the epoch may replace."""
        return (dict(batch) for batch in self.loader)

    def means(self) -> dict[str, float]:
        """Zeros by name: nothing waits for the device."""
        return dict.fromkeys(self._names, 0.0)


def of_paper(paper: str, script: str, *words: str) -> Any:
    """What `script --paper <paper> ...` prints as JSON, in a process that knows its modules."""
    path = os.pathsep.join(
        filter(None, [str(ROOT / 'papers' / paper), os.environ.get('PYTHONPATH')])
    )
    done = subprocess.run(
        [sys.executable, script, '--paper', paper, *words],
        env={**os.environ, 'PYTHONPATH': path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def phases(paper: str, device: str = 'cpu') -> dict[str, Callable[[], Phase]]:
    """The phases of a paper by name; each is built when it is called."""
    return {
        'lgl': lgl,
        'enskd': enskd,
        'oskdft': oskdft,
        'nawsv': nawsv,
        'wavlm_ssl': wavlm_ssl,
    }[paper](device)


def synthetic(phase: Phase, count: int) -> dict:
    """A batch of silence as the loader would give it, without noises."""

    def sample(index: int) -> Sample:
        crops = {
            name: Sample(np.zeros(shape, np.float32), index, index)
            for name, shape in phase.views.items()
        }
        first = crops.pop('')
        first.more.update(crops)
        return first

    return cleaned(collate([sample(index) for index in range(count)]))


def cleaned(batch: dict) -> dict:
    """Without what `Loop` takes out of a batch."""
    return {name: value for name, value in batch.items() if name not in ('skipped', 'converted')}


def arguments_of(device: str, *words: str) -> dict:
    """The paper's own arguments, as `main.py` gets them on one process."""
    from arguments import get_args

    args, *_ = get_args(list(words))
    return {**args, 'device': device, 'amp': False}


def random_weights(config: SslConfig) -> Callable[..., SslEncoder]:
    """Stands for `ssl_encoder`: the same network without its file; LayerDrop is off, as it is chance."""

    def make(path, *, layers=None, fresh=(), **options):
        changes = {name: options.pop(name) for name in ('normalise_wave',) if name in options}
        count = len(layers) if layers is not None else None
        return SslEncoder(replace(config, layer_drop=0.0, **changes), layers=count, **options)

    return make


def lgl(device):
    import data
    import train
    from framework import Adversary, Contrastive, GatedClassification
    from losses import NO_GATE
    from models import AugmentationDiscriminator, encoder_of
    from shared.losses.aam_softmax import AamSoftmax
    from shared.losses.contrastive import ContrastiveLoss

    args = arguments_of(device)

    def contrastive():
        framework = Contrastive(encoder_of(args), ContrastiveLoss()).to(device)
        critic = Adversary(AugmentationDiscriminator(args['embed_size'])).to(device)
        optimizers = [torch.optim.Adam(net.learnable(), lr=1e-3) for net in (framework, critic)]

        def epoch(loop):
            return train.contrastive_epoch(1, loop, framework, critic, *optimizers, args)

        return Phase(
            'Stage I',
            framework,
            optimizers,
            epoch,
            args['contrastive_batch'],
            {'': (3, args['contrastive_crop'])},
            lambda utterances, *noises: data.ContrastiveSet(utterances, *noises, args),
            {'student': ('encoder',)},
            embed=framework.encoder,
            args=args,
        )

    def classification():
        framework = GatedClassification(
            encoder_of(args), AamSoftmax(args['clusters'], args['embed_size'], 0.2, 30.0)
        ).to(device)
        optimizer = torch.optim.Adam(framework.learnable(), lr=1e-3)

        def epoch(loop):
            return train.classification_epoch('', loop, framework, optimizer, NO_GATE, args)

        return Phase(
            'Stage II',
            framework,
            [optimizer],
            epoch,
            args['batch_size'],
            {'': (1, args['crop_size'])},
            lambda utterances, *noises: data.LabelledCrops(
                utterances, utterances.speakers, *noises, args
            ),
            {'student': ('encoder',), 'classifier': ('classifier',)},
            embed=framework.encoder,
            args=args,
        )

    return {'Stage I': contrastive, 'Stage II': classification}


def enskd(device):
    import data
    import systems
    import train
    from arguments import of_row
    from models import ContinuousAam, Teacher
    from phases import student_schedule

    def make(student):
        args = of_row(arguments_of(device), student, 'enskd')
        network = SslSpeakerEncoder(SslEncoder(WAVLM_LARGE), EcapaSmallBackEnd())
        head = ContinuousAam(VOX2, 256, args['teacher_margin'], args['scale'])
        framework = systems.distillation(args, VOX2, Teacher(network, head)).to(device)
        optimizer = torch.optim.SGD(framework.learnable(), lr=0.1, momentum=0.9, nesterov=True)
        size = data.samples_of(args['frames'])

        def epoch(loop):
            schedule = student_schedule(args)
            return train.train_epoch('', 50, schedule, 1.0, loop, framework, optimizer, args)

        return Phase(
            student,
            framework,
            [optimizer],
            epoch,
            args['batch_size'],
            {'': (1, size)},
            lambda utterances, *noises: data.LabelledCrops(utterances, *noises, size, args, 0),
            {'teacher': ('teacher',), 'student': ('student',), 'classifier': ('criterion',)},
            embed=framework.student,
            args=args,
        )

    return {student: partial(make, student) for student in ('xvector', 'resnet34', 'campplus')}


def oskdft(device):
    import data
    import systems
    import train
    from framework import OneStep

    def make(preset, config, speakers):
        args = arguments_of(device, '--preset', preset)
        systems.ssl_encoder = random_weights(config)
        student, teacher = systems.student_of(args), systems.teacher_of(args)
        framework = OneStep(
            student,
            teacher,
            systems.kd_of(args, student, teacher),
            systems.backend_of(args, student),
            systems.criterion_of(args, speakers),
            torch.ones(speakers),
        ).to(device)
        optimizer = torch.optim.Adam(framework.groups(), lr=1e-4)

        def epoch(loop):
            return train.train_epoch('', 2, 100, loop, framework, optimizer, args)

        def twice(framework):
            return {'branches': lambda waves, _=None: OneStep.branches(framework, waves, waves)}

        return Phase(
            preset,
            framework,
            [optimizer],
            epoch,
            args['batch_size'],
            {'': (2 if args['DA_p'] > 0 else 1, args['crop_size'])},
            lambda utterances, *noises: data.LabelledCrops(utterances, *noises, None, args, 0),
            {
                'teacher': ('teacher',),
                'student': ('student',),
                'back-end': ('backend', 'criterion', 'kd'),
            },
            slower=Slower('the convolutions for each branch', twice),
            args=args,
        )

    return {
        'vox1_wavlm': partial(make, 'vox1_wavlm', WAVLM_BASE, VOX1),
        'vox2_w2v2': partial(make, 'vox2_w2v2', XLSR_53, VOX2),
    }


def nawsv(device):
    import data
    import systems
    import train
    from framework import FineTuning, WarmUp
    from losses import EApn
    from shared.losses.aam_topk import AamSoftmaxTopK

    args = arguments_of(device)

    def warm_up(what):
        systems.ssl_encoder = random_weights(WAVLM_BASE)
        student = systems.student_of(args, 'warmup')
        head = systems.head_of(args, student)
        framework = WarmUp(student, systems.teacher_of(args), head, EApn(), args).to(device)
        optimizer = torch.optim.Adam(framework.learnable(), lr=args['warmup_lr'])
        framework.learn(what)

        def epoch(loop):
            return train.warmup_epoch('', loop, framework, optimizer, args)

        slower = Slower(
            'the convolutions for student and teacher', lambda framework: {'same_cnn': False}
        )
        return Phase(
            f'warm-up, {what}',
            framework,
            [optimizer],
            epoch,
            args['warmup_batch_size'],
            {'': (2, args['crop_size'])},
            lambda utterances, musan, rirs: data.PairSet(utterances, musan, args, 0),
            {'teacher': ('teacher',), 'student': ('student',), 'head': ('head', 'e_apn')},
            pairs=True,
            slower=slower if what == 'adapters' else None,
            args=args,
        )

    def fine_tuning(what, size):
        systems.ssl_encoder = random_weights(WAVLM_BASE)
        student = systems.student_of(args, 'finetune')
        criterion = AamSoftmaxTopK(VOX1, args['embed_size'], 0.2, 30.0)
        framework = FineTuning(
            student, systems.backend_of(args, student), criterion, torch.ones(VOX1)
        ).to(device)
        optimizer = torch.optim.Adam(framework.learnable(), lr=args['lr'])
        framework.learn(what)

        def epoch(loop):
            return train.finetune_epoch('', 1, loop, framework, optimizer, args)

        own = {**args, 'crop_size': size}
        return Phase(
            f'fine-tuning, {what}',
            framework,
            [optimizer],
            epoch,
            args['batch_size'],
            {'': (1, size)},
            lambda utterances, *noises: data.LabelledCrops(utterances, *noises, own, 0),
            {'student': ('student',), 'back-end': ('backend', 'criterion')},
            args=args,
        )

    return {
        'warm-up, adapters': partial(warm_up, 'adapters'),
        'warm-up, all': partial(warm_up, 'all'),
        'fine-tuning, back-end': partial(fine_tuning, 'backend', args['crop_size']),
        'fine-tuning, all': partial(fine_tuning, 'all', args['crop_size']),
        'fine-tuning, long crops': partial(fine_tuning, 'all', args['large_crop_size']),
    }


def wavlm_ssl(device):
    import data
    import systems
    import train
    from dino import dino_framework
    from dino_training import dino_epoch, dino_optimizer
    from framework import GatedFineTuning

    args = arguments_of(device)
    open_gate = SimpleNamespace(
        log_gate=float('inf'), active=False, record=SimpleNamespace(note=lambda *_: None)
    )

    def dino():
        framework = dino_framework(args).to(device)
        optimizer = dino_optimizer(framework, args)

        def epoch(loop):
            return dino_epoch('', 2, loop, framework, optimizer, args)

        views = {'': (2, args['global_size']), 'locals': (args['locals'], args['local_size'])}
        return Phase(
            'DINO',
            framework,
            [optimizer],
            epoch,
            args['dino_batch_size'],
            views,
            lambda utterances, *noises: data.DinoCrops(utterances, *noises, args, 0),
            {'teacher': ('teacher',), 'student': ('student',)},
            embed=framework.teacher['encoder'],
            args=args,
        )

    def fine_tuning(number, frames, batch_size):
        systems.ssl_encoder = random_weights(WAVLM_BASE)
        encoder = systems.encoder_of(args)
        framework = GatedFineTuning(
            encoder,
            systems.backend_of(args, encoder),
            systems.criterion_of(args, args['clusters'], args['margin']),
            args,
        ).to(device)
        framework.pull_towards(encoder.state_dict(), device)
        groups = framework.groups(args['lr_mhfa'], args['lr_transformer'], args['llrd'])
        optimizer = torch.optim.AdamW(groups, lr=args['lr_mhfa'])

        def epoch(loop):
            return train.finetune_epoch('', number, 0, open_gate, loop, framework, optimizer, args)

        def always(framework):
            def forward(waves, clean, *rest):
                unused = framework.embed(clean)  # with its graph
                found = GatedFineTuning.forward(framework, waves, clean, *rest)
                del unused
                return found

            return {'forward': forward}

        own = {**args, 'max_frames': frames}
        return Phase(
            f'epoch {number}',
            framework,
            [optimizer],
            epoch,
            batch_size,
            {'': (2, frames * 160 + 240)},
            lambda utterances, *noises: data.LabelledCrops(
                utterances, utterances.speakers, *noises, own, 0
            ),
            {'student': ('encoder',), 'back-end': ('backend', 'criterion')},
            embed=SslSpeakerEncoder(framework.encoder, framework.backend),
            slower=Slower('the clean crop too, unused', always) if number == 1 else None,
            args=args,
        )

    base = args['max_frames'], args['batch_size']
    return {
        'DINO': dino,
        'fine-tuning': partial(fine_tuning, 1, *base),
        'fine-tuning, corrected labels': partial(fine_tuning, args['lc_epoch'], *base),
        'large margin': partial(
            fine_tuning, args['lc_epoch'], args['lmft_frames'], args['lmft_batch_size']
        ),
    }
