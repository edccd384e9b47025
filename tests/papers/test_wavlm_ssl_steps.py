"""The steps of papers/wavlm_ssl around its trainings: order, labels, checks, files, tables."""

import types
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes import TINY_WAVLM, pretrained

from shared import ddp
from shared.datasets.embeddings import read_labels, write_embeddings
from shared.datasets.items import Utterances
from shared.errors import UserError
from shared.models.mhfa import Mhfa
from shared.models.ssl_encoder import SslEncoder
from shared.weight_files import write


@pytest.fixture
def wavlm_ssl(paper):
    return paper('wavlm_ssl')


def args_of(wavlm_ssl, *given, **changes):
    args, *_ = wavlm_ssl.arguments.get_args(given)
    return {**args, 'device': 'cpu', 'embeddings': None, 'labels': None, **changes}


# --- which steps are run


def names(steps, folder):
    """The steps of a recipe as --phase, file."""
    return [(phase, str(output.relative_to(folder))) for phase, output, _ in steps]


def test_recipe_is_dino_then_rounds_of_labels_and_fine_tuning_then_a_large_margin(
    wavlm_ssl, tmp_path
):
    args = args_of(wavlm_ssl, rounds=1, path_log=str(tmp_path))
    rounds = [
        [
            ('embed', f'embeddings/{n}.pt'),
            ('cluster', f'labels/{n}.txt'),
            ('finetune', f'round{n}/model.pt'),
        ]
        for n in (0, 1)
    ]
    expected = [('dino', 'dino/encoder.pt'), *rounds[0], *rounds[1], ('lmft', 'lmft1/model.pt')]
    recipe = partial(wavlm_ssl.main.recipe, 3)
    assert names(recipe(args), tmp_path / 'seed3') == expected
    given = {**args, 'labels': 'x.txt', 'lmft_epochs': 0}
    assert names(recipe(given), tmp_path / 'seed3') == [*rounds[0][1:], *rounds[1]]
    work = {str(output.name): work for _, output, work in recipe(given)}
    assert work['0.txt'].args == (Path('x.txt'),)  # what is clustered
    assert work['1.txt'].args == (tmp_path / 'seed3/embeddings/1.pt',)
    assert work['1.pt'].args == (tmp_path / 'seed3/round0/model.pt',)  # what embeds


def ran(wavlm_ssl, folder, phase, seed=1):
    """Runs the steps of a small recipe that are due: what was made."""
    kinds = ('dino', 'embed', 'cluster', 'finetune', 'embed', 'cluster')
    steps = [(kind, folder / f'{n} {kind}', Path.touch) for n, kind in enumerate(kinds)]
    made = []
    for output, work in wavlm_ssl.phases.due(seed, steps, {'phase': phase}):
        work(output)
        made.append(output.name)
    return made


def test_a_phase_runs_the_next_step_alone_and_then_says_what_comes(wavlm_ssl, tmp_path, capsys):
    run = partial(ran, wavlm_ssl, tmp_path)
    with pytest.raises(UserError, match='0 dino: is not there; it comes first: run --phase dino'):
        run('finetune')
    assert run('dino') == ['0 dino']
    assert run('dino') == []
    assert capsys.readouterr().out == 'seed1: dino is done; next: --phase embed\n'
    with pytest.raises(UserError, match='1 embed: is not there; it comes first: run --phase embed'):
        run('cluster')
    assert [run(kind) for kind in ('embed', 'cluster')] == [['1 embed'], ['2 cluster']]
    assert run('finetune') == ['3 finetune']
    assert run('finetune') == []
    assert capsys.readouterr().out == 'seed1: finetune is done; next: --phase embed\n'
    assert run('embed') == ['4 embed']
    assert run('all') == ['5 cluster']
    assert run('embed') == run('all') == []
    assert capsys.readouterr().out == 'seed1: the whole recipe is done\n'


def test_all_runs_every_step_that_is_not_there(wavlm_ssl, tmp_path):
    (tmp_path / '2 cluster').touch()
    assert len(ran(wavlm_ssl, tmp_path, 'all')) == 5


