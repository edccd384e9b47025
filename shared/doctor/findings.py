"""What a check has found: one line each, and the report they make."""

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from typing import Literal, TypeVar

from tqdm import tqdm

from shared.errors import UserError

FACTS = TypeVar('FACTS')
RESULT = TypeVar('RESULT')
TICK = 0.5  # seconds


@dataclass(frozen=True)
class Finding:
    """What was looked at, what is there, and what to do about it."""

    level: Literal['ok', 'warning', 'error']
    where: str
    what: str
    fix: str = ''

    def line(self) -> str:
        """`level   where: what; fix`."""
        text = f'{self.level:<8}{self.where}: {self.what}'
        return f'{text}; {self.fix}' if self.fix else text


Check = Generator[Finding, None, FACTS]  # findings one by one, and at the end what it has learnt


def guarded(where: str, check: Check) -> Check:
    """The findings of a check; what it cannot read is an error among them, and it returns None."""
    try:
        return (yield from check)
    except UserError as error:
        yield Finding('error', where, str(error))
    except OSError as error:
        what = f'{error.filename}: ' if error.filename else ''
        yield Finding(
            'error',
            where,
            f'{what}cannot be read ({error.strerror or error})',
            'mend its permissions or its disk',
        )
    return None


def awaited(title: str, work: Callable[[], RESULT]) -> RESULT:
    """What `work` returns, with its title and the time shown while it does not say how far it is."""
    bar = tqdm(desc=title, bar_format='{desc} {elapsed}', leave=False, disable=None)
    with ThreadPoolExecutor(1) as pool, bar:
        future = pool.submit(work)
        while not wait_for([future], TICK).done:
            bar.refresh()
        return future.result()


def few(names: Iterable, show: int = 3) -> str:
    """The first names, and whether there are more."""
    names = list(names)
    return ', '.join(map(str, names[:show])) + (', ...' if len(names) > show else '')


def summary(findings: Sequence[Finding]) -> str:
    """`2 errors, 1 warning, 17 ok`."""
    counts = dict.fromkeys(('error', 'warning', 'ok'), 0)
    for finding in findings:
        counts[finding.level] += 1
    return ', '.join(
        f'{count} {level}' + ('s' if level != 'ok' and count != 1 else '')
        for level, count in counts.items()
    )
