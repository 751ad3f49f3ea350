"""How every command ends that cannot do what it was asked for: one line on stderr, and an exit code."""

import sys


def failed(message: object, code: int) -> int:
    """Says `message`, a text or an error, on one line of stderr, and returns `code`: 2 for bad input, else 1."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return code
