"""NAW-SV: everything a user may change. Edit a value, or `python main.py --lr 1e-4`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared import arguments


@dataclass
class SystemArgs:
    """Where things are. Nothing here changes a result."""

    # experiment info
    project: str = 'NAW-SV'
    name: str = 'wavlm_vox1'  # one run folder per name; a run that was stopped continues there
    tags: tuple[str, ...] = ('NAW-SV', 'Interspeech 2024')
    description: str = ''
    path_log: str = 'runs'  # relative paths start at the repository
    wandb_entity: str | None = None  # your W&B team or user; the key comes from WANDB_API_KEY
    wandb_group: str | None = None
    neptune_user: str | None = None  # workspace; the token comes from NEPTUNE_API_TOKEN

    # pre-trained model: WavLM-Base+, WavLM-Base or HuBERT-Base, a Hugging Face folder or a file
    path_ssl: str = '/data/pretrained/wavlm-base-plus'

    # datasets
    path_train: str = '/data/VoxCeleb1/dev/wav'  # <spk>/<video>/<utt>.wav, 16 kHz mono
    list_train: str | None = None  # lines `speaker path [... seconds]`; none: walk path_train
    path_test: str = '/data/VoxCeleb1/wav'  # dev and test in one folder (Vox1-E and -H need both)
    trials_test: tuple[str, ...] = ('/data/VoxCeleb1/veri_test2.txt',)  # noise: the first only
    path_valid: str | None = None  # for selection 'valid': speakers outside train and test
    trials_valid: str | None = None  # none: drawn from path_valid once
    path_musan: str = '/data/musan'
    path_rir: str = '/data/RIRS_NOISES/simulated_rirs'
    path_nonspeech: str | None = None  # folder of Nonspeech100's wavs: the unseen noise
    path_demo: str = 'demo_corpus'  # where --demo builds its corpus and its pre-trained model

    # made once from the above, about 19 GB for Vox1-O, 21 GB for MUSAN
    path_musan_split: str = '/data/musan_split'  # MUSAN in train and test
    path_noisy: str = '/data/VoxCeleb1/test_noise'  # the noisy test sets

    # what to run
    phase: Literal['all', 'prepare', 'warmup', 'finetune'] = 'all'
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


@dataclass
class ExperimentArgs:
    """What the run is. Everything here may change a result."""

    seeds: tuple[int, ...] = (1,)  # one system each
    compare: bool = False  # also fine-tune the pre-trained model without the warm-up
    deterministic: bool = False  # forbid CUDA kernels whose result depends on timing; slower
    amp: bool = False  # bf16 autocast; losses and pooling statistics stay fp32
    tf32: bool = True  # GPU only: factors of matrix products and convolutions of 10 bits, not 23
    sync_bn: bool = True  # batch statistics over all GPUs

    # student
    published: tuple[str, ...] = ()  # files of the authors: a student instead of the warm-up
    adapter_hidden_size: int = 64
    embed_size: int = 192
    ecapa_width: int = 512  # C of the back-end
    ecapa_mfa_width: int = 1536
    ecapa_attention_width: int = 256
    ecapa_se_width: int = 128

    # noise-adaptive warm-up
    warmup_epoch: int = 50  # VoxCeleb2: 30
    adapter_epoch: int = 9  # of these, with the adapters alone
    warmup_batch_size: int = 96  # pairs of utterances over all GPUs
    warmup_lr: float = 5e-5  # constant
    hint_lambda: float = 0.1  # weight of the layers below the last
    embed_loss_weight: float = 0.1  # of E-APN
    gather_prototypes: bool = False  # E-APN against the pairs of all GPUs; authors: each alone
    separate_batch: bool = False  # the clean half of the student's batch skips the adapters
    max_seg_per_spk: int = 500  # utterances of a speaker in one epoch
    mask_time_prob: float = 0.1
    mask_time_length: int = 5  # frames
    mask_feature_prob: float = 0.05
    mask_feature_length: int = 10  # of the 768 channels

    # fine-tuning
    epoch: int = 27
    unfreeze_ssl_epoch: int = 20  # epochs before the student learns too
    large_margin_epoch: int = 25  # epochs before crops and margin grow
    batch_size: int = 24  # over all GPUs
    # Each process takes its share of a batch in so many parts, one after another: less memory, the same
    # step. Batch norm sees one part at a time. E-APN compares all pairs of a batch of the warm-up, which
    # is not divided.
    accumulate: int = 1  # parts of a process's share of a batch of the fine-tuning
    lr: float = 5e-5  # half a cosine over the epochs
    lr_min: float = 5e-7
    weight_decay: float = 0.0
    aam_m: float = 0.2  # radians
    aam_s: float = 30.0
    large_margin: float = 0.4  # radians; authors' code: stays 0.2, by a slip
    topk_penalty: tuple[int, float] = (5, 0.1)  # nearest wrong speakers, their margin in radians
    DA_p: float = 0.6  # share of augmented utterances
    finetune_mask_time_prob: float = 0.05
    finetune_mask_time_length: int = 10  # frames
    selection: Literal['last', 'valid', 'test'] = 'last'  # epoch kept; authors: best on the test

    # crops and noise
    crop_size: int = 16000 * 3  # samples at 16 kHz
    large_crop_size: int = 16000 * 6  # with the large margin
    snr: tuple[float, float] = (0.0, 20.0)  # dB, range of the uniform draw
    babble: tuple[int, int] = (3, 6)  # speakers in babble
    max_bad_share: float = 0.001  # unreadable training files above this share stop the run

    # evaluation
    num_seg: int = 5  # test-time augmentation: crops of a file
    seg_size: int = 16000 * 3
    test_snrs: tuple[int, ...] = (0, 5, 10, 15, 20)  # dB
    full_noisy: bool = True  # in noise also score whole files; authors: crops only
    noise_seed: int = 0  # of the noisy test sets
    exact_snr: bool = False  # without the authors' floor, which spares quiet signals
    eer_rule: Literal['interpolated', 'max'] = 'interpolated'

    # replay what the released code does, against the paper's figure
    noisy_reference: bool = False  # Q1: the teacher hears noisy speech where it should be clean
    partial_pretrained: bool = False  # Q2: the student starts without the pre-trained positions

    def __post_init__(self):
        check = arguments.check
        check(len(set(self.seeds)) == len(self.seeds) > 0, 'seeds: one or more, none twice')
        check(min(self.warmup_epoch, self.epoch) >= 1, 'warmup_epoch, epoch: 1 or more')
        check(self.accumulate >= 1, f'accumulate {self.accumulate}: 1 or more')
        check(0 <= self.adapter_epoch <= self.warmup_epoch, 'adapter_epoch: 0 to warmup_epoch')
        check(self.unfreeze_ssl_epoch <= self.epoch, 'unfreeze_ssl_epoch: at most epoch')
        check(
            min(self.crop_size, self.large_crop_size, self.seg_size) >= 4000,
            'crop_size, large_crop_size, seg_size are samples, not seconds',
        )
        check(0 <= self.DA_p <= 1, f'DA_p {self.DA_p}: a share, 0 to 1')
        check(self.num_seg >= 1 and len(self.test_snrs) > 0, 'num_seg, test_snrs: one or more')
        for name in ('snr', 'babble'):
            low, high = getattr(self, name)
            check(low <= high, f'{name} {low},{high}: the lower bound comes first')
        check(not (self.published and self.compare), 'compare: the baseline takes no --published')


# the settings of the four published runs; WavLM-Base and HuBERT-Base differ in path_ssl only
PRESETS = {
    'vox1': {},
    'vox2': {
        'name': 'wavlm_vox2',
        'path_train': '/data/VoxCeleb2/dev/wav',
        'warmup_epoch': 30,
        'path_valid': '/data/VoxCeleb1/dev/wav',
    },
    # the released code as it runs: slips Q1 to Q3, selection on the test list
    'repo': {
        'noisy_reference': True,
        'partial_pretrained': True,
        'large_margin': 0.2,
        'selection': 'test',
    },
}

# `--demo`: minutes on two cores, on the built-in synthetic corpus
DEMO = {
    'name': 'demo',
    'seeds': (1, 2),
    'compare': True,
    'num_workers': 0,
    'eval_seconds': 120.0,
    'adapter_hidden_size': 16,
    'embed_size': 64,
    'ecapa_width': 64,
    'ecapa_mfa_width': 192,
    'ecapa_attention_width': 64,
    'ecapa_se_width': 32,
    'warmup_epoch': 4,
    'adapter_epoch': 1,
    'warmup_batch_size': 32,
    'warmup_lr': 5e-4,
    'epoch': 4,
    'unfreeze_ssl_epoch': 2,
    'large_margin_epoch': 3,
    'batch_size': 32,
    'lr': 2e-3,
    'lr_min': 1e-4,
    'aam_m': 0.1,
    'aam_s': 15.0,
    'large_margin': 0.2,
    'topk_penalty': (5, 0.05),
    'crop_size': 24000,
    'large_crop_size': 28000,
    'num_seg': 2,
    'seg_size': 24000,
    'test_snrs': (0, 10),
    'full_noisy': False,
}


def get_args(argv=None):
    """Returns `(args, system_args, experiment_args)`, three plain dicts."""
    return arguments.build(SystemArgs, ExperimentArgs, Path(__file__).parent, argv, PRESETS, DEMO)
