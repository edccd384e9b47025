"""docker/ without a container engine: what is chosen for the image, what the scripts would start.

The image itself is built by test_image.py.
"""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

DOCKER = Path(__file__).parents[1] / 'docker'
SIGNALS = 'SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1'


@pytest.fixture(scope='module')
def packages():
    """The functions of base_packages.py."""
    return runpy.run_path(str(DOCKER / 'base_packages.py'))


@pytest.fixture
def stub(tmp_path):
    """`stub(name, body)`: a program of that name at the front of PATH; returns the environment."""
    bin_folder = tmp_path / 'bin'
    bin_folder.mkdir()
    environment = {**os.environ, 'PATH': f'{bin_folder}{os.pathsep}{os.environ["PATH"]}'}

    def make(name, body):
        program = bin_folder / name
        program.write_text(f'#!/usr/bin/env bash\n{body}\n')
        program.chmod(0o755)
        return environment

    return make


@pytest.fixture
def run_script(stub, tmp_path):
    """`run_script(*arguments, **settings)`: the words docker/run.sh gives docker, or its error."""
    said = tmp_path / 'said'
    environment = stub('docker', f'printf "%s\\n" "$@" > {said}')
    environment.update(DATA=str(tmp_path), RUNS=str(tmp_path / 'runs'))

    def run(*arguments, **settings):
        command = ['bash', str(DOCKER / 'run.sh'), *arguments]
        done = subprocess.run(
            command, env={**environment, **settings}, capture_output=True, text=True, timeout=20
        )
        return said.read_text().splitlines() if done.returncode == 0 else done.stderr

    return run


def test_wanted_are_pins_that_the_base_lacks_or_has_too_old(packages):
    pins = ['# a comment', '', 'scipy==1.17.1', 'tqdm==4.70.1', 'wandb==0.31.0', 'torch==2.11.0']
    bounds = ['scipy>=1.11', 'tqdm>=4.66', 'wandb>=0.31', 'torch>=2.9', 'setuptools>=68']
    base = {'scipy': '1.12.0', 'tqdm': '4.65.0', 'torch': '2.10.0a0+b5.nv25.12'}
    assert packages['wanted'](base, pins, bounds) == [
        'setuptools>=68',
        'tqdm==4.70.1',
        'wandb==0.31.0',
    ]


def test_wanted_takes_the_pin_of_this_python_and_ignores_the_spelling_of_a_name(packages):
    pins = ['numpy==1; python_version < "3"', 'numpy==2; python_version >= "3"', 'Faiss_GPU==1.15']
    wanted = packages['wanted']({'faiss-gpu': '1.15'}, pins, ['faiss.gpu>=1.14', 'numpy>=1'])
    assert [line.split(';')[0] for line in wanted] == ['numpy==2']


def test_wanted_never_holds_torch_or_torchaudio(packages):
    assert packages['wanted']({}, ['torch==2.11.0', 'torchaudio==2.11.0'], ['torch>=2.9']) == []


def test_held_are_torch_numpy_and_own_builds_only(packages):
    base = {
        'torch': '2.10.0a0+b558c98.nv25.12',
        'numpy': '2.1.0',
        'flash-attn': '2.7.4+25.12',
        'protobuf': '4.25.8',
        'distro-info': '1.5+deb12u1~x',  # no version in pip's eyes: would spoil the whole list
    }
    assert packages['held'](base) == [
        'flash-attn==2.7.4+25.12',
        'numpy==2.1.0',
        'torch==2.10.0a0+b558c98.nv25.12',
    ]


def test_changes_name_what_is_gone_or_other(packages):
    before, after = {'a': '1', 'b': '1', 'c': '1'}, {'a': '1', 'b': '2', 'd': '1'}
    assert packages['changes'](before, after) == ['b: 1 -> 2', 'c: 1 -> gone']


