"""The image, built for real and used.

    SV_IMAGE_TEST=1 CONTAINER=buildah .venv/bin/python -m pytest tests/test_image.py

Half an hour, 15 GB of disk and the network, hence not part of `make test`. Needs docker, podman or
buildah (CONTAINER names one). The base is SV_IMAGE_BASE, for example the NGC image itself; without
it, as root and with debootstrap, a small stand-in of the same form is made: Debian and Python with
a torch of its own, older packages than ours, and a list of constraints that refuses ours.
SV_IMAGE_TESTS names the tests to run inside (default: all that are not slow). Images made here are
removed afterwards.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TAG, STAND_IN = 'localhost/sv-papers-test', 'localhost/sv-papers-test-base'
BUILDERS = ('docker', 'podman', 'buildah')
FREE = 15e9  # bytes
# what the stand-in has; older protobuf and packaging than wandb and pre-commit accept
BROUGHT = ('torch==2.13.0', 'numpy==2.2.6', 'packaging==24.2', 'protobuf==4.25.8')
CONSTRAINTS = (
    'numpy==2.2.6',
    'packaging==24.2',
    'protobuf==4.25.8',
    'scipy==1.14.0',
    'tqdm==4.60.0',
)
SHORT = (
    '--contrastive_epoch 1 --patience 1 --iterations 1 --phase_epoch_min 1 --phase_epoch_max 1'
).split()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif('SV_IMAGE_TEST' not in os.environ, reason='SV_IMAGE_TEST=1 asks for it'),
]


def _call(*words, **settings) -> str:
    """What a command says, on both channels; fails the test with its last lines."""
    done = subprocess.run(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **settings,
    )
    assert done.returncode == 0, f'{words[:3]}: status {done.returncode}\n{done.stdout[-6000:]}'
    return done.stdout


def _works(builder: str) -> bool:
    try:
        return subprocess.run([builder, 'info'], capture_output=True, timeout=60).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope='module')
def builder() -> str:
    """The first builder that answers."""
    asked = os.environ.get('CONTAINER')
    found = [name for name in ([asked] if asked else BUILDERS) if _works(name)]
    if not found:
        pytest.skip('no docker, podman or buildah answers')
    if shutil.disk_usage('/').free < FREE:
        pytest.skip(f'less than {FREE:.0e} bytes of disk are free')
    return found[0]


@pytest.fixture(scope='module')
def base(builder, tmp_path_factory) -> str:
    """The base image."""
    if 'SV_IMAGE_BASE' in os.environ:
        yield os.environ['SV_IMAGE_BASE']
        return
    if os.getuid() or not shutil.which('debootstrap'):
        pytest.skip('the stand-in base needs root and debootstrap; or name one: SV_IMAGE_BASE')
    context = tmp_path_factory.mktemp('base')
    root = context / 'root'
    python = 'python3,python3-pip,ca-certificates,git'
    _call('debootstrap', '--variant=minbase', f'--include={python}', 'bookworm', root)
    (root / 'usr/bin/python').symlink_to('python3')
    version = (root / 'usr/bin/python3').readlink().name
    packages = root / 'usr/local/lib' / version / 'dist-packages'
    wheels = ('--only-binary', ':all:', '--python-version', version.removeprefix('python'))
    _call(sys.executable, '-m', 'pip', 'install', '--target', packages, *wheels, *BROUGHT)
    (root / 'etc/pip').mkdir()
    (root / 'etc/pip/constraint.txt').write_text('\n'.join(CONSTRAINTS))
    (root / 'etc/resolv.conf').unlink(missing_ok=True)
    shutil.rmtree(root / 'var/cache/apt')
    (context / 'Dockerfile').write_text(
        'FROM scratch\nCOPY root /\n'
        'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n'
        'ENV PIP_CONSTRAINT=/etc/pip/constraint.txt PIP_BREAK_SYSTEM_PACKAGES=1\n'
    )
    _call(builder, 'build', '--tag', STAND_IN, context, env=_settings(builder, STAND_IN))
    shutil.rmtree(root)
    yield STAND_IN
    subprocess.run([builder, 'rmi', '--force', STAND_IN], capture_output=True)


def _settings(builder: str, base: str) -> dict[str, str]:
    """The environment of a build; buildah is told to keep layers, and to need no OCI runtime."""
    more = {'CONTAINER': builder, 'BASE_IMAGE': base}
    if builder == 'buildah':
        more.update(BUILDAH_LAYERS='true', BUILDAH_ISOLATION='chroot')
    return {**os.environ, **more}


@pytest.fixture(scope='module')
def settings(builder, base, tmp_path_factory) -> dict[str, str]:
    """`_settings`, with what this machine's pip needs to reach its index, as secrets."""
    environment, given = _settings(builder, base), {}
    for line in _call(sys.executable, '-m', 'pip', 'config', 'list').splitlines():
        key, _, value = line.partition('=')
        given[key.rpartition('.')[2]] = value.strip("'")
    lines = [f'{key} = {given[key]}' for key in ('index-url', 'proxy', 'timeout') if key in given]
    if 'cert' in given:
        environment.setdefault('CA_BUNDLE', given['cert'])
        lines.append('cert = /run/secrets/ca_bundle')
    conf = tmp_path_factory.mktemp('pip') / 'pip.conf'
    conf.write_text('\n'.join(['[global]', *lines, '']))
    environment.setdefault('PIP_CONF', str(conf))
    return environment


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A copy of what git knows or would take, which a test may change."""
    folder = tmp_path_factory.mktemp('source')
    listed = _call('git', 'ls-files', '-co', '--exclude-standard', '-z', cwd=ROOT)
    for name in filter(None, listed.split('\0')):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope='module')
def first_build(source, settings, builder):
    """What the first build said."""
    yield _call('bash', 'docker/build.sh', TAG, cwd=source, env=settings)
    subprocess.run([builder, 'rmi', '--force', TAG], capture_output=True)


@pytest.fixture(scope='module')
def inside(first_build, builder, settings):
    """`inside(*command)`: what a command says in the image, as the image's own user."""
    program = str(Path(__file__).parent / 'support/buildah_run.py')
    program = program if builder == 'buildah' else builder
    return lambda *command: _call(program, 'run', '--rm', TAG, *command, env=settings)


