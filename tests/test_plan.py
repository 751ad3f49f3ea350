"""Hours from earlier records, costs of a run, and the list of what is done and missing."""

import pytest

from dwa_core import data, devices, plan, settings, settings_files, store

DEVICE = "Some CPU, 4 threads"
SIZE = {"training_images": 1000, "test_images": 200, "classes": 10, "fingerprint": "copy"}


def setting(**given) -> settings.Setting:
    """Ten epochs of teacher and student, tested once each, and ten iterations of synthesis."""
    values = {
        "profile": "own",
        "name": "small",
        "preset": "digits",
        "network": "convnet-16",
        "ipc": 5,
        "teacher": {"epochs": 10, "test_every": 10},
        "synthesis": {"iterations": 10},
        "relabel": {"epochs": 10, "test_every": 10},
    }
    return settings.resolve(settings.merged(values, given))


def record(of: settings.Setting, **seconds: float) -> dict:
    learnt = {"accuracy": {}, "curve": [], "teacher": {"artifact": "t"}, "distilled": {"artifact": "d"}}
    made = {"data": SIZE, "precision": "fp32", "device": DEVICE, "versions": {}, "seconds": seconds}
    return {"setting": of.recorded(), **learnt, **made}


def estimated(wanted: settings.Setting, *records: dict, device: str = DEVICE) -> dict:
    size = plan.size_of(wanted, plan.sizes(list(records)))
    return plan.seconds(wanted, size, plan.seconds_per_pass(list(records)), device)


MEASURED = {"teacher": 302.0, "synthesis": 15.0, "student": 22.0}


def test_what_was_measured_is_expected_again():
    assert estimated(setting(), record(setting(), **MEASURED)) == pytest.approx(MEASURED)


def test_more_work_takes_longer_in_proportion():
    # Teacher: 3 passes of 1,000 images per epoch, and a test of 200. Student: 4 passes of 50 images per epoch and
    # a test. Synthesis: 3 passes of 50 images per iteration.
    longer = setting(ipc=10, teacher={"epochs": 20}, synthesis={"iterations": 30})
    expected = estimated(longer, record(setting(), **MEASURED))
    assert expected["teacher"] == pytest.approx(302.0 * (3 * 20 * 1000 + 2 * 200) / (3 * 10 * 1000 + 200))
    assert expected["synthesis"] == pytest.approx(15.0 * 6)
    assert expected["student"] == pytest.approx(22.0 * (4 * 10 * 100 + 200) / (4 * 10 * 50 + 200))


def test_several_records_count_by_their_median():
    records = [record(setting(), **{**MEASURED, "student": value}) for value in (10.0, 11.0, 90.0)]
    assert estimated(setting(), *records)["student"] == pytest.approx(11.0)


@pytest.mark.parametrize(
    ("given", "unknown"),
    [
        ({"student": "resnet18"}, {"student"}),
        ({"network": "resnet18"}, {"teacher", "synthesis", "student"}),
        ({"precision": "fp32"}, {"teacher", "synthesis", "student"}),
        ({"images": {"side": 32}}, {"teacher", "synthesis", "student"}),
    ],
)
def test_what_was_never_measured_is_unknown(given, unknown):
    expected = estimated(setting(**given), record(setting(), **MEASURED))
    assert {stage for stage, value in expected.items() if value is None} == unknown


def test_another_device_is_unknown_and_its_number_of_threads_does_not_matter():
    known = record(setting(), **MEASURED)
    assert set(estimated(setting(), known, device="Another CPU, 4 threads").values()) == {None}
    assert estimated(setting(), known, device="Some CPU, 8 threads") == pytest.approx(MEASURED)
    assert plan.device_kind("NVIDIA H100 80GB HBM3") == "NVIDIA H100 80GB HBM3"


def test_real_images_take_no_synthesis_and_tell_nothing_of_it():
    real = record(setting(method="random-real"), **{**MEASURED, "synthesis": 0.1})
    assert estimated(setting(method="random-real"), real)["synthesis"] == 0.0
    assert estimated(setting(), real)["synthesis"] is None


