"""A batch taken in parts is the batch: one step of every paper that has parts, in float64.

Without dropout, whose draws differ, and with batch norm at rest, whose statistics would be those of a part.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lgl_recipe import LGL
from loops import FakeLoop
from modules import load
from recipes import QUIET_WAVLM, TORCHRUN, logged, small_corpus
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from shared import ddp
from shared.datasets.items import Sample, collate
from shared.errors import UserError
from shared.losses.aam_softmax import AamSoftmax
from shared.losses.aam_topk import AamSoftmaxTopK
from shared.models.adapters import AdapterSettings
from shared.models.mhfa import Mhfa
from shared.models.span_masks import SpanMasks
from shared.models.ssl_backends import LinearBackEnd
from shared.models.ssl_encoder import SslEncoder
from shared.optim import accumulation

ROWS, STEPS, CLASSES, SAMPLES, DIM = 8, 2, 5, 1200, 6
COMMON = {'device': 'cpu', 'amp': False, 'lr': 0.1, 'lr_min': 0.1, 'epoch': 1}
WEIGHTS = torch.tensor([1.0, 4.0, 0.3, 2.0, 7.0])  # of classes, far from equal


def siblings(paper, *names):
    """Files of a paper, which import each other by plain names; for a process of its own."""
    for name in names:
        sys.modules[name] = load(paper, name)
    return SimpleNamespace(**{name: sys.modules[name] for name in names})


def encoder(**settings):
    return SslEncoder(QUIET_WAVLM, masks=SpanMasks(), **settings)


class Flat(nn.Module):
    """Waves (B, L) to embeddings (B, DIM)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(SAMPLES, 8), nn.Tanh(), nn.Linear(8, DIM))

    def forward(self, waves, lengths=None):
        return self.layers(waves.to(self.layers[0].weight.dtype))


# --- a step of each paper: (framework, loop and args -> an epoch), on whatever ranks there are


def lgl(args):
    p = siblings('lgl', 'losses', 'framework', 'train')
    framework = p.framework.GatedClassification(Flat(), AamSoftmax(CLASSES, DIM))

    def epoch(parallel, loop, optimizer):
        gate = args.get('gate', p.losses.NO_GATE)
        return p.train.classification_epoch('', loop, parallel, optimizer, gate, args)

    return framework, epoch


def nawsv(args):
    p = siblings('nawsv', 'losses', 'framework', 'train')
    student = encoder()
    backend = LinearBackEnd(student.states, student.width, DIM)
    criterion = AamSoftmaxTopK(CLASSES, DIM, scale=10.0, top_k=2)
    framework = p.framework.FineTuning(student, backend, criterion, WEIGHTS)
    return framework, lambda parallel, loop, optimizer: p.train.finetune_epoch(
        '', 1, loop, parallel, optimizer, args
    )


def oskdft(args):
    p = siblings('oskdft', 'losses', 'framework', 'train')
    student = encoder(layers=1, adapters=AdapterSettings(4, 'relu', input='stream'))
    parts = {}
    if 'kd' in args['branches']:
        parts |= {'teacher': encoder(), 'kd': p.losses.DistilHubertLoss(16, 16, (1, 2))}
    if 'sv' in args['branches']:
        parts |= {
            'backend': LinearBackEnd(student.states, student.width, DIM),
            'criterion': p.losses.LinearSoftmax(CLASSES, DIM),
            'class_weights': WEIGHTS,
        }
    framework = p.framework.OneStep(student, **parts)
    args = {
        **args,
        'rebuild_adam': False,
        'path_kd': None,
        'student_warmup': 0,
        'adapter_lr_factor': 1.0,
        'kd_fades': False,
    }
    return framework, lambda parallel, loop, optimizer: p.train.train_epoch(
        '', 1, 1, loop, parallel, optimizer, args
    )


def enskd(args):
    p = siblings('enskd', 'losses', 'framework', 'models', 'train')
    teacher = p.models.Teacher(Flat(), p.models.ContinuousAam(CLASSES, DIM))
    criterion = p.models.ContinuousAam(CLASSES, DIM, scale=10.0)
    label_loss = None if args['kd'] == 'cosine' else p.losses.enskd_loss
    framework = p.framework.Distillation(Flat(), criterion, teacher, label_loss)
    schedule = p.train.Schedule(1, 0.1, 0.1, 0, 1.0, 0.2, 1, 1)
    return framework, lambda parallel, loop, optimizer: p.train.train_epoch(
        '', 1, schedule, 0.7, loop, parallel, optimizer, args
    )


