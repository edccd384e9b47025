"""What a run must not give away, execute or reach, over all of the repository.

(a) secrets of the environment and of arguments are in no file that a run leaves, nor on the screen;
(b) a file of weights, an index or an array is refused where it holds code, which is not executed;
(c) names in lists, trials, shards, archives and indices do not lead out of their folder;
(d) a service that cannot be reached costs one line, at the start and in the middle.

The single functions have tests of their own: shared/log, shared/datasets, shared/models.
"""

import ast
import base64
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from lgl_recipe import LGL
from recipes import ROOT, small_corpus

from shared import averaging, checkpoint, log, weight_files
from shared.datasets import (
    archives,
    embeddings,
    offset_index,
    shards,
    tars,
    trial_files,
    voxceleb,
)
from shared.datasets.decoding import AudioError
from shared.datasets.derived import make_files
from shared.datasets.noisy_sets import noisy_test_sets
from shared.datasets.outer_files import LocalFile
from shared.errors import UserError
from shared.files import write_text
from shared.log.logger_list import LoggerList
from shared.models import ssl_checkpoints, weights_only
from shared.published import students, unispeech

# --- (a) secrets

SECRETS = {  # planted in the environment, none of them real
    'WANDB_API_KEY': 'ba5eba11' * 5,
    'NEPTUNE_API_TOKEN': base64.b64encode(
        b'{"api_address":"https://x.example","api_key":"7"}'
    ).decode(),
    'HF_TOKEN': 'hf_' + 'PlantedToken' * 3,
    'AWS_SECRET_ACCESS_KEY': 'plantedAwsSecret/K7MDENGbPxRfiCYzz',
    'http_proxy': 'http://user:planted-proxy-password@127.0.0.1:9',
}
IN_URL = 'planted-url-password'
PLANTED = {**SECRETS, 'http_proxy': 'planted-proxy-password', 'url': IN_URL}


def traces(content: bytes) -> list[str]:
    """Names of the secrets in some bytes, as they are or in base64 at any of its three offsets."""
    found = []
    for name, secret in PLANTED.items():
        plain = secret.encode()
        forms = [plain]
        for offset in range(3):
            coded = base64.b64encode(b'\0' * offset + plain)
            forms.append(
                coded[4 * (offset > 0) : len(coded) - 4]
            )  # letters of other bytes left out
        found += [name] if any(form in content for form in forms) else []
    return found


def files_with_traces(folder: Path) -> dict[str, list[str]]:
    files = [path for path in sorted(folder.rglob('*')) if path.is_file()]
    assert len(files) > 5  # a run was there
    names = {str(path.relative_to(folder)): traces(str(path).encode()) for path in files}
    found = {name: traces((folder / name).read_bytes()) + seen for name, seen in names.items()}
    return {name: seen for name, seen in found.items() if seen}


def test_search_for_secrets_finds_them(tmp_path):
    for number, (name, secret) in enumerate(PLANTED.items()):
        for offset in range(3):
            coded = base64.b64encode(b'x' * offset + secret.encode() + b'yz')
            assert traces(b'...' + coded + b'...') == [name], (name, offset)
        assert traces(b'\x00' + secret.encode() + b'\xff') == [name]
        (tmp_path / f'{number}.pt').write_bytes(b'PK' + secret.encode())
    (tmp_path / 'clean').write_text('nothing')
    assert len(files_with_traces(tmp_path)) == len(PLANTED)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp('corpus') / 'demo')


@pytest.fixture
def planted(monkeypatch):
    """Secrets in the environment, and arguments that quote each of them."""
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    quoted = ' and '.join([*SECRETS.values(), f'https://me:{IN_URL}@host/x'])
    return {
        'description': f'see {quoted}',
        'path_demo': f's3://me:{IN_URL}@bucket/demo',  # a URL of fsspec, here of no use
        'tags': f'plain,about {SECRETS["AWS_SECRET_ACCESS_KEY"]}',
    }


