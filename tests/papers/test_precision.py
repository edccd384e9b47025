"""bf16, compilation and memory layout in the trainings of every paper: the curve of fp32 again.

A curve is the loss of each of `STEPS` steps on tones, the networks are tiny and drawn alike. How far
it may be from that of fp32, as a part of it:

COMPILED  the same operations in the same order, but for what a compiler fuses: some units of the last
          place of fp32, 6e-8, which every step multiplies a little.
BF16      one rounding is 2^-9 = 0.2 % at most; those of a dozen layers, of either sign, and their
          effect on the weights of the steps so far.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from loops import FakeLoop
from recipes import QUIET_WAVLM, pretrained
from torch.utils._python_dispatch import TorchDispatchMode

from shared import precision
from shared.datasets.items import Sample, collate
from shared.evaluation.extraction import extract
from shared.losses.contrastive import ContrastiveLoss
from shared.models.campplus import CamPlusPlus
from shared.models.resnet import ResNet34
from shared.models.ssl_backends import EcapaSmallBackEnd, SslSpeakerEncoder
from shared.models.ssl_encoder import SslEncoder
from shared.published import unispeech
from shared.weight_files import write

STEPS, ROWS, CLASSES, SAMPLES = 10, 16, 4, 4000
SOME = 4  # steps, where compiling takes longer than they do
SCALE = 8.0  # of the softmax: at 30 a batch so small answers every rounding
COMPILED, BF16 = 1e-4, 0.03
ECAPA = {'ecapa_width': 16, 'ecapa_mfa_width': 24, 'ecapa_attention_width': 8, 'ecapa_se_width': 8}
SETTINGS = {  # of a paper's arguments, where its own are too large
    'lgl': {'width': 16, 'mfa_width': 24, 'attention_width': 8, 'se_width': 8, 'embed_size': 16},
    'enskd': {
        'channels': 8,
        'embed_size': 8,
        'speed_perturb': False,
        'student': 'resnet34',
        'lr': 5e-4,
        'teacher_lr': 2e-5,  # the deviation of a channel that hardly varies has a slope of thousands
        'teacher_width': 8,
        'teacher_embed_size': 8,
        'teacher_margin_epoch': 1,
        'scale': SCALE,
    },
    'nawsv': {'adapter_hidden_size': 4, 'embed_size': 8, 'mask_feature_length': 3, **ECAPA},
    'oskdft': {
        'copied_layers': (0,),
        'adapter_size': 4,
        'adapter_noise': (0.0, 0.0),  # its numbers are drawn in bf16 there
        'target_layers': (1, 2),
        'embed_size': 8,
    },
    'wavlm_ssl': {
        'heads': 2,
        'compression': 4,
        'embed_size': 8,
        'dino_width': 8,
        'dino_mfa_width': 12,
        'dino_attention_width': 4,
        'dino_se_width': 4,
        'dino_embed_size': 8,
        'dino_hidden': 16,
        'dino_bottleneck': 8,
        'dino_outputs': 12,
        'dino_regulariser': 12,
        'dino_warmup': 0,
        'lr_transformer': 1e-3,
        'scale': SCALE,
    },
}


class Curve(FakeLoop):
    """A loop over tones that keeps the loss of each step; `around`: a context of each."""

    def __init__(self, views, steps, around):
        batches = [batch_of(step, views) for step in range(steps)]
        for step, batch in enumerate(batches):
            batch['locals'] = batch_of(100 + step, 2, SAMPLES // 2)  # only DINO looks at them
        super().__init__(batches)
        self.losses, self.around = [], around
        self.meters.update = self.note

    def note(self, values):
        self.losses.append(values.get('loss', values.get('aam_loss')).detach())

    def means(self):
        return {'kept': 1.0, 'corrected': 0.0, 'hits': 1.0, 'selected': 1.0}

    def batches(self, title):
        for batch in self.loader:
            if self.around is None:
                yield batch
            else:
                with self.around:
                    yield batch


def batch_of(step, views, samples=SAMPLES):
    """Tones of the classes with noise; every view has noise of its own."""
    draw = torch.Generator().manual_seed(step)
    time = torch.arange(samples) / 16000
    rows = []
    for index in range(ROWS):
        tone = 0.3 * torch.sin(2 * torch.pi * 250 * 2 ** (index % CLASSES) * time)
        waves = tone + 0.05 * torch.randn(views, samples, generator=draw)
        rows.append(Sample(waves.numpy(), label=index % CLASSES, index=index))
    return collate(rows)


# --- the trainings, as each main.py makes them: (framework, loop -> an epoch of it)


def lgl_contrastive(p, args, path):
    framework = p.framework.Contrastive(p.models.encoder_of(args), ContrastiveLoss())
    critic = p.framework.Adversary(p.models.AugmentationDiscriminator(args['embed_size']))
    optimizers = [torch.optim.Adam(f.learnable(), lr=3e-5) for f in (framework, critic)]
    return framework, lambda loop: p.train.contrastive_epoch(
        1, loop, framework, critic, *optimizers, args
    )


def lgl_classification(p, args, path):
    classifier = p.main.AamSoftmax(CLASSES, args['embed_size'], 0.2, SCALE)
    framework = p.framework.GatedClassification(p.models.encoder_of(args), classifier)
    optimizer = torch.optim.Adam(framework.learnable(), lr=3e-4)
    return framework, lambda loop: p.train.classification_epoch(
        'x', loop, framework, optimizer, args.get('gate', p.losses.NO_GATE), args
    )


def enskd_student(p, args, path):
    encoder = SslEncoder(QUIET_WAVLM)
    backend = EcapaSmallBackEnd(3, 16, 8, 8, mfa_width=12, attention_width=4, se_width=4)
    file = path / 'teacher.pt'
    state = SslSpeakerEncoder(encoder, backend).state_dict()
    write(unispeech.to_published(state, torch.randn(CLASSES, 8)), file)
    teacher = p.systems.teacher_of(file, Corpus, args) if args['kd'] != 'none' else None
    args = {**p.arguments.of_row(args, args['student'], args['kd']), 'batch_size': 64}
    framework = p.systems.distillation(args, CLASSES, teacher)
    schedule = p.phases.student_schedule({**args, 'warmup': 0, 'lr_last': args['lr']})
    optimizer = p.main.sgd(framework, schedule, args['weight_decay'])
    return framework, lambda loop: p.train.train_epoch(
        'x', 1, schedule, 1.0, loop, framework, optimizer, args
    )


class Corpus:
    """What a teacher's classes are compared with."""

    classes = CLASSES


