"""Every demo, killed with SIGKILL at random moments and started again: the same bits at the end.

    SV_KILLS=20 python -m pytest -s tests/faults/test_kills.py

spreads 20 kills over the five demos, at moments drawn from SV_KILLS_SEED (0), and prints a line for
each; half an hour on one core. The demos are short ones, on the real demo corpus and its pre-trained
model: the first run that needs them makes them, and is killed while it does. All other tests here
show that this one finds faults.
"""

import json
import mmap
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from kills import (
    CORPUS,
    MARK,
    RUNS,
    SCRATCH,
    Kill,
    Lane,
    await_end,
    differences,
    draw_kills,
    litter,
    living,
    shared_memory_of,
)
from recipes import Recipe

KILLS, SEED = int(os.environ.get('SV_KILLS', '0')), int(os.environ.get('SV_KILLS_SEED', '0'))
COMMON = {  # a save every second; a worker, and memory shared with it
    'save_minutes': 0.02,
    'num_workers': 1,
    'cache_gib': 0.2,
    'keep_checkpoints': 2,
    'usable_gpu': '',
}
ECAPA = {
    'ecapa_width': 16,
    'ecapa_mfa_width': 48,
    'ecapa_attention_width': 16,
    'ecapa_se_width': 16,
}
DEMOS = {  # paper: its name in the log folder, and what makes its demo shorter
    'lgl': (
        'LGL',
        {
            'width': 16,
            'mfa_width': 48,
            'attention_width': 16,
            'se_width': 16,
            'contrastive_epoch': 2,
            'contrastive_crop': 12000,
            'iterations': 1,
            'gates': '1.5',
            'crop_size': 12000,
            'patience': 1,
            'phase_epoch_min': 1,
            'phase_epoch_max': 2,
        },
    ),
    'nawsv': (
        'NAW-SV',
        {
            **ECAPA,
            'seeds': '1',
            'compare': 'false',
            'warmup_epoch': 2,
            'epoch': 2,
            'unfreeze_ssl_epoch': 1,
            'large_margin_epoch': 1,
            'max_seg_per_spk': 4,
            'crop_size': 8000,
            'large_crop_size': 12000,
            'num_seg': 1,
            'seg_size': 8000,
            'test_snrs': '0',
        },
    ),
    'oskdft': (
        'OS-KDFT',
        {
            **ECAPA,
            'rows': 'two_steps,oskdft',
            'epoch': 2,
            'distil_epoch': 1,
            'crop_size': 8000,
            'num_seg': 1,
            'seg_size': 8000,
        },
    ),
    'enskd': (
        'EnSKD',
        {
            'losses': 'none,enskd',
            'channels': 16,
            'epoch': 2,
            'margin_start': 1,
            'margin_fixed': 2,
            'teacher_epoch': 2,
            'teacher_frames': 50,
            'teacher_width': 16,
            'least_recognised': 0,
            'frames': 50,
        },
    ),
    'wavlm_ssl': (
        'WavLM-SSL',
        {
            'dino_epoch': 1,
            'dino_take': 1,
            'dino_outputs': 256,
            'dino_regulariser': 256,
            'dino_width': 16,
            'dino_mfa_width': 48,
            'global_size': 8000,
            'local_size': 4000,
            'centroids': 200,
            'clusters': 100,
            'max_seg_per_spk': 4,
            'epoch': 2,
            'gate_epoch': 2,
            'lc_epoch': 2,
            'max_frames': 50,
            'lmft_frames': 60,
            'num_eval': 1,
            'eval_frames': 50,
        },
    ),
}


@pytest.fixture(scope='module')
def lanes(request, tmp_path_factory):
    """Two folders for the demos, with their corpora: one for the undisturbed, one for the killed."""
    root = tmp_path_factory.mktemp('kills')
    yield root / 'undisturbed', root / 'killed'
    if not request.session.testsfailed:  # a gigabyte and a half
        shutil.rmtree(root)


def lane_of(paper, root, starting=0.0):
    """The short demo of a paper, in a folder that it shares with the others."""
    project, settings = DEMOS[paper]
    recipe = Recipe(paper, project, {**COMMON, **settings}, lambda _: {})
    command = recipe.command(None, root / RUNS, name='demo', demo='true', path_demo=root / CORPUS)
    return Lane(command, root, starting)


