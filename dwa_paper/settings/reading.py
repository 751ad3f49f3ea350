"""What a user's files say, within bounds: no file is waited for, too large or too deep, and YAML means one thing."""

import re
import stat
from collections import Counter
from pathlib import Path

import yaml

from dwa_core.errors import InputError

MOST_BYTES = 10**6  # of a file of settings
MOST_VALUES = 20_000  # in it, with aliases counted as what they repeat
DEEPEST = 20
WHOLE = re.compile(r"[-+]?(0|[1-9]\d*)")
FRACTION = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Loader(yaml.SafeLoader):
    """YAML without what one reader takes for another thing than the next, and without what explodes when it is used.

    PyYAML, with which papermill reads the same files, takes 010 for 8, 1:30 for 90, and the last of equal keys.
    """

    depth = 0

    def compose_node(self, parent, index):
        is_alias = self.check_event(yaml.AliasEvent)
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"nested more than {DEEPEST} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if not is_alias:
            is_mapping = isinstance(node, yaml.MappingNode)
            inside = [] if isinstance(node, yaml.ScalarNode) else node.value
            inside = [each for pair in inside for each in pair] if is_mapping else inside
            node.values = 1 + sum(each.values for each in inside)
            keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key.value, str)] if is_mapping else []
            for (_, key), count in Counter(keys).items():
                if count > 1:
                    raise yaml.YAMLError(f"the key {key} is there {count} times {str(node.start_mark).strip()}")
        if getattr(node, "values", MOST_VALUES + 1) > MOST_VALUES:  # an alias of what it is part of has no number yet
            raise yaml.YAMLError(f"more than {MOST_VALUES:,} values, with aliases counted as what they repeat")
        return node

    def construct_number(self, node):
        is_whole = node.tag.endswith("int")
        if not (WHOLE if is_whole else FRACTION).fullmatch(node.value):
            place = str(node.start_mark).strip()
            raise yaml.YAMLError(f"the number {node.value} {place}; write it in decimal digits, without leading zeros")
        return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)


for kind in ("int", "float"):
    Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.construct_number)


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """The text of a file; InputError where there is no file of UTF-8 that is no larger than `most_bytes`."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would be waited for
            raise InputError(f"{path}: cannot be read; it is no file")
        with path.open("rb") as stream:
            content = stream.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read; {error.strerror}") from None
    if len(content) > most_bytes:
        raise InputError(f"{path}: cannot be read; it has more than {most_bytes:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8; {error}") from None


def parse_yaml(text: str, where: str):
    """What the YAML `text` says; InputError, with `where` it is from, if it is none or out of bounds."""
    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except Exception as error:  # also what PyYAML's constructors hit: !!bool x is a KeyError
        reason = str(error) if isinstance(error, yaml.YAMLError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{where}: not YAML; {' '.join(reason.split())[:300]}") from None


def load_yaml(path: Path) -> dict:
    """The mapping in the YAML file at `path`; InputError where it is missing or contains none."""
    content = parse_yaml(read_text(path), str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a YAML mapping of keys to values")
    return content