def test_origin_tells_the_bases_packages_from_ours(packages):
    origin = packages['origin']
    assert [origin('1', '1'), origin('1', '2'), origin(None, '1')] == [
        'base',
        'base had 1',
        'added',
    ]


def test_check_fails_when_torch_was_replaced(tmp_path):
    (tmp_path / 'base_packages.py').write_text((DOCKER / 'base_packages.py').read_text())
    for name in ('requirements.txt', 'pyproject.toml'):
        (tmp_path / name).write_text((DOCKER.parent / name).read_text())

    def call(word):
        command = [sys.executable, str(tmp_path / 'base_packages.py'), word]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert call('choose').returncode == 0
    assert call('check').returncode == 0
    contents = (tmp_path / 'contents.txt').read_text()
    assert re.search(r'(?m)^torch==\S+  # base$', contents)
    held = tmp_path / 'held.txt'
    held.write_text(re.sub(r'(?m)^torch==.*$', 'torch==2.10.0a0+b5.nv25.12', held.read_text()))
    refused = call('check')
    assert refused.returncode == 1
    assert 'lost what it must keep: torch: 2.10.0a0+b5.nv25.12 -> ' in refused.stderr


def test_dockerfile_has_a_pinned_base_and_ends_as_a_numbered_user():
    text = (DOCKER / 'Dockerfile').read_text()
    assert re.search(r'^ARG BASE_IMAGE=\S+:\d\d\.\d\d-py3$', text, re.M)
    assert int(re.findall(r'^USER (\S+)$', text, re.M)[-1]) > 0


def test_run_mounts_data_read_only_and_runs_as_the_caller(run_script, tmp_path):
    words = run_script('lgl', '--lr', '1e-4')
    assert f'{tmp_path}:{tmp_path}:ro' in words
    assert f'{tmp_path / "runs"}:/opt/sv-papers/runs' in words
    assert words[words.index('--user') + 1] == f'{os.getuid()}:{os.getgid()}'
    assert words[words.index('--gpus') + 1] == 'all'
    assert words[-5:] == ['sv-papers', 'python', 'papers/lgl/main.py', '--lr', '1e-4']


def test_run_passes_keys_by_name_only(run_script):
    words = run_script('lgl', WANDB_API_KEY='k-secret', NEPTUNE_API_TOKEN='t-secret')
    assert {'WANDB_API_KEY', 'NEPTUNE_API_TOKEN'} <= set(words)
    assert not any('secret' in word for word in words)


def test_run_keeps_the_demo_corpus_beside_the_runs(run_script):
    assert run_script('lgl', '--demo', GPUS='none')[-2:] == ['--path_demo', 'runs/demo_corpus']
    assert '--gpus' not in run_script('lgl', '--demo', GPUS='none')
    assert run_script('lgl', '--demo', '--path_demo', 'x')[-1] == 'x'


def test_run_on_several_machines_goes_through_torchrun_on_the_host_network(run_script):
    words = run_script('lgl', '--lr', '1e-4', NODES='2', RDZV='first:29500')
    launch = words[words.index('sv-papers') + 1 : words.index('papers/lgl/main.py')]
    assert launch == (
        'python -m torch.distributed.run --nnodes 2 --nproc_per_node gpu --max_restarts 3 '
        '--rdzv_backend c10d --rdzv_endpoint first:29500 --rdzv_id lgl'
    ).split(' ')
    assert words[words.index('--network') + 1] == 'host'
    for name in ('PET', 'TORCHELASTIC'):  # torchrun with the option, and before
        assert f'{name}_SIGNALS_TO_HANDLE={SIGNALS}' in words
    assert 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1' in words
    cpu = run_script('lgl', NODES='2', RDZV='first:29500', GPUS='none')
    assert cpu[cpu.index('--nproc_per_node') + 1] == '1'


