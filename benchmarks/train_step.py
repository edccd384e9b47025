"""Training steps of the five papers at true size: utterances a second, against the slower published way.

    python benchmarks/train_step.py            # every phase, about ten minutes on one core
    python benchmarks/train_step.py --quick    # a phase or two of each paper, one round

A step is the paper's own epoch function: augmentation, features, forward, backward, optimizer. The
weights and the waves are random, the noises come from the paper's own data set on generated corpora
and are read before. Where the spec says that the released code computes more (a pass twice, a view
nobody uses), that is changed back in the same process; ratios are to that. CPU: one thread, 2
utterances, processor time, fp32, the ways in turn, best round. GPU: the batch of one of 8 GPUs or
what is left of 32 utterances, wall time, fp32 as torch sets it (TF32 in products) and bf16.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import table
import torch
import true_size
from counting import samples_of

QUICK = {
    'lgl': ('Stage II',),
    'enskd': ('xvector',),
    'oskdft': ('vox1_wavlm',),
    'nawsv': ('warm-up, adapters',),
    'wavlm_ssl': ('fine-tuning',),
}
SAME_LEAST = 1.0  # ours is never slower than what it replaces


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--paper', choices=true_size.PAPERS, help=argparse.SUPPRESS)
    parser.add_argument('--corpora', help=argparse.SUPPRESS)
    table.add_json(parser)
    options = parser.parse_args()
    if options.paper:
        print(json.dumps(measured(options.paper, Path(options.corpora), options.quick)))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        from loader import make_corpora

        make_corpora(Path(folder), 0.1)
        words = ['--corpora', folder, *(['--quick'] if options.quick else [])]
        for paper in true_size.PAPERS:
            found = true_size.of_paper(paper, __file__, *words)
            print(table.markdown(found), flush=True)
            rows += found
    table.hand_over(rows, options.json)
    return int(any(table.met(one) is False for one in rows))


def measured(paper: str, corpora: Path, quick: bool) -> list[dict]:
    """Rows of a paper's phases."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.set_float32_matmul_precision('high')
    rows = []
    for name, make in true_size.phases(paper, device).items():
        if quick and name not in QUICK[paper]:
            continue
        phase = make()
        count = min(32, max(phase.batch_size // 8, 2)) if device == 'cuda' else 2
        batch = true_size.cleaned(samples_of(phase, corpora, count))
        rows += steps(f'{true_size.NAMES[paper]}, {name}', phase, batch, count, device, quick)
        del phase
    return rows


def steps(title: str, phase, batch: dict, count: int, device: str, quick: bool) -> list[dict]:
    """A row for each precision, best of the rounds; the slower way in turn with ours."""
    where = torch.cuda.get_device_name() if device == 'cuda' else 'CPU, 1 thread'
    rounds, rows = 2 if quick else 3, []
    for precision in ('fp32', 'bf16') if device == 'cuda' else ('fp32',):
        phase.args['amp'] = precision == 'bf16'
        taken = {'ours': [], 'theirs': []}
        for _ in range(rounds):
            taken['ours'].append(seconds(phase, batch, device))
            if phase.slower:
                with phase.slower.applied(phase.framework):
                    taken['theirs'].append(seconds(phase, batch, device))
        first = 1 if device == 'cuda' else 0  # that of a GPU sets things up
        ours = count / min(taken['ours'][first:])
        theirs = count / min(taken['theirs'][first:]) if phase.slower else None
        label = f'training step, {title}' + (
            f'; other: {phase.slower.what}' if phase.slower else ''
        )
        rows.append(
            table.row(
                label,
                ours,
                theirs,
                unit='utt/s',
                target=f'>= {SAME_LEAST:g}x' if phase.slower else None,
                device=f'{where}, {precision}, batch {count}',
            )
        )
    return rows


def seconds(phase, batch: dict, device: str) -> float:
    """Of a step."""
    start = clock(device)
    phase.epoch(true_size.Batches([batch]))
    return clock(device) - start


def clock(device: str) -> float:
    if device == 'cpu':
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == '__main__':
    sys.exit(main())
