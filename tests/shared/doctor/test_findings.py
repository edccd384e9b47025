"""Findings, and checks that fail."""

import time

import pytest
from audio_trees import told

from shared.doctor.findings import Finding, awaited, few, guarded, summary
from shared.errors import UserError


def test_a_finding_is_one_line_with_its_fix():
    assert Finding('ok', 'disk', 'free').line() == 'ok      disk: free'
    assert Finding('error', 'disk', 'full', 'free some').line() == 'error   disk: full; free some'


def test_a_check_that_cannot_go_on_is_an_error_after_what_it_found():
    def check(error):
        yield Finding('ok', 'list', 'is there')
        raise error

    odd, fine, result = told(guarded('list', check(UserError('x.txt: is empty; fill it'))))
    assert odd == ['error   list: x.txt: is empty; fill it']
    assert fine == ['ok      list: is there'] and result is None
    denied = PermissionError(13, 'Permission denied', '/data/x')
    assert told(guarded('list', check(denied)))[0] == [
        'error   list: /data/x: cannot be read (Permission denied); '
        'mend its permissions or its disk'
    ]
    with pytest.raises(ZeroDivisionError):  # a slip of ours is no finding
        told(guarded('list', check(ZeroDivisionError())))


def test_a_check_hands_on_its_result():
    def check():
        yield Finding('ok', 'list', 'is there')
        return 7

    assert told(guarded('list', check()))[2] == 7


def test_what_is_awaited_is_returned_and_its_error_raised():
    assert awaited('long', lambda: time.sleep(0.01) or 5) == 5
    with pytest.raises(UserError, match='no'):
        awaited('long', lambda: (_ for _ in ()).throw(UserError('no')))


def test_few_and_summary_count():
    assert few('abc') == 'a, b, c' and few(range(9), 2) == '0, 1, ...'
    findings = [Finding(level, '', '') for level in ('ok', 'ok', 'error', 'warning', 'warning')]
    assert summary(findings) == '1 error, 2 warnings, 2 ok'