@pytest.mark.parametrize(
    'arguments, settings, message',
    [
        ([], {}, 'docker/run.sh paper'),
        (['--help'], {}, 'docker/run.sh paper'),
        (['-h'], {}, 'docker/run.sh paper'),
        (['lgll'], {}, "no paper 'lgll'; there are: enskd"),
        (['lgl'], {'NODES': '2'}, 'NODES=2 needs RDZV=first-machine:port'),
    ],
    ids=['nothing', 'help', 'h', 'unknown paper', 'no meeting point'],
)
def test_run_refuses_before_it_starts_anything(run_script, arguments, settings, message):
    assert message in run_script(*arguments, **settings)


def test_compose_gives_both_machines_one_command_and_no_key():
    services = yaml.safe_load((DOCKER / 'compose.yaml').read_text())['services']
    assert services['node0'] == services['node1']
    rehearsal = [services['rehearsal0'], services['rehearsal1']]
    assert [service.pop('hostname') for service in rehearsal] == ['rehearsal0', 'rehearsal1']
    assert rehearsal[0] == rehearsal[1]
    assert '--nnodes 2' in services['node0']['command']
    for service in services.values():
        environment = service['environment']
        assert environment['WANDB_API_KEY'] is environment['NEPTUNE_API_TOKEN'] is None
        assert environment['TORCHELASTIC_SIGNALS_TO_HANDLE'] == SIGNALS
        assert environment['PET_SIGNALS_TO_HANDLE'] == SIGNALS
        assert environment['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] == 1


def _slurm(stub, tmp_path, srun):
    """docker/slurm.sh as a job of two machines, begun; srun as given; scontrol notes its words."""
    stub('srun', srun)
    environment = stub(
        'scontrol',
        'case "$1" in show) printf "first\\nsecond\\n" ;; '
        f'*) echo "$@" >> {tmp_path}/asked ;; esac',
    )
    environment.update(
        SLURM_NNODES='2',
        SLURM_JOB_ID='41',
        SLURM_JOB_NODELIST='x',
        SLURM_SUBMIT_DIR=str(DOCKER.parent),
    )
    return subprocess.Popen(['bash', str(DOCKER / 'slurm.sh'), 'lgl', '--lr', '1'], env=environment)


def test_slurm_starts_the_same_on_every_machine_and_keeps_its_status(stub, tmp_path):
    srun = f'echo "$NODES $RDZV $@" > {tmp_path}/ran; exit 3'
    assert _slurm(stub, tmp_path, srun).wait(20) == 3
    ran = (tmp_path / 'ran').read_text()
    assert ran == '2 first:20041 --kill-on-bad-exit=1 docker/run.sh lgl --lr 1\n'
    assert not (tmp_path / 'asked').exists()  # a run that failed by itself is not started again


@pytest.mark.parametrize('status', [1, 74, 76, 130, 137])
def test_slurm_does_not_queue_a_run_that_failed_again(status, stub, tmp_path):
    assert _slurm(stub, tmp_path, f'exit {status}').wait(20) == status
    assert not (tmp_path / 'asked').exists()


def test_slurm_queues_a_run_with_a_hung_rank_again(stub, tmp_path):
    assert _slurm(stub, tmp_path, 'exit 75').wait(20) == 75
    assert (tmp_path / 'asked').read_text() == 'requeue 41\n'


@pytest.mark.parametrize('status', [0, 1, 75])
def test_slurm_hands_the_warning_on_waits_for_the_run_and_queues_again(status, stub, tmp_path):
    """1 is torchrun's; a run that was over just before is not started again."""
    srun = f"""trap 'sleep 0.3; touch {tmp_path}/saved; exit {status}' USR1
    touch {tmp_path}/ready
    for i in {{1..400}}; do sleep 0.05; done"""
    job = _slurm(stub, tmp_path, srun)
    try:
        for _ in range(400):
            if (tmp_path / 'ready').exists():
                break
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(20) == status
    finally:
        job.kill()
    assert (tmp_path / 'saved').exists()
    assert (tmp_path / 'asked').exists() == (status != 0)
