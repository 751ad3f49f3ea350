"""The errors that a user sees; each message is one line."""

import difflib
import re
import reprlib
import signal

# What a message shows of a value is bounded before it is written out: aliases in YAML can make a value of 1 kB endless.
SHORT = reprlib.Repr()
SHORT.maxlevel, SHORT.maxlist, SHORT.maxtuple, SHORT.maxdict, SHORT.maxset = 3, 8, 8, 8, 8
SHORT.maxstring = SHORT.maxlong = SHORT.maxother = 200


def quote(value) -> str:
    """`value` as a message shows it: at most 60 characters."""
    try:
        text = SHORT.repr(value)
    except ValueError:  # a number of more than 4,300 digits
        text = f"a {type(value).__name__} too long to show"
    return text if len(text) <= 60 else text[:57] + "..."


def suggest(name, known) -> str:
    """The end of a message about an unknown `name`: which of `known` it may be a slip of, or else all of them."""
    close = difflib.get_close_matches(name[:60], known, n=1) if isinstance(name, str) else []
    return f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}"


class UserError(Exception):
    """Base of the errors below; `exit_code` is what a command ends with."""

    exit_code = 1

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


class InputError(UserError, ValueError):
    """Something that the user gave cannot be used; the message names it and says what is allowed."""

    exit_code = 2


class StorageError(UserError):
    """A file cannot be written: no room, no permission, the folder is gone."""


class DivergedError(UserError, RuntimeError):
    """The numbers of a run have gone wrong; the message says when, which, and the setting to change."""


class StoppedError(UserError):
    """A stage has stopped early and stored how far it came; the message says why, such as "stopped by SIGTERM"."""

    def __init__(self, message: str):
        super().__init__(message)
        number = re.match(r"stopped by (SIG\w+)", message)
        # As shells have it for a signal; else "temporary failure" in sysexits.h: the same command continues.
        self.exit_code = 128 + signal.Signals[number[1]] if number else 75