def wavlm_ssl(args):
    p = siblings('wavlm_ssl', 'losses', 'framework', 'gate', 'train')
    settings = {'lc_threshold': 0.3, 'lc_temperature': 1.0, 'pull': 0.3, 'pull_squared': False}
    args = {**args, **settings, 'lr_decay': 1.0, 'lc_epoch': 1}
    model = encoder()
    backend = Mhfa(model.states, model.width, heads=2, compression=4, dim=DIM)
    criterion = AamSoftmax(CLASSES, DIM, scale=8.0)  # so that no loss is nearly 0
    framework = p.framework.GatedFineTuning(model, backend, criterion, args)
    framework.double()
    framework.pull_towards(model.state_dict(), 'cpu')
    with torch.no_grad():
        for _, parameter in framework.pulled():  # away from where they are pulled
            parameter.add_(0.01 * torch.randn_like(parameter))
    record = p.gate.LossRecord(ROWS * STEPS)
    gate = SimpleNamespace(log_gate=args['log_gate'], active=True, record=record)

    def epoch(parallel, loop, optimizer):
        for group in optimizer.param_groups:
            group['first_lr'] = 0.01
        metrics = p.train.finetune_epoch('', 1, 0, gate, loop, parallel, optimizer, args)
        fates = [part.tolist() for part in record.fates_and_labels()]
        return {**metrics, 'losses': record.values().tolist(), 'fates': fates}

    return framework, epoch


CASES = {  # what of, and its arguments
    'lgl': (lgl, {}),
    'lgl gated': (lgl, {'gate': 15.0}),
    'lgl, nothing selected': (lgl, {'gate': -1.0}),
    'nawsv': (nawsv, {}),
    'oskdft': (oskdft, {'branches': ('kd', 'sv')}),
    'oskdft, distilled alone': (oskdft, {'branches': ('kd',)}),
    'enskd': (enskd, {'kd': 'enskd'}),
    'enskd, cosine': (enskd, {'kd': 'cosine'}),
    'wavlm_ssl': (wavlm_ssl, {'lc': 'none', 'log_gate': 1.2}),
    'wavlm_ssl, hard': (wavlm_ssl, {'lc': 'hard', 'log_gate': 1.2}),
    'wavlm_ssl, soft': (wavlm_ssl, {'lc': 'soft', 'log_gate': 1.2}),
}


def batch_of(step):
    """This rank's rows of a batch."""
    draw, share = np.random.default_rng(step), ROWS // ddp.world_size()
    samples = []
    for row in range(ROWS):
        waves = draw.normal(size=(2, SAMPLES)).astype(np.float32)
        samples.append(Sample(waves, label=int(draw.integers(CLASSES)), index=ROWS * step + row))
    batch = collate(samples[share * ddp.rank() :][:share])
    return {**batch, 'waves': batch['waves'].double()}


def learnt(case, parts):
    """Metrics and weights after an epoch, and how often gradients met in each step."""
    make, given = CASES[case]
    args = {**COMMON, **given, 'accumulate': parts}
    torch.manual_seed(0)
    framework, epoch = make(args)
    for module in framework.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # its statistics stay
    parallel, meetings = framework.double().distribute('cpu'), []

    def hook(state, bucket):
        meetings.append(loop.step)
        return allreduce_hook(None, bucket)

    if parallel is not framework:
        parallel.register_comm_hook(None, hook)
    optimizer = torch.optim.SGD([{'params': framework.learnable(), 'name': 'student'}], lr=0.1)
    views = slice(0, 2 if make is wavlm_ssl else 1)
    loop = Steps([{**b, 'waves': b['waves'][:, views]} for b in map(batch_of, range(STEPS))])
    metrics = epoch(parallel, loop, optimizer)
    state = {name: x.tolist() for name, x in framework.state_dict().items()}
    return metrics, state, loop.logged, meetings


class Steps(FakeLoop):
    """A loop that knows its step, and keeps what is logged in each."""

    def __init__(self, batches):
        super().__init__(batches)
        self.logged, self.step = [], 0
        update = self.meters.update

        def note(values):
            self.logged.append({name: float(value) for name, value in values.items()})
            update(values)

        self.meters.update = note

    def batches(self, title):
        for step, batch in enumerate(self.loader):
            self.step = step
            yield batch


