import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from shared import arguments
from shared.arguments import ArgumentError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / 'papers' / 'toy'
SECRETS = ['0123456789abcdef' * 2 + '01234567', 'hf_' + 'a1B2' * 8, 'eyJ' + 'hcGlfYWRk' * 6 + '==']
PRESETS = {'paper': {'lr': 0.5, 'epoch': 7, 'mode': 'slow'}, 'repo': {'epoch': 9}}
DEMO = {'epoch': 1, 'name': 'demo'}


@dataclass
class SystemArgs:
    """Where things are."""

    project: str = 'TOY'
    name: str = 'run'
    tags: tuple[str, ...] = ('a', 'b')
    path_log: str = 'runs'
    usable_gpu: str | None = None  # '0,1'; none: all
    eval: bool = False


@dataclass
class ExperimentArgs:
    """What the run is."""

    lr: float = 1e-3  # 100 % of # everything
    epoch: int = 3
    # fmt: off
    mode: Literal['fast', 'slow'] = (
        'fast'  # over two lines
    )
    # fmt: on
    gain: tuple[float, float] = (-7.0, 3.0)
    mixed: tuple[int, float] = (1, 0.5)
    limit: int | None = None
    amp: bool = True

    def __post_init__(self):
        arguments.check(self.epoch * 1 > 0, f'epoch {self.epoch}: must be positive')


def build(*argv, system=SystemArgs, experiment=ExperimentArgs, presets=PRESETS, demo=DEMO):
    return arguments.build(system, experiment, FOLDER, argv, presets, demo)


def refused(*argv, **keywords):
    """The error's text, which is one line."""
    with pytest.raises(ArgumentError) as caught:
        build(*argv, **keywords)
    text = str(caught.value)
    assert '\n' not in text
    return text


def test_three_plain_dicts_hold_the_groups_and_their_union():
    args, system, experiment = build('--lr', '0.1')
    assert {type(x) for x in (args, system, experiment)} == {dict}
    assert list(system) == ['project', 'name', 'tags', 'path_log', 'usable_gpu', 'eval']
    assert list(experiment) == ['lr', 'epoch', 'mode', 'gain', 'mixed', 'limit', 'amp']
    derived = {'path_scripts': str(FOLDER), 'preset': None, 'demo': False}
    assert args == {**system, **experiment, **derived}
    assert experiment['lr'] == 0.1 and experiment['epoch'] == 3


def test_command_line_beats_demo_beats_preset_beats_file():
    assert build()[0]['epoch'] == 3
    assert build('--preset', 'paper')[0]['epoch'] == 7
    assert build('--preset', 'paper', '--demo')[0]['epoch'] == 1
    args = build('--epoch', '5', '--demo', '--preset', 'paper')[0]
    assert (args['epoch'], args['lr'], args['mode'], args['name']) == (5, 0.5, 'slow', 'demo')
    assert (args['preset'], args['demo']) == ('paper', True)


def test_path_log_joins_repository_project_and_name(tmp_path):
    assert build()[0]['path_log'] == str(ROOT / 'runs' / 'TOY' / 'run')
    _, system, _ = build('--path_log', str(tmp_path), '--name', 'x')
    assert system['path_log'] == str(tmp_path / 'TOY' / 'x')
    assert build('--path_log', '~/runs')[0]['path_log'] == str(Path.home() / 'runs' / 'TOY' / 'run')


@pytest.mark.parametrize(
    ('text', 'key', 'value'),
    [
        ('--usable_gpu 0,1', 'usable_gpu', '0,1'),
        ('--usable_gpu=', 'usable_gpu', ''),
        ('--usable_gpu None', 'usable_gpu', None),
        ('--limit 4', 'limit', 4),
        ('--limit none', 'limit', None),
        ('--tags x', 'tags', ('x',)),
        ('--tags=', 'tags', ()),
        ('--gain -3,4.5', 'gain', (-3.0, 4.5)),
        ('--mixed 2,2', 'mixed', (2, 2.0)),
        ('--lr -1e-3', 'lr', -1e-3),
        ('--project a=b', 'project', 'a=b'),
        ('--eval', 'eval', True),
        ('--eval false', 'eval', False),
        ('--amp False', 'amp', False),
        ('--amp', 'amp', True),
        ('--demo true', 'demo', True),
        ('--demo false', 'demo', False),
    ],
)
def test_values_get_the_declared_type(text, key, value):
    found = build(*text.split())[0][key]
    assert found == value and type(found) is type(value)
    if isinstance(value, tuple):
        assert [type(x) for x in found] == [type(x) for x in value]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('--lrr 1', 'unknown argument --lrr; did you mean --lr?'),
        ('--usable_gpus 0', 'did you mean --usable_gpu?'),
        ('--usab 0', 'did you mean --usable_gpu?'),  # an abbreviation is no argument
        ('--epo 1', 'did you mean --epoch?'),
        ('--zzzz 1', '--help lists all'),
        ('--lr 1 --lr 2', '--lr given twice'),
        ('--lr 1 --lr=2', '--lr given twice'),
        ('--lr', '--lr'),
        ('--lr abc', '--lr abc: expected float'),
        ('--lr nan', 'expected float'),
        ('--lr none', 'expected float'),  # only optional fields know none
        ('--epoch 1.5', '--epoch 1.5: expected int'),
        ('--epoch none', 'expected int'),
        ('--epoch 0', 'epoch 0: must be positive'),
        ('--limit x', 'expected int|none'),
        ('--mode quick', '--mode quick: expected {fast,slow}'),
        ('--gain 1', '--gain 1: expected float,float'),
        ('--gain 1,2,3', 'expected float,float'),
        ('--mixed 0.5,1', 'expected int,float'),
        ('--amp yes', 'expected true|false'),
        ('--demo maybe', 'expected true|false'),
        ('--preset mine', "invalid choice: 'mine'"),
        ('stray', "'stray' belongs to no argument"),
        ('--lr 1 2', "'2' belongs to no argument"),
        ('-lr 1', "'-lr' belongs to no argument"),
    ],
)
def test_wrong_command_lines_are_refused_in_one_line(text, message):
    assert message in refused(*text.split())