# --- what is refused before anything is trained


@pytest.mark.parametrize('name', ['dino_batch_size', 'batch_size', 'lmft_batch_size'])
def test_batches_that_do_not_divide_among_the_processes_are_refused(wavlm_ssl, name, monkeypatch):
    check = wavlm_ssl.checks.check_arguments
    args = args_of(wavlm_ssl)
    check({**args, name: 45})
    monkeypatch.setattr(ddp, 'world_size', lambda: 4)
    check(args)
    with pytest.raises(UserError, match=f'{name} 45 does not divide among 4 processes'):
        check({**args, name: 45})
    unused = {**args, name: 45, 'labels': 'x', 'lmft_epochs': 0, 'batch_size': 4}
    check(unused)
    check({**args, name: 45, 'eval': True})


def test_a_published_file_is_only_scored(wavlm_ssl):
    with pytest.raises(UserError, match='published: .*--eval'):
        wavlm_ssl.checks.check_arguments(args_of(wavlm_ssl, published='x.model'))
    wavlm_ssl.checks.check_arguments(args_of(wavlm_ssl, published='x.model', eval=True))
    with pytest.raises(UserError, match='both are for --phase cluster'):
        wavlm_ssl.checks.check_arguments(args_of(wavlm_ssl, embeddings='x', labels='y'))


def test_sizes_that_the_corpus_cannot_fill_are_refused(wavlm_ssl):
    corpus = types.SimpleNamespace(train=range(100))
    sizes = {'centroids': 100, 'clusters': 40}
    sizes |= dict.fromkeys(('dino_batch_size', 'batch_size', 'lmft_batch_size'), 40)
    args = args_of(wavlm_ssl, **sizes)
    check = partial(wavlm_ssl.checks.check_corpus, corpus=corpus)
    check(args)
    with pytest.raises(UserError, match='100 training utterances cannot make 101 centroids'):
        check({**args, 'centroids': 101})
    with pytest.raises(UserError, match='dino_batch_size 101: there are 100'):
        check({**args, 'dino_batch_size': 101})
    check({**args, 'dino_batch_size': 50})
    for name in ('batch_size', 'lmft_batch_size'):
        with pytest.raises(UserError, match=f'{name} 50: 40 clusters do not fill it'):
            check({**args, name: 50})
    # true labels: nothing is clustered
    check({**args, 'labels': 'x', 'rounds': 0, 'centroids': 101, 'batch_size': 50})
    # a given file of embeddings may have more rows than there are training files
    check({**args, 'embeddings': 'x', 'rounds': 0, 'centroids': 101})


def test_a_pre_trained_model_of_another_family_is_refused(wavlm_ssl, tmp_path):
    for family in ('wavlm', 'hubert'):
        pretrained(replace(TINY_WAVLM, family=family), tmp_path / family)
    wavlm_ssl.checks.check_model({'path_ssl': tmp_path / 'wavlm'})
    with pytest.raises(UserError, match='a hubert, not a WavLM'):
        wavlm_ssl.checks.check_model({'path_ssl': tmp_path / 'hubert'})
    (tmp_path / 'file').write_text('no model')
    with pytest.raises(UserError, match='file'):
        wavlm_ssl.checks.check_model({'path_ssl': tmp_path / 'file'})


# --- embeddings and pseudo-labels


def corpus_of(*names):
    paths = np.array([name.encode() for name in names], dtype='S')
    speakers = np.arange(len(names)) // 2
    ids = tuple(map(str, range(len(names))))
    return types.SimpleNamespace(train=Utterances(Path('/data'), paths, speakers, ids))


NAMES = [f'id{s}/v/{i}.wav' for s in range(4) for i in range(2)]


def clustered(wavlm_ssl, tmp_path, source, **changes):
    args = args_of(wavlm_ssl, centroids=3, clusters=2, **changes)
    wavlm_ssl.steps.cluster(source, tmp_path / 'labels.txt', 1, corpus_of(*NAMES), None, args)
    return tmp_path / 'labels.txt'


