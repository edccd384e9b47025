"""OS-KDFT: everything a user may change. Edit a value, or `python main.py --lr 1e-4`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared import arguments

ROWS = ('teacher', 'student', 'two_steps', 'oskdft')


@dataclass
class SystemArgs:
    """Where things are. Nothing here changes a result."""

    # experiment info
    project: str = 'OS-KDFT'
    name: str = 'wavlm_vox1'  # one run folder per name; a run that was stopped continues there
    tags: tuple[str, ...] = ('OS-KDFT', 'Interspeech 2023')
    description: str = ''
    path_log: str = 'runs'  # relative paths start at the repository
    wandb_entity: str | None = None  # your W&B team or user; the key comes from WANDB_API_KEY
    wandb_group: str | None = None
    neptune_user: str | None = None  # workspace; the token comes from NEPTUNE_API_TOKEN

    # pre-trained teacher: a Hugging Face folder or a file
    path_ssl: str = '/data/pretrained/wavlm-base-plus'

    # datasets
    path_train: str = '/data/VoxCeleb1/dev/wav'  # <spk>/<video>/<utt>.wav, 16 kHz mono
    list_train: str | None = None  # lines `speaker path [... seconds]`; none: walk path_train
    path_test: str = '/data/VoxCeleb1/wav'  # dev and test in one folder (Vox1-E and -H need both)
    trials_test: tuple[str, ...] = ('/data/VoxCeleb1/veri_test2.txt',)  # the first is compared
    path_valid: str | None = None  # for selection 'valid': speakers outside train and test
    trials_valid: str | None = None  # none: drawn from path_valid once
    path_musan: str = '/data/musan'  # with DA_p only, and so the next
    path_rir: str = '/data/RIRS_NOISES/simulated_rirs'
    path_demo: str = 'demo_corpus'  # where --demo builds its corpus and its pre-trained model

    # what to run
    phase: Literal['train', 'compare'] = 'train'  # OS-KDFT, or all `rows`
    rows: tuple[str, ...] = ROWS  # of the comparison
    eval: bool = False  # only score: this run's last system, or the files of --published
    doctor: bool = False  # look at data, weights and machine; train nothing
    doctor_full: bool = False  # and open every file of audio, not some of each folder

    # resources
    usable_gpu: str | None = None  # '0,1'; none: every visible GPU; '': the CPU
    num_workers: int | None = None  # loader processes per GPU; none: what the cores allow, up to 8
    cache_gib: float = 0.0  # of MUSAN and RIRs in memory, per machine; try 8 on a network disk
    eval_seconds: float = 300.0  # seconds of audio in one evaluation batch
    checkpointing: bool = False  # recompute the student's layers: less memory, a third slower
    compile: bool = False  # torch.compile student and teacher for training; minutes at the start
    save_minutes: float = 10.0  # between two saves inside an epoch
    keep_checkpoints: int = 2  # epochs of each phase whose weights are kept

    def __post_init__(self):
        known = len(self.rows) > 0 and set(self.rows) <= set(ROWS)
        arguments.check(known, f'rows {",".join(self.rows)}: some of {",".join(ROWS)}')


@dataclass
class ExperimentArgs:
    """What the run is. Everything here may change a result."""

    seeds: tuple[int, ...] = (1,)  # one system each
    deterministic: bool = False  # forbid CUDA kernels whose result depends on timing; slower
    amp: bool = False  # bf16 autocast; losses and pooling statistics stay fp32
    tf32: bool = True  # GPU only: factors of matrix products and convolutions of 10 bits, not 23
    sync_bn: bool = True  # batch statistics over all GPUs
    published: tuple[str, ...] = ()  # files of the authors, for --eval

    # student
    student: Literal['cut', 'fithubert'] = 'cut'  # layers of the teacher, or thin and deep
    copied_layers: tuple[int, ...] = (0, 1)  # of the teacher, from 0; WavLM: the first is 0
    copy_positions: bool = False  # also positions and encoder norm; authors: from scratch
    fit_layers: int = 12  # of the FitHuBERT-shaped student
    fit_width: int = 480
    normalise_wave: bool = False  # zero mean, unit variance; authors: never
    adapter_size: int = 64
    adapter_activation: Literal['relu', 'elu'] = 'elu'  # HuBERT: relu
    adapter_noise: tuple[float, float] = (0.1, 0.5)  # std over mean |z|, range of the draw
    adapter_norm: bool = False  # a layer norm before
    adapter_scale: float = 1.0
    adapter_zero: bool = False  # start at zero output; authors: N(0, 0.02^2), by a slip in A
    mask_time_prob: float = 0.05
    mask_time_length: int = 10  # frames

    # distillation
    kd: Literal['distilhubert', 'last', 'hints'] = 'distilhubert'
    target_layers: tuple[int, ...] = (4, 8, 12)  # of the teacher, which the heads predict
    cos_lambda: float = 1.0
    kd_cosine: Literal['sum', 'mean'] = 'sum'  # over time; the difference is averaged
    kd_scale: float = 100.0  # of 'last'
    hint_lambda: float = 0.1  # of 'hints': weight of the layers below the last
    kd_fades: bool = False  # weight (E - e) / E in epoch e of E
    path_kd: str | None = None  # other speech to distil on (OS-KDFT2); none: the training speech

    # back-end and classifier
    backend: Literal['linear', 'ecapa'] = 'linear'
    embed_size: int = 192
    weighted_sum: bool = True  # of all hidden states; ECAPA of system A: the last alone
    ecapa_width: int = 512
    ecapa_mfa_width: int = 1536
    ecapa_attention_width: int = 256
    ecapa_se_width: int = 128
    criterion: Literal['ce', 'aam'] = 'ce'  # both weighted by the rarity of a speaker
    aam_margin: float = 0.2  # radians
    aam_scale: float = 30.0

    # optimisation
    epoch: int = 100
    distil_epoch: int = 100  # of the row 'two_steps', before its `epoch`
    batch_size: int = 48  # utterances over all GPUs; authors: 50, of which 4 GPUs took 48
    # Each process takes its share of a batch in so many parts, one after another: less memory, the same
    # step. Batch norm (in the back-end) sees one part at a time.
    accumulate: int = 1  # parts of a process's share of a batch
    lr: float = 5e-5  # half a cosine over the epochs
    lr_min: float = 5e-5
    student_warmup: int = 0  # epochs in which the student's rate rises; then it falls
    student_lr_decay: float = 0.93  # an epoch, after the warm-up
    adapter_lr_factor: float = 1.0
    weight_decay: float = 1e-4  # L2 inside Adam
    selection: Literal['last', 'valid', 'test'] = 'last'  # epoch kept; authors: best on the test
    valid_full: bool = False  # score whole files too in each epoch

    # crops and augmentation (the teacher hears clean speech)
    crop_size: int = 16000 * 3  # samples at 16 kHz
    DA_p: float = 0.0  # share of augmented utterances
    snr_noise: tuple[float, float] = (0.0, 15.0)  # dB
    snr_speech: tuple[float, float] = (13.0, 20.0)  # dB
    snr_music: tuple[float, float] = (5.0, 25.0)  # dB
    babble: tuple[int, int] = (3, 8)  # speakers in babble
    clip_p: float = 0.3  # of the augmented
    clip_ratio: tuple[float, float] = (0.5, 0.9)  # of the extreme samples
    envelope_p: float = 0.3  # of the augmented
    envelope_floor: tuple[float, float] = (0.1, 0.3)
    max_bad_share: float = 0.001  # unreadable training files above this share stop the run

    # evaluation
    num_seg: int = 5  # test-time augmentation: crops of a file
    seg_size: int = 16000 * 3
    as_norm: bool = False  # also whole files with AS-norm
    cohort_speakers: int = 600  # training speakers, drawn with the first seed
    cohort_top: int = 300
    eer_rule: Literal['interpolated', 'max'] = 'interpolated'

    # replay what the released code of system A does
    adapter_residual: bool = False  # 9.1-2: the adapter adds its input once more
    mixed_branches: bool = False  # 9.1-1: two of a file's five crops are scored without adapters
    rebuild_adam: bool = False  # 9.1-5: a new Adam in each epoch

    def __post_init__(self):
        check = arguments.check
        check(len(set(self.seeds)) == len(self.seeds) > 0, 'seeds: one or more, none twice')
        check(min(self.epoch, self.distil_epoch) >= 1, 'epoch, distil_epoch: 1 or more')
        check(self.accumulate >= 1, f'accumulate {self.accumulate}: 1 or more')
        check(
            min(self.crop_size, self.seg_size) >= 4000,
            'crop_size, seg_size are samples, not seconds',
        )
        check(len(self.copied_layers) > 0, 'copied_layers: one or more')
        check(len(self.target_layers) > 0, 'target_layers: one or more')
        check(self.weighted_sum or self.backend == 'ecapa', 'weighted_sum false: backend ecapa')
        check(  # a head on each layer, which would learn nothing and stop several GPUs
            self.student != 'fithubert' or (self.kd == 'hints' and self.weighted_sum),
            'student fithubert: kd hints and weighted_sum true, which teach the heads of all layers',
        )
        check(0 <= self.student_warmup < self.epoch, 'student_warmup: 0 to below epoch')
        for name in ('DA_p', 'clip_p', 'envelope_p'):
            value = getattr(self, name)
            check(0 <= value <= 1, f'{name} {value}: a share, 0 to 1')
        for name in ('snr_noise', 'snr_speech', 'snr_music', 'babble', 'clip_ratio'):
            low, high = getattr(self, name)
            check(low <= high, f'{name} {low},{high}: the lower bound comes first')
        check(self.num_seg >= 1, 'num_seg: one or more')


# the systems of the paper; without a preset: B with WavLM-Base+
PRESETS = {
    'vox1_wavlm': {},
    'vox1_hubert': {
        'name': 'hubert_vox1',
        'path_ssl': '/data/pretrained/hubert-base-ls960',
        'adapter_activation': 'relu',
    },
    'vox2_w2v2': {
        'name': 'w2v2_vox2',
        'path_ssl': '/data/pretrained/wav2vec2-large-xlsr-53',
        'path_train': '/data/VoxCeleb2/dev/wav',
        'copied_layers': (0, 1, 2, 3),
        'adapter_activation': 'relu',
        'adapter_noise': (0.0, 0.0),
        'adapter_norm': True,
        'adapter_scale': 0.1,
        'kd': 'last',
        'kd_fades': True,
        'backend': 'ecapa',
        'weighted_sum': False,
        'criterion': 'aam',
        'batch_size': 128,
        'lr': 1e-4,
        'lr_min': 1e-6,
        'student_warmup': 9,
        'adapter_lr_factor': 10.0,
        'weight_decay': 0.0,
        'valid_full': True,
        'crop_size': 32000,
        'DA_p': 0.6,
    },
}
# a student in the shape of FitHuBERT, made anew instead of cut (spec 3.4)
PRESETS['vox1_fithubert'] = PRESETS['vox1_hubert'] | {
    'name': 'fithubert_vox1',
    'student': 'fithubert',
    'kd': 'hints',
}
# as the released code of system A runs, its slips included
PRESETS['vox2_w2v2_repo'] = PRESETS['vox2_w2v2'] | {
    'name': 'w2v2_vox2_repo',
    'adapter_residual': True,
    'mixed_branches': True,
    'rebuild_adam': True,
    'selection': 'test',
}

# `--demo`: minutes on two cores, on the built-in synthetic corpus
DEMO = {
    'name': 'demo',
    'phase': 'compare',
    'num_workers': 0,
    'eval_seconds': 120.0,
    'copied_layers': (0,),
    'adapter_size': 16,
    'target_layers': (1, 2, 3),
    'kd_cosine': 'mean',  # the published weight of the cosine takes more steps than these
    'embed_size': 64,
    'epoch': 5,
    'distil_epoch': 5,
    'batch_size': 32,
    'lr': 1e-3,
    'lr_min': 1e-3,
    'crop_size': 24000,
    'num_seg': 2,
    'seg_size': 24000,
}


def get_args(argv=None):
    """Returns `(args, system_args, experiment_args)`, three plain dicts."""
    return arguments.build(SystemArgs, ExperimentArgs, Path(__file__).parent, argv, PRESETS, DEMO)