def test_students_of_several_tasks_see_the_sets_of_the_classes_so_far():
    # A fifth, two fifths ... five fifths of the images: three times all of them.
    expected = estimated(setting(tasks=5), record(setting(), **MEASURED))
    assert expected["student"] == pytest.approx(3 * MEASURED["student"])
    assert expected["teacher"] == pytest.approx(MEASURED["teacher"])


def test_records_of_a_validation_part_say_nothing_of_the_whole():
    whole, held_out = record(setting(), **MEASURED), record(setting(validation=0.5), **MEASURED)
    held_out["data"] = {"training_images": 500, "test_images": 500, "classes": 10, "fingerprint": "half"}
    known = plan.sizes([whole, held_out])
    assert plan.size_of(setting(), known) == plan.Size(**SIZE)
    assert plan.size_of(setting(validation=0.5), known) == plan.Size(**held_out["data"])
    assert plan.size_of(setting(validation=0.2), known) == plan.Size(800, 200, 10, "0.2 not recorded yet")
    # Half the images in the same time: each took twice as long.
    assert estimated(setting(), held_out)["synthesis"] is None, "the size of the whole is not known"
    rate = plan.seconds_per_pass([held_out])[plan.workload(setting(), "teacher", DEVICE)]
    assert rate == pytest.approx(302.0 / (3 * 10 * 500 + 500))


def test_costs_of_a_data_set_that_was_never_read_are_not_known(monkeypatch):
    lines = plan.costs(setting(dataset="mine"))
    assert "teacher unknown, synthesis unknown, student unknown" in lines[0]
    assert "not known before mine has been read once" in lines[1]


def test_costs_are_bytes_of_images_and_parameters(own_root):
    path = setting().record_path()
    store.write_json(
        path, {**record(setting(), **MEASURED), "device": devices.device_name(devices.choose_device("cpu"))}
    )
    text = "\n".join(plan.costs(setting(device="cpu")))
    assert "teacher 0.08, synthesis 0.00, student 0.01" in text  # hours
    # 5 images of each of 10 classes, and 1,200 real ones, of 16 x 16 x 3 bytes.
    assert f"distilled images {plan.gigabytes(50 * 768)}" in text
    assert f"decoded real images {plan.gigabytes(1200 * 768)}" in text
    assert "real images: 1,200, 0.9 MB decoded at 16 px, on cpu" in text


def test_costs_say_that_images_stream_where_memory_is_short_as_the_run_does(own_root, monkeypatch):
    store.write_json(setting().record_path(), record(setting(), **MEASURED))
    memory = data.psutil.virtual_memory()._replace(available=1200 * 768)
    monkeypatch.setattr(data.psutil, "virtual_memory", lambda: memory)
    text = "\n".join(plan.costs(setting(device="cpu")))
    assert "real images: 1,200, 0.9 MB decoded at 16 px, left in their files" in text
    assert "decoded real images" not in text, "they take no disk"


@pytest.fixture
def unusable(own_root):
    """The paths of records of another profile that cannot be used, beside the one that is good."""
    good = record(setting(), **MEASURED)
    folder = own_root / "results" / "another"
    contents = {
        "text": "{",
        "list": "[1]",
        "none-of-setting": {key: value for key, value in good.items() if key != "setting"},
        "later-setting": {**good, "setting": {**good["setting"], "later": 1}},
        "no-seed": {**good, "setting": {key: value for key, value in good["setting"].items() if key != "seed"}},
        "no-seconds": {key: value for key, value in good.items() if key != "seconds"},
        "no-student-seconds": {**good, "seconds": {"teacher": 1.0, "synthesis": 1.0}},
        "no-size": {**good, "data": {}},
    }
    for name, content in contents.items():
        path = folder / f"{name}-seed0.json"
        store.write_json(path, content)
        if isinstance(content, str):
            path.write_text(content)
    (folder / "folder-seed0.json").mkdir()
    return [*(folder / f"{name}-seed0.json" for name in contents), folder / "folder-seed0.json"]


def test_record_that_cannot_be_used_is_named_once_and_stops_nothing(unusable, own_root, capsys):
    good = {**record(setting(), **MEASURED), "device": devices.device_name(devices.choose_device("cpu"))}
    store.write_json(setting().record_path(), good)
    lines = plan.costs(setting(device="cpu"))  # what setting.ipynb shows
    assert "teacher 0.08" in lines[0]
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line.split(":")[0] for line in printed) == sorted(map(str, unusable))