@pytest.mark.slow
def test_no_file_of_a_run_and_no_line_on_the_screen_holds_a_secret(corpus, planted, tmp_path):
    short = {'contrastive_epoch': 1, 'phase': 'contrastive'}
    folder, printed = LGL.run(corpus, tmp_path, **planted, **short)
    assert files_with_traces(tmp_path) == {} and traces(printed.encode()) == []
    described = json.loads((folder / 'run.json').read_text())
    assert described['args']['path_demo'].startswith('s3://<redacted>@')  # the rest is still there
    # and one that fails, when its folder is already there
    torch.save({'some.weight': torch.ones(1)}, tmp_path / 'other.pt')
    given = {**planted, 'published': tmp_path / 'other.pt', 'name': 'failing'}
    folder, printed = LGL.run(corpus, tmp_path, status=1, **given)
    assert folder.is_dir() and 'error: ' in printed
    assert files_with_traces(tmp_path) == {} and traces(printed.encode()) == []


def test_a_url_with_a_password_is_refused_in_a_list_of_shards(tmp_path):
    """Their index, which a run keeps in its folder, holds the URLs as they are."""
    listed = tmp_path / 'shard.list'
    for url in (f'https://me:{IN_URL}@host/1.tar', f's3://:{IN_URL}@bucket/1.tar'):
        listed.write_text(f'https://host/0.tar\n{url}\n')
        with pytest.raises(UserError, match='has a password in it: leave it to') as caught:
            shards.listed_tars(listed)
        assert traces(str(caught.value).encode()) == []
    listed.write_text('sftp://me@host/1.tar\nhttps://host:80/a@b/c:d@e.tar\n')
    assert len(shards.listed_tars(listed)) == 2


@pytest.mark.parametrize('name', ['WANDB_API_KEY', 'NEPTUNE_API_TOKEN', 'HF_TOKEN'])
def test_a_key_as_an_argument_is_refused_and_not_repeated(paper, name):
    get_args = paper('lgl').arguments.get_args
    for words in (['--description', SECRETS[name]], [f'--api_key={SECRETS[name]}']):
        with pytest.raises(UserError) as caught:
            get_args(words)
        assert traces(str(caught.value).encode()) == []


# --- (b) code in files


class Hostile:
    """Asks whoever unpickles it to make a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def zipped(item, file):
    torch.save(item, file)


def legacy(item, file):
    torch.save(item, file, _use_new_zipfile_serialization=False)


def bare(item, file):
    file.write_bytes(pickle.dumps(item))


def load_losses(paper, file):
    gate = paper('wavlm_ssl').phases.DynamicGate(3, 'cpu')
    gate.load_losses(file)


def last_of_a_run(paper, file):
    shutil.copy(file, file.parent / 'last.pt')
    checkpoint.Checkpoint(file.parent, framework=torch.nn.Linear(1, 1))


READERS = {  # of files that a user gives, or that a run finds in its folder
    'weight_files.read': lambda paper, file: weight_files.read(file),
    'checkpoint.Checkpoint': last_of_a_run,
    'averaging.average': lambda paper, file: averaging.average([file]),
    'embeddings.read_embeddings': lambda paper, file: embeddings.read_embeddings(file),
    'ssl_checkpoints.read_ssl': lambda paper, file: ssl_checkpoints.read_ssl(file),
    'students.read': lambda paper, file: students.read(file),
    'unispeech.read': lambda paper, file: unispeech.read(file),
    'lgl.published.read': lambda paper, file: paper('lgl').published.read(file),
    'lgl.published.weights_of': lambda paper, file: paper('lgl').published.weights_of(file),
    'nawsv.published.read': lambda paper, file: paper('nawsv').published.read(file),
    'oskdft.published.read': lambda paper, file: paper('oskdft').published.read(file),
    'wavlm_ssl.published.read': lambda paper, file: paper('wavlm_ssl').published.read(file),
}
# Their callers name the file and raise; here it is enough that nothing runs.
ARRAYS = {
    'offset_index.read_index': lambda paper, file: offset_index.read_index(file),
    'wavlm_ssl.phases.load_losses': load_losses,
    'numpy, scores of a run': lambda paper, file: np.load(file)['losses'],
}


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('save', [zipped, legacy, bare], ids=lambda save: save.__name__)
@pytest.mark.parametrize('name', READERS)
def test_code_in_a_file_of_weights_is_refused_in_one_line_and_not_run(name, save, paper, tmp_path):
    mark, file = tmp_path / 'ran', tmp_path / 'hostile.pt'
    save({'model': Hostile(mark), 'weight': Hostile(mark)}, file)
    with pytest.raises(UserError) as caught:
        READERS[name](paper, file)
    assert not mark.exists()
    assert '\n' not in str(caught.value) and 'weights_only' not in str(caught.value)


@pytest.mark.parametrize('save', [zipped, legacy], ids=lambda save: save.__name__)
def test_what_a_lenient_reader_does_not_know_is_kept_as_text_and_not_run(save, tmp_path):
    """fairseq's files hold objects of its own classes: these come out inert, see its docstring."""
    mark, file = tmp_path / 'ran', tmp_path / 'hostile.pt'
    save({'model': {'weight': torch.ones(1)}, 'more': Hostile(mark)}, file)
    with pytest.raises(UserError, match='is blocked'):  # torch knows the function, and no stand-in
        weights_only.read_torch_file(file)
    assert not mark.exists()


