"""EnSKD: everything a user may change. Edit a value, or `python main.py --gamma 4`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared import arguments

STUDENTS = ('xvector', 'resnet34', 'campplus')
LOSSES = ('none', 'cosine', 'kl', 'decoupled', 'enskd')

# What the compared systems differ in besides the loss (spec 2.6, 8.3): embedding size, speed
# perturbation (three classes a speaker), share of augmented crops, utterances over all GPUs.
SETTING = ('embed_size', 'speed_perturb', 'DA_p', 'batch_size')
PAPER = {
    ('xvector', 'none'): (512, True, 0.6, 256),  # the baselines are wespeaker's
    ('xvector', 'cosine'): (256, True, 0.0, 1024),
    ('xvector', 'kl'): (512, False, 0.6, 1024),
    ('xvector', 'enskd'): (256, False, 0.6, 1536),
    ('resnet34', 'none'): (256, True, 0.6, 256),
    ('resnet34', 'cosine'): (256, True, 0.6, 512),
    ('resnet34', 'kl'): (256, False, 0.6, 512),
    ('resnet34', 'enskd'): (256, False, 0.6, 768),
    ('campplus', 'none'): (512, True, 0.6, 256),
    ('campplus', 'cosine'): (256, True, 0.6, 512),
    ('campplus', 'kl'): (512, False, 0.6, 768),
    ('campplus', 'enskd'): (512, False, 0.6, 768),
}
PAPER |= {(name, 'decoupled'): PAPER[name, 'enskd'] for name in STUDENTS}
MATCHED = {  # nothing but the loss
    (name, loss): (256, False, 0.6, 1536 if name == 'xvector' else 768)
    for name in STUDENTS
    for loss in LOSSES
}


@dataclass
class SystemArgs:
    """Where things are. Nothing here changes a result."""

    # experiment info
    project: str = 'EnSKD'
    name: str = 'campplus'  # one run folder per name; a run that was stopped continues there
    tags: tuple[str, ...] = ('EnSKD', 'ICASSP 2024')
    description: str = ''
    path_log: str = 'runs'  # relative paths start at the repository
    wandb_entity: str | None = None  # your W&B team or user; the key comes from WANDB_API_KEY
    wandb_group: str | None = None
    neptune_user: str | None = None  # workspace; the token comes from NEPTUNE_API_TOKEN

    # teacher: Microsoft's fine-tuned WavLM-Large, classifier included; none: trained first
    path_teacher: str | None = '/data/pretrained/wavlm_large_finetune.pth'
    path_ssl: str = '/data/pretrained/WavLM-Large.pt'  # what such a teacher is made from

    # datasets
    path_train: str = '/data/VoxCeleb2/dev/wav'  # <spk>/<video>/<utt>.wav, 16 kHz mono
    list_train: str | None = None  # lines `speaker path [seconds]`; raw.list, shard.list, wav.scp
    utt2spk: str | None = None  # with wav.scp; with raw.list or shard.list: names the classes
    path_test: str = '/data/VoxCeleb1/wav'  # dev and test in one folder (Vox1-E and -H need both)
    trials_test: tuple[str, ...] = ('/data/VoxCeleb1/veri_test2.txt',)  # the first is compared
    path_valid: str | None = None  # for the curve of each epoch; none: the first test list
    trials_valid: str | None = None  # none: drawn from path_valid once
    path_musan: str = '/data/musan'
    path_rir: str = '/data/RIRS_NOISES/simulated_rirs'
    path_demo: str = 'demo_corpus'  # where --demo builds its corpus and its pre-trained model

    # what to run: the teacher alone, one student, or every pair of `students` and `losses`
    phase: Literal['train', 'teacher', 'compare'] = 'train'
    students: tuple[str, ...] = STUDENTS  # of the comparison, and so the next
    losses: tuple[str, ...] = ('none', 'cosine', 'kl', 'enskd')
    eval: bool = False  # only score: this run's last system, or the file of --published
    doctor: bool = False  # look at data, weights and machine; train nothing
    doctor_full: bool = False  # and open every file of audio, not some of each folder

    # resources
    usable_gpu: str | None = None  # '0,1'; none: every visible GPU; '': the CPU
    num_workers: int | None = None  # loader processes per GPU; none: what the cores allow, up to 8
    cache_gib: float = 0.0  # of MUSAN and RIRs in memory, per machine; try 8 on a network disk
    eval_seconds: float = 600.0  # seconds of audio in one evaluation batch
    compile: bool = False  # torch.compile student and teacher for training; minutes at the start
    channels_last: bool = False  # layout of 2-D convolutions: of ResNet34, and of CAM++'s head
    save_minutes: float = 10.0  # between two saves inside an epoch
    keep_checkpoints: int = 10  # epochs whose weights are kept, `num_avg` at least

    def __post_init__(self):
        for name, known in (('students', STUDENTS), ('losses', LOSSES)):
            given = getattr(self, name)
            fits = len(given) > 0 and set(given) <= set(known)
            arguments.check(fits, f'{name} {",".join(given)}: some of {",".join(known)}')
        alone = self.utt2spk is not None and self.list_train is None
        arguments.check(not alone, f'utt2spk {self.utt2spk}: goes with list_train')


@dataclass
class ExperimentArgs:
    """What the run is. Everything here may change a result."""

    seeds: tuple[int, ...] = (1,)  # one system each
    deterministic: bool = False  # forbid CUDA kernels whose result depends on timing; slower
    amp: bool = False  # bf16 autocast of the student; losses and pooling statistics stay fp32
    teacher_amp: bool = False  # bf16 autocast of the teacher, most of the time of a step
    tf32: bool = True  # GPU only: factors of matrix products and convolutions of 10 bits, not 23
    sync_bn: bool = False  # batch statistics over all GPUs; authors: of each alone
    published: str | None = None  # a student's file of the authors, for --eval

    # student and loss
    student: Literal['xvector', 'resnet34', 'campplus'] = 'campplus'
    channels: int | None = None  # of the student's first layer; none: 512, ResNet34 and CAM++ 32
    kd: Literal['none', 'cosine', 'kl', 'decoupled', 'enskd'] = 'enskd'
    gamma: float = 2.0  # of EnSKD: weight of the non-target speakers; 'decoupled' is 1
    temperature: float = 1.0  # T of the posteriors
    kd_warmup: int = 20  # epochs over which the weight of a label-level KD loss rises to 1
    kd_logits: Literal['margin', 'plain'] = 'margin'  # compared: with margins, as published
    margin: float = 0.2  # radians, at last
    margin_start: int = 20  # epoch from whose start on it rises
    margin_fixed: int = 40  # epoch from whose start on it is full
    scale: float = 32.0

    # what the systems of the paper differ in besides
    setting: Literal['paper', 'matched'] = 'paper'  # tables PAPER and MATCHED above
    embed_size: int | None = None  # none: as the table says, and so the next three
    speed_perturb: bool | None = (
        None  # not with label-level KD: the teacher has one class a speaker
    )
    DA_p: float | None = None  # share of augmented crops
    batch_size: int | None = None  # utterances over all GPUs
    # Each process takes its share of a batch, the teacher's too, in so many parts, one after another:
    # less memory, the same step. Batch norm sees one part at a time.
    accumulate: int = 1  # parts of a process's share of a batch

    # optimisation
    epoch: int = 150
    lr: float = 0.1  # for 64 utterances, times batch_size / 64
    lr_last: float = 5e-5
    warmup: int = 6  # epochs, from 0
    weight_decay: float = 1e-4  # on everything
    num_avg: int = 10  # last epochs whose weights are averaged

    # the teacher where it is trained first (spec 3.5): WavLM frozen, SGD
    teacher_epoch: int = 20
    teacher_batch_size: int = 1024
    teacher_lr: float = 0.64
    teacher_lr_last: float = 4e-4
    teacher_warmup: int = 1  # epochs
    teacher_weight_decay: float = 4e-4
    teacher_margin: float = 0.2  # radians; also of its logits while it teaches
    teacher_margin_epoch: int = 3  # first with the margin
    teacher_top_k: int = 5  # inter-top-k penalty
    teacher_top_k_margin: float = 0.1  # radians
    teacher_frames: int = 300
    teacher_DA_p: float = 0.6  # share of augmented crops
    teacher_embed_size: int = 256
    teacher_width: int = 512  # channels of its ECAPA-TDNN
    least_recognised: float = 0.9  # share of clean training crops that a fitting teacher recognises

    # crops, features and augmentation
    frames: int = 200  # of 10 ms: (frames - 1) * 160 + 400 samples
    dither: float = 1.0  # of the 16-bit samples, in training
    spec_aug_p: float = 0.0  # share of crops with masked frames and bands
    spec_aug_size: tuple[int, int] = (10, 8)  # frames, bands at most
    snr_noise: tuple[float, float] = (0.0, 15.0)  # dB
    snr_speech: tuple[float, float] = (10.0, 30.0)  # dB
    snr_music: tuple[float, float] = (5.0, 15.0)  # dB
    max_bad_share: float = 0.001  # unreadable training files above this share stop the run

    # evaluation
    as_norm: bool = True  # published style; needs embeddings of the training set
    cohort: Literal['crops', 'whole'] = 'crops'  # what is embedded of each training file
    cohort_top: int = 300
    eer_rule: Literal['interpolated', 'max'] = 'interpolated'

    def __post_init__(self):
        check = arguments.check
        check(len(set(self.seeds)) == len(self.seeds) > 0, 'seeds: one or more, none twice')
        check(min(self.epoch, self.teacher_epoch, self.num_avg) >= 1, 'epochs: 1 or more')
        check(self.accumulate >= 1, f'accumulate {self.accumulate}: 1 or more')
        check(0 <= self.warmup < self.epoch, 'warmup: 0 to below epoch')
        check(0 <= self.teacher_warmup < self.teacher_epoch, 'teacher_warmup: below teacher_epoch')
        check(1 <= self.margin_start <= self.margin_fixed, 'margin_start: 1 to margin_fixed')
        check(self.temperature > 0, f'temperature {self.temperature}: above 0')
        check(min(self.frames, self.teacher_frames) >= 20, 'frames, teacher_frames: 20 or more')
        for name in ('DA_p', 'teacher_DA_p', 'spec_aug_p', 'least_recognised'):
            value = getattr(self, name)
            check(value is None or 0 <= value <= 1, f'{name} {value}: a share, 0 to 1')
        for name in ('snr_noise', 'snr_speech', 'snr_music'):
            low, high = getattr(self, name)
            check(low <= high, f'{name} {low},{high}: the lower bound comes first')
        check(self.kd_warmup >= 0, f'kd_warmup {self.kd_warmup}: 0 or more')
        check_speeds(self.speed_perturb, self.kd)


def check_speeds(perturbed, kd):
    """Label-level losses need one class a speaker (spec 8.1-3)."""
    arguments.check(
        not (perturbed and kd in ('kl', 'decoupled', 'enskd')),
        f'speed_perturb true: the teacher has no such classes, which kd {kd} compares',
    )


# the systems that the paper compares; without a preset: CAM++ with EnSKD, as published
PRESETS = {
    f'{student}_{loss}': {'name': f'{student}_{loss}', 'student': student, 'kd': loss}
    for student in STUDENTS
    for loss in ('none', 'cosine', 'kl', 'enskd')
}
# the same, unequal in the loss alone
PRESETS |= {
    f'matched_{name}': preset | {'name': f'matched_{name}', 'setting': 'matched'}
    for name, preset in PRESETS.items()
}

# `--demo`: minutes on two cores, on the built-in synthetic corpus
DEMO = {
    'name': 'demo',
    'path_teacher': None,
    'phase': 'compare',
    'students': ('xvector',),
    'losses': ('none', 'kl', 'enskd'),
    'num_workers': 0,
    'eval_seconds': 120.0,
    'setting': 'matched',
    'channels': 128,
    'batch_size': 32,
    'epoch': 8,
    'lr_last': 1e-3,
    'warmup': 1,
    'kd_warmup': 2,
    'margin': 0.1,
    'margin_start': 3,
    'margin_fixed': 5,
    'num_avg': 2,
    'keep_checkpoints': 2,
    'teacher_epoch': 6,
    'teacher_batch_size': 32,
    'teacher_lr': 0.1,
    'teacher_lr_last': 0.01,
    'teacher_frames': 150,
    'teacher_width': 64,
    'teacher_embed_size': 64,
    'least_recognised': 0.2,
    'frames': 150,
}


def rows_of(args):
    """The arguments of each system of this run, by student and loss."""
    pairs = [(args['student'], args['kd'])]
    if args['phase'] == 'compare':
        pairs = [(student, kd) for student in args['students'] for kd in args['losses']]
    return {pair: of_row(args, *pair) for pair in pairs}


def of_row(args, student, kd):
    """The arguments of a student and a loss: what is none comes from the table of the setting."""
    table = PAPER if args['setting'] == 'paper' else MATCHED
    found = dict(zip(SETTING, table[student, kd]))
    found |= {name: args[name] for name in SETTING if args[name] is not None}
    check_speeds(found['speed_perturb'], kd)
    return {**args, 'student': student, 'kd': kd, **found}


def get_args(argv=None):
    """Returns `(args, system_args, experiment_args)`, three plain dicts."""
    return arguments.build(SystemArgs, ExperimentArgs, Path(__file__).parent, argv, PRESETS, DEMO)
