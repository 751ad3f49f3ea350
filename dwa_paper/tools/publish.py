"""Copies artifacts to where they can be committed, beside the records that stand on them.

    python -m dwa_core.publish lite

`make publish` runs it.
"""

import os
import shutil
import sys

from dwa_core.errors import InputError, StorageError
from dwa_paper.command import failed
from dwa_paper.runs import store
from dwa_paper.runs.records import read_record, record_paths, students
from dwa_paper.settings.environment import root
from dwa_paper.settings.files import check_profile
from dwa_paper.settings.schema import SYNTHESISED

LIMIT_MB = 25  # of one artifact


def publish(profile: str) -> None:
    """Copies the artifacts that the records of `profile` stand on to results/artifacts/, and says so of each.

    Sets of real images are left out: they are drawn anew from the data set in a moment, and the data
    set is not ours to pass on; nor is what others distilled. Of a record that cannot be read, a line says so.

    Raises:
        InputError: there are no settings of that profile.
        StorageError: a copy cannot be written.
    """
    check_profile(profile)
    wanted = {}
    for path in record_paths(profile):
        try:
            record = read_record(path)
        except InputError as error:
            print(error)
            continue
        for student in students(record):
            wanted["teachers", student["teacher"]["artifact"]] = path.name
            if record["setting"]["method"] in SYNTHESISED:
                wanted["distilled", student["distilled"]["artifact"]] = path.name
    if not wanted:
        print(f"{profile}: no records, so nothing to copy")
    for (kind, name), record_name in wanted.items():
        source, target = root() / "artifacts" / kind / name, root() / "results" / "artifacts" / kind / name
        size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
        if target.exists():
            print(f"{name}: there already")
        elif size == 0:
            print(f"{name}: not on this machine; {record_name} stands on it")
        elif size > LIMIT_MB * 1e6:
            print(f"{name}: {size / 1e6:.0f} MB are above the limit of {LIMIT_MB} MB")
        else:
            temporary = target.with_name(f".{name}.{os.getpid()}")
            with store.writing(target):
                try:
                    shutil.copytree(source, temporary)
                    temporary.rename(target)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
            print(f"{name}: copied to results/artifacts/{kind}/")


if __name__ == "__main__":
    try:
        publish(" ".join(sys.argv[1:]))
    except (InputError, StorageError) as error:
        sys.exit(failed(error, 2 if isinstance(error, InputError) else 1))