def test_key_in_both_dataclasses_is_refused():
    @dataclass
    class Twice(ExperimentArgs):
        name: str = 'again'

    assert "'name' is defined in both" in refused(experiment=Twice)


def test_preset_with_an_unknown_key_or_a_wrong_type_is_refused():
    assert "'lrr'" in refused('--preset', 'x', presets={'x': {'lrr': 1.0}})
    assert 'gain = 5: expected' in refused('--preset', 'x', presets={'x': {'gain': 5}})
    assert "'epochs'" in refused('--demo', demo={'epochs': 1})


@pytest.mark.parametrize(
    ('kind', 'value'),
    [
        (int, 1.5),
        (int, True),
        (bool, 1),
        (float, '1'),
        (float, float('nan')),
        (str, None),
        (tuple[int, ...], [1, 2]),
        (tuple[int, int], (1, 2, 3)),
        (tuple[int, float], (1.5, 1)),
        (Literal['a', 'b'], 'c'),
        (int | None, 'none'),
    ],
)
def test_wrong_value_in_the_file_is_refused_before_its_checks_run(kind, value):
    @dataclass
    class Edited:
        thing: kind = field(default=value) if not isinstance(value, list) else None

        def __post_init__(self):
            raise AssertionError('ran on a value of the wrong type')

    demo = {'thing': value} if isinstance(value, list) else {}
    text = refused('--demo', experiment=Edited, demo=demo or {'name': 'x'}, presets={})
    assert text.startswith(f'thing = {value!r}: expected')


def test_argument_without_a_value_in_the_file_is_refused():
    @dataclass
    class Empty:
        thing: int

    assert 'thing needs a value' in refused(experiment=Empty, presets={}, demo=None)


@pytest.mark.parametrize('secret', SECRETS)
@pytest.mark.parametrize('place', ['--project {}', '--tags a,{}', '--lr {}', '--nothing={}', '{}'])
def test_secrets_are_refused_and_never_repeated(secret, place):
    text = refused(*place.format(secret).split())
    assert secret not in text
    assert 'secret' in text and 'WANDB_API_KEY' in text


def test_secret_in_the_file_is_refused_by_name_or_look():
    @dataclass
    class Named:
        wandb_key: str = 'short'

    @dataclass
    class Looks:
        comment: str = SECRETS[0]

    @dataclass
    class Fine:
        wandb_key: str = ''
        keyword: str = 'monkey'

    for experiment in (Named, Looks):
        text = refused(experiment=experiment, presets={}, demo=None)
        assert 'looks like a secret' in text and 'short' not in text and SECRETS[0] not in text
    assert build(experiment=Fine, presets={}, demo=None)[2] == {
        'wandb_key': '',
        'keyword': 'monkey',
    }


def test_sys_argv_is_read_and_an_error_becomes_status_2(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['main.py', '--epoch', '4'])
    assert arguments.build(SystemArgs, ExperimentArgs, FOLDER)[0]['epoch'] == 4
    monkeypatch.setattr('sys.argv', ['main.py', '--epoch', 'x'])
    with pytest.raises(SystemExit) as caught:
        arguments.build(SystemArgs, ExperimentArgs, FOLDER)
    assert caught.value.code == 2
    assert capsys.readouterr().err == 'arguments: --epoch x: expected int\n'


@pytest.mark.parametrize('flag', ['--help', '-h'])
def test_help_shows_comment_type_and_value(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        build(flag)
    assert caught.value.code == 0
    shown = re.sub(r'\s+', ' ', capsys.readouterr().out)
    assert '--lr float 100 % of # everything [0.001]' in shown
    assert '--mode {fast,slow} over two lines [fast]' in shown
    assert "--usable_gpu str|none '0,1'; none: all [none]" in shown
    assert '--gain float,float [-7.0,3.0]' in shown
    assert '--eval [true|false] [false]' in shown
    assert '--preset {paper,repo}' in shown and '--demo' in shown


def test_help_of_lgl_lists_every_argument_with_its_comment(python):
    shown = python('papers/lgl/main.py', '--help')
    assert (shown.returncode, shown.stderr) == (0, '')
    text = re.sub(r'\s+', ' ', shown.stdout)
    source = (ROOT / 'papers' / 'lgl' / 'arguments.py').read_text()
    lines = re.findall(r'^    (\w+): [^#\n]*(?:\(\n[^#\n]*)?(?:# (.*))?$', source, re.MULTILINE)
    assert len(lines) > 50
    for name, comment in lines:
        assert f'--{name} ' in text
        # argparse may break a line at a hyphen
        assert re.sub(r'\W', '', comment) in re.sub(r'\W', '', text), name


def test_wrong_argument_of_lgl_ends_with_status_2_and_one_line(python):
    ended = python('papers/lgl/main.py', '--lr', 'abc')
    assert (ended.returncode, ended.stdout) == (2, '')
    assert ended.stderr == 'arguments: --lr abc: expected float\n'
