"""The programs under the doctor's eyes: NVIDIA's driver and the installed packages."""

import ctypes
import importlib
import re
import subprocess
import sys
from importlib import metadata

import torch

from shared.doctor.findings import Check, Finding

DISTRIBUTION = 'sv-papers'  # what pyproject.toml calls `shared`
FAISS_TRIAL = (
    'import numpy, faiss\n'
    'faiss.Kmeans(2, 2, niter=1).train(numpy.arange(20, dtype="float32").reshape(10, 2))\n'
)
FAISS_SECONDS = 120.0


def driver_fits(wanted: bool) -> Check[None]:
    """NVIDIA's driver against the CUDA that torch is built for."""
    built, found = torch.version.cuda, driver_cuda()
    if torch.cuda.is_available():
        yield Finding('ok', 'driver', f'for CUDA {found}; torch is built for {built}')
    elif found and built and _numbers(found)[0] < _numbers(built)[0]:
        yield Finding(
            'error' if wanted else 'warning',
            'driver',
            f'is for CUDA {found}, but torch {torch.__version__} is built for {built}',
            f'update the driver, or install a torch for CUDA {found}',
        )
    elif wanted:
        what = f'torch {torch.__version__} sees no GPU'
        yield Finding(
            'warning',
            'driver',
            f'{what} though there is a driver for CUDA {found}' if found else f'{what} nor driver',
            'look at nvidia-smi, usable_gpu and CUDA_VISIBLE_DEVICES; in Docker: --gpus all; '
            'on the CPU a real corpus takes months',
        )
    else:
        yield Finding('ok', 'driver', 'no GPU, and none is needed')


def driver_cuda(library: str = 'libcuda.so.1') -> str | None:
    """The newest CUDA that the driver runs, such as '13.0'; None without a driver."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else f'{version.value // 1000}.{version.value % 1000 // 10}'


def packages(distribution: str = DISTRIBUTION) -> Check[None]:
    """Installed packages against the lower bounds of pyproject.toml."""
    try:
        needed = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        yield Finding('warning', 'packages', f'{distribution} is not installed', 'pip install -e .')
        return
    odd = []
    for text in needed:
        found = re.fullmatch(r'([\w.-]+)\s*>=\s*([\d.]+)', text)  # extras have more behind
        if found is None or (version := _version(found[1])) is None:
            odd += [f'{found[1]} is missing'] if found else []
        elif _numbers(version) < _numbers(found[2]):
            odd.append(f'{found[1]} {version} is older than {found[2]}')
    if odd:
        yield Finding('warning', 'packages', '; '.join(odd), 'pip install -r requirements.txt')
    else:
        yield Finding('ok', 'packages', f'torch {torch.__version__} and the others are new enough')


def _version(name: str) -> str | None:
    for known in (name, name.replace('-gpu', '-cpu')):  # faiss
        try:
            return metadata.version(known)
        except metadata.PackageNotFoundError:
            pass
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """'2.11.0+cu130' -> (2, 11, 0)."""
    return tuple(map(int, re.findall(r'\d+', version.split('+')[0])))


def imports() -> Check[None]:
    """The packages that break when another torch or CUDA comes along: torchaudio and faiss."""
    try:
        found = importlib.import_module('torchaudio').__version__
        yield Finding('ok', 'torchaudio', f'{found} works with torch {torch.__version__}')
    except Exception as error:  # a library that does not load raises all kinds
        yield Finding(
            'error',
            'torchaudio',
            f'cannot be imported with torch {torch.__version__} ({_first_line(error)})',
            'another torch than that of requirements.txt: pip install -r requirements.txt',
        )
    # in a process of its own: two runtimes of OpenMP would end this one
    command = [sys.executable, '-c', FAISS_TRIAL]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=FAISS_SECONDS)
        yield Finding('ok', 'faiss', 'clusters ten points')
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, 'stderr', None) or str(error)
        yield Finding(
            'error',
            'faiss',
            f'cannot cluster ten points ({said.strip().splitlines()[-1][:200]})',
            'pip install -r requirements.txt',
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0][:200]
