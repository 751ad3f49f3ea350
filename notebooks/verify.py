"""Checks a profile: artifacts against their checksums, records against artifacts, tables against records.

    python notebooks/verify.py lite

Exit codes: 0 all is as it says, 1 something differs or there is nothing yet, 2 the input cannot be used.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from dwa_core import settings, settings_files, verify
from dwa_core.command import failed
from dwa_core.records import record_paths


def main(profile: str) -> int:
    """Prints one line for each difference, and for each artifact that is not at hand; returns the exit code."""
    try:
        settings_files.check_profile(profile)
    except settings.InputError as error:
        return failed(error, 2)
    folder = settings.root() / "results" / profile
    if not folder.is_dir():
        return failed(f"{folder}: there is nothing yet; make reproduce PROFILE={profile} makes it", 1)
    records = verify.records(profile)
    lines = verify.artifacts() + records
    # Tables cannot be rendered from records that cannot be read.
    if not records:
        with tempfile.TemporaryDirectory() as scratch:
            lines += render(profile, Path(scratch)) or verify.tables(profile, Path(scratch))
    for line in verify.absent(profile):
        print(line)
    for line in lines:
        failed(line, 1)
    if not lines:
        count = len(record_paths(profile))
        print(f"{profile}: {count} records, their tables and all artifacts at hand are as they say")
    return 1 if lines else 0


def render(profile: str, scratch: Path) -> list[str]:
    """Runs every table's notebook on the records of `profile` under the root `scratch`; returns what failed."""
    records = scratch / "results" / profile
    records.mkdir(parents=True)
    for path in record_paths(profile):
        (records / path.name).write_bytes(path.read_bytes())
    lines = []
    profiles = [path.name for path in settings_files.SETTINGS.iterdir() if path.is_dir()]
    for product, notebook in settings_files.products().items():
        if product.startswith("figure-"):
            continue
        # As make has it: the tables that a setting of the profile is shown in, and those that need no settings; and an
        # empty one that somebody has asked for by its name.
        asked_for = (settings.root() / "results" / profile / f"{notebook.stem}.md").is_file()
        needs_settings = any(settings_files.files(other, product) for other in profiles)
        if needs_settings and not settings_files.files(profile, product) and not asked_for:
            continue
        command = [sys.executable, str(settings_files.NOTEBOOKS / "run.py"), str(notebook), "--profile", profile]
        done = subprocess.run(
            command, env={**os.environ, "DWA_ROOT": str(scratch)}, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            lines.append(f"{notebook.name}: {done.stderr.strip()}")
    return lines


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
