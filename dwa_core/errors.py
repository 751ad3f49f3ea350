"""The errors that a user sees; each message is one line."""

import re
import signal


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
