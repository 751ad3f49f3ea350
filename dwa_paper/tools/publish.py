"""Copies artifacts to where they can be committed, beside the records that name them: what `make publish` does."""

import shutil

from dwa_core.errors import StorageError, UserError
from dwa_paper.runs import store
from dwa_paper.runs.records import map_artifacts, read_all
from dwa_paper.settings.environment import root
from dwa_paper.settings.files import check_profile
from dwa_paper.settings.schema import SYNTHESISED

LIMIT_MB = 25  # of one artifact


def publish(profile: str) -> None:
    """Copies the artifacts that the records of `profile` name to results/artifacts/, and prints a line for each.

    Both the artifact and its copy are compared with its checksums. What a killed publish left is removed. Sets of real
    images are left out: they are drawn again in a moment, and the data set is not ours to pass on; nor is what others
    distilled.

    Raises:
        ExceptionGroup: of a UserError for each artifact that is damaged.
    """
    check_profile(profile)
    for left in (root() / "results" / "artifacts").glob("*/.*"):
        store.delete(left)
    found, unreadable = read_all(profile)
    wanted, damaged = map_artifacts(found, SYNTHESISED), []
    for line in unreadable:
        print(line)
    if not wanted:
        print(f"{profile}: no records, so nothing to copy; make reproduce PROFILE={profile} makes them")
    for (kind, name), records in wanted.items():
        source, target = (root() / base / kind / name for base in store.BASES)
        size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
        if target.exists() and (problem := store.find_damage(target)) is None:
            print(f"{name}: there already")
        elif size == 0 and target.exists():
            damaged.append(UserError(f"{target}: {problem}; delete it, or bring it back from git"))
        elif size == 0:
            print(f"{name}: not copied, for it is not on this machine; run this where {records[0]} was made")
        elif size > LIMIT_MB * 1e6:
            print(f"{name}: not copied; {size / 1e6:.0f} MB are above the limit of {LIMIT_MB} MB; share it elsewhere")
        elif problem := store.find_damage(source):
            damaged.append(UserError(f"{source}: {problem}; delete it, and make makes it again"))
        else:
            with store.replace_whole(target) as temporary:
                shutil.copytree(source, temporary)
                if problem := store.find_damage(temporary, name):
                    raise StorageError(f"{target}: its copy is damaged, {problem}; run the same command again")
                store.delete(target)
            print(f"{name}: copied to results/artifacts/{kind}/")
    if damaged:
        raise ExceptionGroup("publish", damaged)
