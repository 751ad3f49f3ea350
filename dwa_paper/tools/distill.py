"""Distils a folder of one's own images: writes a settings file for it and runs that. What `make distill` calls.

    python notebooks/distill.py path/to/images --network resnet18 --ipc 10 teacher.epochs=30

The folder holds train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE alone, of which every fifth image is then
kept for testing. The settings file, settings/mine/NAME.yaml, can be changed and run again.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from dwa_core.errors import InputError
from dwa_paper.command import failed

RUNNER = Path(__file__).with_name("run.py")


def main() -> int:
    parser = argparse.ArgumentParser(description="Distil a folder of images.")
    parser.add_argument("folder", metavar="DATA", type=Path)
    parser.add_argument("--network", default="resnet18", help="of teacher and student; default: resnet18")
    parser.add_argument("--ipc", type=int, default=10, help="images per class; default: 10")
    differs = "key=value or stage.key=value, as in a settings file"
    parser.add_argument("differences", nargs="*", default=[], help=differs)
    parser.error = lambda message: sys.exit(failed(message, 2))
    given = parser.parse_intermixed_args()
    try:
        # Imported here because an unknown option should not wait seconds for torch.
        from dwa_core import models
        from dwa_paper.tools import own_data as own

        differences = own.parsed_differences(given.differences)
        folder = given.folder.expanduser().resolve()
        if not folder.is_dir():
            raise InputError(f"DATA: {given.folder} is not a folder")
        os.environ["DWA_DATA"] = str(folder.parent)
        models.stems("network", given.network)
        parameters = own.settings_for(folder.name, given.network, given.ipc, differences)
        path = own.write_settings(parameters)
    except InputError as error:
        return failed(error, 2)
    again = f"DWA_DATA={shlex.quote(str(folder.parent))} make results/{path.parent.name}/{path.stem}.json"
    print(f"settings: {path}; to run them again: {again}", flush=True)
    os.execv(sys.executable, [sys.executable, str(RUNNER), str(path), "--seed", str(parameters.get("seed", 0))])


if __name__ == "__main__":
    sys.exit(main())
