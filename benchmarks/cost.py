"""Writes docs/cost.md: what each paper costs at full scale, in steps, GPU-hours, memory and disk.

    python benchmarks/cost.py             counts every step, then writes the page; three minutes
    python benchmarks/cost.py --render    the page alone, from what was counted before
    python benchmarks/cost.py --read      also measures how fast a loader core reads, on this machine

Counted (`counting.py`, kept in benchmarks/counted.json): operations of a whole training step, what
autograd keeps of it, parameters. Epochs and batches come from the papers' `arguments.py`. Everything
else is an assumption, below and on the page, and what follows from one is an estimate.
"""

import argparse
import importlib.util
import json
import platform
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

import true_size
from table import figure

from shared.errors import UserError
from shared.files import write_text

ROOT = Path(__file__).parents[1]
COUNTED, PAGE = ROOT / 'benchmarks' / 'counted.json', ROOT / 'docs' / 'cost.md'

# ---- assumptions ----

# utterances of the development set (specs), mean seconds of an utterance (as VoxCeleb's authors say)
CORPORA = {'VoxCeleb1': (148_642, 8.2), 'VoxCeleb2': (1_092_009, 7.8)}
NOISE_HOURS = 109  # of MUSAN
# dense peak of matrix products as NVIDIA states it, 1e12 floating-point operations a second
PEAK = {'A100': {'tf32': 156, 'bf16': 312}, 'H100': {'tf32': 495, 'bf16': 989}}
# share of the peak that a training step reaches, data never late: TF32, bf16
UTILISATION = {
    'A100': {
        'transformer': {'tf32': 0.40, 'bf16': 0.35},
        'ECAPA-TDNN, C = 512': {'tf32': 0.10, 'bf16': 0.06},
        'ECAPA-TDNN, C = 1024': {'tf32': 0.18, 'bf16': 0.12},
    },
    'H100': {
        'transformer': {'tf32': 0.30, 'bf16': 0.25},
        'ECAPA-TDNN, C = 512': {'tf32': 0.06, 'bf16': 0.03},
        'ECAPA-TDNN, C = 1024': {'tf32': 0.12, 'bf16': 0.08},
    },
}
SCALING = 0.9  # of 8 GPUs against 8 times one
PCM = 2 * 16_000  # bytes a second of audio
FLAC = 0.55  # bytes of FLAC for one of PCM; conversational speech off the web
TAR = 2 * 512 + 512 + 256  # bytes a tar adds to an utterance: two headers, speaker, padding
BF16_KEPT = 0.6  # bytes kept for the backward pass under bf16 autocast, for one of fp32
KMEANS_HOURS = 2.4  # of one core: 1,092,009 x 512 to 49,636 centroids (clustering.py)
RTX_3090 = 35.6  # peak, 1e12 operations a second, of fp32 and of TF32