def test_plan_goes_on_without_a_record_that_cannot_be_used(unusable, own_profile, capsys):
    plan.main("own")
    printed = capsys.readouterr().out
    assert "own: 0 of 4 records are there" in printed
    assert all(printed.count(f"{path}: ") == 1 for path in unusable)


@pytest.fixture
def own_profile(tmp_path, monkeypatch):
    """settings/own/ with two settings of one teacher and one distilled set, two seeds each."""
    folder = tmp_path / "settings" / "own"
    folder.mkdir(parents=True)
    monkeypatch.setattr(settings_files, "SETTINGS", folder.parent)
    for name, student in {"a": "convnet-16", "b": "convnet-8"}.items():
        (folder / f"{name}.yaml").write_text(
            f"profile: own\nname: {name}\npreset: digits\nnetwork: convnet-16\nstudent: {student}\nipc: 5\n"
            "teacher: {epochs: 10, test_every: 10}\nsynthesis: {iterations: 10}\n"
            "relabel: {epochs: 10, test_every: 10}\nseeds: [0, 1]\n"
        )
    return folder


def test_plan_lists_done_and_missing_and_counts_what_is_shared_once(own_profile, own_root, capsys):
    device = devices.device_name(devices.choose_device("auto"))
    first = settings.resolve(settings_files.read(own_profile / "a.yaml"))
    seconds = {"teacher": 3600.0, "synthesis": 7200.0, "student": 1800.0}
    store.write_json(first.record_path(), {**record(first, **seconds), "device": device})
    plan.main("own")
    printed = capsys.readouterr().out
    rows = {line.split()[-1]: line.split() for line in printed.splitlines() if line.endswith((" a", " b"))}
    # One of a's students is missing; the teacher and the set, which no store has, are counted where they are first due.
    assert rows["a"] == ["1.00", "2.00", "0.50", "1/2", "a"]
    assert rows["b"] == ["shared", "shared", "unknown", "0/2", "b"]
    assert "own: 1 of 4 records are there" in printed
    assert "3.5 hours; for 1 settings" in printed


def test_plan_where_nothing_was_measured_has_no_total(own_profile, capsys):
    plan.main("own")
    printed = capsys.readouterr().out
    assert "own: 0 of 4 records are there" in printed
    assert "\nunknown hours; for 2 settings" in printed


def done(profile, name: str, student: float) -> settings.Setting:
    """The setting `name` with the records of all its seeds."""
    seconds = {"teacher": 3600.0, "synthesis": 7200.0, "student": student}
    device = devices.device_name(devices.choose_device("auto"))
    for seed in (0, 1):
        made = settings.resolve({**settings_files.read(profile / f"{name}.yaml"), "seed": seed})
        store.write_json(made.record_path(), {**record(made, **seconds), "device": device})
    return made


def test_plan_counts_what_a_finished_setting_stood_on_where_it_is_not_stored(own_profile, capsys):
    done(own_profile, "a", 1800.0)
    plan.main("own")
    printed = capsys.readouterr().out
    rows = {line.split()[-1]: line.split() for line in printed.splitlines() if line.endswith((" a", " b"))}
    assert rows == {"a": ["2/2", "a"], "b": ["1.00", "2.00", "unknown", "0/2", "b"]}
    assert "\n3.0 hours; for 1 settings" in printed


def test_plan_of_what_is_stored_costs_nothing_and_is_not_shared(own_profile, monkeypatch, capsys):
    done(own_profile, "a", 1800.0)
    monkeypatch.setattr(store, "find", lambda kind, name: own_profile if kind == "teachers" else None)
    plan.main("own")
    printed = capsys.readouterr().out
    assert ["0.00", "2.00", "unknown", "0/2", "b"] in [line.split() for line in printed.splitlines()]
    done(own_profile, "b", 900.0)
    plan.main("own")
    assert "\n0.0 hours; for 0 settings" in capsys.readouterr().out


def test_plan_of_a_profile_that_does_not_exist_is_refused(refused):
    with refused("profile: 'huge'", "demo", "paper"):
        plan.main("huge")