@pytest.mark.slow
@pytest.mark.skipif(not KILLS, reason='half an hour; SV_KILLS=20 runs it with 20 kills')
@pytest.mark.parametrize('paper', DEMOS)
def test_demo_killed_at_random_moments_ends_with_the_same_bits(paper, lanes):
    number = list(DEMOS).index(paper)
    first = lane_of(paper, lanes[0])
    began = time.monotonic()
    subprocess.run([*first.command, '--help'], check=True, capture_output=True, timeout=120)
    starting = time.monotonic() - began
    seconds, seen = first.undisturbed()
    say(paper, 'undisturbed', {'seconds': round(seconds, 1), 'starting': round(starting, 1)})

    count = KILLS // len(DEMOS) + (number < KILLS % len(DEMOS))
    second = lane_of(paper, lanes[1], starting)
    for kill in draw_kills([SEED, number], count, seconds):
        record = second.killed(kill, seen)
        say(paper, 'killed', record)
        assert record, f'{kill}: the run had ended; a quieter machine, or another SV_KILLS_SEED'
    began = time.monotonic()
    second.finish()
    say(paper, 'finished', {'after seconds': round(time.monotonic() - began, 1)})

    project = DEMOS[paper][0]
    say(paper, 'left in TMPDIR', sorted(os.listdir(lanes[1] / SCRATCH)))
    found = []
    for part in (CORPUS, f'{RUNS}/{project}'):
        found += [*differences(*lanes, part), *litter(lanes[1] / part)]
    assert not found, '\n'.join(found)


def say(paper, what, record):
    print(f'\n{paper} {what}: {json.dumps(record, ensure_ascii=False)}', flush=True)


# --- the test can fail


def test_moments_come_from_the_seed_and_are_spread_over_the_run():
    kills = draw_kills([3, 1], 200, 50.0)
    assert kills == draw_kills([3, 1], 200, 50.0) != draw_kills([4, 1], 200, 50.0)
    moments = [kill.at for kill in kills]
    assert all(n < moment / 48.5 * 200 < n + 1 for n, moment in enumerate(moments))
    assert {(kill.alone, kill.writing) for kill in kills} == {
        (alone, writing) for alone in (False, True) for writing in (False, True)
    }


@pytest.fixture
def lanes_of_files(tmp_path):
    """Two lanes whose files hold the same but for times and their own path."""
    for name, speed in (('one', 1.0), ('other', 2.0)):
        lane = tmp_path / name
        folder = lane / RUNS / 'demo'
        folder.mkdir(parents=True)
        (lane / CORPUS).mkdir()
        state = {'weight': torch.arange(3.0), 'nan': torch.tensor(torch.nan)}
        state['sampler'] = {'epoch': 1, 'batch': int(speed)}
        history = [{'epoch': 1, 'loss': 0.5, 'utterances_per_second': speed}]
        generators = [{'python': (3, (int(speed),)), 'torch': torch.arange(4)}]
        state = {'objects': state, 'history': history, 'generators': generators}
        torch.save(state, folder / 'last.pt')
        np.save(folder / 'scores.npy', np.arange(4) / 3)
        np.savez(folder / 'losses.npz', losses=np.array([1.0, np.nan]))
        (folder / 'run.json').write_text(json.dumps({'path_log': str(lane), 'started': speed}))
        (folder / 'labels.txt').write_text('1 a.wav\n')
        lines = [{'name': n, 'step': 1, 'value': v} for n, v in (('loss', 2.0), ('seconds', speed))]
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
        (folder / 'curve.png').write_bytes(b'%f' % speed + b'IEND\xaeB`\x82')
        soundfile.write(lane / CORPUS / 'a.wav', np.zeros(100), 16000, subtype='PCM_16')
    return tmp_path / 'one', tmp_path / 'other'


def all_differences(lanes):
    return [line for part in (CORPUS, RUNS) for line in differences(*lanes, part)]


def test_lanes_that_differ_in_what_no_result_depends_on_are_the_same_and_clean(lanes_of_files):
    assert all_differences(lanes_of_files) == []
    assert [line for lane in lanes_of_files for line in litter(lane)] == []


def change_weight(folder):
    state = torch.load(folder / 'last.pt', weights_only=True)
    state['objects']['weight'][1] += 1e-6
    torch.save(state, folder / 'last.pt')