@pytest.mark.parametrize('name', ARRAYS)
def test_code_in_an_array_is_refused_and_not_run(name, paper, tmp_path):
    mark, file = tmp_path / 'ran', tmp_path / 'index.npz'
    held = np.array([Hostile(mark)], dtype=object)
    np.savez(file, losses=held, names=held, version=held)
    with pytest.raises((UserError, ValueError)) as caught:
        ARRAYS[name](paper, file)
    assert not mark.exists() and '\n' not in str(caught.value)
    np.load(file, allow_pickle=True)['names']  # so the file does what it threatens
    assert mark.exists()


def test_payload_runs_where_it_is_allowed_to(tmp_path):
    """Else the tests above would prove nothing."""
    for number, save in enumerate((zipped, legacy, bare)):
        mark, file = tmp_path / f'ran{number}', tmp_path / f'{number}.pt'
        save({'model': Hostile(mark)}, file)
        if save is bare:
            pickle.loads(file.read_bytes())
        else:
            torch.load(file, weights_only=False)
        assert mark.exists()


def loads(root: Path):
    """(place, name, keywords) of every call that reads what could hold code."""
    for path in sorted(
        p for top in ('shared', 'papers', 'benchmarks') for p in (root / top).rglob('*.py')
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = getattr(node.func.value, 'id', '')
                if (owner, node.func.attr) in {
                    ('torch', 'load'),
                    ('np', 'load'),
                    ('numpy', 'load'),
                }:
                    words = {word.arg: word.value for word in node.keywords}
                    yield f'{path.relative_to(root)}:{node.lineno}', f'{owner}.load', words


def test_every_reader_of_such_files_says_that_it_wants_no_code():
    found = list(loads(ROOT))
    assert {name for _, name, _ in found} == {'torch.load', 'np.load'}
    for place, name, words in found:
        assert None not in words, place  # what `**options` holds cannot be seen here
        safe, value = ('weights_only', True) if name == 'torch.load' else ('allow_pickle', False)
        given = words.get(safe, ast.Constant(False) if name == 'np.load' else None)
        assert isinstance(given, ast.Constant) and given.value is value, place


# --- (c) names that lead out


@pytest.fixture
def outside(tmp_path):
    """A folder of speakers, and a file beside it that no name may reach."""
    root = tmp_path / 'wav'
    for name in ('a/v/1.wav', 'b/v/1.wav'):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b'RIFF')
    (tmp_path / 'x.wav').write_bytes(b'RIFF')
    return root


def leading_out(root):
    return ['../x.wav', 'a/../../x.wav', 'a/v/../../../x.wav', f'{root.parent}/x.wav']


@pytest.mark.parametrize('number', range(4))
def test_train_lists_and_trials_name_no_file_outside_their_folder(outside, tmp_path, number):
    name = leading_out(outside)[number]
    train, trials = tmp_path / 'train.txt', tmp_path / 'trials.txt'
    train.write_text(f'a a/v/1.wav\nb {name}\n')
    trials.write_text(f'1 a/v/1.wav a/v/1.wav\n0 a/v/1.wav {name}\n')
    readers = [
        lambda: voxceleb.read_list(train, outside),
        lambda: voxceleb.read_trials(trials, outside),
        lambda: trial_files.trial_lists([trials], outside, budget_seconds=1, workers=0),
    ]
    for read in readers:
        with pytest.raises(
            UserError, match='line 2 must name files by paths without `..`'
        ) as caught:
            read()
        assert '\n' not in str(caught.value)


def test_dots_within_names_lead_nowhere(outside, tmp_path):
    (outside / 'a/v/..2.wav').write_bytes(b'RIFF')
    train = tmp_path / 'train.txt'
    train.write_text('a a/v/1.wav\na a/v/..2.wav\nb b/./v/1.wav\n')
    assert len(voxceleb.read_list(train, outside)) == 3


