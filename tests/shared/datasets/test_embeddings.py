from pathlib import Path

import numpy as np
import pytest
import torch

from shared.datasets.embeddings import (
    coverage,
    key,
    labels_for,
    read_embeddings,
    read_labels,
    write_embeddings,
    write_labels,
)
from shared.datasets.items import DataError, Utterances

NAMES = ['id2/v/00001.wav', 'id1/v/00001.wav', 'id1/v/00002.wav']
TABLE = np.arange(12, dtype=np.float32).reshape(3, 4)


def utterances(*names):
    paths = np.array([name.encode() for name in names], dtype='S')
    return Utterances(Path('/data'), paths, np.zeros(len(names), dtype=np.int64), ('x',))


def test_key_is_the_last_three_parts_of_a_path():
    assert key('/data/voxceleb2/id1/v/1.wav') == key('id1/v/1.wav') == 'id1/v/1.wav'
    assert key('D:\\vox\\id1\\v\\1.wav') == 'id1/v/1.wav'
    assert key('1.wav') == '1.wav'


def test_embeddings_come_back_as_written(tmp_path):
    write_embeddings(tmp_path / 'e.pt', ['data/vox/' + name for name in NAMES], TABLE)
    names, table = read_embeddings(tmp_path / 'e.pt')
    assert names == NAMES  # not sorted: the file's order
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, TABLE)


def test_embeddings_are_written_as_the_published_dict(tmp_path):
    write_embeddings(tmp_path / 'e.pt', NAMES, TABLE.astype(np.float64))
    entries = torch.load(tmp_path / 'e.pt', weights_only=True)
    assert list(entries) == NAMES
    assert {(type(v), v.dtype, v.shape) for v in entries.values()} == {
        (torch.Tensor, torch.float32, (1, 4))
    }
    rows = torch.cat(list(entries.values()))  # what the authors' tool does
    np.testing.assert_array_equal(rows.numpy(), TABLE)


def test_the_table_of_embeddings_is_written_once(tmp_path):
    write_embeddings(tmp_path / 'e.pt', NAMES, TABLE)
    entries = torch.load(tmp_path / 'e.pt', weights_only=True)
    assert len({rows.untyped_storage().data_ptr() for rows in entries.values()}) == 1
    assert entries[NAMES[0]].untyped_storage().nbytes() == TABLE.nbytes


def test_embeddings_of_other_programs_are_read(tmp_path):
    entries = {
        f'data/voxceleb2/{name}': torch.from_numpy(row[None].copy()).half()
        for name, row in zip(NAMES, TABLE)
    }
    torch.save(entries, tmp_path / 'e.pt', _use_new_zipfile_serialization=False)
    names, table = read_embeddings(tmp_path / 'e.pt')
    assert names == NAMES and table.dtype == np.float32
    np.testing.assert_array_equal(table, TABLE)


WRONG = [
    ({}, 'must be a dict of utterance -> .1, D., not dict of 0'),
    (torch.ones(3, 4), r'not a tensor of shape \(3, 4\)'),
    ({'id1/v/1.wav': torch.ones(4)}, r"'id1/v/1.wav' is a tensor of shape \(4,\)"),
    ({'id1/v/1.wav': 3.0}, "'id1/v/1.wav' is float, not a tensor"),
    ({7: torch.ones(1, 4)}, '7 is a tensor'),
    ({'model': {'a': torch.ones(1, 4)}}, "'model' is dict of 1, not a tensor"),
    ({'a': torch.ones(2, 4)}, r'a has shape \(2, 4\), expected \(1, 4\)'),
    ({'a': torch.ones(1, 4), 'b': torch.ones(1, 5)}, r'b has shape \(1, 5\), expected \(1, 4\)'),
    ({'a': torch.ones(1, 0)}, 'no embeddings'),
    (
        {'a': torch.ones(1, 4), 'b': torch.tensor([[1, float('nan')] * 2])},
        '1 of 2 embeddings are not finite, first b',
    ),
    (
        {'x/a/b/c.wav': torch.ones(1, 4), 'y/a/b/c.wav': torch.ones(1, 4)},
        'a/b/c.wav occurs twice',
    ),
]


@pytest.mark.parametrize('entries, message', WRONG)
def test_a_wrong_file_of_embeddings_is_named_in_one_line(entries, message, tmp_path):
    torch.save(entries, tmp_path / 'e.pt')
    with pytest.raises(DataError, match=message) as error:
        read_embeddings(tmp_path / 'e.pt')
    assert str(error.value).startswith(str(tmp_path / 'e.pt')) and '\n' not in str(error.value)


def test_a_file_that_holds_no_tensors_is_refused_without_running_it(tmp_path):
    (tmp_path / 'e.pt').write_text('1 id1/v/1.wav\n')
    torch.save({'a': Path('/x')}, tmp_path / 'p.pt')
    for name in ('e.pt', 'p.pt'):
        with pytest.raises(DataError, match='no file of embeddings') as error:
            read_embeddings(tmp_path / name)
        assert '\n' not in str(error.value)
    with pytest.raises(DataError, match='cannot be read'):
        read_embeddings(tmp_path / 'none.pt')