def alone(case):
    """On one process: the whole batch, and the batch in parts."""
    return [learnt(case, parts) for parts in (1, 2, ROWS // 2)]


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('case', CASES)
def test_a_batch_in_parts_is_the_batch_on_one_process_and_on_two(case, run_ranks):
    (found,) = run_ranks(alone, case, ranks=1)
    (metrics, state, logged, _), *divided = found
    two, other = run_ranks(learnt, case, 2)
    assert_same(two[1], other[1])
    for name, start in state.items():
        assert np.isfinite(start).all(), name
    for row in (*divided, two):
        assert_same(row[0], metrics)
        assert_same(row[1], state)
    for row in divided:
        assert_same(row[2], logged)
    assert two[3] == other[3] == list(range(STEPS))  # gradients met once in each step


# --- from the command line


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp('corpus') / 'demo')


@pytest.mark.slow
def test_a_run_in_parts_makes_as_many_steps_and_one_started_in_one_part_goes_on(corpus, tmp_path):
    short = {'contrastive_epoch': 1, 'iterations': 1, 'phase_epoch_max': 1}
    LGL.run(corpus, tmp_path, phase='contrastive', **short)
    folder, _ = LGL.run(corpus, tmp_path, accumulate=4, **short)
    last = torch.load(folder / '1T' / 'last.pt', weights_only=True)['objects']
    (steps,) = {int(state['step']) for state in last['optimizer']['state'].values()}
    assert steps == 3  # 24 utterances in batches of 8
    assert ('classification/loss', 1) in logged(folder)


@pytest.mark.slow
def test_a_batch_that_parts_and_processes_do_not_divide_is_refused_before_training(
    corpus, tmp_path
):
    line = LGL.refused(corpus, tmp_path, accumulate=3)
    assert 'batch_size 8 does not divide among 1 processes' in line and 'such as 9' in line
    _, printed = LGL.run(corpus, tmp_path, TORCHRUN, status=1, accumulate=3)
    (line,) = [line for line in printed.splitlines() if line.startswith('error:')]
    assert 'among 2 processes of accumulate 3 parts each: use a multiple of 6, such as 6' in line
    assert not (tmp_path / 'LGL/run/contrastive').exists()


# --- arguments


@pytest.mark.parametrize('name', ['lgl', 'nawsv', 'oskdft', 'enskd', 'wavlm_ssl'])
def test_every_paper_takes_a_batch_in_one_part_unless_told(paper, name):
    get_args = paper(name).arguments.get_args
    for words in ([], ['--demo']):
        assert get_args(words)[2]['accumulate'] == 1
    assert get_args(['--accumulate', '4'])[2]['accumulate'] == 4
    for wrong in ('0', '-2'):
        with pytest.raises(UserError, match=f'^accumulate {wrong}: 1 or more$'):
            get_args(['--accumulate', wrong])


def test_a_recipe_without_a_phase_that_has_parts_is_refused(paper):
    get_args = paper('lgl').arguments.get_args
    get_args(['--accumulate', '2', '--phase', 'contrastive'])  # Stage II of the same run has parts
    with pytest.raises(UserError, match='divides no batch of Stage I; iterations 0 has no other'):
        get_args(['--accumulate', '2', '--iterations', '0'])


def test_every_batch_that_is_taken_in_parts_is_checked(paper):
    """Those of DINO, of the teacher in its file, of a row that is not trained are not."""
    enskd, words = paper('enskd'), ['--setting', 'matched', '--accumulate', '5']
    args = enskd.arguments.get_args([*words, '--batch_size', '10'])[0]
    enskd.phases.check_sizes(args)
    with pytest.raises(UserError, match='^teacher_batch_size 1024 does not'):
        enskd.phases.check_sizes({**args, 'path_teacher': None})
    enskd.phases.check_sizes({**args, 'phase': 'teacher', 'batch_size': 11})
    with pytest.raises(UserError, match=r'^batch_size \(resnet34, kl\) 11 does not'):
        enskd.phases.check_sizes({**args, 'student': 'resnet34', 'kd': 'kl', 'batch_size': 11})
    wavlm_ssl = paper('wavlm_ssl')
    args = wavlm_ssl.arguments.get_args(['--accumulate', '20'])[0]
    wavlm_ssl.checks.check_arguments({**args, 'dino_batch_size': 33})
    with pytest.raises(UserError, match='^lmft_batch_size 90 does not'):
        wavlm_ssl.checks.check_arguments({**args, 'lmft_batch_size': 90})
    wavlm_ssl.checks.check_arguments({**args, 'lmft_batch_size': 90, 'lmft_epochs': 0})


@pytest.mark.parametrize(
    ('name', 'batch', 'unused'),
    [
        ('lgl', 'contrastive_batch', {'published': 'x'}),
        ('lgl', 'batch_size', {'phase': 'contrastive'}),
        ('nawsv', 'warmup_batch_size', {'published': ['x', 'y']}),
        ('nawsv', 'batch_size', {'phase': 'warmup'}),
    ],
)
def test_batch_of_a_later_phase_is_refused_at_the_start(paper, name, batch, unused):
    modules = paper(name)
    args = modules.arguments.get_args([])[0]

    def check(**changes):
        accumulation.check_batches(modules.phases.batches({**args, **changes}), processes=4)

    check()
    with pytest.raises(UserError, match=f'^{batch} 90 does not divide among 4 processes: '):
        check(**{batch: 90})
    check(**{batch: 90}, **unused)
    check(**{batch: 90}, eval=True)