def test_labels_of_another_corpus_stop_before_anything_is_written(wavlm_ssl, tmp_path, capsys):
    source = tmp_path / 'given.txt'
    rows = [f'{i} {name}\n' for i, name in enumerate(NAMES)]
    foreign = [f'7 other/v/{i}.wav\n' for i in range(5)]
    source.write_text(''.join([*rows[:3], *foreign]))
    said = 'names 3 of 8 training utterances, 5 keys are not in the train list'
    with pytest.raises(UserError, match=said) as error:
        clustered(wavlm_ssl, tmp_path, source, labels=str(source))
    assert '\n' not in str(error.value) and not (tmp_path / 'labels.txt').exists()
    source.write_text(''.join([*rows[:4], *foreign]))  # mended: half of them are enough
    names, labels = read_labels(clustered(wavlm_ssl, tmp_path, source, labels=str(source)))
    assert names[:4] == NAMES[:4] and labels.tolist() == [0, 1, 2, 3] + [7] * 5
    said = 'names 4 of 8 training utterances, 5 keys are not in the train list'
    assert said in capsys.readouterr().out


def test_embeddings_of_another_corpus_are_refused_before_they_are_clustered(
    wavlm_ssl, tmp_path, monkeypatch
):
    table = np.random.default_rng(0).normal(size=(8, 5))
    monkeypatch.setattr(
        wavlm_ssl.steps, 'make_labels', lambda table, args: np.arange(len(table)) // 2
    )
    write_embeddings(tmp_path / 'e.pt', [f'x{name}' for name in NAMES], table)
    with pytest.raises(UserError, match='0 of 8 training utterances.*like id0/v/0.wav, keys like'):
        clustered(wavlm_ssl, tmp_path, tmp_path / 'e.pt')
    assert not (tmp_path / 'labels.txt').exists()
    write_embeddings(tmp_path / 'e.pt', NAMES, table)
    assert read_labels(clustered(wavlm_ssl, tmp_path, tmp_path / 'e.pt'))[0] == NAMES


def test_true_labels_are_the_speakers_of_a_train_list(wavlm_ssl, tmp_path):
    source = tmp_path / 'train_list.txt'
    source.write_text(''.join(f'{name.split("/")[0]} {name} 4.5\n' for name in NAMES))
    names, labels = read_labels(clustered(wavlm_ssl, tmp_path, source, labels=str(source)))
    assert names == NAMES and labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def speaker_file(wavlm_ssl, path, config=TINY_WAVLM):
    """A file of the authors' layout, of random weights."""
    torch.manual_seed(0)
    module = torch.nn.ModuleDict(
        {
            'encoder': SslEncoder(config),
            'backend': Mhfa(config.layers + 1, config.width, heads=2, compression=4, dim=6),
        }
    )
    write(wavlm_ssl.published.to_published(module.state_dict()), path)
    return path


def test_files_are_cut_for_scoring_and_whole_for_clustering(wavlm_ssl, tmp_path, monkeypatch):
    file = speaker_file(wavlm_ssl, tmp_path / 'model.pt')
    args = args_of(wavlm_ssl, longest=4000, path_ssl='/nowhere')
    seen = []

    def embeddings_of(system, *more):
        seen.append(system)
        return torch.zeros(8, 6)

    monkeypatch.setattr(wavlm_ssl.train, 'embeddings_of', embeddings_of)
    wavlm_ssl.steps.embed(file, tmp_path / 'e.pt', 1, corpus_of(*NAMES), None, args)
    waves, lengths = torch.randn(2, 9000), torch.tensor([9000, 6000])
    whole, cut = seen[0].eval(), wavlm_ssl.systems.system_of(file, args).eval()
    with torch.no_grad():
        expected = whole.backend(*whole.encoder(waves, lengths))
        torch.testing.assert_close(whole(waves, lengths), expected)
        torch.testing.assert_close(cut(waves, lengths), whole(waves[:, :4000]))
    assert not torch.allclose(cut(waves, lengths), expected, atol=1e-4)


# --- files of a run, and of the authors


