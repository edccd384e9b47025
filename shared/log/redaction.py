"""Keeps keys out of files: by the name of an entry, by the look of a value, by known values."""

import os
import re
from typing import Any

MASK = '<redacted>'
SHORTEST = 8  # characters; a shorter "key" would mask ordinary words

_remembered: set[str] = set()

_LAST_WORD = {'key', 'token', 'apikey', 'passphrase', 'pwd'}
_ANY_WORD = {'secret', 'secrets', 'password', 'passwd', 'credential', 'credentials'}

_VALUES = re.compile(
    r'(?<![0-9A-Za-z])(?:'
    r'[0-9a-f]{40}'  # W&B; also SHA-1, which is why commit.txt does not pass through here
    r'|wandb_v\d_[A-Za-z0-9_\-]{20,}'
    r'|eyJ[A-Za-z0-9_\-+/.]{30,}={0,2}'  # base64 of '{"': Neptune and JSON web tokens
    r'|hf_[A-Za-z0-9]{20,}'
    r'|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{20,}'
    r'|sk-[A-Za-z0-9_\-]{20,}'
    r'|AKIA[0-9A-Z]{16}'
    r')(?![0-9A-Za-z])'
)
_URL_LOGIN = re.compile(r'(?<=://)[^/\s:@]+:[^/\s@]+(?=@)')
# `wandb_api_key: str = '...'`, `'token': "..."`, `--password=...` in source text and in diffs
_ASSIGNED = re.compile(
    r"""(?P<name>[A-Za-z_][\w\-]*)(?P<between>['"]?\s*(?::\s*[\w. |\[\]]+?\s*=|[:=])\s*)"""
    r"""(?P<quote>['"])(?P<value>(?:(?!(?P=quote)).)+)(?P=quote)"""
)
_OPTION = re.compile(r'(?P<option>--(?P<name>[\w\-]+)(?:=|\s+))(?P<value>[^\s\'"-][^\s\'"]*)')


def remember(secret: str | None) -> None:
    """Makes `redact` mask this value for the rest of the process, wherever it turns up."""
    if secret and len(secret) >= SHORTEST:
        _remembered.add(secret)


def is_secret_name(name: str) -> bool:
    """True for 'api_key', 'wandbToken', 'password'; not for 'tokenizer', 'keep' or 'key_dim'."""
    words = re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name).lower()
    parts = [word for word in re.split(r'[^a-z]+', words) if word]
    together = '_'.join(parts)
    return bool(parts) and (
        parts[-1] in _LAST_WORD or bool(_ANY_WORD & set(parts)) or 'api_key' in together
    )


def redact(item: Any) -> Any:
    """A copy of nested dicts, lists, tuples and texts in which secrets read '<redacted>'.

    Numbers, switches, None and empty texts stay: they say nothing, whatever their name.
    """
    if isinstance(item, dict):
        return {redact(key): _redact_entry(key, value) for key, value in item.items()}
    if isinstance(item, (list, tuple)):
        return type(item)(_redact_sequence(item)) if type(item) in (list, tuple) else item
    return _OPTION.sub(_mask_option, redact_source(item)) if isinstance(item, str) else item


def redact_source(text: str) -> str:
    """`redact` for source text, whose prose may say `--key value` and means no key."""
    # keys of services and clouds, and whatever else of the environment is called like one
    known = {value for name, value in os.environ.items() if is_secret_name(name)} | _remembered
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, MASK)
    return _ASSIGNED.sub(_mask_assigned, _URL_LOGIN.sub(MASK, _VALUES.sub(MASK, text)))


def _redact_entry(key: Any, value: Any) -> Any:
    if isinstance(key, str) and is_secret_name(key) and isinstance(value, (str, bytes)) and value:
        return MASK
    return redact(value)


def _redact_sequence(items) -> list:
    """Like a dict's entries, a command line's `--api_key VALUE` names its next member."""
    result: list = []
    for item in items:
        previous = items[len(result) - 1] if result else None
        named = isinstance(previous, str) and previous.startswith('--') and '=' not in previous
        if named and is_secret_name(str(previous)) and isinstance(item, str) and item:
            result.append(item if item.startswith('--') else MASK)
        else:
            result.append(redact(item))
    return result


def _mask_assigned(match: re.Match) -> str:
    if not is_secret_name(match['name']) or not re.search(r'\w', match['value']):
        return match[0]
    return f'{match["name"]}{match["between"]}{match["quote"]}{MASK}{match["quote"]}'


def _mask_option(match: re.Match) -> str:
    return match['option'] + MASK if is_secret_name(match['name']) else match[0]
