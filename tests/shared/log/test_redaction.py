import base64
import json

import pytest

from shared.log import redaction
from shared.log.redaction import MASK, is_secret_name, redact

HEX40 = '0123456789abcdef0123456789abcdef01234567'
NEPTUNE = base64.b64encode(b'{"api_address":"https://x.example","api_key":"12"}').decode()


@pytest.mark.parametrize(
    'name',
    [
        'api_key',
        'wandb_api_key',
        'neptune_token',
        'apiKey',
        'AWS_SECRET_ACCESS_KEY',
        'password',
        '--hf-token',
        'key',
        'TOKEN_2',
        'neptuneApiToken',
    ],
)
def test_redaction_knows_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    'name', ['tokenizer', 'keep', 'key_dim', 'monkey', 'max_tokens', 'tokens', 'keyboard', 'lr', '']
)
def test_redaction_leaves_ordinary_names(name):
    assert not is_secret_name(name)


def test_redact_masks_entries_by_name_at_any_depth():
    item = {'a': [{'token': 'abc'}, ('x',)], 'api_key': 'k', 'keep': 'yes', 'password': None}
    expected = {'a': [{'token': MASK}, ('x',)], 'api_key': MASK, 'keep': 'yes', 'password': None}
    assert redact(item) == expected


@pytest.mark.parametrize(
    'secret',
    [
        HEX40,
        NEPTUNE,
        'hf_' + 'aB3' * 10,
        'ghp_' + 'a1' * 18,
        'sk-' + 'z9' * 15,
        'AKIA' + 'A1' * 8,
        'wandb_v1_' + 'q' * 30,
    ],
)
def test_redact_masks_values_that_look_like_keys(secret):
    assert secret not in json.dumps(redact({'comment': f'see {secret}, ok', 'x': [secret]}))


def test_redact_leaves_checksums_numbers_and_paths():
    item = {'sha256': HEX40[:32] * 2, 'lr': 1e-3, 'path': '/data/hf_models/ecapa', 'token': 512}
    assert redact(item) == item


def test_redact_masks_environment_and_remembered_values(monkeypatch):
    monkeypatch.setattr(redaction, '_remembered', set())
    monkeypatch.setenv('WANDB_API_KEY', 'not like a key at all')
    redaction.remember('handed over')
    assert redact('a not like a key at all b handed over c') == f'a {MASK} b {MASK} c'


def test_redact_masks_options_of_a_command_line():
    words = ['python', 'main.py', '--wandb_api_key', 'abc', '--token=xyz', '--lr', '1', '--keep']
    masked = [
        'python',
        'main.py',
        '--wandb_api_key',
        MASK,
        f'--token={MASK}',
        '--lr',
        '1',
        '--keep',
    ]
    assert redact(words) == masked
    assert redact('main.py --api_key abc --lr 1') == f'main.py --api_key {MASK} --lr 1'


def test_redact_masks_assignments_in_source_text():
    source = (
        "wandb_api_key: str | None = 'short'  # yours\n"
        'args = {"token": "also", "name": "run"}\n'
        "login(api_key='abc', entity='me')\n"
        "clone('https://me:pass@host/x')\n"
    )
    masked = redact(source)
    assert not any(secret in masked for secret in ('short', 'also', "'abc'", 'pass'))
    assert "entity='me'" in masked and '"name": "run"' in masked


def test_redact_copies_instead_of_changing():
    item = {'token': 'abc'}
    redact(item)
    assert item == {'token': 'abc'}