def change_generator(folder):
    state = torch.load(folder / 'last.pt', weights_only=True)
    state['generators'][0]['torch'][2] += 1
    torch.save(state, folder / 'last.pt')


def change_score(folder):
    np.save(folder / 'scores.npy', np.nextafter(np.arange(4) / 3, 1))


def change_metric(folder):
    with (folder / 'metrics.jsonl').open('a') as file:
        file.write('{"name": "loss", "step": 1, "value": 2.5}\n')


PLANTED = {
    'weight': (change_weight, 'last.pt: /objects/weight: other numbers'),
    'generator': (change_generator, 'last.pt: /generators/0/torch: other numbers'),
    'score': (change_score, 'scores.npy: : other numbers'),
    'metric': (change_metric, "metrics.jsonl: /('loss', 1): 2.0 and 2.5"),
    'label': (lambda f: (f / 'labels.txt').write_text('2 a.wav\n'), 'labels.txt: : other bytes'),
    'lost': (lambda f: (f / 'labels.txt').unlink(), 'labels.txt: only in'),
    'new': (lambda f: (f / 'run-2.json').write_text('{}'), 'run-2.json: only in'),
    'argument': (lambda f: (f / 'run.json').write_text('{"a": 1}'), 'run.json: /path_log: in one'),
    'wave': (
        lambda f: soundfile.write(f.parents[1] / CORPUS / 'a.wav', np.ones(100), 16000),
        'a.wav: : other bytes',
    ),
}


@pytest.mark.parametrize('plant', PLANTED)
def test_planted_difference_is_found(plant, lanes_of_files):
    change, expected = PLANTED[plant]
    change(lanes_of_files[1] / RUNS / 'demo')
    found = all_differences(lanes_of_files)
    assert found and expected in found[0]


def cut(name):
    def change(lane):
        path = lane / name
        path.write_bytes(path.read_bytes()[:-7])

    return change


TORN = {
    'temporary file': (lambda f: (f / RUNS / '.last.pt.12.tmp').touch(), '.last.pt.12.tmp: temp'),
    'temporary folder': (lambda f: (f / CORPUS / '.a.1.tmp').mkdir(), '.a.1.tmp: temporary'),
    'record': (lambda f: (f / CORPUS / 'c.unfinished.json').write_text('{}'), 'unfinished'),
    'empty': (lambda f: (f / RUNS / 'demo/labels.txt').write_text(''), 'labels.txt: empty'),
    'json': (cut(f'{RUNS}/demo/run.json'), 'run.json: torn'),
    'jsonl': (cut(f'{RUNS}/demo/metrics.jsonl'), 'metrics.jsonl: torn'),
    'pt': (cut(f'{RUNS}/demo/last.pt'), 'last.pt: torn'),
    'npy': (cut(f'{RUNS}/demo/scores.npy'), 'scores.npy: torn'),
    'npz': (cut(f'{RUNS}/demo/losses.npz'), 'losses.npz: torn'),
    'png': (cut(f'{RUNS}/demo/curve.png'), 'curve.png: torn'),
    'wav': (cut(f'{CORPUS}/a.wav'), 'a.wav: torn'),
}


@pytest.mark.parametrize('kind', TORN)
def test_torn_or_temporary_file_is_found(kind, lanes_of_files):
    change, expected = TORN[kind]
    change(lanes_of_files[1])
    (line,) = litter(lanes_of_files[1])
    assert expected in line
    assert litter(lanes_of_files[0]) == []


def test_process_that_outlives_its_parent_is_found_and_ended():
    process = subprocess.Popen(['sleep', '60'], env={**os.environ, MARK: 'outlives'})
    while process.pid not in living('outlives'):
        time.sleep(0.01)  # not yet the program
    assert not living('outlive-not')
    with pytest.raises(AssertionError, match='still alive .*sleep 60'):
        await_end('outlives', 0.2)
    assert process.wait(5) == -signal.SIGKILL and not living('outlives')


def test_shared_memory_is_found_as_long_as_it_has_a_name():
    path = Path(f'/dev/shm/test_kills_{os.getpid()}')
    try:
        path.write_bytes(bytes(8))
    except OSError:
        pytest.skip('no /dev/shm here')
    try:
        with path.open('rb') as file, mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ):
            assert path in shared_memory_of([os.getpid()])
            path.unlink()
            assert path not in shared_memory_of([os.getpid()])
    finally:
        path.unlink(missing_ok=True)