def test_the_newest_model_is_found_whatever_rounds_says(wavlm_ssl, tmp_path):
    args = {'path_log': str(tmp_path), 'seeds': (2, 1), 'rounds': 1}
    with pytest.raises(UserError, match='seed1: no model.pt.*train first'):
        wavlm_ssl.paths.last_model(args)
    order = ['dino/encoder.pt']
    order += [f'{step}/model.pt' for step in ('round0', 'round1', 'lmft1', 'round10', 'lmft10')]
    for name in [*order[::-1], 'round_old/model.pt', 'lmft1/model_epoch1.pt', 'lmft2/last.pt']:
        (tmp_path / 'seed1' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'seed1' / name).touch()
    found = wavlm_ssl.paths.models_of(1, args)
    assert [str(file.relative_to(tmp_path / 'seed1')) for file in found] == order
    assert wavlm_ssl.paths.last_model(args) == tmp_path / 'seed1/lmft10/model.pt'


def test_a_base_model_is_scored_without_its_pre_trained_file(wavlm_ssl, tmp_path, capsys):
    """Dropout apart, the shapes and what is known of a Base+ tell all."""
    file = speaker_file(wavlm_ssl, tmp_path / 'model.pt')
    pretrained(TINY_WAVLM, tmp_path / 'wavlm')
    args = args_of(wavlm_ssl)
    missing, there = (
        wavlm_ssl.systems.system_of(file, {**args, 'path_ssl': str(tmp_path / name)}).eval()
        for name in ('nowhere', 'wavlm')
    )
    waves = torch.randn(2, 4000)
    with torch.no_grad():
        assert torch.equal(missing(waves), there(waves))
    assert capsys.readouterr().out.count('taken for a WavLM-Base+') == 1
    names = wavlm_ssl.paths.needed_paths
    assert 'path_ssl' in names(args) and 'path_ssl' not in names({**args, 'eval': True})


# --- the table


def record(crop, eer, sha256='a'):
    return {'crop': crop, 'eer': eer, 'sha256': sha256, 'name': 'O', 'min_dcf': {'0.01': eer / 10}}


def test_dino_counts_by_whole_files_and_the_rest_by_crops_too(wavlm_ssl):
    summary = wavlm_ssl.evaluation.summary
    row = summary({'step': 'dino', 'seed': 1, 'records': [record('full', 3.0)]})
    found = {'step': 'dino', 'seed': 1, 'EER %': 3.0, 'minDCF 0.01': 0.3, 'full EER %': 3.0}
    assert row == found
    crops = [record('tta', 5.0), record('full', 4.0), record('full+tta', 2.0)]
    other = [record(r['crop'], 50.0, 'b') for r in crops]
    scored = {'step': 'round0', 'seed': 1, 'records': [*crops, *other]}
    row = summary({**scored, 'quality': {'NMI %': 9.0}})
    assert (row['EER %'], row['minDCF 0.01'], row['NMI %']) == (2.0, 0.2, 9.0)
    assert (row['crops EER %'], row['full EER %']) == (5.0, 4.0)


def test_what_was_scored_is_not_built_again(wavlm_ssl, tmp_path, monkeypatch):
    module, built = wavlm_ssl.evaluation, []
    (tmp_path / 'seed1/round0').mkdir(parents=True)
    (tmp_path / 'seed1/round0/model.pt').touch()
    monkeypatch.setattr(module, 'system_of', lambda file, args: built.append(file))
    monkeypatch.setattr(module, 'quality_of', lambda file, corpus: {'NMI %': len(built)})
    monkeypatch.setattr(
        module, 'score', lambda step, seed, *more: {'step': step, 'seed': seed, 'records': []}
    )
    tests = [types.SimpleNamespace(trials=types.SimpleNamespace(sha256='a'))]
    args = {'path_log': str(tmp_path), 'as_norm': False}
    once, again = (module.measured(1, None, tests, args) for _ in range(2))
    assert once == again and len(built) == 1
    assert once[0]['quality'] == {'NMI %': 1} and once[0]['folder'] == tmp_path / 'seed1/round0'
    tests[0].trials.sha256 = 'b'
    module.measured(1, None, tests, args)
    assert len(built) == 2
