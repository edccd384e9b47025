"""wavlm_ssl: everything a user may change. Edit a value, or `python main.py --lr_mhfa 1e-3`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared import arguments


@dataclass
class SystemArgs:
    """Where things are. Nothing here changes a result."""

    # experiment info
    project: str = 'WavLM-SSL'
    name: str = 'rdino'  # one run folder per name; a run that was stopped continues there
    tags: tuple[str, ...] = ('WavLM-SSL', 'Interspeech 2024')
    description: str = ''
    path_log: str = 'runs'  # relative paths start at the repository
    wandb_entity: str | None = None  # your W&B team or user; the key comes from WANDB_API_KEY
    wandb_group: str | None = None
    neptune_user: str | None = None  # workspace; the token comes from NEPTUNE_API_TOKEN

    # pre-trained model: WavLM-Base+, a Hugging Face folder or Microsoft's file
    path_ssl: str = '/data/pretrained/wavlm-base-plus'  # to score a Base+ it is not needed

    # datasets
    path_train: str = '/data/VoxCeleb2/dev/wav'  # <spk>/<video>/<utt>.wav, 16 kHz mono
    list_train: str | None = None  # lines `speaker path [... seconds]`; none: walk path_train
    path_test: str = '/data/VoxCeleb1/wav'  # dev and test in one folder (Vox1-E and -H need both)
    trials_test: tuple[str, ...] = ('/data/VoxCeleb1/veri_test2.txt',)
    path_valid: str | None = None  # for the curve of each epoch; none: the first test list
    trials_valid: str | None = None  # none: drawn from path_valid once
    path_musan: str = '/data/musan'
    path_rir: str = '/data/RIRS_NOISES/simulated_rirs'
    path_demo: str = 'demo_corpus'  # where --demo builds its corpus and its pre-trained model

    # what to run: all steps, or the next one if it is of this kind
    phase: Literal['all', 'dino', 'embed', 'cluster', 'finetune', 'lmft'] = 'all'
    eval: bool = False  # only score: this run's last system, or the file of --published
    doctor: bool = False  # look at data, weights and machine; train nothing
    doctor_full: bool = False  # and open every file of audio, not some of each folder

    # resources
    usable_gpu: str | None = None  # '0,1'; none: every visible GPU; '': the CPU
    num_workers: int | None = None  # loader processes per GPU; none: what the cores allow, up to 8
    cache_gib: float = 0.0  # of MUSAN and RIRs in memory, per machine; try 8 on a network disk
    eval_seconds: float = 300.0  # seconds of audio in one evaluation batch
    checkpointing: bool = False  # recompute WavLM's layers: less memory, a third slower
    compile: bool = False  # torch.compile WavLM, and DINO's networks; minutes at the start
    save_minutes: float = 10.0  # between two saves inside an epoch
    keep_checkpoints: int = 2  # epochs of each step whose weights are kept


@dataclass
class ExperimentArgs:
    """What the run is. Everything here may change a result."""

    seeds: tuple[int, ...] = (1,)  # one whole recipe each
    deterministic: bool = False  # CUDA kernels that repeat their results, where there are any
    amp: bool = False  # bf16 autocast; losses and pooling statistics stay fp32
    tf32: bool = True  # GPU only: factors of matrix products and convolutions of 10 bits, not 23
    sync_bn: bool = True  # batch statistics over all GPUs (DINO)
    embeddings: str | None = None  # file of embeddings instead of DINO; --phase cluster: to cluster
    labels: str | None = None  # list of labels to begin with; --phase cluster: to write
    published: str | None = None  # file of the authors, for --eval

    # 0: DINO (spec 8)
    dino: Literal['rdino', 'dino'] = 'rdino'  # 3D-Speaker's, which the paper started from; sslsv's
    dino_epoch: int = 70  # that the schedules are made for
    dino_take: int = 60  # handed on, and the last one trained (8.2); 0: mean of the last 10 (8.3)
    dino_batch_size: int = 208  # utterances over all GPUs
    dino_lr: float = 0.325  # 0.4 * batch / 256
    dino_lr_min: float = 1e-5
    dino_warmup: int = 10  # epochs
    dino_weight_decay: float = 5e-5  # not of biases and norms
    dino_clip: float = 3.0  # largest norm of a tensor's gradient
    dino_momentum: float = 0.996  # of the teacher, rising to 1
    freeze_last_epoch: int = 1  # epochs in which the head's last layer rests
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    centre_momentum: float = 0.9
    dino_hidden: int = 2048
    dino_bottleneck: int = 256
    dino_outputs: int = 65536
    dino_regulariser: int = 8192  # width of the decorrelated layer; 0: none
    reg_divisor: int = 65536  # of the covariances; authors: the outputs, though it is 8,192 wide
    reg_std: float = 10.0
    reg_cov: float = 1.0
    reg_weight: tuple[float, float] = (0.05, 0.2)  # first, last
    reg_epochs: int = 10  # over which it rises
    dino_width: int = 1024  # C of the ECAPA-TDNN
    dino_mfa_width: int = 3072
    dino_attention_width: int = 128
    dino_se_width: int = 128
    dino_embed_size: int = 512
    global_size: int = 64000  # samples at 16 kHz
    local_size: int = 32000
    locals: int = 4  # short crops of an utterance
    dino_rir_gain: tuple[float, float] = (-7.0, 3.0)  # dB of power

    # 1-2: pseudo-labels (spec 5)
    rounds: int = 2  # refinements after the labels of DINO
    normalise: bool = True  # embeddings to unit length; authors' code: as they are
    centroids: int = 50000  # of the k-means
    clusters: int = 7500  # of the agglomerative clustering of the centroids; 0: none
    kmeans_iterations: int = 300
    cluster_seed: int = 0
    noisy_embeddings: bool = False  # quirk 4: with dropout, as the authors' code embeds

    # 3: WavLM and MHFA (spec 3, 4, 6)
    heads: int = 64
    compression: int = 128
    embed_size: int = 256
    epoch: int = 15
    batch_size: int = 240  # utterances over all GPUs; authors: 120 on each of two
    # Each process takes its share of a batch in so many parts, one after another: less memory, the same
    # step. DINO compares all of a batch (regulariser, centre, batch norm), so it is not divided.
    accumulate: int = 1  # parts of a process's share of a batch of steps 3 and 4
    max_seg_per_spk: int = 500  # utterances of a pseudo-speaker in one epoch
    lr_mhfa: float = 5e-3  # also of the classifier
    lr_transformer: float = 2e-5
    llrd: float = 1.0  # factor from a layer to the next one up
    lr_decay: float = 0.95  # after each epoch
    weight_decay: float = 0.01  # AdamW, on everything
    pull: float = 0.01  # towards the pre-trained weights; their code has none on one GPU
    pull_squared: bool = False  # slides: squared distances
    margin: float = 0.2  # radians
    scale: float = 30.0
    gate_epoch: int = 5  # first with the loss gate, from the losses of the epoch before
    gate_least: float = 0.0  # share of the samples that pass at least; ours, for short runs
    lc_epoch: int = 9  # first with label correction
    lc: Literal['hard', 'soft', 'none'] = 'hard'  # slides: soft targets
    lc_threshold: float = 0.5  # least probability of a corrected label
    lc_temperature: float = 0.1

    # 4: large-margin fine-tuning
    lmft_epochs: int = 3  # slides: 2; config: 5, of which their code trains none (quirk 1)
    lmft_margin: float = 0.5
    lmft_batch_size: int = 100
    lmft_gate: bool = True  # gate of the last round in the first epoch; false: none in that

    # crops and augmentation
    max_frames: int = 300  # of 10 ms: frames * 160 + 240 samples
    lmft_frames: int = 600
    babble_music: Literal['music', 'both'] = 'music'  # 'both': as intended (quirk 10)
    snr_noise: tuple[float, float] = (0.0, 15.0)  # dB
    snr_speech: tuple[float, float] = (13.0, 20.0)  # dB
    snr_music: tuple[float, float] = (5.0, 15.0)  # dB
    babble: tuple[int, int] = (3, 8)  # speakers in babble
    max_bad_share: float = 0.001  # unreadable training files above this share stop the run

    # evaluation
    num_eval: int = 15  # crops of a file
    eval_frames: int = 400
    longest: int = 700000  # samples of a file scored whole; it is clustered without a cut
    as_norm: bool = False  # also whole files with AS-norm over the pseudo-speakers; none published
    cohort_top: int = 300  # nearest of these that a file is normalised by
    eer_rule: Literal['interpolated', 'max'] = 'interpolated'  # authors: 'max'

    def __post_init__(self):
        check = arguments.check
        check(len(set(self.seeds)) == len(self.seeds) > 0, 'seeds: one or more, none twice')
        for name in ('dino_epoch', 'epoch', 'accumulate', 'num_eval', 'heads', 'locals'):
            check(getattr(self, name) >= 1, f'{name} {getattr(self, name)}: 1 or more')
        check(min(self.rounds, self.lmft_epochs) >= 0, 'rounds, lmft_epochs: 0 or more')
        check(self.dino_warmup < self.dino_epoch, 'dino_warmup: fewer than dino_epoch')
        check(
            0 <= self.dino_take <= self.dino_epoch,
            f'dino_take {self.dino_take}: an epoch of the {self.dino_epoch} of dino_epoch, or 0',
        )
        check(
            self.dino != 'dino' or self.dino_regulariser == 0,
            f'dino dino has no regulariser, but dino_regulariser is {self.dino_regulariser}: '
            'use --preset dino, which sets all of that recipe, or dino_regulariser 0',
        )
        check(self.local_size <= self.global_size, 'local_size: at most global_size')
        check(
            min(self.max_frames, self.lmft_frames, self.eval_frames) >= 25,
            'max_frames, lmft_frames, eval_frames: 25 or more (a quarter of a second)',
        )
        check(
            0 <= self.clusters <= self.centroids,
            f'clusters {self.clusters}: at most the {self.centroids} centroids, or 0',
        )
        check(0 <= self.gate_least < 1, f'gate_least {self.gate_least}: a share, 0 to below 1')
        check(2 <= self.gate_epoch, 'gate_epoch: 2 or more, the epoch before gives the gate')
        for name in ('snr_noise', 'snr_speech', 'snr_music', 'babble', 'dino_rir_gain'):
            low, high = getattr(self, name)
            check(low <= high, f'{name} {low},{high}: the lower bound comes first')


PRESETS = {
    'rdino': {},
    # the plain DINO of sslsv (spec 8.3)
    'dino': {
        'name': 'dino',
        'dino': 'dino',
        'dino_epoch': 80,
        'dino_take': 0,
        'dino_batch_size': 128,
        'dino_lr': 0.2,
        'dino_regulariser': 0,
    },
    # what of the released code's clustering and scoring can be replayed: raw embeddings, made with
    # dropout, and its rule of the EER; its other slips (README) stay mended
    'repo': {
        'name': 'repo',
        'normalise': False,
        'noisy_embeddings': True,
        'eer_rule': 'max',
    },
}

# `--demo`: minutes on two cores, on the built-in synthetic corpus
DEMO = {
    'name': 'demo',
    'num_workers': 0,
    'eval_seconds': 120.0,
    'dino_epoch': 7,
    'dino_take': 7,
    'dino_batch_size': 16,
    'dino_lr': 0.02,
    'dino_lr_min': 1e-3,
    'dino_warmup': 0,
    'dino_momentum': 0.96,
    'freeze_last_epoch': 0,
    'teacher_temperature': 0.05,
    'dino_hidden': 512,
    'dino_bottleneck': 64,
    'dino_outputs': 1024,
    'dino_regulariser': 1024,
    'reg_divisor': 8192,
    'reg_epochs': 5,
    'dino_width': 32,
    'dino_mfa_width': 96,
    'dino_attention_width': 32,
    'dino_se_width': 16,
    'dino_embed_size': 64,
    'global_size': 24000,
    'local_size': 16000,
    'locals': 2,
    'rounds': 1,
    'centroids': 800,
    'clusters': 250,  # after so little training a speaker's videos are apart
    'heads': 8,
    'compression': 32,
    'embed_size': 64,
    'epoch': 10,
    'batch_size': 32,
    'lr_mhfa': 5e-3,
    'lr_transformer': 2e-3,
    'margin': 0.05,
    'scale': 15.0,
    'gate_epoch': 7,
    'gate_least': 0.7,  # before most labels are learnt the gate would keep a few per cent
    'lc_epoch': 9,
    'lc_threshold': 0.9,
    'lc_temperature': 1.0,  # after so few steps 0.1 would make every guess a certainty
    'lmft_epochs': 1,
    'lmft_margin': 0.1,
    'lmft_batch_size': 32,
    'max_frames': 150,
    'lmft_frames': 200,
    'num_eval': 2,
    'eval_frames': 150,
}


def get_args(argv=None):
    """Returns `(args, system_args, experiment_args)`, three plain dicts."""
    return arguments.build(SystemArgs, ExperimentArgs, Path(__file__).parent, argv, PRESETS, DEMO)
