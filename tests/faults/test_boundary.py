"""What comes in is bounded before it is used: settings files, parameters, records, names, variables, output."""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fault_tools import GOOD, settings_file, snapshot

from dwa_core.errors import InputError, quote
from dwa_paper import __main__
from dwa_paper.runs import records, sets, store, teachers
from dwa_paper.settings import files, reading
from dwa_paper.settings.schema import Setting
from dwa_paper.tools import own_data

HEAD = "profile: trial\nname: bad\npreset: digits\n"
LAUGHS = "l0: &l0 [ha, ha]\n" + "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.fixture(autouse=True)
def answered_at_once():
    """Every case here takes far less than this; what waits or explodes is ended."""

    def late(*_):
        pytest.fail("no answer within 20 s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------------------------- settings files

YAML = {
    "aliases that explode": (HEAD + LAUGHS, "more than 20,000 values"),
    "aliases that explode in a merge": (LAUGHS + "<<: *l9\n" + HEAD, "more than 20,000 values"),
    "an alias of what it is part of": (HEAD + "ipc: &a [*a]\n", "more than 20,000 values"),
    "brackets 100,000 deep": (HEAD + "ipc: " + "[" * 100_000, "nested more than 20 deep"),
    "braces 100,000 deep": (HEAD + "ipc: " + "{a: " * 100_000, "nested more than 20 deep"),
    "lines 1,000 deep": ("".join(" " * n + "a:\n" for n in range(1000)), "nested more than 20 deep"),
    "30,000 values": (HEAD + f"seeds: [{'1, ' * 30_000}]\n", "more than 20,000 values"),
    "two megabytes": (HEAD + "# " + "x" * 2_000_000, "it has more than 1,000,000 bytes"),
    "a key twice": (HEAD + "ipc: 1\nipc: 2\n", "the key ipc is there 2 times"),
    "a key of a stage twice": (HEAD + "teacher: {epochs: 1, epochs: 9}\n", "the key epochs is there 2 times"),
    "a leading zero": (HEAD + "ipc: 010\n", "the number 010 in "),
    "a number in base 16": (HEAD + "ipc: 0x10\n", "the number 0x10 in "),
    "a number in base 2": (HEAD + "ipc: 0b11\n", "the number 0b11 in "),
    "a number in base 60": (HEAD + "ipc: 1:30\n", "the number 1:30 in "),
    "a number with underscores": (HEAD + "ipc: 1_0\n", "the number 1_0 in "),
    "a fraction with underscores": (HEAD + "synthesis: {rho: 0_1.5}\n", "the number 0_1.5 in "),
    "a number of 5,000 digits": (HEAD + f"ipc: {'9' * 5000}\n", "not YAML"),
    "a truth value that is none": (HEAD + "authors: !!bool maybe\n", "not YAML; KeyError"),
    "a date that is none": (HEAD + "ipc: 2024-99-99\n", "not YAML; ValueError"),
    "a date by its tag": (HEAD + "ipc: !!timestamp x\n", "not YAML; AttributeError"),
    "a call": (HEAD + "ipc: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
    "an unknown anchor": (HEAD + "ipc: *nowhere\n", "undefined alias"),
    "two documents": (HEAD + "---\n" + HEAD, "expected a single document"),
    "a student seed": (HEAD + "seed: 3\n", "seed: not allowed in "),
    "a date": (HEAD + "ipc: 2024-01-02\n", "ipc: datetime.date(2024, 1, 2) is not allowed"),
    "a key that commands a terminal": (HEAD + '"\\e[2J": 1\n', "\\x1b[2J: unknown key"),
}


@pytest.mark.parametrize("case", YAML)
def test_settings_file_out_of_bounds_is_refused_at_once(case, refusal, place):
    text, expected = YAML[case]
    line = refusal("run", settings_file(place, text))
    assert expected in line
    assert len(line) < 600
    assert line.strip().isprintable()


def test_aliases_within_bounds_are_what_they_repeat(place):
    path = settings_file(
        place, HEAD + "teacher: &stage {epochs: 10, batch_size: 64}\nrelabel: {<<: *stage, epochs: 2}\n"
    )
    assert files.read(path)["relabel"] == {"epochs": 2, "batch_size": 64}


def test_settings_of_the_repository_read_as_any_reader_reads_them():
    for path in [files.SETTINGS / "grid.yaml", *files.SETTINGS.glob("*/*.yaml")]:
        assert reading.load_yaml(path) == yaml.safe_load(path.read_text())


def test_pipe_in_place_of_a_settings_file_is_not_waited_for(refusal, place):
    os.mkfifo(place / "trial" / "pipe.yaml")
    assert "cannot be read; it is no file" in refusal("run", place / "trial" / "pipe.yaml")


def test_value_that_explodes_is_shown_in_short():
    value = yaml.safe_load(LAUGHS)  # PyYAML shares what is repeated, so that writing it out is what explodes
    recursive = []
    recursive.append(recursive)
    for each in (value, [value], {"a": value}, recursive, 10**4000, 10**5000, "x" * 10**7, b"x" * 10**7, {10**5000}):
        assert len(quote(each)) <= 60


def test_short_values_are_shown_whole():
    for value in ("cifar10", [4, 0], {"epochs": 3}, None, 1.5, "it's", (1, "a"), ["cifar10"]):
        assert quote(value) == repr(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ipc=" + "[" * 10_000, "nested more than 20 deep"),
        ("ipc=010", "the number 010"),
        ("relabel={epochs: 1, epochs: 2}", "the key epochs is there 2 times"),
        ("ipc=!!python/name:os.system", "not YAML"),
    ],
)
def test_difference_out_of_bounds_is_refused(text, expected, refused):
    with refused(expected):
        own_data.parse_differences([text])


def test_seed_of_a_distilled_folder_is_written_as_its_seeds(place, monkeypatch):
    from fault_tools import tree

    tree(place)
    monkeypatch.setenv("DWA_DATA", str(place / "data"))
    parameters = own_data.build_settings("own", "convnet-8", 1, {"seed": 3, "device": "cpu"})
    path = own_data.write_settings(parameters)
    assert files.read(path)["seeds"] == [3]
    assert own_data.write_settings(parameters) == path


# --------------------------------------------------------------------- refused before any work, with its key

LONG = "x" * 101
VALUES = {
    "roll beyond the image": ({"synthesis": {"roll": [0, 16]}}, "synthesis.roll: [0, 16] is not allowed; must be less"),
    "roll back beyond it": ({"synthesis": {"roll": [-99, 4]}}, "synthesis.roll: [-99, 4] is not allowed"),
    "padding beyond the image": ({"teacher": {"crop_padding": 10**9}}, "teacher.crop_padding: 1000000000 is not"),
    "padding of the student's": ({"relabel": {"crop_padding": 16}}, "relabel.crop_padding: 16 is not allowed"),
    "data set of a long name": ({"dataset": LONG}, "dataset: 'xxx"),
    "mean of pixels to 255": ({"images": {"mean": [123.7, 116.3, 103.5]}}, "images.mean.0: 123.7 is not allowed"),
    "mean below black": ({"images": {"mean": [0.5, 0.5, -1e30]}}, "images.mean.2: -1e+30 is not allowed"),
    "deviation of pixels to 255": ({"images": {"std": [58.4, 57.1, 57.4]}}, "images.std.0: 58.4 is not allowed"),
    "deviation of next to nothing": ({"images": {"std": [0.2, 1e-30, 0.2]}}, "images.std.1: 1e-30 is not allowed"),
    "second deviation": ({"images": {"std_after_teacher": [0.2, 0.2, 1e30]}}, "images.std_after_teacher.2: 1e+30"),
    "variance coefficient": ({"synthesis": {"r_var": 1e300}}, "synthesis.r_var: 1e+300 is not allowed"),
    "BatchNorm coefficient": ({"synthesis": {"r_bn": 1e300}}, "synthesis.r_bn: 1e+300 is not allowed"),
    "weight decay": ({"teacher": {"weight_decay": 1e300}}, "teacher.weight_decay: 1e+300 is not allowed"),
    "temperature near zero": ({"relabel": {"temperature": 1e-300}}, "relabel.temperature: 1e-300 is not allowed"),
    "temperature without end": ({"relabel": {"temperature": 1e300}}, "relabel.temperature: 1e+300 is not allowed"),
    "mixing near zero": ({"relabel": {"mixing_alpha": 1e-300}}, "relabel.mixing_alpha: 1e-300 is not allowed"),
}


@pytest.mark.parametrize("case", VALUES)
def test_absurd_value_is_refused_by_its_key(case, refusal, place):
    changed, expected = VALUES[case]
    assert expected in refusal("run", settings_file(place, **changed))


@pytest.mark.parametrize("key", ["name", "profile"])
def test_name_that_is_too_long_for_the_file_system_is_refused(key, refusal, place):
    profile, name = ("trial", LONG) if key == "name" else (LONG, "bad")
    path = place / profile / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({"profile": profile, "name": name, **GOOD}))
    assert f"{key}: 'xxx" in refusal("run", path)


def test_longest_allowed_names_fit_into_a_file_name(tiny_setting):
    setting = tiny_setting(name="n" * 100, profile="p" * 40, dataset="d" * 100)
    name = f".tasks-student-{setting.profile}-{setting.name}-seed{2**31 - 1}-{'0' * 10}.safetensors.{2**22}"
    assert len(name) <= 255
    teacher, _ = teachers.describe(setting.model_copy(update={"network": "n" * 40}), "data")
    made, _ = sets.describe(setting.model_copy(update={"ipc": 10**6}), "data", teacher)
    assert max(len(f".{made}.part-00000-00001.safetensors.{2**22}"), len(f".{teacher}.lock")) <= 255


@pytest.mark.parametrize("distilled", ["nowhere", "/nowhere", "no/such/set", "x" * 300, "nul\0"])
def test_missing_distilled_set_is_refused_before_a_teacher_is_trained(distilled, refusal, place):
    path = settings_file(place, method="external", distilled=distilled)
    assert "distilled: " in refusal("run", path)


def test_folder_where_the_record_goes_is_refused_before_any_work(refusal, place, own_root):
    (own_root / "results" / "trial" / "bad-seed0.json").mkdir(parents=True)
    assert "bad-seed0.json: a folder is where the record goes" in refusal("run", settings_file(place))


COMMANDS = [
    ["run", "results/demo/digits-dwa-ipc10.json"],
    ["draw", "table-1"],
    *([name, "demo"] for name in ("missing", "plan", "status", "verify", "publish")),
    ["share", "some-set"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_empty_root_is_refused_and_nothing_is_written_here(arguments, refusal, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("DWA_ROOT", "")
    assert "DWA_ROOT: '' is not allowed" in refusal(*arguments)


@pytest.mark.parametrize("name", ["../../x", "..", ".", "a/../../b", "/etc", "", "x\n"])
def test_set_outside_of_the_artifacts_is_neither_found_nor_written_nor_moved(name, refusal, place, own_root):
    (own_root / "artifacts" / "distilled").mkdir(parents=True)
    (own_root / "x").mkdir()
    assert "no such distilled set" in refusal("share", name)


# --------------------------------------------------------------------------------------------------- records

DAMAGED = {
    "nested 100,000 deep": lambda record: "[" * 100_000 + "]" * 100_000,
    "nested in a key": lambda record: json.dumps(record)[:-1] + ', "more": ' + '{"a":' * 100_000 + "1" + "}" * 100_001,
    "classes in quotes": lambda record: json.dumps(record | {"data": {"fingerprint": "f", "classes": "10"}}),
    "no classes": lambda record: json.dumps(record | {"data": {}}),
    "no accuracies": lambda record: json.dumps(record | {"accuracy": {}}),
    "accuracy in quotes": lambda record: json.dumps(record | {"accuracy": record["accuracy"] | {"reported": "99"}}),
    "accuracy that is no number": lambda record: json.dumps(record).replace("0.0", "NaN"),
    "infinite accuracy": lambda record: json.dumps(record).replace("0.0", "Infinity"),
    "accuracy a list": lambda record: json.dumps(record | {"accuracy": [99]}),
    "a teacher elsewhere": lambda record: json.dumps(record | {"teacher": {"artifact": "../../x"}}),
    "a set elsewhere": lambda record: json.dumps(record | {"distilled": {"artifact": "/etc"}}),
    "no tasks": lambda record: json.dumps(record | {"tasks": []}),
    "tasks a number": lambda record: json.dumps(record | {"tasks": 5}),
    "tasks a mapping": lambda record: json.dumps(record | {"tasks": {"a": 1}}),
    "a list": lambda record: "[]",
    "text": lambda record: "not JSON",
    "no UTF-8": lambda record: "\udcff",
    "a curve that is text": lambda record: json.dumps(record | {"curve": "flat"}),
}


@pytest.fixture
def two(own_root, bare_record):
    """The settings of two records of the demo that are there, and the content of the second."""
    settings = files.list_runs("demo", "table-10")[:2]
    for setting in settings:
        store.write_json(setting.record_path(), bare_record(setting))
    return *settings, bare_record(settings[1])


def check_bad_record(good: Setting, bad: Setting, command) -> None:
    """A record that cannot be used is named; it counts as not there, and the other one as there."""
    with pytest.raises(InputError, match=rf"{bad.record_path()}: .+; the record is damaged, .*; delete it"):
        records.read_record(bad.record_path())
    assert records.find_record(good) is not None
    assert records.find_record(bad) is None
    assert command("missing", "demo", "table-10") == 0


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_record_names_itself_and_stops_nobody_elses_run(case, two, command):
    good, bad, content = two
    bad.record_path().write_bytes(DAMAGED[case](content).encode(errors="surrogateescape"))
    check_bad_record(good, bad, command)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda record: record["accuracy"].update(last="99"), "accuracy.last: Input should be a valid number"),
        (lambda record: record.update(accuracy={}), "accuracy.last: Field required"),
        (lambda record: record["data"].update(classes="10"), "data.classes: Input should be a valid integer"),
        (lambda record: record["data"].update(test_images=0), "data.test_images: Input should be greater than"),
        (lambda record: record["setting"].pop("seed"), "setting.seeds.0: Input should be a valid integer"),
        (lambda record: record["setting"]["relabel"].update(epochs=1.5), "setting.relabel.epochs: Input should be"),
        (lambda record: record.update(curve=[{"loss": 1.0}, {"loss": "low"}]), "curve.1.loss: Input should be a"),
        (lambda record: record.update(tasks=[{}]), "tasks.0.accuracy: Field required"),
        (lambda record: record["seconds"].pop("student"), "seconds.student: Field required"),
    ],
)
def test_message_names_the_first_field_of_a_record_that_is_wrong(change, problem, two):
    _, bad, content = two
    change(content)
    store.write_json(bad.record_path(), content)
    with pytest.raises(InputError, match=f"{bad.record_path()}: {problem}.*; delete it, and make makes it again$"):
        records.read_record(bad.record_path())


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_in_place_of_a_record_is_named(make, two, command):
    good, bad, _ = two
    bad.record_path().unlink()
    make(bad.record_path())
    check_bad_record(good, bad, command)


def test_artifact_whose_record_is_nested_100_000_deep_is_set_aside(own_root, capsys):
    folder = own_root / "artifacts" / "teachers" / "some-teacher"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("[" * 100_000)
    assert store.find("teachers", folder.name) is None
    assert "record.json is not JSON; set aside as" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------- how commands end


def arguments_of(name: str, parser: argparse.ArgumentParser) -> list[str]:
    """A call of the command `name` with all that it needs."""
    return [name, *("x" for action in parser._actions if action.required and not action.option_strings)]


def list_commands() -> dict[str, list[str]]:
    (commands,) = (action for action in __main__.build_parser()._actions if action.choices)
    return {name: arguments_of(name, parser) for name, parser in commands.choices.items()}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("a\nb"), "KeyError: 'a\\nb' (DWA_DEBUG=1 shows the traceback)"),
        (RecursionError("too deep"), "RecursionError: too deep (DWA_DEBUG=1 shows the traceback)"),
        (MemoryError(), "MemoryError:"),
        (OSError(36, "File name too long", "x" * 10), "xxxxxxxxxx: File name too long"),
        (InputError("\x1b[2J\x07bad\u202e"), "error: \\x1b[2J\\x07bad\\u202e\n"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "no"), "UnicodeEncodeError: "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("name", list_commands())
def test_every_command_ends_in_one_line(name, error, text, refusal, monkeypatch):
    def fail(**_):
        raise error

    monkeypatch.setattr(__main__.pkgutil, "resolve_name", lambda _: fail)
    assert text in refusal(*list_commands()[name], code=getattr(error, "exit_code", 1))


def test_closed_stdout_and_stderr_are_written_to_by_nobody(command, own_root, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert command("status", "demo") == 0
    assert command("status", "nowhere") == 2


def test_reader_that_left_ends_a_command_quietly_as_its_signal_does(command, own_root, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert command("status", "demo") == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""


@pytest.mark.whole
@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-", "| true"])
def test_closed_output_of_a_real_process_leaves_nothing(closing, place, own_root):
    before = snapshot(place)
    script = f"{sys.executable} -m dwa_paper status demo {closing}"
    folder = Path(__file__).resolve().parents[2]
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=folder, check=True)
    assert done.stderr == ""
    assert snapshot(place) == before
