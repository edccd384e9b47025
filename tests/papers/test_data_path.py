"""What every recipe's data path has in common: memory, loader processes, and what is said of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recipes import small_corpus

from shared import ddp
from shared.datasets import machine


class Listed(list):
    name = 'Vox1-O'


VALID = SimpleNamespace(trials=Listed(range(7)))
SMALL = {  # arguments of each paper, and its training loaders
    'lgl': (
        {'contrastive_batch': 6, 'batch_size': 6, 'contrastive_crop': 4000, 'crop_size': 6000}
        | {'selection': 'test', 'clusters': 4},
        lambda corpus: (corpus.contrastive_loader(), corpus.labelled_loader(labels(corpus), 1)),
    ),
    'enskd': (
        {'batch_size': 6, 'frames': 40, 'DA_p': 0.9},
        lambda corpus: (corpus.loader(1, corpus.args, 40),),
    ),
    'oskdft': (
        {'batch_size': 6, 'crop_size': 6000, 'DA_p': 0.9},
        lambda corpus: (corpus.loader(1),),
    ),
    'nawsv': (
        {'warmup_batch_size': 2, 'batch_size': 6, 'crop_size': 6000, 'DA_p': 0.9},
        lambda corpus: (corpus.pair_loader(1), corpus.labelled_loader(1)),
    ),
    'wavlm_ssl': (
        {'batch_size': 3, 'dino_batch_size': 6, 'max_frames': 40, 'global_size': 8000}
        | {'local_size': 4000},
        lambda corpus: (corpus.dino_loader(1), corpus.labelled_loader(labels(corpus), 1)),
    ),
}


def labels(corpus):
    return np.arange(len(corpus.train)) % 4


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp('corpus'))


@pytest.fixture
def corpus(paper, demo, tmp_path):
    """`corpus('lgl', cache_gib=1.0)`: that paper's Corpus, on small settings."""

    def make(name, **changes):
        modules = paper(name)
        paths = {'path_log': tmp_path, 'path_train': demo.train, 'list_train': demo.train_list}
        paths |= {'path_musan': demo.musan, 'path_rir': demo.rirs}
        words = [
            f'--{key}={value}' for key, value in {**paths, **SMALL[name][0], **changes}.items()
        ]
        args, _, _ = modules.arguments.get_args(words)
        if name == 'enskd':
            args = modules.arguments.of_row(args, args['student'], args['kd'])
        others = {'lgl': ([VALID],), 'nawsv': (VALID, demo.musan)}.get(name, (VALID,))
        return modules.data.Corpus(args, *others)

    return make


def batches(name, corpus):
    found = []
    for loader in SMALL[name][1](corpus):
        loader.batch_sampler.set_position(1)
        found += list(loader)
    return found


def assert_equal(one, other):
    assert type(one) is type(other)
    if torch.is_tensor(one):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    else:
        assert one == other


@pytest.mark.parametrize('name', sorted(SMALL))
def test_batches_from_memory_and_workers_are_those_from_disk(corpus, name):
    disk = corpus(name, num_workers=0)
    assert 'read from disk; 0 loader processes' in disk.describe()
    kept = corpus(name, num_workers=1, cache_gib=1.0)
    assert 'in memory: ' in kept.describe() and '; 1 loader processes' in kept.describe()
    expected, found = batches(name, disk), batches(name, kept)
    assert len(expected) == len(found) > 2
    assert any(len(batch['noise']) for batch in expected)
    assert any(len(batch['rir']) for batch in expected)
    for one, other in zip(expected, found):
        assert_equal(one, other)


@pytest.mark.filterwarnings('ignore:This DataLoader will create')  # torch's own, here of 2 cores
@pytest.mark.parametrize('name', sorted(SMALL))
def test_number_of_workers_is_chosen_from_cores_and_ranks_and_said(corpus, monkeypatch, name):
    monkeypatch.setattr(machine, 'cores', lambda: 24)
    monkeypatch.setattr(ddp, 'local_world_size', lambda: 4)
    chosen = corpus(name)
    assert chosen.describe().endswith('; 5 loader processes x 4 ranks')
    for loader in SMALL[name][1](chosen):
        assert loader.num_workers == 5
    warned = corpus(name, num_workers=7).describe().splitlines()[-1]
    assert warned.startswith('warning: 7 workers x 4 GPUs on 24 cores') and '5 would' in warned