def enskd_teacher(p, args, path):
    framework = p.systems.untrained_teacher({**args, 'teacher_top_k': 2}, CLASSES)
    schedule = p.phases.teacher_schedule(
        {**args, 'teacher_warmup': 0, 'teacher_lr_last': args['teacher_lr']}
    )
    optimizer = p.main.sgd(framework, schedule, args['teacher_weight_decay'])
    return framework, lambda loop: p.train.train_epoch(
        'x', 1, schedule, 0.0, loop, framework, optimizer, args
    )


def nawsv_warmup(p, args, path):
    student = p.systems.student_of(args, 'warmup')
    head, teacher = p.systems.head_of(args, student), p.systems.teacher_of(args)
    framework = p.framework.WarmUp(student, teacher, head, p.losses.EApn(), args)
    optimizer = torch.optim.Adam(framework.learnable(), lr=1e-3)
    return framework, lambda loop: p.train.warmup_epoch('x', loop, framework, optimizer, args)


def nawsv_finetuning(p, args, path):
    student = p.systems.student_of(args, 'finetune')
    backend = p.systems.backend_of(args, student)
    criterion = p.main.AamSoftmaxTopK(CLASSES, args['embed_size'], scale=SCALE, top_k=2)
    framework = p.framework.FineTuning(student, backend, criterion, torch.ones(CLASSES))
    optimizer = torch.optim.Adam(framework.learnable(), lr=1e-3)
    args = {**args, 'lr': 3e-4}
    return framework, lambda loop: p.train.finetune_epoch('x', 1, loop, framework, optimizer, args)