@dataclass(frozen=True)
class Work:
    """Epochs of one phase."""

    phase: str
    epochs: int
    utterances: int  # an epoch; pairs in the warm-up
    batch: int
    kind: str = 'transformer'

    @property
    def steps(self) -> int:
        return self.epochs * (self.utterances // self.batch)


@dataclass(frozen=True)
class Run:
    """A paper's full run: phases, and passes over the whole training set for embeddings."""

    paper: str
    title: str
    corpus: str
    works: tuple[Work, ...]
    embeds: tuple[tuple[str, int], ...] = ()  # phase whose network embeds, how often


def runs() -> list[Run]:
    """The recipes at full scale, from the papers' arguments."""
    many, few = (CORPORA[name][0] for name in ('VoxCeleb2', 'VoxCeleb1'))
    found = []
    args, presets = arguments_of('lgl')
    total = presets['repo']['epoch_total']
    stages = (
        Work(
            'Stage I',
            args['contrastive_epoch'],
            many,
            args['contrastive_batch'],
            'ECAPA-TDNN, C = 512',
        ),
        Work('Stage II', total, many, args['batch_size'], 'ECAPA-TDNN, C = 512'),
    )
    found.append(Run('lgl', 'LGL', 'VoxCeleb2', stages, (('Stage II', args['iterations']),)))

    args, _ = arguments_of('enskd')
    table = load('enskd').PAPER
    for student in ('xvector', 'resnet34', 'campplus'):
        batch = table[student, 'enskd'][3]
        works = (Work(student, args['epoch'], many, batch),)
        found.append(Run('enskd', f'EnSKD, {student}', 'VoxCeleb2', works, ((student, 1),)))

    for preset, corpus in (('vox1_wavlm', 'VoxCeleb1'), ('vox2_w2v2', 'VoxCeleb2')):
        args, _ = arguments_of('oskdft', preset)
        works = (Work(preset, args['epoch'], CORPORA[corpus][0], args['batch_size']),)
        found.append(Run('oskdft', f'OS-KDFT, {preset}', corpus, works))

    # pairs an epoch: what the sampler leaves of at most 500 utterances a speaker (spec nawsv 2.7)
    for preset, corpus, steps, utterances in (
        ('vox1', 'VoxCeleb1', 726, few),
        ('vox2', 'VoxCeleb2', 5_599, many),
    ):
        args, _ = arguments_of('nawsv', preset)
        batch, adapters = args['warmup_batch_size'], args['adapter_epoch']
        frozen, short = args['unfreeze_ssl_epoch'], args['large_margin_epoch']
        pairs, size = steps * batch, args['batch_size']
        works = (
            Work('warm-up, adapters', adapters, pairs, batch),
            Work('warm-up, all', args['warmup_epoch'] - adapters, pairs, batch),
            Work('fine-tuning, back-end', frozen, utterances, size),
            Work('fine-tuning, all', short - frozen, utterances, size),
            Work('fine-tuning, long crops', args['epoch'] - short, utterances, size),
        )
        found.append(Run('nawsv', f'NAW-SV, {preset}', corpus, works))

    args, _ = arguments_of('wavlm_ssl')
    rounds, plain = args['rounds'] + 1, args['lc_epoch'] - 1
    labelled = round(0.99 * many)  # colliding labels are dropped (spec wavlm_ssl 2.4)
    batch, corrected = args['batch_size'], args['epoch'] - plain
    works = (
        Work('DINO', args['dino_take'], many, args['dino_batch_size'], 'ECAPA-TDNN, C = 1024'),
        Work('fine-tuning', rounds * plain, labelled, batch),
        Work('fine-tuning, corrected labels', rounds * corrected, labelled, batch),
        Work('large margin', args['lmft_epochs'], labelled, args['lmft_batch_size']),
    )
    embeds = (('DINO', 1), ('fine-tuning', args['rounds']))
    found.append(Run('wavlm_ssl', 'wavlm_ssl', 'VoxCeleb2', works, embeds))
    return found


def load(paper: str):
    """The paper's arguments.py, which imports none of its siblings."""
    name = f'{paper}_arguments'
    if name not in sys.modules:
        file = ROOT / 'papers' / paper / 'arguments.py'
        spec = importlib.util.spec_from_file_location(name, file)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def arguments_of(paper: str, preset: str | None = None) -> tuple[dict, dict]:
    """A paper's arguments, and its presets."""
    module = load(paper)
    args, *_ = module.get_args(['--preset', preset] if preset else [])
    return args, module.PRESETS


def page(counted: dict) -> str:
    """The whole page."""
    parts = [HEAD, assumptions(), whole_runs(counted), single_phases(counted), memory(counted)]
    parts += [loaders(counted), storage(counted), stated(counted)]
    return '\n\n'.join(part.strip() for part in parts) + '\n'


HEAD = """
# What the papers cost at full scale

Computed by `python benchmarks/cost.py`; a test keeps this page as the script writes it. **Counted**: steps,
operations and bytes of the networks of true size, through the papers' own epoch functions. **Measured**: what a
loader core reads. **Estimate**: everything in hours or days, from peak rates and assumed utilisation, and every
sum of memory. No run at full scale has been made with this code yet. A MAC is a multiply-accumulate, two
floating-point operations. Left out: scoring after each epoch (a few per cent), starting, saving, and waiting for
data. LayerDrop, which would save up to 5 % of a student's layers, was off while counting.
"""


def assumptions() -> str:
    corpora = [
        (
            f'{name}, development set',
            f'{count:,} utterances, {seconds} s on average (as its authors say)',
        )
        for name, (count, seconds) in CORPORA.items()
    ]
    peaks = [
        (f'{gpu}, dense peak', f'{rates["tf32"]} (TF32), {rates["bf16"]} (bf16) TFLOP/s (maker)')
        for gpu, rates in PEAK.items()
    ]
    shares = [
        (
            f'{kind}: share of the peak',
            '; '.join(
                f'{gpu} {100 * found[kind]["tf32"]:.0f} % of TF32, {100 * found[kind]["bf16"]:.0f} % of bf16'
                for gpu, found in UTILISATION.items()
            ),
        )
        for kind in UTILISATION['A100']
    ]
    rest = [
        (
            '8 GPUs',
            f'{100 * SCALING:.0f} % of 8 times one; there LGL needs `--contrastive_batch 304`, wavlm_ssl '
            '`--lmft_batch_size 104`: batches must divide',
        ),
        ('FLAC', f'{100 * FLAC:.0f} % of 16-bit PCM'),
        ('tar shard', f'{TAR:,} bytes an utterance more'),
        (
            'bf16 autocast',
            f'{100 * BF16_KEPT:.0f} % of the bytes that fp32 keeps for the backward pass',
        ),
    ]
    return '## Assumptions\n\n' + lines('what | assumed', corpora + peaks + shares + rest)


def whole_runs(counted: dict) -> str:
    found = []
    for run in runs():
        steps = sum(work.steps for work in run.works)
        macs = sum(total(counted, run, work) for work in run.works)
        hours = {
            (gpu, kind): sum(hours_of(counted, run, work, gpu, kind) for work in run.works)
            + embedding_hours(counted, run, gpu, kind)
            for gpu, kind in (('A100', 'tf32'), ('A100', 'bf16'), ('H100', 'bf16'))
        }
        days = ' '.join(
            f'| {figure(hours[gpu, "bf16"] / 24)} / {figure(hours[gpu, "bf16"] / 24 / 8 / SCALING)}'
            for gpu in PEAK
        )
        found.append(
            (run.title, run.corpus, f'{steps:,}', figure(macs / 1e18))
            + tuple(figure(value) for value in hours.values())
            + tuple(days.removeprefix('| ').split(' | '))
        )
    heads = (
        'run | corpus | steps | 1e18 MACs | A100 h, TF32 | A100 h, bf16 | H100 h, bf16 '
        '| days, 1 / 8 A100, bf16 | days, 1 / 8 H100, bf16'
    )
    text = (
        'Training and the embeddings of the training set, one seed; GPU-hours and days are estimates. '
        'LGL: 80 epochs of Stage I and 100 of Stage II in five iterations, the most that the released '
        'code trains (40 at least); our defaults have no total: up to 300 epochs of Stage II '
        '(`--epoch_total 100` sets it). C = 1024 in the last iteration would be dearer. wavlm_ssl: DINO, '
        'three fine-tunings, large margin.'
    )
    return f'## Whole runs\n\n{wrapped(text)}\n\n{lines(heads, found)}'


def single_phases(counted: dict) -> str:
    found = []
    for run in runs():
        whole = sum(hours_of(counted, run, work, 'A100', 'bf16') for work in run.works)
        for work in run.works:
            one = counted['steps'][run.paper][work.phase]
            parts = ', '.join(
                f'{part} {100 * x:.0f} %' for part, x in one['parts'].items() if x >= 0.005
            )
            share = 100 * hours_of(counted, run, work, 'A100', 'bf16') / whole
            found.append(
                (run.title, work.phase, work.epochs, f'{work.steps:,}', figure(one['macs'] / 1e9))
                + (parts, f'{share:.0f} %')
            )
    text = (
        'GMACs of an utterance, forward and backward (of a pair in the warm-up of NAW-SV); within a step '
        'the shares are of the MACs, the last column is of the estimated time.'
    )
    heads = 'run | phase | epochs | steps | GMAC | where they go | of the run'
    return f'## Where the time goes\n\n{wrapped(text)}\n\n{lines(heads, found)}'


def memory(counted: dict) -> str:
    found, seen = [], set()
    for run in runs():
        for work in run.works:
            if (run.paper, work.phase, work.batch) in seen:
                continue
            seen.add((run.paper, work.phase, work.batch))
            one = counted['steps'][run.paper][work.phase]
            fixed = 4 * (one['parameters'] + one['learnt']) + one['optimizer']
            sums = [
                f'{(fixed + factor * one["kept"] * work.batch / gpus) / 2**30:.1f}'
                for gpus in (1, 8)
                for factor in (1, BF16_KEPT)
            ]
            name = true_size.NAMES[run.paper]
            found.append(
                (
                    f'{name}, {work.phase}',
                    f'{one["parameters"] / 1e6:.1f}',
                    f'{one["learnt"] / 1e6:.1f}',
                )
                + (f'{fixed / 2**30:.1f}', f'{one["kept"] / 2**20:.0f}', f'{work.batch:,}', *sums)
            )
    text = (
        'Weights, gradients, optimizer, and what autograd keeps for the backward pass, counted on two '
        'utterances with attention written out in full, as an upper bound; sums (estimates) in GiB at the '
        'global batch, without work space. `checkpointing` of the SSL papers keeps less.'
    )
    heads = (
        'phase | parameters, M | learnt, M | weights and states, GiB | kept an utterance, MiB | batch '
        '| 1 GPU, fp32 | bf16 | each of 8, fp32 | bf16'
    )
    return f'## GPU memory\n\n{wrapped(text)}\n\n{lines(heads, found)}'


def loaders(counted: dict) -> str:
    found, seen = [], set()
    for run in runs():
        for work in run.works:
            milliseconds = counted['read'][run.paper][work.phase]
            if (run.paper, work.phase) in seen:
                continue
            seen.add((run.paper, work.phase))
            rates = [rate(counted, run, work, gpu, 'bf16') for gpu in PEAK]
            cores = [f'{one * milliseconds / 1e3:.1f}' for one in rates]
            found.append(
                (f'{true_size.NAMES[run.paper]}, {work.phase}', f'{milliseconds:.2f}')
                + (figure(1e3 / milliseconds), *map(figure, rates), *cores)
            )
    text = (
        f'Reading and collating one utterance (one pair), in processor time of one core: measured, '
        f'{counted["read_on"]}. Utterances a second that a GPU asks for, and cores to feed it: estimates; a slow '
        'disk or a network adds its own waiting.'
    )
    heads = (
        'phase | ms an utterance | utt/s a core | A100 asks, utt/s | H100 asks, utt/s '
        '| cores an A100 | cores an H100'
    )
    return f'## Loader cores\n\n{wrapped(text)}\n\n{lines(heads, found)}'


def storage(counted: dict) -> str:
    found = []
    for name, (count, seconds) in CORPORA.items():
        wav = count * seconds * PCM
        sizes = (wav, wav * FLAC, wav + count * TAR, wav * FLAC + count * TAR)
        hours = f'{count * seconds / 3600:,.0f}'
        found.append((name, hours, *(f'{size / 1e9:,.0f}' for size in sizes)))
    wav = NOISE_HOURS * 3600 * PCM
    found.append(
        ('MUSAN', NOISE_HOURS, *(f'{size / 1e9:,.0f}' for size in (wav, wav * FLAC)), '', '')
    )
    count = CORPORA['VoxCeleb2'][0]
    tables = ', '.join(f'{4 * count * dim / 2**30:.1f} GiB at {dim}' for dim in (192, 256, 512))
    text = (
        f'Host memory beside the loaders: embeddings of VoxCeleb2 are {tables} dimensions; the clustering '
        f'of wavlm_ssl peaks at 4.6 GiB with them and takes about {KMEANS_HOURS} hours of one core '
        f'(extrapolated from what `benchmarks/clustering.py` measured before the table in benchmarks/README.md was '
        f'made). All of MUSAN as 16-bit samples is '
        f'{wav / 2**30:.0f} GiB; `cache_gib` of a paper bounds what is kept of it.'
    )
    heads = 'corpus | hours | wav, GB | FLAC, GB | shards of wav, GB | shards of FLAC, GB'
    return f'## Disk and host memory\n\n{lines(heads, found)}\n\n{wrapped(text)}'


def stated(counted: dict) -> str:
    """What authors say their runs took (specs, field notes 3C), against the same from our counts."""
    many, steps = CORPORA['VoxCeleb2'][0], counted['steps']

    def implied(phase, minutes):
        macs, speed = steps['lgl'][phase]['macs'], many / (60 * minutes)
        flops = 2 * macs * speed / 1e12
        return f'{speed:.0f} utt/s, {flops:.1f} TFLOP/s by our count: {100 * flops / RTX_3090:.0f} % of its peak'

    teacher = steps['enskd']['campplus']
    flops = 2 * teacher['macs'] * teacher['parts']['teacher'] * many * 150
    gated = steps['wavlm_ssl']['fine-tuning, corrected labels']['macs']
    floor = 2 * gated * 0.99 * many * 15 / (2 * 20 * 3600) / 1e12
    found = [
        (
            'LGL, Stage I',
            'one RTX 3090: 40 min an epoch, 50 epochs, about 35 h',
            implied('Stage I', 40),
        ),
        ('LGL, Stage II', 'one RTX 3090: 20 min an epoch', implied('Stage II', 20)),
        (
            'EnSKD',
            '3 GPUs of a kind not stated, no time; our spec estimates 1.2e19 FLOP for the teacher',
            f'{flops:.1e} FLOP for the teacher of CAM++ in 150 epochs',
        ),
        (
            'wavlm_ssl',
            '2 A100, jobs of 20 h at most; 15 epochs a round',
            f'a round in one such job would take {floor:.0f} TFLOP/s a GPU or more',
        ),
        ('OS-KDFT, NAW-SV', '2 or 4 RTX A5000, no time', 'nothing to compare'),
    ]
    text = (
        'The shares of the peak that LGL implies, on another GPU, in fp32 and with loaders that decode whole '
        'files, are why small networks are assumed to reach no more than the table above says.'
    )
    heads = 'run | stated by its authors | ours'
    return f'## Against what the authors state\n\n{lines(heads, found)}\n\n{wrapped(text)}'


def total(counted: dict, run: Run, work: Work) -> float:
    """Multiply-accumulates of all epochs of a phase."""
    return counted['steps'][run.paper][work.phase]['macs'] * work.steps * work.batch


def rate(counted: dict, run: Run, work: Work, gpu: str, kind: str) -> float:
    """Utterances a second of one GPU, an estimate."""
    flops = 1e12 * PEAK[gpu][kind] * UTILISATION[gpu][work.kind][kind]
    return flops / (2 * counted['steps'][run.paper][work.phase]['macs'])


def hours_of(counted: dict, run: Run, work: Work, gpu: str, kind: str) -> float:
    """GPU-hours of a phase, an estimate."""
    return work.steps * work.batch / rate(counted, run, work, gpu, kind) / 3600


def embedding_hours(counted: dict, run: Run, gpu: str, kind: str) -> float:
    """GPU-hours of embedding the training set as often as the recipe does, an estimate."""
    count, seconds = CORPORA[run.corpus]
    works, found = {work.phase: work for work in run.works}, 0.0
    for phase, times in run.embeds:
        macs = counted['steps'][run.paper][phase]['embed'] * count * seconds
        flops = 1e12 * PEAK[gpu][kind] * UTILISATION[gpu][works[phase].kind][kind]
        found += times * 2 * macs / flops / 3600
    return found


def wrapped(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def lines(heads: str, rows) -> str:
    """A table of Markdown."""
    count = heads.count('|') + 1
    body = [f'| {heads} |', '|' + '---|' * count]
    return '\n'.join(body + ['| ' + ' | '.join(map(str, row)) + ' |' for row in rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--render', action='store_true', help='from what was counted before')
    parser.add_argument('--read', action='store_true', help='measure the reading of a loader core')
    options = parser.parse_args()
    counted = json.loads(COUNTED.read_text()) if COUNTED.exists() else {}
    counting = str(ROOT / 'benchmarks' / 'counting.py')
    if not options.render:
        counted['steps'] = {p: true_size.of_paper(p, counting) for p in true_size.PAPERS}
    if options.read:
        counted['read'], counted['read_on'] = reading(counting)
    if set(counted) != {'steps', 'read', 'read_on'}:
        raise UserError(f'{COUNTED}: not whole; run `python benchmarks/cost.py --read` once')
    write_text(COUNTED, json.dumps(counted, indent=1) + '\n')
    write_text(PAGE, page(counted))
    print(f'{PAGE}: {len(PAGE.read_text().splitlines())} lines')
    return 0


def reading(counting: str) -> tuple[dict, str]:
    """Milliseconds an utterance by paper and phase, and on what they were measured."""
    from loader import make_corpora

    with tempfile.TemporaryDirectory() as folder:
        make_corpora(Path(folder), 0.3)
        words = ('--corpora', folder)
        found = {p: true_size.of_paper(p, counting, *words) for p in true_size.PAPERS}
    return (
        found,
        f'wav files, warm page cache, {platform.machine()} virtual machine with other jobs',
    )


if __name__ == '__main__':
    sys.exit(main())