def test_a_link_inside_the_folder_is_the_users_own_and_followed(outside, tmp_path):
    """Corpora are often linked together; a link is made by who may write there, a list is not."""
    (outside / 'a/v/2.wav').symlink_to(tmp_path / 'x.wav')
    train = tmp_path / 'train.txt'
    train.write_text('a a/v/1.wav\na a/v/2.wav\n')
    assert len(voxceleb.read_list(train, outside)) == 2


def test_copies_of_listed_files_are_not_written_outside(outside, tmp_path):
    musan = tmp_path / 'musan'
    for category in ('noise', 'speech', 'music'):
        (musan / category / 's').mkdir(parents=True)
        for number in range(6):
            (musan / category / 's' / f'{number}.wav').write_bytes(b'RIFF')
    with pytest.raises(UserError, match='leads out of the folder'):
        noisy_test_sets(['../../../x.wav'], outside, tmp_path / 'noisy', musan)
    assert not list(tmp_path.glob('*.wav'))[1:]


@pytest.mark.parametrize('name', ['../out.wav', '{}/out.wav', 'a/../../out.wav'])
def test_members_of_archives_and_shards_do_not_lead_out(name, tmp_path):
    name = name.format(tmp_path)

    def packed(file):
        (tmp_path / 'x').write_bytes(b'abc')
        with tarfile.open(file, 'w') as tar, open(tmp_path / 'x', 'rb') as content:
            info = tar.gettarinfo(tmp_path / 'x')
            info.name = name
            tar.addfile(info, content)

    packed(tmp_path / 'a.tar')
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr(name, b'abc')
    for file in ('a.tar', 'a.zip'):
        with pytest.raises(UserError, match='unsafe name'):
            archives.unpack([tmp_path / file], tmp_path / 'out')
    with pytest.raises(UserError, match='unsafe name'):
        list(tars.members(LocalFile(tmp_path / 'a.tar'), 'a.tar'))
    assert not list(tmp_path.rglob('out.wav'))


class Copies:
    """A maker of one file a source, of which one is bad."""

    def targets(self, source):
        return [source]

    def make(self, source, missing, folder):
        if source == 'bad':
            raise AudioError('bad: cut short')
        made.append(source)
        for target in missing:
            write_text(folder / target, 'made')


made: list[str] = []


def test_names_added_to_skipped_txt_are_not_taken_from_it(tmp_path):
    how = {'folder': tmp_path / 'out', 'settings': {}, 'workers': 0, 'title': 'copies'}
    make_files(['good', 'bad'], Copies(), max_skipped=0.5, **how)
    skipped = tmp_path / 'out' / 'skipped.txt'
    skipped.write_text('../x\twhy\n' + skipped.read_text() + f'{tmp_path}/y\twhy\n')
    make_files(['good', 'bad'], Copies(), max_skipped=0.5, **how)
    assert made == ['good']  # once: of the second call only what is bad was tried
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out']


# --- (d) services that cannot be reached


def test_a_service_that_goes_away_in_the_middle_costs_one_line_and_the_run_goes_on(
    tmp_path, monkeypatch
):
    import wandb

    seen = []

    class Run:
        """Answers twice, then no more."""

        def define_metric(self, *args, **kwargs):
            pass

        def log(self, values):
            seen.append(values)
            if len(seen) > 2:
                raise ConnectionError('https://me:planted-url-password@api.example does not answer')

        def finish(self):
            raise AssertionError('is no longer asked')

    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setattr(wandb, 'init', lambda **known: Run())
    args = {'path_log': str(tmp_path / 'run'), 'rank': 0}
    builder = LoggerList.Builder('n', 'p', [], 'd', tmp_path, args)
    builder.use_local_logger(tmp_path / 'run')
    builder.use_wandb_logger('me')
    logger = builder.build()
    with pytest.warns(RuntimeWarning) as caught:
        for step in range(5):
            logger.log_metrics({'train/loss': float(step)}, step)
        logger.finish()
    (line,) = [str(warning.message) for warning in caught]
    assert 'Wandb: log_metrics failed' in line and 'going on without it' in line
    assert '\n' not in line and traces(line.encode()) == []
    assert len(seen) == 3
    assert log.read_metrics(tmp_path / 'run')['train/loss'][0].tolist() == [0, 1, 2, 3, 4]
