"""What two processes leave when a fault ends them: status, one line, files; and that they go on.

The faults of one process are tests of `tests/shared`.
"""

from pathlib import Path

import pytest

from shared.weight_files import read

RUN = Path(__file__).parents[1] / 'support' / 'fault_run.py'
GOOD = {'last.pt', 'best.pt', 'epoch_0001.pt'}  # of the first epoch


def line_of(ended):
    """The one line of a run that failed, below its progress bars."""
    lines = [line for line in ended.stderr.splitlines() if 'step/s' not in line and line.strip()]
    assert ended.returncode == 1 and len(lines) == 1, ended.stderr
    return lines[0]


@pytest.mark.slow
def test_full_disk_of_rank_0_ends_both_and_the_same_command_goes_on(tmp_path, python):
    parts = tmp_path / 'parts'
    line = line_of(python(RUN, tmp_path, 'full', seconds=120))
    assert line.startswith(f'error: {parts}/last.pt: could not be saved ([Errno 27] ')
    assert 'free some space, then run the same command again' in line
    assert {path.name for path in parts.iterdir()} == GOOD
    assert read(parts / 'last.pt')['position'] == {'epoch': 2, 'batch': 0}
    ended = python(RUN, tmp_path, 'none', seconds=120)  # there is room again
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, 'equal'), ended.stderr


@pytest.mark.slow
def test_nan_of_rank_1_ends_both_and_leaves_its_batch(tmp_path, python):
    parts = tmp_path / 'parts'
    line = line_of(python(RUN, tmp_path, 'nan', seconds=120))
    assert line.startswith('error: train 2: loss is nan at step 5 on rank 1; its batch is in ')
    assert f'{parts}/bad_batch_rank1.pt' in line and 'learning rate' in line
    assert {path.name for path in parts.iterdir()} == GOOD | {'bad_batch_rank1.pt'}
    bad = read(parts / 'bad_batch_rank1.pt')
    assert bad['batch']['waves'].isnan().nonzero().tolist() == [[0, 0, 0]]
    assert bad['files'][0] == [f'/data/{bad["batch"]["index"][0]}.wav']
    assert read(parts / 'last.pt')['position'] == {'epoch': 2, 'batch': 0}
