"""The one kind of error a user can mend."""


class UserError(Exception):
    """One line: what is wrong, where, what to do. Shown without a traceback by `ranks.launch`."""
