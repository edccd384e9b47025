"""Reads the authors' files: a student, or the teacher (spec 3.7, 3.8).

python published.py FILE ...        what is in them
"""

import sys

from shared.errors import UserError
from shared.published import students, unispeech


def describe(file):
    """One line about a file.

    Raises:
        UserError: it is of neither kind.
    """
    try:
        found = students.read(file)
    except UserError as error:
        try:
            found = unispeech.read(file)
        except UserError:
            raise error from None
    head = found.beside.get('classifier')
    classes = f'{head.sizes["classes"]:,} classes' if head else 'no classifier'
    count = sum(x.numel() for x in found.state.values() if x.is_floating_point())
    return f'{file}: {found.kind}, {count:,} numbers, {found.sizes}, {classes}'


if __name__ == '__main__':
    try:
        for name in sys.argv[1:]:
            print(describe(name))
    except UserError as error:
        sys.exit(f'error: {error}')