def oskdft_one_step(p, args, path):
    student, teacher = p.systems.student_of(args), p.systems.teacher_of(args)
    framework = p.framework.OneStep(
        student,
        teacher=teacher,
        kd=p.systems.kd_of(args, student, teacher),
        backend=p.systems.backend_of(args, student),
        criterion=p.systems.criterion_of(args, CLASSES),
        class_weights=torch.ones(CLASSES),
    )
    optimizer = torch.optim.Adam(framework.groups(), lr=1e-3)
    args = {**args, 'lr': 1e-3, 'lr_min': 1e-3}
    return framework, lambda loop: p.train.train_epoch('x', 1, 1, loop, framework, optimizer, args)


def wavlm_ssl_finetuning(p, args, path):
    encoder = p.systems.encoder_of(args)
    backend = p.systems.backend_of(args, encoder)
    criterion = p.systems.criterion_of(args, CLASSES, args['margin'])
    framework = p.framework.GatedFineTuning(encoder, backend, criterion, args)
    framework.pull_towards(encoder.state_dict(), 'cpu')
    groups = framework.groups(args['lr_mhfa'], args['lr_transformer'], args['llrd'])
    optimizer, gate = torch.optim.AdamW(groups), p.phases.DynamicGate(ROWS, 'cpu')
    gate.log_gate = args.get('gate', p.losses.NO_GATE)
    return framework, lambda loop: p.train.finetune_epoch(
        'x', 1, 0, gate, loop, framework, optimizer, args
    )


def wavlm_ssl_dino(p, args, path):
    framework = p.dino.dino_framework(args)
    optimizer = p.dino_training.dino_optimizer(framework, args)
    return framework, lambda loop: p.dino_training.dino_epoch(
        'x', 1, loop, framework, optimizer, {**args, 'dino_lr': 0.005}
    )


class Training(NamedTuple):
    """How one is made, views of a batch, graphs when compiled, classes that have to give fp32."""

    make: Callable
    views: int
    graphs: int
    exact: set[str]


TRAININGS = {
    'lgl contrastive': Training(
        lgl_contrastive,
        3,
        1,
        {'LogMel', 'AttentiveStatisticsPooling', 'ContrastiveLoss', 'AugmentationDiscriminator'},
    ),
    'lgl classification': Training(lgl_classification, 1, 1, {'LogMel', 'AamSoftmax'}),
    'enskd student': Training(enskd_student, 1, 2, {'KaldiFbank', 'ContinuousAam'}),
    'enskd teacher': Training(
        enskd_teacher, 1, 1, {'Transformer', 'FrameAttentivePooling', 'AamSoftmaxTopK'}
    ),
    'nawsv warm-up': Training(nawsv_warmup, 2, 2, {'Transformer', 'WeightedSum', 'EApn'}),
    'nawsv fine-tuning': Training(
        nawsv_finetuning, 1, 1, {'WeightedSum', 'AttentiveStatisticsPooling', 'AamSoftmaxTopK'}
    ),
    'oskdft one-step': Training(
        oskdft_one_step, 1, 2, {'Transformer', 'DistilHubertLoss', 'LinearSoftmax'}
    ),
    'wavlm_ssl fine-tuning': Training(wavlm_ssl_finetuning, 2, 1, {'Transformer', 'AamSoftmax'}),
    'wavlm_ssl dino': Training(  # graphs: the student's long and short crops, the teacher
        wavlm_ssl_dino, 2, 3, {'LogMel', 'Directions', 'DinoLoss', 'RedundancyLoss'}
    ),
}
WITH_2D = {'resnet34': functools.partial(ResNet34, blocks=(1, 1, 1, 1))}
WITH_2D['campplus'] = functools.partial(CamPlusPlus, growth=8, blocks=(2, 2, 2))


