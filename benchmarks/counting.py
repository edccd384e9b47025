"""What a training step of each paper takes, counted: operations, and what autograd keeps.

    python benchmarks/counting.py --paper lgl    started by `true_size.of_paper`

Prints one line of JSON: for each phase, per utterance where it says so. Nothing is timed but
`read`, which needs corpora (`loader.make_corpora`).
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import true_size
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shared.datasets.items import collate
from shared.datasets.musan import Musan
from shared.datasets.reading import AudioReader
from shared.datasets.rirs import Rirs
from shared.datasets.voxceleb import read_folder
from shared.evaluation.cost import count_macs

RATE = 16_000
BATCH = 2  # utterances; more would only take longer
EMBEDDED = 8  # seconds of the file whose embedding is counted
READ = 96  # samples that are read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--paper', choices=true_size.PAPERS, required=True)
    parser.add_argument('--only', help='one phase')
    parser.add_argument('--corpora', help='folder of loader.make_corpora: read, do not count')
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found, reads = {}, {}

    def known(phase):  # phases that read the same are measured once
        key = str((phase.views, phase.pairs))
        reads[key] = reads.get(key) or read(phase, Path(options.corpora))
        return reads[key]

    for name, make in true_size.phases(options.paper).items():
        if options.only in (None, name):
            phase = make()
            found[name] = count(phase) if not options.corpora else known(phase)
            del phase
    print(json.dumps(found))


def count(phase: true_size.Phase) -> dict:
    """A training step of BATCH utterances, counted through the paper's own epoch function.

    `macs` are of forward and backward, an utterance; `parts` the share of each part in them, of
    what learns in proportion to its forward pass. `kept` are the bytes autograd holds for an
    utterance, attention written out in full; the others are bytes of the whole.
    """
    framework, kept, forward = phase.framework, {}, {}
    plain, own = framework.forward, {p.untyped_storage().data_ptr() for p in framework.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def noted(*values, **named):
        with saved_tensors_hooks(note, lambda tensor: tensor):
            result = plain(*values, **named)
        counts = counter.get_flop_counts()
        forward.update({name: sum(ops.values()) for name, ops in counts.items()})
        return result

    framework.forward = noted
    with (
        sdpa_kernel(SDPBackend.MATH),  # fused kernels of the CPU are not counted
        FlopCounterMode(display=False) as counter,
    ):
        phase.epoch(true_size.Batches([true_size.synthetic(phase, BATCH)]))
    framework.forward = plain
    states = [state for one in phase.optimizers for state in one.state.values()]
    tensors = [value for state in states for value in state.values() if torch.is_tensor(value)]
    learnt = [p for p in framework.parameters() if p.requires_grad]
    macs = counter.get_total_flops() // 2 // BATCH
    return {
        'macs': macs,
        'parts': shares(phase, forward, 2 * BATCH * macs),
        'kept': sum(kept.values()) // BATCH,
        'parameters': sum(p.numel() for p in framework.parameters()),
        'learnt': sum(p.numel() for p in learnt),
        'optimizer': sum(tensor.nbytes for tensor in tensors),
        'embed': embedding(phase),
        'samples': phase.views[''][1],
    }


def shares(phase: true_size.Phase, forward: dict[str, int], total: int) -> dict[str, float]:
    """Share of each part in the operations of a step: what is frozen has its forward pass alone."""
    root = type(phase.framework).__name__
    passes, frozen = {}, {}
    for part, children in phase.parts.items():
        modules = [phase.framework.get_submodule(child) for child in children if child]
        own = sum(topmost(forward, f'{root}.{child}') for child in children)
        learns = any(p.requires_grad for module in modules for p in module.parameters())
        (passes if learns else frozen)[part] = own
    left = total - sum(frozen.values())
    found = {part: own / total for part, own in frozen.items()}
    found |= {
        part: left * own / max(sum(passes.values()), 1) / total for part, own in passes.items()
    }
    return {part: round(found[part], 4) for part in phase.parts}


def topmost(counts: dict[str, int], prefix: str) -> int:
    """The operations of a module that may be called as a whole or child by child."""
    inside = [name for name in counts if name == prefix or name.startswith(prefix + '.')]
    tops = [n for n in inside if not any(n.startswith(other + '.') for other in inside)]
    return sum(counts[name] for name in tops)


def embedding(phase: true_size.Phase) -> int | None:
    """Multiply-accumulates of the embedding of a second of audio, in a file of EMBEDDED seconds."""
    if phase.embed is None:
        return None
    phase.framework.eval()
    return count_macs(phase.embed, torch.zeros(1, EMBEDDED * RATE)) // EMBEDDED


def read(phase: true_size.Phase, corpora: Path) -> float:
    """Milliseconds of processor time in which a loader process reads and collates an utterance.

    The best of three passes: other jobs only slow it down.
    """
    taken = []
    for epoch in range(1, 5):  # the first warms the page cache
        start = time.process_time()
        samples_of(phase, corpora, READ, epoch)
        taken.append(time.process_time() - start)
    return round(1e3 * min(taken[1:]) / READ, 2)


def samples_of(phase: true_size.Phase, corpora: Path, count: int, epoch: int = 1) -> dict:
    """A batch of the paper's own data set, on generated corpora."""
    utterances, reader = read_folder(corpora / 'vox'), AudioReader()
    data = phase.data(utterances, Musan(corpora / 'musan', reader), Rirs(corpora / 'rirs', reader))
    numbers = [i % len(utterances) for i in range(count)]
    if not phase.pairs:
        return collate([data[epoch, number] for number in numbers])
    speakers = utterances.speakers
    pairs = [np.flatnonzero(speakers == speakers[number])[:2] for number in numbers]
    return collate([data[epoch, int(pair[0]), int(pair[-1])] for pair in pairs])


if __name__ == '__main__':
    main()