TOY = """
import json, os, subprocess, sys, time
from pathlib import Path

root, fault = Path(sys.argv[1]), sys.argv[2]
folder = root / 'runs' / 'toy'
folder.mkdir(parents=True, exist_ok=True)

def write(name, content):
    temporary = folder / f'.{name}.{os.getpid() if fault == "leaves" else 0}.tmp'
    temporary.write_text(json.dumps(content))
    time.sleep(0.02)
    os.replace(temporary, folder / name)

if fault == 'child':
    subprocess.Popen(['sleep', '60'])
state, skipped = {'step': 0, 'sum': 1}, 0
if (folder / 'state.json').exists():
    state = json.loads((folder / 'state.json').read_text())
    if fault == 'refuses':
        sys.exit('cannot go on')
    skipped = fault == 'skips'
for step in range(state['step'] + skipped, 40):
    state = {'step': step + 1, 'sum': state['sum'] * 31 % 1000003 + step}
    if step % 10 == 9:
        write(f'epoch{step // 10}.json', state)
    write('state.json', state)
write('result.json', state)
"""


def toy(folder, name, fault):
    """A lane of a program that goes on where it was killed, but for a fault."""
    script = folder / 'toy.py'
    script.write_text(TOY)
    return Lane([str(script), str(folder / name), fault], folder / name, patience=0.5)


SEEN = {f'{RUNS}/toy/epoch0.json': 0.3, f'{RUNS}/toy/epoch2.json': 0.7}  # landmarks of the toy


@pytest.fixture(scope='module')
def undisturbed_toy(tmp_path_factory):
    lane = toy(tmp_path_factory.mktemp('toy'), 'one', '')
    seconds, seen = lane.undisturbed()
    return lane.root, seconds, seen


def test_landmarks_of_an_undisturbed_run_are_its_files_as_they_came(undisturbed_toy):
    root, seconds, seen = undisturbed_toy
    assert set(seen) <= {f'{RUNS}/toy'[:end] for end in (4, 8)} | {
        path.relative_to(root).as_posix() for path in (root / RUNS / 'toy').iterdir()
    }
    moments = [seen[name] for name in SEEN]
    assert moments == sorted(moments) and 0.2 < moments[0] < moments[1] < seconds


def test_killed_program_that_goes_on_well_passes(undisturbed_toy, tmp_path):
    second = toy(tmp_path, 'other', '')
    kills = [Kill(0.31, False, False), Kill(0.8, True, True)]
    records = [second.killed(kill, SEEN) for kill in kills]
    assert [record['landmark'] for record in records] == list(SEEN)
    assert [record['killed'] for record in records] == ['all 1', 'the first of 1']
    assert records[1]['writing'].startswith('.') and records[1]['newest'].startswith(f'{RUNS}/toy/')
    second.finish()
    assert differences(undisturbed_toy[0], second.root, RUNS) == litter(second.root / RUNS) == []


FAULTS = {
    'skips': 'result.json: /sum',
    'leaves': 'json.*tmp: temporary',
    'refuses': 'status 1: .*cannot go on',
    'child': 'still alive',
}


@pytest.mark.parametrize('fault', FAULTS)
def test_fault_of_a_killed_program_is_found(fault, undisturbed_toy, tmp_path):
    second = toy(tmp_path, 'other', fault)
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        assert second.killed(Kill(0.4, alone=True, writing=True), SEEN)
        second.finish()
        found = [*differences(undisturbed_toy[0], second.root, RUNS), *litter(second.root / RUNS)]
        assert not found, '\n'.join(found)


def test_run_faster_than_the_undisturbed_one_is_killed_at_the_next_landmark(tmp_path):
    second = toy(tmp_path, 'other', '')
    record = second.killed(Kill(50.0, False, False), {f'{RUNS}/toy/epoch0.json': 60.0})
    assert record['landmark'] is None and record['of this start'] < 30
    assert json.loads((second.root / RUNS / 'toy/state.json').read_text())['step'] >= 9


def test_kill_after_the_end_gives_no_record(tmp_path):
    assert toy(tmp_path, 'other', '').killed(Kill(60.0, False, False), SEEN) is None