@pytest.fixture(scope='module')
def wavlm(tmp_path_factory):
    return pretrained(QUIET_WAVLM, tmp_path_factory.mktemp('wavlm') / 'wavlm')


@pytest.fixture
def train(paper, wavlm, tmp_path):
    """`train('nawsv warm-up', amp=True)`: the curve (STEPS,), and the framework afterwards."""
    loaded = {}

    def run(name, around=None, setup=lambda framework: None, steps=STEPS, **changes):
        folder = name.split()[0]
        if folder not in loaded:
            loaded[folder] = paper(folder)
        p = loaded[folder]
        if folder == 'enskd':
            p.systems.NETWORKS.update(WITH_2D)
            p.systems.recognised = lambda *_: 1.0
        args, *_ = p.arguments.get_args([])
        args |= SETTINGS[folder] | {'path_ssl': str(wavlm), 'device': 'cpu'} | changes
        training = TRAININGS[name]
        torch.manual_seed(0)
        framework, epoch = training.make(p, args, tmp_path)
        setup(framework)
        loop = Curve(training.views, steps, around)
        torch.manual_seed(1)
        epoch(loop)
        return torch.stack(loop.losses).double(), framework

    return run


KEPT = pytest.StashKey[dict]()


@pytest.fixture
def plain(request):
    """As `train`, in fp32; computed once for all tests of this file."""
    kept = request.config.stash.setdefault(KEPT, {})

    def found(train, name, **changes):
        key = name, *changes.items()
        if key not in kept:
            kept[key] = train(name, **changes)
        return kept[key]

    return found


@pytest.fixture
def graphs(monkeypatch):
    """Compiles without a C++ compiler; the list grows by one graph each time."""
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return torch._dynamo.lookup_backend('aot_eager')(graph, inputs)

    monkeypatch.setattr(precision, 'BACKEND', backend)
    return seen


def distance(curve, reference):
    """The largest relative difference of a step; the reference has learnt something."""
    assert reference.isfinite().all() and len(set(reference.tolist())) == len(reference)
    return float(((curve - reference) / reference).abs().max())


@pytest.mark.parametrize('name', TRAININGS)
def test_bf16_learns_as_fp32_does_with_features_statistics_and_losses_in_fp32(train, plain, name):
    kinds = {}

    def look(module, inputs, output):
        found = kinds.setdefault(type(module).__name__, set())
        found |= {x.dtype for x in tensors(output)}

    hook = torch.nn.modules.module.register_module_forward_hook(look)
    try:
        curve, framework = train(name, amp=True, teacher_amp=True)
    finally:
        hook.remove()
    assert 0 < distance(curve, plain(train, name)[0]) < BF16
    for exact in TRAININGS[name].exact:
        assert kinds[exact] == {torch.float32}, exact
    assert torch.bfloat16 in kinds['Linear']
    stored = {value.dtype for value in framework.state_dict().values()}
    assert stored <= {torch.float32, torch.int64}


def tensors(item):
    """All floating-point tensors of what a module has returned."""
    if isinstance(item, torch.Tensor):
        return [item] if item.is_floating_point() else []
    items = item.values() if isinstance(item, dict) else item if isinstance(item, tuple) else ()
    return [x for inner in items for x in tensors(inner)]


@pytest.mark.parametrize('name', TRAININGS)
def test_compiled_training_is_the_same_in_as_few_graphs_as_there_are_inputs(
    train, plain, graphs, name
):
    curve, compiled = train(name, compile=True, steps=SOME)
    expected, framework = plain(train, name, steps=SOME)
    assert distance(curve, expected) < COMPILED
    assert len(graphs) == TRAININGS[name].graphs  # fullgraph: a break would have raised
    # checkpoints do not tell, nor does evaluation compile
    assert list(compiled.state_dict()) == list(framework.state_dict())
    for mine, other in ((compiled, framework), (framework, compiled)):
        mine.load_state_dict(other.state_dict())
    if name in ('lgl classification', 'enskd student'):
        tables = [embedded(each) for each in (compiled, framework)]
        torch.testing.assert_close(*tables)
        assert len(graphs) == TRAININGS[name].graphs


