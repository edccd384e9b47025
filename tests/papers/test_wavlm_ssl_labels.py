"""Pseudo-labels of papers/wavlm_ssl: k-means, then Ward of its centroids (spec wavlm_ssl 5)."""

import numpy as np
import pytest
import torch
from author_layouts import modules_of
from sklearn.cluster import AgglomerativeClustering

from shared.clustering.kmeans import kmeans_euclidean
from shared.clustering.metrics import ari, nmi, purity
from shared.datasets.embeddings import read_labels, write_embeddings
from shared.errors import UserError
from shared.losses.aam_softmax import AamSoftmax

ARGS = {
    'normalise': True,
    'centroids': 60,
    'clusters': 25,
    'kmeans_iterations': 300,
    'cluster_seed': 3,
    'device': 'cpu',
}


@pytest.fixture
def labels(monkeypatch):
    yield from (paper.labels for paper in modules_of('wavlm_ssl', ('labels',), monkeypatch))


def voices(speakers=20, each=30, dim=24, noise=0.5, seed=0):
    """Embeddings (N, D) of very different lengths, and their speakers (N,)."""
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(speakers), each)
    table = rng.normal(size=(speakers, dim))[speaker]
    table = table + noise * rng.normal(size=table.shape)
    return (table * rng.uniform(0.2, 5, (len(table), 1))).astype(np.float32), speaker


def test_labels_are_the_ward_cluster_of_the_nearest_centroid(labels):
    table, speaker = voices()
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    nearest, centroids = kmeans_euclidean(unit, 60, seed=3)
    merged = AgglomerativeClustering(25, linkage='ward').fit_predict(centroids)
    found = labels.make_labels(table, ARGS)
    assert ari(merged[nearest], found) == pytest.approx(100)
    assert nmi(speaker, found) > 97


def test_labels_of_kmeans_alone_and_of_raw_embeddings(labels):
    table, speaker = voices()
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    alone = labels.make_labels(table, {**ARGS, 'clusters': 0})
    np.testing.assert_array_equal(alone, kmeans_euclidean(unit, 60, seed=3)[0])
    raw = labels.make_labels(table, {**ARGS, 'clusters': 0, 'normalise': False})
    np.testing.assert_array_equal(raw, kmeans_euclidean(table, 60, seed=3)[0])
    assert nmi(speaker, raw) < nmi(speaker, alone) - 10  # its clusters are of lengths


def test_passes_of_kmeans_are_those_asked_for_and_end_at_the_tolerance_of_the_authors(labels):
    table = np.random.default_rng(0).normal(size=(3000, 2)).astype(np.float32)  # no clusters: slow
    args = {**ARGS, 'centroids': 12, 'clusters': 0, 'normalise': False}
    two = labels.make_labels(table, {**args, 'kmeans_iterations': 2})
    expected = kmeans_euclidean(table, 12, seed=3, iterations=2)[0]
    np.testing.assert_array_equal(two, expected)
    found = labels.make_labels(table, args)
    assert (found != two).any()
    for tolerance, same in ((1e-4, True), (1e-3, False), (1e-5, False)):
        expected = kmeans_euclidean(table, 12, seed=3, tolerance=tolerance)[0]
        assert (found == expected).all() == same


def planted(seed=0):
    """Noisy views (N, D) of utterances: a voice, and a channel drawn anew for each view; speakers."""
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(12), 20)
    voice = rng.normal(size=(12, 8))[speaker] + 0.3 * rng.normal(size=(240, 8))

    def view(loudness):
        channel = loudness * rng.normal(size=(240, 16))
        return torch.from_numpy(np.concatenate([voice, channel], axis=1)).float()

    return view, speaker


