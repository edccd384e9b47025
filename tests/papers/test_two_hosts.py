"""One run on two hosts with addresses of their own: network namespaces, torchrun, gloo.

Needs root and iproute2, and minutes of waiting for time-outs, so it is asked for:

    SV_TWO_HOSTS=1 .venv/bin/python -m pytest tests/papers/test_two_hosts.py
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import lgl_recipe
import pytest
from recipes import ROOT, logged, same, small_corpus, weights

LGL = replace(
    lgl_recipe.LGL,
    settings={
        **lgl_recipe.SMALL,
        'phase': 'contrastive',
        'contrastive_epoch': 3,
        'save_minutes': 1e-6,  # after every step
    },
)
FIRST, SECOND = '10.213.7.1', '10.213.7.2'
PORT, SECONDS = 29500, 150
FORGOTTEN = 25  # s; after 15 without a sign torchrun no longer counts a host
VARIABLES = {
    'GLOO_SOCKET_IFNAME': 'wire',
    'OMP_NUM_THREADS': '1',
    # without it a host that is started anew never learns where rank 0 is; docker/run.sh sets it, too
    'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1',
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif('SV_TWO_HOSTS' not in os.environ, reason='SV_TWO_HOSTS=1 asks for it'),
]


def _ip(*words):
    return subprocess.run(['ip', *words], capture_output=True).returncode == 0


@pytest.fixture(scope='module')
def hosts():
    """Address -> name of a network namespace; `wire` in each leads to the other."""
    names = {FIRST: f'sv-a-{os.getpid()}', SECOND: f'sv-b-{os.getpid()}'}
    if os.getuid() or not shutil.which('ip') or not _ip('netns', 'add', names[FIRST]):
        pytest.skip('no root, no iproute2 or no right to make network namespaces')
    try:
        one, other = names.values()
        made = [
            _ip('netns', 'add', other),
            _ip(
                'link', 'add', 'wire', 'netns', one, 'type', 'veth', 'peer', 'wire', 'netns', other
            ),
        ]
        for address, name in names.items():
            made.append(_ip('-n', name, 'addr', 'add', f'{address}/24', 'dev', 'wire'))
            made += [_ip('-n', name, 'link', 'set', device, 'up') for device in ('lo', 'wire')]
        assert all(made), 'the two namespaces could not be joined'
        yield names
    finally:
        for name in names.values():
            _ip('netns', 'del', name)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp('corpus') / 'demo')


class Host:
    """torchrun with one rank in a namespace."""

    def __init__(self, hosts, address, words, log):
        launch = (
            '-m torch.distributed.run --nnodes 2 --nproc_per_node 1 --max_restarts 3 --rdzv_id x'
        )
        meet = f'--rdzv_backend c10d --rdzv_endpoint {FIRST}:{PORT} --local_addr {address}'
        # a machine knows that it is the meeting point by its name, but here both have the same one
        meet += f' --rdzv_conf is_host={int(address == FIRST)}'
        self.log = open(log, 'ab')
        self.process = subprocess.Popen(
            ['ip', 'netns', 'exec', hosts[address], sys.executable]
            + [*launch.split(), *meet.split(), *words],
            cwd=ROOT,
            env={**os.environ, **VARIABLES},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.name = hosts[address]

    def wait(self):
        """The exit status."""
        return self.process.wait(SECONDS)

    def lose_power(self):
        """Ends everything that runs in the namespace at once."""
        listed = subprocess.run(['ip', 'netns', 'pids', self.name], capture_output=True, text=True)
        for number in listed.stdout.split():
            os.kill(int(number), signal.SIGKILL)
        self.process.wait(SECONDS)
        self.log.close()


@pytest.fixture
def start(hosts, corpus, tmp_path):
    """`start(address)`: begins, or begins again, that host's part of the one run in tmp_path."""
    begun = []

    def begin(address):
        begun.append(Host(hosts, address, LGL.command(corpus, tmp_path), tmp_path / address))
        return begun[-1]

    yield begin
    for host in begun:
        if host.process.poll() is None:
            host.lose_power()


@pytest.fixture(scope='module')
def undisturbed(hosts, corpus, tmp_path_factory):
    """The run folder of a run of both hosts from start to end."""
    folder = tmp_path_factory.mktemp('undisturbed')
    words = LGL.command(corpus, folder)
    pair = [Host(hosts, address, words, folder / address) for address in hosts]
    _both_end_well(pair, folder)
    return folder / 'LGL' / 'run'


def _both_end_well(pair, folder):
    """Waits for two hosts; whatever still runs after that is ended."""
    try:
        assert [host.wait() for host in pair] == [0, 0], _said(folder)
    finally:
        for host in pair:
            host.lose_power()


def _said(folder):
    return '\n'.join((folder / address).read_text()[-3000:] for address in (FIRST, SECOND))


def _until_second_epoch(tmp_path, *running):
    """Waits until the first epoch is over and a step of the second was saved."""
    metrics, end = tmp_path / 'LGL/run/metrics.jsonl', time.monotonic() + SECONDS
    while not (metrics.exists() and '"step": 1' in metrics.read_text()):
        assert time.monotonic() < end and all(h.process.poll() is None for h in running)
        time.sleep(0.02)


def _equal(folder, other):
    found = [weights(f / 'contrastive' / 'best.pt') for f in (folder, other)]
    return same(*(_flat(state) for state in found)) and logged(folder) == logged(other)


def _flat(state, prefix=''):
    """The tensors of nested dicts by path."""
    found = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= _flat(value, f'{prefix}{key}.')
        elif hasattr(value, 'dtype'):
            found[f'{prefix}{key}'] = value
    return found


def test_host_that_lost_power_and_comes_back_is_taken_in(undisturbed, start, tmp_path):
    first, second = start(FIRST), start(SECOND)
    _until_second_epoch(tmp_path, first, second)
    second.lose_power()
    time.sleep(FORGOTTEN)
    back = start(SECOND)
    _both_end_well([first, back], tmp_path)
    assert _equal(undisturbed, tmp_path / 'LGL' / 'run')


def test_host_that_is_cut_off_ends_nothing_but_time(undisturbed, hosts, start, tmp_path):
    """The wire is pulled; both hosts are stopped, the one as a user does, and started again."""
    first, second = start(FIRST), start(SECOND)
    _until_second_epoch(tmp_path, first, second)
    assert _ip('-n', hosts[SECOND], 'link', 'set', 'wire', 'down')
    time.sleep(1)
    second.lose_power()
    first.process.terminate()
    assert first.wait() != 0
    assert not (tmp_path / 'LGL/run/results.json').exists()
    assert _ip('-n', hosts[SECOND], 'link', 'set', 'wire', 'up')
    _both_end_well([start(FIRST), start(SECOND)], tmp_path)
    assert _equal(undisturbed, tmp_path / 'LGL' / 'run')
