"""The demo pre-training at a size of seconds: its files, its cache, what it refuses."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from shared import ddp
from shared.datasets import demo
from shared.demo_ssl import model as demo_ssl
from shared.demo_ssl.training import Recipe
from shared.errors import UserError
from shared.models.ssl_checkpoints import ssl_encoder

CORPUS = {
    'train_speakers': 4,
    'valid_speakers': 2,
    'test_speakers': 3,
    'videos': 2,
    'utterances_per_video': 2,
    'seconds': (0.6, 0.9),
    'trials': 20,
    'musan_files': (2, 1, 1),
    'rooms': 3,
}
CONFIG = dataclasses.replace(
    demo_ssl.SMALL, layers=2, width=16, ffn_width=16, conv_channels=(8,) * 7, position_kernel=8
)
RECIPE = Recipe(steps=50, batch_size=8, seconds=0.5, clusters=6, code_width=8, mix_prob=0.5)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return demo.make(tmp_path_factory.mktemp('demo'), **CORPUS, processes=1)


@pytest.fixture(scope='module')
def folder(corpus, tmp_path_factory):
    return make(tmp_path_factory.mktemp('model') / 'small', corpus)


def make(folder, corpus, seed=0, recipe=RECIPE, config=CONFIG):
    return demo_ssl.make(folder, corpus, seed=seed, recipe=recipe, config=config)


def record_of(folder):
    return json.loads((folder / 'pretraining.json').read_text())


def weights_of(folder):
    return load_file(folder / 'model.safetensors')


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_losses_fall(folder):
    first, *_, last = record_of(folder)['history']
    assert (first['step'], last['step']) == (5, 50)
    assert last['masked_loss'] < 0.97 * first['masked_loss']
    assert last['mfcc_loss'] < 0.97 * first['mfcc_loss']


def test_record_holds_both_probes_and_counts_parameters(folder):
    record = record_of(folder)
    for name in ('pretrained', 'random'):
        probe = record['probe'][name]
        assert len(probe['eer_by_state']) == CONFIG.layers + 1
        assert all(0 <= eer <= 100 for eer in [probe['eer'], *probe['eer_by_state']])
    assert record['parameters'] == sum(tensor.numel() for tensor in weights_of(folder).values())


def test_transformers_opens_the_folder_and_gives_the_same_states(folder):
    from transformers import AutoFeatureExtractor, AutoModel  # here, or every rank imports it

    wave = 0.1 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(0)) + 0.02
    prepare = AutoFeatureExtractor.from_pretrained(folder)
    inputs = prepare(wave[0].numpy(), sampling_rate=16000, return_tensors='pt')
    with torch.inference_mode():
        wanted = AutoModel.from_pretrained(folder).eval()(
            inputs['input_values'], output_hidden_states=True
        )
        found = ssl_encoder(folder).eval()(wave).states
    assert len(found) == len(wanted.hidden_states) == 3
    for ours, theirs in zip(found, wanted.hidden_states):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_same_seed_gives_the_same_weights_and_leaves_the_generator_alone(
    folder, corpus, tmp_path, monkeypatch
):
    monkeypatch.setattr(demo_ssl, 'probe', lambda *arguments: {})
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = make(tmp_path / 'again', corpus)
    assert same(weights_of(again), weights_of(folder))
    assert torch.equal(torch.get_rng_state(), state)
    other = make(tmp_path / 'other', corpus, seed=1, recipe=dataclasses.replace(RECIPE, steps=1))
    assert not same(weights_of(other), weights_of(folder))


def test_complete_folder_is_returned_untouched(folder, corpus, monkeypatch):
    monkeypatch.setattr(demo_ssl, 'train', None)  # cannot be called
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert make(folder, corpus) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    'change, named',
    [
        ({'seed': 1}, 'seed: 0 there, 1 wanted'),
        ({'recipe': dataclasses.replace(RECIPE, lr=0.5)}, r'recipe.lr: 0.008 there, 0.5 wanted'),
        ({'config': dataclasses.replace(CONFIG, heads=2)}, r'config.heads: 4 there, 2 wanted'),
    ],
)
def test_model_of_other_settings_is_refused_and_they_are_named(folder, corpus, change, named):
    before = weights_of(folder)
    with pytest.raises(UserError, match=named):
        make(folder, corpus, **change)
    assert same(weights_of(folder), before)


def test_model_of_another_corpus_is_refused(folder, corpus, tmp_path):
    found = json.loads((corpus.root / 'corpus.json').read_text())
    (tmp_path / 'corpus.json').write_text(json.dumps({**found, 'rooms': 9}))
    with pytest.raises(UserError, match='corpus.rooms: 3 there, 9 wanted'):
        make(folder, dataclasses.replace(corpus, root=tmp_path))


def test_folder_of_something_else_is_refused(corpus, tmp_path):
    (tmp_path / 'mine.txt').write_text('precious')
    with pytest.raises(UserError, match='no demo model'):
        make(tmp_path, corpus)
    assert [path.name for path in tmp_path.iterdir()] == ['mine.txt']


def test_interrupted_making_leaves_nothing(corpus, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_ssl, 'probe', interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / 'model', corpus, recipe=dataclasses.replace(RECIPE, steps=1))
    assert list(tmp_path.iterdir()) == []


def make_on_rank(folder, corpus):
    recipe = dataclasses.replace(RECIPE, steps=1)
    demo_ssl.probe = lambda *arguments: {'by': ddp.rank()}
    return record_of(make(folder, corpus, recipe=recipe))['probe']['random']


def test_rank_0_makes_it_and_others_wait(corpus, tmp_path, run_ranks):
    assert run_ranks(make_on_rank, tmp_path / 'model', corpus) == [{'by': 0}, {'by': 0}]
