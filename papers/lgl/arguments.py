"""LGL: everything a user may change. Edit a value, or `python main.py --lr 5e-4`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared import arguments


@dataclass
class SystemArgs:
    """Where things are. Nothing here changes a result."""

    # experiment info
    project: str = 'LGL'
    name: str = 'vox2'  # one run folder per name; a run that was stopped continues there
    tags: tuple[str, ...] = ('Loss-Gated Learning', 'ICASSP 2022')
    description: str = ''
    path_log: str = 'runs'  # relative paths start at the repository
    wandb_entity: str | None = None  # your W&B team or user; the key comes from WANDB_API_KEY
    wandb_group: str | None = None
    neptune_user: str | None = None  # workspace; the token comes from NEPTUNE_API_TOKEN

    # datasets
    path_train: str = '/data/VoxCeleb2/dev/wav'  # <spk>/<video>/<utt>.wav, 16 kHz mono
    list_train: str | None = None  # lines `speaker path [... seconds]`; none: walk path_train
    path_test: str = '/data/VoxCeleb1/wav'  # dev and test in one folder (Vox1-E and -H need both)
    trials_test: tuple[str, ...] = ('/data/VoxCeleb1/veri_test2.txt',)  # the first names the EER
    path_valid: str = '/data/VoxCeleb1/dev/wav'  # speakers outside train and test
    trials_valid: str | None = None  # none: drawn from path_valid once, with rand_seed
    path_musan: str = '/data/musan'  # as downloaded, or split in 5 s pieces (faster)
    path_rir: str = '/data/RIRS_NOISES/simulated_rirs'
    path_demo: str = 'demo_corpus'  # where --demo builds its corpus

    # what to run
    phase: Literal['all', 'contrastive', 'cluster', 'classify'] = (
        'all'  # Stage I / next labels / II
    )
    eval: bool = False  # only score the test lists: this run's encoder, or --published
    doctor: bool = False  # look at data, weights and machine; train nothing
    doctor_full: bool = False  # and open every file of audio, not some of each folder

    # resources
    usable_gpu: str | None = None  # '0,1'; none: every visible GPU; '': the CPU
    num_workers: int | None = None  # loader processes per GPU; none: what the cores allow, up to 8
    cache_gib: float = 0.0  # of MUSAN and RIRs in memory, per machine; try 8 on a network disk
    eval_seconds: float = 600.0  # seconds of audio in one evaluation batch
    compile: bool = False  # torch.compile the encoder for training; minutes at the start
    save_minutes: float = 10.0  # between two saves inside an epoch
    keep_checkpoints: int = 3  # epochs of each phase whose weights are kept


@dataclass
class ExperimentArgs:
    """What the run is. Everything here may change a result."""

    rand_seed: int = 100
    deterministic: bool = False  # forbid CUDA kernels whose result depends on timing; slower
    amp: bool = False  # bf16 autocast; losses and pooling statistics stay fp32
    tf32: bool = True  # GPU only: factors of matrix products and convolutions of 10 bits, not 23
    sync_bn: bool = True  # batch statistics over all GPUs: N GPUs learn what one would

    # encoder: ECAPA-TDNN, batch norm after the activation
    width: int = 512  # C
    width_last: int | None = None  # C in the last iteration; paper: 1024 (starts afresh)
    mfa_width: int = 1536
    attention_width: int = 256
    se_width: int = 128
    embed_size: int = 192

    # Stage I: contrastive learning with augmentation-adversarial training
    published: str | None = None  # checkpoint of the authors, or one of ours, instead of Stage I
    contrastive_epoch: int = 80  # published model: 50; authors' code: 79
    contrastive_batch: int = 300  # over all GPUs; paper: 256
    contrastive_crop: int = 180 * 160 + 240  # samples at 16 kHz, 1.8 s
    contrastive_lr: float = 1e-3
    lr_decay: float = 0.90  # of the encoder's rate, every lr_decay_epoch; paper: 0.95
    lr_decay_epoch: int = 5
    aat_weight: float = 3.0  # of the discriminator's loss behind the gradient reversal

    # Stage II: clustering, training, gated training
    iterations: int = 5
    lgl: bool = True  # false: the baseline, without gated phases
    gates: tuple[float, ...] = (1.0, 3.0, 3.0, 5.0, 6.0)  # loss threshold of each iteration
    clusters: int = 6000
    cluster_seed: int = 1234
    spherical: bool = False  # unit-norm centroids; the authors' k-means has plain means
    cluster_audio: Literal['shortest', 'whole'] = 'shortest'  # cut to the shortest of its batch
    restart: Literal['contrastive', 'previous'] = (
        'contrastive'  # weights each iteration starts from
    )
    batch_size: int = 400  # over all GPUs
    # Each process takes its share of a batch in so many parts, one after another: less memory, the same
    # step. Batch norm sees one part at a time. Stage I compares all of a batch, so it is not divided.
    accumulate: int = 1  # parts of a process's share of a batch of Stage II
    crop_size: int = 300 * 160 + 240  # samples at 16 kHz, 3 s
    lr: float = 1e-3  # constant
    margin: float = 0.2  # m of AAM-softmax, radians
    scale: float = 30.0  # s of AAM-softmax

    # Stage II: when a phase ends (the authors' controller)
    patience: int = 3  # evaluations in a row worse than the best
    phase_epoch_min: int = 4
    phase_epoch_max: int = 30  # of one phase, T or L; the authors' code has a total only
    epoch_total: int | None = None  # of all Stage II phases; authors' code: 100
    selection: Literal['valid', 'test'] = 'valid'  # authors' code: the test list, with its labels

    eer_rule: Literal['interpolated', 'max'] = 'interpolated'  # authors' code: max(FPR, FNR)

    # augmentation
    snr_noise: tuple[float, float] = (0.0, 15.0)  # dB, range of the uniform draw
    snr_speech: tuple[float, float] = (13.0, 20.0)
    snr_music: tuple[float, float] = (5.0, 15.0)
    rir_gain: tuple[float, float] = (-7.0, 3.0)  # dB, Stage I
    reverb_prob: float = 0.5  # Stage II
    noise_prob: float = 0.5  # Stage II
    babble: tuple[int, int] = (3, 8)  # speakers added as 'speech', Stage II
    max_bad_share: float = 0.001  # unreadable training files above this share stop the run

    def __post_init__(self):
        check = arguments.check
        check(len(self.gates) >= self.iterations or not self.lgl, 'gates: one value per iteration')
        check(
            self.crop_size >= 400 and self.contrastive_crop >= 400, 'crops are samples, not seconds'
        )
        check(self.width % 8 == 0, f'width {self.width}: a multiple of 8 (Res2Net groups)')
        check(self.accumulate >= 1, f'accumulate {self.accumulate}: 1 or more')
        acts = self.accumulate == 1 or self.iterations > 0
        check(
            acts,
            f'accumulate {self.accumulate}: divides no batch of Stage I; iterations 0 has no other',
        )
        check(1 <= self.patience <= self.phase_epoch_min, 'patience: 1 to phase_epoch_min')
        check(0 < self.lr_decay <= 1, f'lr_decay {self.lr_decay}: between 0 and 1')
        for name in ('snr_noise', 'snr_speech', 'snr_music', 'rir_gain', 'babble'):
            low, high = getattr(self, name)
            check(low <= high, f'{name} {low},{high}: the lower bound comes first')


PRESETS = {
    # the authors' released code, selection on the test list included
    'repo': {
        'contrastive_epoch': 79,
        'phase_epoch_max': 100,
        'epoch_total': 100,
        'selection': 'test',
        'eer_rule': 'max',
    },
    # what the paper and the authors' answers to users say, where the code differs
    'paper': {
        'contrastive_epoch': 50,
        'contrastive_batch': 256,
        'lr_decay': 0.95,
        'width_last': 1024,
    },
}

# `--demo`: minutes on two cores, on the built-in synthetic corpus
DEMO = {
    'name': 'demo',
    'num_workers': 0,
    'eval_seconds': 120.0,
    'width': 64,
    'mfa_width': 192,
    'attention_width': 64,
    'se_width': 32,
    'embed_size': 64,
    'contrastive_epoch': 6,
    'contrastive_batch': 64,
    'contrastive_crop': 24000,
    'contrastive_lr': 3e-3,
    'lr_decay_epoch': 2,
    'iterations': 2,
    'gates': (1.5, 1.5),
    'clusters': 120,
    'batch_size': 32,
    'crop_size': 24000,
    'margin': 0.1,
    'scale': 15.0,
    'patience': 3,
    'phase_epoch_min': 4,
    'phase_epoch_max': 8,
}


def get_args(argv=None):
    """Returns `(args, system_args, experiment_args)`, three plain dicts."""
    return arguments.build(SystemArgs, ExperimentArgs, Path(__file__).parent, argv, PRESETS, DEMO)
