#!/usr/bin/env python3
"""`docker run` as far as docker/run.sh uses it, by buildah: for a machine without an engine.

Users, mounts and variables are real; GPUs, limits and networks of containers are not.
"""

import socket
import subprocess
import sys

ALONE = {'--rm', '--init', '--interactive', '--tty'}
KEPT = {'--user', '--env', '--volume'}
DROPPED = {'--shm-size', '--ulimit', '--stop-timeout', '--gpus'}


def main(words: list[str]) -> int:
    """Runs the container and removes it; the exit status is that of its command."""
    assert words.pop(0) == 'run'
    options = []
    while words[0].startswith('-'):
        name = words.pop(0)
        if name not in ALONE:
            value = words.pop(0)
            options += [name, value] if name in KEPT else []
            if (name, value) == ('--network', 'host'):  # an engine gives the host's name as well
                options += ['--hostname', socket.gethostname()]
            assert name in KEPT | DROPPED | {'--network'}, f'unknown option {name}'
    image, *command = words
    made = subprocess.run(['buildah', 'from', image], capture_output=True, text=True, check=True)
    container = made.stdout.strip()
    try:
        run = ['buildah', 'run', '--isolation', 'chroot', *options, container, '--', *command]
        return subprocess.run(run).returncode
    finally:
        subprocess.run(['buildah', 'rm', container], stdout=subprocess.DEVNULL)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
