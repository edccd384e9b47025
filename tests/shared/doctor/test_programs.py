"""What the doctor finds about the driver and the installed packages."""

import subprocess
from importlib import metadata

import pytest
import torch
from audio_trees import told

from shared.doctor import programs as doctor_programs
from shared.doctor.programs import driver_cuda, driver_fits, imports, packages


def driver(monkeypatch, found, built='13.0', sees=False, wanted=True):
    monkeypatch.setattr(doctor_programs, 'driver_cuda', lambda: found)
    monkeypatch.setattr(torch.version, 'cuda', built)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: sees)
    (finding,) = driver_fits(wanted)
    return finding.line()


def test_a_driver_that_works_is_described(monkeypatch):
    assert driver(monkeypatch, '13.1', sees=True) == (
        'ok      driver: for CUDA 13.1; torch is built for 13.0'
    )


def test_an_old_driver_is_an_error_where_a_gpu_is_wanted(monkeypatch):
    line = driver(monkeypatch, '9.2')
    assert line.startswith('error   driver: is for CUDA 9.2, but torch')
    assert 'update the driver, or install a torch for CUDA 9.2' in line
    assert driver(monkeypatch, '12.4', wanted=False).startswith('warning')


@pytest.mark.parametrize('found, said', [(None, 'no GPU nor driver'), ('13.0', 'driver for CUDA')])
def test_no_gpu_is_a_warning_where_one_is_wanted(monkeypatch, found, said):
    line = driver(monkeypatch, found)
    assert line.startswith('warning driver') and said in line and '--gpus all' in line
    assert driver(monkeypatch, found, wanted=False).startswith('ok')


def test_a_machine_without_the_library_has_no_driver():
    assert driver_cuda('libnothing-of-the-kind.so.1') is None
    assert driver_cuda('libc.so.6') is None  # a library without that function


def test_packages_are_compared_with_their_lower_bounds(monkeypatch):
    odd, fine, _ = told(packages())
    assert odd == [] and 'new enough' in fine[0]
    needs = ['torch>=99.1', 'no-such>=1.0', 'numpy>=1.26', 'extra>=9; extra == "dev"']
    monkeypatch.setattr(metadata, 'requires', lambda name: needs)
    (line,), *_ = told(packages())
    assert f'torch {metadata.version("torch")} is older than 99.1; no-such is missing;' in line
    assert line.endswith('pip install -r requirements.txt') and 'numpy' not in line


def test_versions_are_numbers_not_text(monkeypatch):
    monkeypatch.setattr(metadata, 'requires', lambda name: ['numpy>=1.26'])
    for version, fits in (('1.9', False), ('1.26.0a0+x9', True), ('2.4', True)):
        monkeypatch.setattr(metadata, 'version', lambda name, version=version: version)
        assert (told(packages())[0] == []) == fits


def test_faiss_for_the_cpu_will_do(monkeypatch):
    monkeypatch.setattr(metadata, 'requires', lambda name: ['faiss-gpu>=1.14'])

    def version(name):
        if name != 'faiss-cpu':
            raise metadata.PackageNotFoundError
        return '1.15.1'

    monkeypatch.setattr(metadata, 'version', version)
    assert told(packages())[0] == []


def test_a_copy_that_is_not_installed_is_a_warning():
    (line,), *_ = told(packages('no-such-distribution'))
    assert line == ('warning packages: no-such-distribution is not installed; pip install -e .')


def test_torchaudio_and_faiss_work_here():
    odd, fine, _ = told(imports())
    assert odd == [] and [line.split()[1] for line in fine] == ['torchaudio:', 'faiss:']


def test_packages_that_do_not_load_are_errors(monkeypatch):
    def broken(name):
        raise OSError('libc10_cuda.so: cannot open shared object file\nmore')

    monkeypatch.setattr(doctor_programs.importlib, 'import_module', broken)
    monkeypatch.setattr(doctor_programs, 'FAISS_TRIAL', 'raise ImportError("no swigfaiss")')
    torchaudio, faiss = told(imports())[0]
    assert (
        f'cannot be imported with torch {torch.__version__} (libc10_cuda.so: cannot' in torchaudio
    )
    assert 'file); another torch than that of requirements.txt' in torchaudio
    assert faiss.startswith('error   faiss: cannot cluster ten points (ImportError: no swigfaiss)')


def test_a_faiss_that_dies_is_an_error(monkeypatch):
    monkeypatch.setattr(doctor_programs, 'FAISS_TRIAL', 'import os; os.abort()')
    assert 'SIGABRT' in told(imports())[0][0]

    def hangs(*command, **kind):
        raise subprocess.TimeoutExpired('python', 5)

    monkeypatch.setattr(doctor_programs.subprocess, 'run', hangs)
    assert 'timed out after 5 seconds' in told(imports())[0][0]
