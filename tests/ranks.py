"""One rank of `run_ranks`: conftest.py runs this file in each process.

JOB is put there from outside: file, function, arguments, store, rank, ranks, answer (connection).
"""

import importlib.util
import pickle
import sys
import traceback

import torch
import torch.distributed as dist


def main(job: dict) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            'gloo', init_method=f'file://{job["store"]}', rank=job['rank'], world_size=job['ranks']
        )
        spec = importlib.util.spec_from_file_location('test_of_ranks', job['file'])
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        result = getattr(module, job['function'])(*job['arguments'])
        job['answer'].send_bytes(pickle.dumps((result, None)))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        job['answer'].send_bytes(pickle.dumps((None, traceback.format_exc())))


main(JOB)  # noqa: F821