def test_labels_of_the_second_round_are_better_than_those_of_the_first(monkeypatch):
    """Spec 10.1-5: what learns the labels of planted embeddings, behind the gate, clusters better."""
    (paper,) = modules_of('wavlm_ssl', ('losses', 'gate', 'labels'), monkeypatch)
    args = {**ARGS, 'centroids': 48, 'clusters': 16}
    view, speaker = planted()
    clean = view(0.8)
    first = paper.labels.make_labels(clean.numpy(), args)
    torch.manual_seed(0)
    network, criterion = torch.nn.Linear(24, 8), AamSoftmax(16, 8, scale=15.0)
    optimizer = torch.optim.AdamW([*network.parameters(), *criterion.parameters()], lr=0.02)
    learnt, gate = torch.from_numpy(first), paper.losses.NO_GATE
    for step in range(80):
        each, logits = criterion(network(view(1.2)), learnt)
        if step == 40:
            gate = paper.gate.fit_gate(each.detach()).threshold
        gated = paper.losses.gate_and_correct(each, logits, None, learnt, gate)
        optimizer.zero_grad()
        (gated.loss / paper.losses.level_of(gated.loss)).backward()
        optimizer.step()
    assert gated.kept.float().mean() < 1
    second = paper.labels.make_labels(network(clean).detach().numpy(), args)
    assert nmi(speaker, second) > nmi(speaker, first) + 5
    assert paper.labels.quality(second, speaker)['NMI %'] == nmi(speaker, second)


def test_labels_stay_the_same_for_a_seed_and_a_zero_embedding_has_one(labels):
    table, _ = voices()
    table[7] = 0
    first, again = (labels.make_labels(table, ARGS) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = labels.make_labels(table, {**ARGS, 'cluster_seed': 4})
    assert ari(first, other) < 100


def test_more_centroids_than_embeddings_are_refused_in_one_line(labels):
    with pytest.raises(UserError, match='59 embeddings cannot make 60 centroids: lower'):
        labels.make_labels(voices()[0][:59], ARGS)


def test_quality_leaves_out_what_has_no_label(labels):
    speaker = np.array([0, 0, 1, 1, 2, 2, 2])
    found = np.array([4, 4, 0, 0, 0, -1, -1])
    kept = found[:5]
    assert labels.quality(found, speaker) == {
        'NMI %': nmi(speaker[:5], kept),
        'purity %': purity(speaker[:5], kept),
        'ARI %': ari(speaker[:5], kept),
    }
    assert labels.quality(found, np.zeros(7, dtype=int)) == {}  # speakers are not known


def test_a_file_of_embeddings_becomes_a_list_of_labels(labels, tmp_path, capsys):
    table, speaker = voices()
    names = [f'id{s:05d}/v/{i:05d}.wav' for i, s in enumerate(speaker)]
    write_embeddings(tmp_path / 'e.pt', names, table)
    labels.cluster_files(tmp_path / 'e.pt', tmp_path / 'out' / 'p.txt', ARGS)
    written, clusters = read_labels(tmp_path / 'out' / 'p.txt')
    assert written == names
    np.testing.assert_array_equal(clusters, labels.make_labels(table, ARGS))
    said = capsys.readouterr().out
    assert said.count('\n') == 1
    assert (
        f'p.txt: 600 embeddings of 24 numbers, 60 centroids, {clusters.max() + 1} clusters' in said
    )
    assert f'NMI % {nmi(speaker, clusters):.2f}' in said


@pytest.mark.parametrize('name', ['one/v/{}.wav', '{}.wav'])
def test_nothing_is_said_of_speakers_that_file_names_do_not_tell(labels, name, tmp_path, capsys):
    table, _ = voices()
    write_embeddings(tmp_path / 'e.pt', [name.format(i) for i in range(len(table))], table)
    labels.cluster_files(tmp_path / 'e.pt', tmp_path / 'p.txt', ARGS)
    assert 'NMI' not in capsys.readouterr().out


def test_a_list_of_labels_that_is_there_is_not_overwritten(labels, tmp_path):
    write_embeddings(tmp_path / 'e.pt', ['a/v/1.wav', 'b/v/1.wav'], np.eye(2))
    (tmp_path / 'p.txt').write_text('mine')
    with pytest.raises(UserError, match='p.txt: is there already'):
        labels.cluster_files(tmp_path / 'e.pt', tmp_path / 'p.txt', {**ARGS, 'centroids': 2})
    assert (tmp_path / 'p.txt').read_text() == 'mine'
