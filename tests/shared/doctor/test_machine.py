"""What the doctor finds about processes, GPUs, processors, memory and disks."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from audio_trees import told

from shared.doctor import machine as doctor_machine
from shared.doctor.machine import (
    GIB,
    batches,
    disks,
    gpu,
    memory,
    processors,
    runs_on,
    talk,
)
from shared.doctor.plan import Facts, Load, checkpoint_bytes, weight_file, weight_numbers


def load(**changes):
    return Load(**{'path_log': '/nowhere', 'batches': {}, 'workers': 0, **changes})


def test_one_process_has_nobody_to_talk_to():
    assert told(talk('cpu')) == ([], ['ok      processes: one'], None)


def talked():
    return told(talk('cpu'))


def talked_late():
    """Rank 1 comes after rank 0 has given up."""
    if dist.get_rank() == 0:
        found = told(talk('cpu', seconds=0.2))
        dist.new_group()  # lets rank 1 go on
        return found
    dist.new_group()
    return told(talk('cpu'))


def talked_wrongly():
    real = dist.all_reduce
    dist.all_reduce = lambda number, async_op: real(number.add_(1), async_op=async_op)
    try:
        return told(talk('cpu'))
    finally:
        dist.all_reduce = real


def test_ranks_sum_up_their_numbers(run_ranks):
    for odd, fine, _ in run_ranks(talked):
        assert odd == [] and fine == ['ok      processes: 2 ranks reach each other by gloo']


def test_a_wrong_sum_is_an_error(run_ranks):
    for odd, *_ in run_ranks(talked_wrongly):
        assert odd[0].startswith(
            'error   processes: 2 ranks sum up their numbers to 3 by gloo, not'
        )
        assert 'NCCL_P2P_DISABLE=1' in odd[0]


def test_a_rank_that_does_not_answer_in_time_is_an_error(run_ranks):
    (odd, *_), _ = run_ranks(talked_late)
    assert 'had not summed up their numbers by gloo after 0.2 s; NCCL_DEBUG=INFO' in odd[0]


@pytest.mark.parametrize(
    'capability, built, runs',
    [
        ((9, 0), ['sm_80', 'sm_90'], True),
        ((8, 6), ['sm_80', 'sm_90'], True),  # the same major
        ((7, 0), ['sm_75', 'sm_80'], False),
        ((12, 0), ['sm_90'], False),
        ((12, 0), ['sm_90', 'compute_90'], True),  # compiled anew
        ((10, 3), ['sm_100a'], True),
    ],
    ids=lambda value: str(value).replace(' ', ''),
)
def test_code_runs_on_gpus_of_its_major_number(capability, built, runs):
    assert runs_on(capability, built) == runs


def pretend_gpu(monkeypatch, capability=(9, 0), free=70 * GIB):
    for name, value in {
        'get_device_name': 'A card',
        'get_device_capability': capability,
        'mem_get_info': (free, 80 * GIB),
        'get_arch_list': ['sm_80', 'sm_90'],
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *device, value=value: value)


def test_a_gpu_is_described(monkeypatch):
    pretend_gpu(monkeypatch, free=79 * GIB)
    assert told(gpu('cuda:1'))[1] == ['ok      GPU: cuda:1: A card, 80 GiB, compute capability 9.0']
    assert told(gpu('cpu'))[:2] == ([], [])


def test_a_gpu_in_use_is_a_warning_and_one_without_code_an_error(monkeypatch):
    pretend_gpu(monkeypatch, free=20 * GIB)
    (line,), *_ = told(gpu('cuda:0'))
    assert line.startswith('warning GPU') and 'of which 20 GiB are free; another process' in line
    pretend_gpu(monkeypatch, capability=(7, 0))
    (line,), *_ = told(gpu('cuda:0'))
    assert line.startswith('error   GPU') and 'is not built for (sm_80, sm_90)' in line


def test_more_loader_processes_than_cores_are_a_warning(monkeypatch):
    monkeypatch.setattr(doctor_machine, 'cores', lambda: 16)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    assert told(processors(4))[0] == []
    assert told(processors(8))[0] == [
        'warning cores: 8 loader processes x 4 ranks on 16 cores; they will wait for each other; '
        '3 loader processes fit'
    ]


def in_shared(monkeypatch, tmp_path, free):
    monkeypatch.setattr(
        doctor_machine.shutil, 'disk_usage', lambda place: SimpleNamespace(free=free)
    )
    asked = load(batches={'a': (100, 16000), 'batch_size': (300, 87120)}, workers=8)
    return told(memory(asked, shared=tmp_path))


def test_too_little_shared_memory_is_an_error_with_docker_option(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_machine, 'free_memory', lambda: 100 * GIB)
    handed = 8 * 2 * 300 * 87120 * 4 * 2  # workers, ready, utterances, samples, bytes, with noise
    odd, *_ = in_shared(monkeypatch, tmp_path, 64 * 2**20)
    assert odd == [
        f'error   {tmp_path}: 0.06 GiB are free, loader processes fill about {handed / GIB:.2f}; '
        'they would end with a bus error: docker run --shm-size 7g (or --ipc host), or fewer '
        'loader processes'
    ]
    assert in_shared(monkeypatch, tmp_path, handed)[0] == []
    assert in_shared(monkeypatch, tmp_path, handed - 1)[0] != []


def test_too_little_memory_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_machine, 'free_memory', lambda: 6 * GIB)
    assert told(memory(load(), shared=tmp_path))[0] == []
    (line,), *_ = told(memory(load(cache_gib=4.0), shared=tmp_path))
    assert '6.0 GiB are free, about 7.0 are needed' in line and 'smaller cache' in line
    (line,), *_ = told(memory(load(workers=16), shared=tmp_path))
    assert 'the kernel may end loader processes' in line


def test_too_little_disk_is_an_error_and_made_folders_count(monkeypatch, tmp_path):
    monkeypatch.setattr(
        doctor_machine.shutil, 'disk_usage', lambda place: SimpleNamespace(free=10 * GIB)
    )
    run, made = tmp_path / 'runs' / 'x', tmp_path / 'noisy' / 'y'
    kind = {'path_log': run, 'checkpoints': 8 * GIB}
    odd, fine, _ = told(disks(load(**kind), Facts()))
    assert odd == [] and f'{run}: 10.0 GiB are free, checkpoints take about 8.0 GiB' in fine[0]
    asked = load(**kind, made={made: lambda facts: 3 * facts.test_bytes})
    (line,), *_ = told(disks(asked, Facts(test_bytes=GIB)))
    assert f'{made}: 10.0 GiB are free, files made of the corpora take about 3.0 GiB' in line
    assert 'all of this disk 11.0; free some space' in line
    made.mkdir(parents=True)  # they were made before
    assert told(disks(asked, Facts(test_bytes=GIB)))[0] == []


def test_a_folder_that_cannot_be_written_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_machine.os, 'access', lambda place, mode: False)
    (line,), *_ = told(disks(load(path_log=tmp_path / 'runs'), Facts()))
    assert line.startswith(f'error   disk: {tmp_path} cannot be written to; name another')


def test_batches_divide_and_are_filled(monkeypatch):
    asked = load(batches={'batch_size': (400, 1), 'dino_batch_size': (300, 1)}, least={'k': 6000})
    assert told(batches(asked, Facts(utterances=6000)))[0] == []
    odd, fine, _ = told(batches(asked, Facts(utterances=350)))
    assert fine == [] and odd == [
        'error   batch_size: 400 are more than the 350 training utterances; a smaller value, or '
        'more data',
        'error   k: 6,000 are more than the 350 training utterances; a smaller value, or more data',
    ]
    assert told(batches(asked, Facts()))[0] == []  # nothing is known of the data
    monkeypatch.setattr(doctor_machine.ddp, 'world_size', lambda: 3)
    odd, fine, _ = told(batches(asked, Facts()))
    assert fine == [] and odd == [
        'error   batches: batch_size 400 does not divide among 3 processes: use a multiple of 3, '
        'such as 399'
    ]
    odd, *_ = told(batches(load(batches={'a': (6, 1)}, parts={'a': 4, 'b': 2}), Facts()))
    assert odd == [
        'error   batches: a 6 does not divide among 3 processes of accumulate 4 parts each: use a '
        'multiple of 12, such as 12'
    ]


def test_checkpoints_are_counted_as_they_lie_on_the_disk():
    numbers, keep = 1000, 3
    epochs, best, last = keep, 1, 3  # last.pt: weights and Adam's two moments
    one = 4 * numbers * (epochs + best + last)
    assert checkpoint_bytes(numbers, phases=5, keep=keep) == 5 * one + 4 * numbers * last


def test_weights_are_a_file_or_the_largest_of_a_folder(tmp_path):
    assert weight_file(tmp_path) is None and weight_numbers(tmp_path / 'none') == 0
    (tmp_path / 'config.json').write_text('{}')
    (tmp_path / 'model.safetensors').write_bytes(bytes(400))
    assert weight_file(tmp_path) == tmp_path / 'model.safetensors'
    assert weight_file(tmp_path / 'config.json') == Path(tmp_path / 'config.json')
    assert weight_numbers(tmp_path) == 100
