"""Extraction on one and two processes: every file in its row, nothing lost unsaid."""

import pytest
import torch
from torch import nn

from shared import ddp
from shared.errors import UserError
from shared.evaluation import extraction
from shared.evaluation.extraction import extract


def embed(waves, lengths):
    """Sum, first sample and length of each file: any mix-up of rows or lengths shows."""
    return torch.stack([waves.sum(1), waves[:, 0], lengths.float()], dim=1)


def batches(rows, size=3):
    """What the loader gives for these files: file i has i + 2 samples of value i + 1."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        lengths = torch.tensor([i + 2 for i in part])
        waves = torch.zeros(len(part), int(lengths.max()))
        for line, i in zip(waves, part):
            line[: i + 2] = i + 1
        yield {'index': torch.tensor(part), 'waves': waves, 'lengths': lengths, 'skipped': []}


def expected_rows(count):
    return torch.tensor([[(i + 1) * (i + 2), i + 1, i + 2] for i in range(count)]).float()


def test_extract_puts_every_file_in_its_row():
    found = extract(embed, list(batches([5, 0, 3, 6, 1, 4, 2])), 7, 'cpu')
    assert found.dtype == torch.float32
    assert not found.is_inference()  # the caller may go on with it
    torch.testing.assert_close(found, expected_rows(7), rtol=0, atol=0)


def test_extract_runs_the_network_in_inference_mode():
    seen = []

    def watched(waves, lengths):
        seen.append(torch.is_inference_mode_enabled())
        return embed(waves, lengths)

    extract(watched, list(batches([0, 1])), 2, 'cpu')
    assert seen == [True]


def test_extract_keeps_segments():
    found = extract(
        lambda w, n: embed(w, n)[:, None].expand(-1, 4, -1), [*batches([1, 0])], 2, 'cpu'
    )
    torch.testing.assert_close(found, expected_rows(2)[:, None].expand(-1, 4, -1))


def test_extract_names_files_that_never_came_or_came_twice():
    with pytest.raises(ValueError, match='2 files never came, 0 were skipped: 1, 4'):
        extract(embed, list(batches([0, 2, 3])), 5, 'cpu')
    with pytest.raises(ValueError, match='1 files were embedded more than once: 2'):
        extract(embed, list(batches([0, 1, 2, 2])), 3, 'cpu')
    with pytest.raises(ValueError, match=r'file index 0\.\.9 of 3 files'):
        extract(embed, list(batches([0, 9])), 3, 'cpu')


def test_extract_gives_nan_to_files_that_the_loader_skipped():
    given = list(batches([0, 2]))
    given[0]['skipped'] = ['1.wav: no samples']
    empty = {'index': torch.zeros(0, dtype=torch.int64), 'waves': torch.zeros(0, 0)}
    given.append({**empty, 'lengths': empty['index'], 'skipped': ['3.wav: truncated']})
    found = extract(embed, given, 4, 'cpu')
    assert found.isnan().all(1).tolist() == [False, True, False, True]
    torch.testing.assert_close(found[[0, 2]], expected_rows(3)[[0, 2]])
    with pytest.raises(UserError, match='none of 1 files could be read'):
        extract(embed, given[1:], 1, 'cpu')


def test_extract_refuses_a_network_in_train_mode_and_rows_that_do_not_match():
    class Network(nn.Module):
        def forward(self, waves, lengths):
            return embed(waves, lengths)

        embed = forward

    network = Network()
    for callable_ in (network, network.embed):
        with pytest.raises(ValueError, match='train mode'):
            extract(callable_, list(batches([0])), 1, 'cpu')
    assert extract(network.eval(), list(batches([0])), 1, 'cpu').shape == (1, 3)
    with pytest.raises(ValueError, match='1 embeddings for 2 files'):
        extract(lambda w, n: embed(w, n)[:1], list(batches([0, 1])), 2, 'cpu')


def test_extract_shows_progress_only_with_more_than_one_batch(capsys):
    extract(embed, list(batches([0, 1, 2])), 3, 'cpu')
    assert capsys.readouterr().err == ''
    extract(embed, list(batches([0, 1, 2, 3])), 4, 'cpu')
    shown = capsys.readouterr().err
    assert 'embeddings' in shown and '0/4' in shown and 'files/s' in shown


def test_extract_shows_progress_only_on_the_main_process(monkeypatch, capsys):
    monkeypatch.setattr(extraction.ddp, 'is_main', lambda: False)
    extract(embed, list(batches([0, 1, 2, 3])), 4, 'cpu')
    assert capsys.readouterr().err == ''


class Normalised(nn.Module):
    """A network whose batch norm has another running mean on each rank, as after an epoch."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.norm.running_mean.fill_(1 + ddp.rank())

    def forward(self, waves, lengths):
        return self.norm(embed(waves, lengths))

    embed = forward


def extracted_with_running_means():
    """Tables of a module, of one inside another, and of a method; the running means afterwards."""
    found = []
    for kind in ('module', 'inner', 'method'):
        network = Normalised().eval()
        outer = nn.ModuleDict({'inner': network}).eval()
        outer.forward = lambda waves, lengths, network=network: network(waves, lengths)
        taken = {'module': network, 'inner': outer, 'method': network.embed}[kind]
        share = [[5, 0, 3, 1], [4, 2]][ddp.rank()]
        table = extract(taken, list(batches(share)), 6, 'cpu')
        found.append((table, network.norm.running_mean.tolist()))
    return found


@pytest.mark.slow
def test_two_processes_embed_with_the_running_statistics_of_rank_0(run_ranks):
    alone = extract(Normalised().eval(), list(batches([5, 0, 3, 1, 4, 2])), 6, 'cpu')
    for found in run_ranks(extracted_with_running_means):
        for table, mean in found:
            assert mean == [1, 1, 1]
            torch.testing.assert_close(table, alone)


def extracted():
    """Tables of this rank's shares, and the error when both ranks embed the same files."""
    shares = [[6, 0, 3, 5, 1], [4, 2]], [[0, 1, 2], []]  # unequal; and one rank with nothing
    tables = [
        extract(embed, list(batches(share[ddp.rank()])), sum(map(len, share)), 'cpu')
        for share in shares
    ]
    with pytest.raises(ValueError) as caught:
        extract(embed, list(batches([0, 1])), 3, 'cpu')
    return tables, str(caught.value)


@pytest.mark.slow
def test_two_processes_get_the_embeddings_of_one_on_both(run_ranks):
    for tables, error in run_ranks(extracted):
        for table in tables:
            torch.testing.assert_close(table, expected_rows(len(table)), rtol=0, atol=0)
        assert 'embedded more than once: 0, 1' in error  # told by both, so neither waits
