"""A rank that hangs in a training loop is named, and the run ended, in minutes.

A collective waits for `ddp.TIMEOUT`, as long as a clustering may take. So every rank notes its
steps; one thread tells them to the others through the store of the process group, which may hang
as well, and a second one sees whether the rank's own steps go on. Neither waits for the device or
takes part in a collective; outside of loops there are none.

A rank alone is not ended, it may stand in a debugger: it says where it stands.
"""

import json
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from shared import ddp, ranks

STALL = 600.0  # s without progress after which a rank ends its process
FIRST = 1800.0  # s for the first step of a loop: workers start, kernels are compiled and tuned
PERIOD = 5.0  # s between two signs of life
SILENT = 6  # periods without a sign, after which a rank counts as stopped or lost
SHOWN = 4  # ranks on the line
LAST = 10.0  # s that a thread gets to leave the store

_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ('stdlib', 'purelib', 'platlib'))
_connection: dict[str, Any] = {}  # of this process, to the store
_loops = 0  # begun in this process; the same on all ranks


def watch(title: str, batches: Iterable, done: int = 0) -> Iterator:
    """Yields the batches; ends this process when they, or what is done with them, stand still.

    Args:
        title: of the loop.
        batches: of the rest of the epoch.
        done: batches of the epoch that were done before.
    """
    beat = _Beat(title, done)
    try:
        for batch in batches:
            beat.inside = True
            yield batch
            beat.step, beat.inside = beat.step + 1, False
    finally:
        beat.end()


class _Beat:
    """Where this rank stands in a loop, and the threads that watch it."""

    def __init__(self, title: str, done: int) -> None:
        global _loops
        _loops += 1
        self.step, self.inside = done, False  # steps done; in the next one, or waiting for it
        self._title, self._loop, self._done = title, _loops, done
        self._thread, self._over = threading.get_ident(), threading.Event()
        self._since = time.time()  # of the last progress
        self._quiet = 0.0  # s awake without progress
        self._signs: dict[int, dict[str, Any]] = {}  # the last one of each rank
        self._unheard = dict.fromkeys(range(ddp.world_size()), 0)  # rounds without a new one
        self._rounds = 0  # of `_talk` that went through
        jobs = [self._look] + [self._talk] * (ddp.world_size() > 1)
        self._threads = [threading.Thread(target=job, daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Ends the threads; one that hangs in the store is left behind."""
        self._over.set()
        for thread in self._threads:
            if thread is not threading.current_thread():  # a generator may be cleared by any
                thread.join(LAST)

    def _look(self) -> None:
        # Counts the periods it was awake: a machine that was suspended, or a process that was
        # stopped and continued, did not hang.
        seen, rounds, mute, said = None, 0, 0, False
        while not self._over.wait(PERIOD):
            now = self.step, self.inside
            if now != seen:
                seen, said, self._quiet, self._since = now, False, 0.0, time.time()
                continue
            self._quiet += PERIOD
            rounds, mute = self._rounds, mute + 1 if rounds == self._rounds else 0
            if self._quiet < (FIRST if self.step == self._done else STALL) or said:
                continue
            said, minutes = True, f'no progress for {self._quiet / 60:.3g} minutes'
            if ddp.world_size() == 1:
                own = _words(self._sign())
                ranks.say_once(f'\n{minutes}: {own}; a debugger, a hung disk or device?\n')
                continue
            ranks.leave(
                ddp.STOPPED,
                f'\n{minutes}: {self._behind(mute)}; ended, the same command continues from the '
                'last checkpoint\n',
            )

    def _talk(self) -> None:
        store = _store()
        try:
            while store is not None:
                store.set(f'beat/{ddp.rank()}', json.dumps({'n': self._rounds, **self._sign()}))
                if self._quiet >= STALL / 10:  # nobody wants to know before
                    for rank in self._unheard:
                        self._hear(rank, store)
                self._rounds += 1
                if self._over.wait(PERIOD):
                    return
        except RuntimeError:  # the connection is lost; `_look` sees that no round goes through
            _connection.update(store=None)

    def _hear(self, rank: int, store: dist.Store) -> None:
        key = f'beat/{rank}'
        sign = json.loads(store.get(key)) if store.check([key]) else {}
        self._unheard[rank] = self._unheard[rank] + 1 if sign == self._signs.get(rank) else 0
        self._signs[rank] = sign

    def _sign(self) -> dict[str, Any]:
        return {
            'loop': self._loop,
            'title': self._title,
            'step': self.step,
            'inside': self.inside,
            'since': time.strftime('%H:%M:%S', time.localtime(self._since)),
            'place': _place(self._thread),
        }

    def _behind(self, mute: int) -> str:
        """The ranks that keep the others waiting: those without a sign, else with the fewest steps.

        Args:
            mute: periods since the store last answered.
        """
        if mute >= SILENT:
            where = f'{os.environ.get("MASTER_ADDR")}:{os.environ.get("MASTER_PORT")}'
            own = _words(self._sign())
            return f'rank 0 or its machine ({where}) does not answer; rank {ddp.rank()} {own}'
        places = {rank: _position(sign) for rank, sign in self._signs.items()}
        behind = [rank for rank, rounds in self._unheard.items() if rounds >= SILENT]
        lost = ' gives no sign of life, was' if behind else ''
        behind = behind or [rank for rank in places if places[rank] == min(places.values())]
        named = [f'rank {rank}{lost} {_words(self._signs[rank])}' for rank in behind[:SHOWN]]
        return f'{"; ".join(named)}{"; ..." if len(behind) > SHOWN else ""}'


def _store() -> dist.Store | None:
    """A connection of its own: one who waits in the group's locks it. None once it was lost."""
    group = dist.group.WORLD
    if group is not None and _connection.get('group') is not group:
        try:
            made = group.get_group_store().clone()  # type: ignore[attr-defined]
        except RuntimeError:
            made = None
        _connection.update(group=group, store=made)
    return _connection.get('store')


def _position(sign: dict[str, Any]) -> tuple[int, ...]:
    return (sign['loop'], sign['step'], sign['inside']) if sign else ()


def _words(sign: dict[str, Any]) -> str:
    if not sign:
        return 'not yet in a training loop'
    where = 'in' if sign['inside'] else 'before'
    title, step = sign['title'], sign['step'] + 1
    return f"since {sign['since']} {where} step {step} of '{title}' ({sign['place']})"


def _place(thread: int) -> str:
    """Where a thread stands: line of the innermost file that is no library, and its function."""
    frame = sys._current_frames().get(thread)
    function = frame.f_code.co_name if frame else ''
    while frame and frame.f_back and frame.f_code.co_filename.startswith((*_LIBRARIES, '<')):
        frame = frame.f_back
    return f'{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {function}' if frame else ''