def embedded(framework):
    """The table (10, D) of files of ten lengths."""
    draw = torch.Generator().manual_seed(0)
    files = [
        {
            'index': torch.tensor([i]),
            'waves': 0.1 * torch.randn(1, SAMPLES + 160 * i, generator=draw),
            'lengths': torch.tensor([SAMPLES + 160 * i]),
        }
        for i in range(10)
    ]
    system = framework.encoder if hasattr(framework, 'encoder') else framework.student
    return extract(system.eval(), files, 10, 'cpu')


@pytest.mark.parametrize('name', ['enskd student', 'wavlm_ssl fine-tuning'])
def test_compiled_bf16_learns_as_fp32_does(train, plain, graphs, name):
    curve, _ = train(name, compile=True, amp=True, teacher_amp=True, steps=SOME)
    assert 0 < distance(curve, plain(train, name, steps=SOME)[0]) < BF16 and graphs


@pytest.mark.slow
def test_the_compiler_itself_learns_as_fp32_does(train, plain, monkeypatch):
    """Inductor, which writes C++ here: once, for the smallest network."""
    inductor = pytest.importorskip('torch._inductor.config')
    monkeypatch.setattr(inductor, 'compile_threads', 1)  # no processes, which take longer to start
    small = {'student': 'xvector', 'kd': 'none'}
    curve, _ = train('enskd student', compile=True, **small)
    assert distance(curve, plain(train, 'enskd student', **small)[0]) < COMPILED


def in_float64(framework):
    """Student and classifier; CAM++ this small multiplies a rounding by millions in ten steps."""
    framework.student.double()
    framework.criterion.double()


@pytest.mark.parametrize('student', WITH_2D)
def test_channels_last_is_the_same_training(train, plain, student):
    how = {'student': student, 'setup': in_float64}
    curve, framework = train('enskd student', channels_last=True, **how)
    assert distance(curve, plain(train, 'enskd student', **how)[0]) < 1e-6
    pictures = [p for p in framework.student.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert pictures and all(
        p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
        for p in pictures
    )


# --- what else the four arguments promise


@pytest.mark.parametrize('name', ['lgl', 'enskd', 'nawsv', 'oskdft', 'wavlm_ssl'])
def test_every_paper_has_the_arguments(paper, name):
    args, system, experiment = paper(name).arguments.get_args([])
    assert (experiment['amp'], experiment['tf32'], system['compile']) == (False, True, False)
    assert ('channels_last' in args) == (name == 'enskd')  # the only 2-D convolutions


# --- no step waits for the device


WAITING = {'_local_scalar_dense', 'nonzero', 'masked_select', '_unique2', 'unique_dim', 'equal'}


class Reads(TorchDispatchMode):
    """Notes the operations whose value, or whose shape, the host has to wait for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name == 'index' and any(x is not None and x.dtype == torch.bool for x in args[1])
        if name in WAITING or masked:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def still(*arguments, **named):
    """No step: torch's Adam reads the tensors in which it counts, and which lie on the CPU."""


@pytest.fixture
def reads(monkeypatch):
    for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
        monkeypatch.setattr(kind, 'step', still)
    return Reads()


@pytest.mark.parametrize('name', TRAININGS)
def test_a_step_reads_nothing_back(train, reads, name):
    train(name, around=reads, steps=2)
    assert reads.seen == []


@pytest.mark.parametrize('name', ['lgl classification', 'wavlm_ssl fine-tuning'])
def test_a_gated_step_reads_once_whether_anything_is_learnt(train, reads, name):
    train(name, around=reads, gate=0.5, steps=2)
    assert reads.seen == ['_local_scalar_dense'] * 2
