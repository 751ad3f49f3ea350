"""Copies artifacts to where they can be committed, beside the records that name them: what `make publish` does."""

import shutil

from dwa_paper.runs import store
from dwa_paper.runs.records import artifacts_of_profile
from dwa_paper.settings.environment import root
from dwa_paper.settings.files import check_profile
from dwa_paper.settings.schema import SYNTHESISED

LIMIT_MB = 25  # of one artifact


def publish(profile: str) -> None:
    """Copies the artifacts that the records of `profile` name to results/artifacts/, and prints a line for each.

    Sets of real images are left out: they are drawn again in a moment, and the data set is not ours to pass on; nor
    is what others distilled.
    """
    check_profile(profile)
    wanted = artifacts_of_profile(profile, SYNTHESISED)
    if not wanted:
        print(f"{profile}: no records, so nothing to copy")
    for (kind, name), records in wanted.items():
        source, target = (root() / base / kind / name for base in ("artifacts", "results/artifacts"))
        size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
        if target.exists():
            print(f"{name}: there already")
        elif size == 0:
            print(f"{name}: not on this machine; {records[0]} names it")
        elif size > LIMIT_MB * 1e6:
            print(f"{name}: {size / 1e6:.0f} MB are above the limit of {LIMIT_MB} MB")
        else:
            with store.replacing(target) as temporary:
                shutil.copytree(source, temporary)
            print(f"{name}: copied to results/artifacts/{kind}/")
