"""The one command line, which make calls: python -m dwa_paper COMMAND.

Exit codes: 0 done; 1 something failed or differs; 2 the input cannot be used; 75 stopped by a time budget, so the same
command continues; 128 + N stopped by signal N. An error is one line on stderr; DWA_DEBUG=1 shows its traceback.
"""

import argparse
import os
import pkgutil
import signal
import sys
import time
from pathlib import Path

from dwa_core.errors import InputError, StoppedError


class Parser(argparse.ArgumentParser):
    """Raises InputError where argparse would print its usage and exit."""

    def error(self, message: str):
        raise InputError(message)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command that `arguments` name, and returns its exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; the next file to be opened would take its place
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        given = vars(build_parser().parse_args(arguments))
        # Imported now, so that a command that needs no torch does not wait seconds for it.
        pkgutil.resolve_name(f"dwa_paper.{given.pop('function')}")(**given)
        sys.stdout.flush()
    except BrokenPipeError:  # as `| head` leaves it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return report_error(StoppedError("stopped by SIGINT; run the same command to continue"))
    except Exception as error:
        if os.environ.get("DWA_DEBUG") == "1":
            raise
        return report_error(error)
    return 0


def report_error(error: Exception) -> int:
    """Prints on one line of stderr what went wrong, and returns the exit code."""
    if isinstance(error, ExceptionGroup):
        return max(map(report_error, error.exceptions))
    message = str(error)
    if isinstance(error, OSError) and error.filename:
        message = f"{error.filename}: {error.strerror}"
    elif not hasattr(error, "exit_code"):  # none of ours
        message = f"{type(error).__name__}: {message} (DWA_DEBUG=1 shows the traceback)"
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(message.split()))
    print(f"error: {line}", file=sys.stderr)  # without what would command a terminal
    return getattr(error, "exit_code", 1)


def build_parser() -> Parser:
    parser = Parser(prog="python -m dwa_paper", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, function: str, text: str, *positional: str) -> Parser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        for argument in positional:
            command.add_argument(argument)
        return command

    setting = "settings/PROFILE/NAME.yaml, or results/PROFILE/NAME.json, or of one seed results/PROFILE/NAME-seedN.json"
    command = add("run", "runs.runner:run", "make what is missing of a setting's records, one for each student seed")
    command.add_argument("setting", help=setting)
    command.add_argument("--seed", type=int, help="the student seed; default: all that the setting asks for")
    command.add_argument("--max-minutes", type=float, help="time budget; a run stops when it is used up")
    add_steps(command)
    command = add("missing", "tools.status:print_missing", "list what is missing of a profile, for make", "profile")
    command.add_argument("products", nargs="*", help="tables or figures; default: all")
    command = add("draw", "runs.runner:draw", "draw a table, a figure or the report from the records", "product")
    command.add_argument("--profile", default="demo")
    add_steps(command)
    add("settings", "settings.grid:write", "write the settings of grid.yaml as files, for bare papermill")
    command = add("plan", "tools.plan:print_plan", "list what of a profile is done and missing, with hours", "profile")
    command.add_argument("--device", default="here", help="the hours are of: here (default), h200, h100, a100, rtx4090")
    add("status", "tools.status:print_states", "list which runs are done, running, failed or waiting", "profile")
    command = add("verify", "tools.verify:verify", "check a profile's artifacts, records, tables, figures", "profile")
    command.add_argument("--rerun", type=int, default=0, metavar="N", help="make N records again, drawn at random")
    add("docs", "report.prose:write", "write the numbers that README.md and docs/ quote from the records")
    add("publish", "tools.publish:publish", "copy the artifacts that records name to results/artifacts/", "profile")
    command = add("share", "tools.export:export", "write a distilled set for other tools")
    command.add_argument("name", metavar="SET", help="a folder under artifacts/distilled/")
    command.add_argument("--to", type=Path, metavar="FOLDER", help="default: exports/NAME-FORMAT")
    command.add_argument("--format", choices=["imagefolder", "parquet", "tensors"], default="imagefolder")
    command.add_argument("--soft-labels", choices=["one", "epochs"], help="one per image, or per image and epoch")
    command.add_argument("--top-k", type=int, help="classes kept of each soft label; default: all")
    command = add("distill", "tools.own_data:distill", "teacher, distilled set and student for a folder of images")
    command.add_argument("folder", metavar="DATA", type=Path)
    command.add_argument("--network", default="resnet18", help="of teacher and student; default: resnet18")
    command.add_argument("--ipc", type=int, default=10, help="images per class; default: 10")
    command.add_argument("--with", nargs="*", default=[], dest="differences", metavar="KEY=VALUE", help="e.g. seed=1")
    command = add("fleet", "tools.fleet:run_all", "make the missing records on many GPUs or machines with Ray")
    command.add_argument("targets", nargs="+", metavar="TARGET", help=f"a profile, or {setting}")
    command.add_argument("--gpus-per-task", type=float, help="default: 1 where the cluster has GPUs, else 0")
    command.add_argument("--cpus-per-task", type=float, default=1)
    command.add_argument("--tasks-per-set", type=int, default=1, help="over which a distilled set is split, by ipc")
    command = add("train-teacher", "tools.distributed:train_teachers", "train a setting's teacher on torchrun's GPUs")
    command.add_argument("setting", help=setting)
    return parser


def add_steps(command: argparse.ArgumentParser) -> None:
    """Adds what tells a run of the call of make that it is part of."""
    command.add_argument("--since", type=float, default=time.time(), help="when all began, in seconds since 1970")
    command.add_argument("--steps", type=int, help="how many records, tables and figures; shows a line for each")


if __name__ == "__main__":
    sys.exit(main())