def test_embeddings_that_could_not_be_read_again_are_not_written(tmp_path):
    path = tmp_path / 'e.pt'
    with pytest.raises(DataError, match='2 names for a table'):
        write_embeddings(path, NAMES[:2], TABLE)
    with pytest.raises(DataError, match='id1/v/00002.wav occurs twice'):
        write_embeddings(path, ['a/id1/v/00002.wav', *NAMES[1:]], TABLE)
    with pytest.raises(DataError, match='first id1/v/00001.wav'):
        write_embeddings(path, NAMES, np.where(TABLE == 5, np.inf, TABLE))
    assert not path.exists()


def test_labels_are_written_in_two_columns_and_come_back(tmp_path):
    write_labels(tmp_path / 'l.txt', ['data/' + name for name in NAMES], np.array([5312, 0, 10]))
    text = (tmp_path / 'l.txt').read_text()
    assert text == '5312 id2/v/00001.wav\n0 id1/v/00001.wav\n10 id1/v/00002.wav\n'
    names, labels = read_labels(tmp_path / 'l.txt')
    assert names == NAMES and labels.dtype == np.int64 and labels.tolist() == [5312, 0, 10]


def test_labels_that_do_not_fit_are_not_written(tmp_path):
    for labels in (np.zeros(2, dtype=int), np.array([0, -1, 2])):
        with pytest.raises(DataError, match='one cluster number from 0 for each of 3 names'):
            write_labels(tmp_path / 'l.txt', NAMES, labels)
    with pytest.raises(DataError, match='occurs twice'):
        write_labels(tmp_path / 'l.txt', NAMES[:1] * 3, np.zeros(3, dtype=int))


@pytest.mark.parametrize(
    'line, message',
    [
        ('-1 id1/v/3.wav', 'line 3 must begin with a cluster number'),
        ('1.0 id1/v/3.wav', 'line 3 must begin with a cluster number'),
        ('99999999999999999999 id1/v/3.wav', 'line 3 must begin with a cluster number'),
        ('1 id1/v/3.wav 4.5', 'line 3 must be `label path'),
        ('1', 'line 3 must be `label path'),
        ('1 /other/id1/v/1.wav', 'line 3 repeats an utterance'),
    ],
)
def test_a_wrong_line_of_labels_is_named(line, message, tmp_path):
    (tmp_path / 'l.txt').write_text(f'0 id1/v/1.wav\n1 id1/v/2.wav\n{line}\n')
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path / 'l.txt')


def test_a_train_list_gives_its_speakers_as_labels_in_sorted_order(tmp_path):
    rows = ('id10 id10/v/1.wav', 'id9 id9/v/1.wav', '7 id10/v/2.wav', 'id10 id10/v/3.wav')
    for seconds in ('', ' 4.5'):
        (tmp_path / 'l.txt').write_text(''.join(f'{row}{seconds}\n' for row in rows))
        names, labels = read_labels(tmp_path / 'l.txt')
        assert names == [row.split()[1] for row in rows] and labels.dtype == np.int64
        assert labels.tolist() == [1, 2, 0, 1]  # as strings: '7' is a name among names
    (tmp_path / 'l.txt').write_text('1 my files/1.wav\n')
    with pytest.raises(DataError, match='line 1 must be `label path'):
        read_labels(tmp_path / 'l.txt')


def test_labels_that_are_numbers_stay_as_written_and_sort_as_numbers(tmp_path):
    (tmp_path / 'l.txt').write_text('10 a/v/1.wav\n2 b/v/1.wav\n')
    names, labels = read_labels(tmp_path / 'l.txt')
    assert labels.tolist() == [10, 2]
    assert labels_for(utterances(*names), names, labels).tolist() == [1, 0]


def test_coverage_counts_utterances_with_a_name_and_names_without_an_utterance():
    corpus = utterances('id1/v/1.wav', 'id1/v/2.wav', 'id3/v/1.wav')
    assert coverage(corpus, ['id3/v/1.wav', 'id1/v/2.wav', 'x/v/1.wav']) == (2, 1)
    assert coverage(corpus, []) == (0, 0)


def test_an_empty_list_of_labels_is_refused(tmp_path):
    (tmp_path / 'l.txt').write_text('\n')
    with pytest.raises(DataError, match='lists no utterance'):
        read_labels(tmp_path / 'l.txt')


def test_classes_are_the_clusters_that_occur_in_the_order_of_their_numbers():
    corpus = utterances('id1/v/1.wav', 'id1/v/2.wav', 'id3/v/1.wav', 'id2/v/1.wav')
    names = ['id2/v/1.wav', 'id1/v/2.wav', 'other/v/1.wav', 'id1/v/1.wav']
    classes = labels_for(corpus, names, np.array([2, 10, 5, 2]))
    assert classes.dtype == np.int64  # 10 after 2, 5 is not of this corpus
    assert classes.tolist() == [0, 1, -1, 0]
    assert labels_for(corpus.select([0, 1]), names, np.array([2, 10, 5, 2])).tolist() == [0, 1]


def test_labels_of_another_corpus_are_refused():
    with pytest.raises(DataError, match='named like id1/v/1.wav, labels like a/b/c.wav'):
        labels_for(utterances('id1/v/1.wav'), ['a/b/c.wav'], np.array([0]))