@pytest.fixture
def run_script(first_build, builder, settings, tmp_path):
    """The words and the environment of docker/run.sh for this image, on the CPU."""
    program = str(Path(__file__).parent / 'support/buildah_run.py')
    environment = {**settings, 'IMAGE': TAG, 'GPUS': 'none', 'SHM': '1g', 'OMP_NUM_THREADS': '1'}
    environment.update(CONTAINER=program if builder == 'buildah' else builder)
    environment.update(RUNS=str(tmp_path / 'runs'), DATA=str(tmp_path / 'no data'))
    return ['bash', str(ROOT / 'docker/run.sh'), 'lgl', '--demo', *SHORT], environment


def test_image_keeps_what_the_base_holds_and_adds_the_rest(inside, base):
    contents = inside('cat', '/opt/base/contents.txt')
    print(contents)
    origin = dict(line.split('  # ') for line in contents.splitlines())
    by_name = {package.split('==')[0]: came for package, came in origin.items()}
    assert by_name['torch'] == by_name['numpy'] == 'base'
    assert {by_name[name] for name in ('torchaudio', 'faiss-gpu', 'sv-papers')} == {'added'}
    if base == STAND_IN:  # whose own constraints would have refused these
        assert by_name['protobuf'] == 'base had 4.25.8'
        assert by_name['packaging'] == 'base had 24.2'
        assert 'scipy==1.14.0' not in origin and by_name['scipy'] == 'added'


def test_image_runs_as_nobody_in_particular_and_has_no_secret_of_the_build(inside):
    assert int(inside('id', '-u')) > 0
    told = inside('sh', '-c', 'ls -A /run/secrets; env; python -m pip config list; ls -A runs')
    assert 'ca_bundle' not in told and 'cert' not in told and 'pip.conf' not in told


def test_image_has_the_source_and_nothing_else_of_the_folder(inside):
    there = set(inside('ls', '-A').split())
    assert {'papers', 'shared', 'tests', 'runs'} <= there
    assert not there & {'.git', '.venv', 'demo_corpus', '.library'}
    assert not inside('find', '.', '-name', '*.wav', '-o', '-name', '*.pt', '-o', '-name', '.git')


def test_image_decodes_aac(inside):
    encode = 'ffmpeg -loglevel error -f lavfi -i sine=duration=1 -c:a aac /tmp/x.m4a'
    decode = 'ffmpeg -loglevel error -i /tmp/x.m4a -ar 16000 -f wav - | wc -c'
    assert int(inside('sh', '-c', f'{encode} && {decode}')) > 30000


def test_build_takes_from_the_cache_what_has_not_changed(first_build, source, settings):
    assert 'Successfully installed sv-papers' in first_build
    again = _call('bash', 'docker/build.sh', TAG, cwd=source, env=settings)
    assert 'Successfully installed' not in again
    with open(source / 'shared/errors.py', 'a') as file:
        file.write('# changed\n')
    changed = _call('bash', 'docker/build.sh', TAG, cwd=source, env=settings)
    assert changed.count('Successfully installed') == 1  # the source itself, no package


def test_fast_tests_pass_inside(inside):
    asked = os.environ.get('SV_IMAGE_TESTS', 'tests').split()
    quick = ('-m', 'not slow', '-p', 'no:cacheprovider', '-n', '2', '--dist', 'loadfile')
    command = ('env', 'HOME=/tmp', 'OMP_NUM_THREADS=1', 'python', '-m', 'pytest', *quick, *asked)
    print(inside(*command)[-2000:])


def test_demo_runs_inside_and_its_results_belong_to_the_caller(run_script, tmp_path):
    command, environment = run_script
    _call(*command, env=environment)
    (results,) = tmp_path.glob('runs/**/results.json')
    assert json.loads(results.read_text())
    assert results.stat().st_uid == os.getuid()


def test_two_nodes_make_one_run(run_script, tmp_path):
    command, environment = run_script
    environment.update(NODES='2', RDZV='localhost:29541')
    nodes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    said = [node.communicate(timeout=1800)[0].decode()[-3000:] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], '\n'.join(said)
    assert len(list(tmp_path.glob('runs/**/results.json'))) == 1
