"""Hours from earlier records, costs of a run, and the list of what is done and missing."""

import re

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from dwa_core import devices, models
from dwa_paper.runs import real, sets, store
from dwa_paper.runs.records import parse_setting
from dwa_paper.settings import files
from dwa_paper.settings.presets import merge
from dwa_paper.settings.schema import Setting, resolve
from dwa_paper.tools import flops, plan

DEVICE = "Some CPU, 4 threads"
SIZE = {"training_images": 1000, "test_images": 200, "classes": 10, "fingerprint": "copy"}


def setting(**given) -> Setting:
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
    return resolve(merge(values, given))


def record(of: Setting, **seconds: float) -> dict:
    accuracy = dict.fromkeys(("last", "best", "reported"), 50.0)
    learned = {"accuracy": accuracy, "curve": [], "distilled": {"artifact": "d", "files": {}}}
    learned |= {"teacher": {"artifact": "t", "files": {}, "accuracy": {"top1": 50.0, "top5": 50.0}}}
    made = {"data": SIZE, "precision": "fp32", "device": DEVICE, "versions": {"torch": "2.0"}, "seconds": seconds}
    return {"setting": of.recorded(), **learned, **made}


def estimated(wanted: Setting, *records: dict, device: str = DEVICE) -> dict:
    pairs = with_settings(*records)
    return plan.estimate(wanted, plan.find_data(wanted, pairs), plan.measure_rates(pairs, [wanted], device), device)


def with_settings(*records: dict) -> list[tuple[Setting, dict]]:
    """As plan.read_records returns them."""
    return [(parse_setting(record["setting"]), record) for record in records]


MEASURED = {"teacher": 302.0, "synthesis": 15.0, "student": 22.0}


def test_what_was_measured_is_expected_again():
    assert estimated(setting(), record(setting(), **MEASURED)) == pytest.approx(MEASURED)


def test_more_work_takes_longer_in_proportion():
    # Teacher: 3 passes of 1,000 images per epoch, a test of 200, and one of what is stored. Student: 4 passes of 50
    # images per epoch and a test. Synthesis: of 50 images, 2 passes per iteration, 3 per adjustment step, 1 more.
    longer = setting(ipc=10, teacher={"epochs": 20}, synthesis={"iterations": 30})
    expected = estimated(longer, record(setting(), **MEASURED))
    assert expected["teacher"] == pytest.approx(302.0 * (3 * 20 * 1000 + 3 * 200) / (3 * 10 * 1000 + 2 * 200))
    assert expected["synthesis"] == pytest.approx(15.0 * 2 * (2 * 30 + 37) / (2 * 10 + 37))
    assert expected["student"] == pytest.approx(22.0 * (4 * 10 * 100 + 200) / (4 * 10 * 50 + 200))


@pytest.mark.parametrize(("labels", "passes"), [("fixed", 3 * 10 * 50 + 200 + 50), ("hard", 3 * 10 * 50 + 200)])
def test_students_of_stored_labels_take_no_teacher_and_have_rates_of_their_own(labels, passes):
    wanted = setting(relabel={"labels": labels})
    assert estimated(wanted, record(setting(), **MEASURED))["student"] is None
    forward = flops.count_network("convnet-16", "small", 16, 10).flop
    assert flops.count_flop(wanted, "student", SIZE) == pytest.approx(passes * forward)
    hard = setting(network="resnet18", student="convnet-16", relabel={"labels": "hard"})
    assert estimated(hard, record(wanted, **MEASURED))["student"] == pytest.approx(22.0 * 1700 / passes)


def test_flop_of_a_resnet18_are_those_of_others():
    assert flops.count_network("resnet18", "small", 32, 10).flop / 2e9 == pytest.approx(0.556, abs=0.001)  # GMAC
    # cifar10-airbench: 32.3 PFLOP for 200 epochs of CIFAR-10.
    given = resolve({"profile": "test", "name": "x", "preset": "cifar10"})
    data = plan.find_data(given, [])
    assert flops.count_flop(given, "teacher", data) == pytest.approx(32.3e15, rel=0.05)


def test_a_gradient_takes_as_much_as_the_pass_forward_and_kept_numbers_are_counted():
    counts, kept = flops.count_network("resnet18", "small", 32, 10), {}
    network = models.build("resnet18", 10, "small", 32, seed=0).eval()
    for weights, passes in ((False, 2), (True, 3)):
        images = torch.zeros(1, 3, 32, 32, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            network.requires_grad_(weights)(images).sum().backward()
        assert counter.get_total_flops() == passes * counts.flop

    def keep(tensor):
        return kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.zeros(1, 3, 32, 32))
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    numbers = sum(tensor.numel() for place, tensor in kept.items() if place not in weights)
    assert counts.kept == pytest.approx(numbers, rel=0.02)


def test_memory_is_that_of_the_stage_that_takes_most():
    counts = flops.count_network("convnet-16", "small", 16, 10)
    # The last of an epoch's 8 batches, of 1,000 images, has 104.
    teacher = 2 * counts.kept * (128 + 104) + 16 * counts.parameters
    assert flops.count_memory(setting(), SIZE) == 1200 * 768 + teacher


@pytest.mark.parametrize("device", flops.DEVICES)
def test_plan_of_a_gpu_that_is_not_here_is_estimated_and_named(own_profile, capsys, device):
    plan.print_plan("own", device)
    printed = capsys.readouterr().out
    assert f"Hours of the others on {device}: 0.0 by records" in printed
    _, peak, share = flops.DEVICES[device]
    assert f"at {share * peak / 1e12:.0f} TFLOP/s, {100 * share:.0f} % of the data sheet's peak in bf16" in printed
    assert "~0.000" in printed


def test_records_of_a_gpu_replace_its_estimate(own_profile, own_root, capsys):
    made = finish(own_profile, "a", 1800.0, device="NVIDIA H100 80GB HBM3")
    made.record_path().unlink()
    plan.print_plan("own", "h100")
    printed = capsys.readouterr().out
    assert ["1.00", "2.00", "0.50", "1/2", "a"] in [row.split() for row in printed.splitlines()]
    assert "on h100: 3.5 by records" in printed


def test_speed_of_the_device_here_is_a_share_of_a_product(monkeypatch):
    monkeypatch.setattr(flops.timeit.Timer, "autorange", lambda _: (4, 0.2))
    monkeypatch.setattr(flops.timeit.Timer, "repeat", lambda *_: [0.5, 0.4])
    flops.find_speed.cache_clear()
    share, side = (0.13, 8192) if devices.choose().device.type == "cuda" else (0.5, 1024)
    assert flops.find_speed("here")[0] == pytest.approx(share * 2 * side**3 * 4 / 0.4)
    flops.find_speed.cache_clear()


def test_plan_of_a_device_that_is_not_known_is_refused(refused):
    with refused("device: 'v100'", "here, h200, h100, a100, rtx4090"):
        plan.print_plan("demo", "v100")


def test_plan_downloads_no_distilled_set(own_root, monkeypatch):
    monkeypatch.setattr(sets, "external_folder", lambda _: pytest.fail("a plan needs no download"))
    published = setting(method="external", distilled="somebody/some-set")
    assert plan.find_shares(published, SIZE, {}) == {"teacher": 1.0, "synthesis": 1.0}


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
    assert plan.identify_workload(setting(), "teacher", "NVIDIA H100 80GB HBM3")[-1] == "h100"
    assert plan.identify_workload(setting(), "teacher", "NVIDIA H100 PCIe")[-1] == "NVIDIA H100 PCIe"


def test_real_images_take_no_synthesis_and_tell_nothing_of_it():
    real = record(setting(method="random-real"), **{**MEASURED, "synthesis": 0.1})
    assert estimated(setting(method="random-real"), real)["synthesis"] == 0.0
    assert estimated(setting(), real)["synthesis"] is None


def test_students_of_several_tasks_see_the_sets_of_the_classes_so_far():
    # A fifth, two fifths ... five fifths of the images: three times all, labelled by one, two ... five teachers.
    expected = estimated(setting(tasks=5), record(setting(), **MEASURED))
    assert expected["student"] == pytest.approx(22.0 * (3 * (3 * 10 * 50 + 200) + 11 * 10 * 50) / (4 * 10 * 50 + 200))
    assert expected["teacher"] == pytest.approx(MEASURED["teacher"])


def test_records_of_a_validation_part_say_nothing_of_the_whole():
    whole, held_out = record(setting(), **MEASURED), record(setting(validation=0.5), **MEASURED)
    held_out["data"] = {"training_images": 500, "test_images": 500, "classes": 10, "fingerprint": "half"}
    known = with_settings(whole, held_out)
    assert plan.find_data(setting(), known) == SIZE
    assert plan.find_data(setting(validation=0.5), known) == held_out["data"]
    split = {"training_images": 800, "test_images": 200, "classes": 10, "fingerprint": "0.2 not recorded yet"}
    assert plan.find_data(setting(validation=0.2), known) == split
    # Half the images in the same time: each took twice as long.
    of_mine = {**held_out, "setting": {**held_out["setting"], "dataset": "mine"}}
    assert estimated(setting(dataset="mine"), of_mine)["synthesis"] is None, "the size of the whole is not known"
    rate = plan.measure_rates(with_settings(held_out), [setting()], DEVICE)
    forward = flops.count_network("convnet-16", "small", 16, 10).flop
    expected = 302.0 / (3 * 10 * 500 + 2 * 500) / forward
    assert rate[plan.identify_workload(setting(), "teacher", DEVICE)] == pytest.approx(expected)


def test_costs_of_a_data_set_that_was_never_read_are_not_known():
    lines = plan.describe_costs(setting(dataset="mine"))
    assert lines == ["hours, disk and memory: not known before mine has been read once"]


def test_costs_of_imagenet_follow_from_numbers_of_images_and_what_is_estimated_is_marked(monkeypatch):
    monkeypatch.setattr(flops, "find_speed", lambda device: (1e12, "1 TFLOP/s"))
    given = {"profile": "test", "name": "x", "preset": "imagenet-1k", "ipc": 50, "device": "cpu"}
    text = "\n".join(plan.describe_costs(resolve(given)))
    # 1.8 GFLOP of two an image: 50,000 tests; 50,000 images of 2,000 iterations; and of 300 epochs, with their tests.
    teacher, synthesis, student = map(float, re.search("teacher ~(.+), synthesis ~(.+), student ~(.+)", text).groups())
    assert teacher == pytest.approx(50_000 * 3.63e9 / 1e12 / 3600, rel=0.02)
    assert synthesis == pytest.approx(50_000 * 2000 * 2 * 3.63e9 / 1e12 / 3600, rel=0.02)
    assert student > 4 * 300 * 50_000 * 3.63e9 / 1e12 / 3600
    assert "~: estimated, at 1 TFLOP/s" in text
    # 50 images of each of 1,000 classes, of 224 x 224 x 3 bytes; ResNet-18 in two bytes per weight.
    assert "distilled images 7.5 GB" in text
    assert "teacher 23.4 MB" in text
    assert "1,331,167" in text


def test_costs_are_bytes_of_images_and_parameters(own_root):
    path = setting().record_path()
    store.write_json(path, {**record(setting(), **MEASURED), "device": devices.choose("cpu").describe()})
    text = "\n".join(plan.describe_costs(setting(device="cpu")))
    assert "teacher 0.084, synthesis 0.004, student 0.006" in text  # hours
    # 5 images of each of 10 classes, and 1,200 real ones, of 16 x 16 x 3 bytes.
    assert f"distilled images {plan.format_bytes(50 * 768)}" in text
    assert f"decoded real images {plan.format_bytes(1200 * 768)}" in text
    assert "real images: 1,200, 0.9 MB decoded at 16 px, on cpu" in text


def test_costs_say_that_images_stream_where_memory_is_short_as_the_run_does(own_root, monkeypatch):
    store.write_json(setting().record_path(), record(setting(), **MEASURED))
    memory = real.psutil.virtual_memory()._replace(available=1200 * 768)
    monkeypatch.setattr(real.psutil, "virtual_memory", lambda: memory)
    text = "\n".join(plan.describe_costs(setting(device="cpu")))
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
    good = {**record(setting(), **MEASURED), "device": devices.choose("cpu").describe()}
    store.write_json(setting().record_path(), good)
    lines = plan.describe_costs(setting(device="cpu"))  # what setting.ipynb shows
    assert "teacher 0.08" in lines[0]
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line.split(":")[0] for line in printed) == sorted(map(str, unusable))


def test_plan_goes_on_without_a_record_that_cannot_be_used(unusable, own_profile, capsys):
    plan.print_plan("own")
    printed = capsys.readouterr().out
    assert "own: 0 of 4 records are there" in printed
    assert all(printed.count(f"{path}: ") == 1 for path in unusable)


@pytest.fixture
def own_profile(tmp_path, monkeypatch):
    """settings/own/ with two settings of one teacher and one distilled set, two seeds each; students of b take 1 h."""
    folder = tmp_path / "settings" / "own"
    folder.mkdir(parents=True)
    monkeypatch.setattr(files, "SETTINGS", folder.parent)
    for name, student in {"a": "convnet-16", "b": "convnet-8"}.items():
        (folder / f"{name}.yaml").write_text(
            f"profile: own\nname: {name}\npreset: digits\nnetwork: convnet-16\nstudent: {student}\nipc: 5\n"
            "teacher: {epochs: 10, test_every: 10}\nsynthesis: {iterations: 10}\n"
            "relabel: {epochs: 10, test_every: 10}\nseeds: [0, 1]\n"
        )
    student, real = resolve(files.read(folder / "b.yaml")), flops.find_speed
    here = 2 * flops.count_flop(student, "student", SIZE) / 3600, "the speed of this test"
    monkeypatch.setattr(flops, "find_speed", lambda device: real(device) if device in flops.DEVICES else here)
    return folder


def test_plan_lists_done_and_missing_and_counts_what_is_shared_once(own_profile, own_root, capsys):
    device = devices.choose().describe()
    first = resolve(files.read(own_profile / "a.yaml"))
    seconds = {"teacher": 3600.0, "synthesis": 7200.0, "student": 1800.0}
    store.write_json(first.record_path(), {**record(first, **seconds), "device": device})
    plan.print_plan("own")
    printed = capsys.readouterr().out
    rows = {line.split()[-1]: line.split() for line in printed.splitlines() if line.endswith((" a", " b"))}
    # One of a's students is missing; the teacher and the set, which no store has, are counted where they are first due.
    assert rows["a"] == ["1.00", "2.00", "0.50", "1/2", "a"]
    assert rows["b"] == ["shared", "shared", "~1.00", "0/2", "b"]
    assert "own: 1 of 4 records are there" in printed
    assert f"{device}: 3.5 by records" in printed
    assert "marked ~: 1.0, at" in printed


def test_plan_of_data_that_were_never_read_is_unknown(own_profile, capsys):
    for path in own_profile.glob("*.yaml"):
        path.write_text(path.read_text() + "dataset: mine\n")
    plan.print_plan("own")
    printed = capsys.readouterr().out
    assert "those of 2 settings" in printed
    assert "They need" not in printed, "nothing is known of it"


def finish(profile, name: str, student: float, device: str = "") -> Setting:
    """The setting `name` with the records of all its seeds, made on this device or on `device`."""
    seconds = {"teacher": 3600.0, "synthesis": 7200.0, "student": student}
    device = device or devices.choose().describe()
    for seed in (0, 1):
        made = resolve({**files.read(profile / f"{name}.yaml"), "seed": seed})
        store.write_json(made.record_path(), {**record(made, **seconds), "device": device})
    return made


def test_plan_counts_the_artifacts_of_a_finished_setting_where_they_are_not_stored(own_profile, capsys):
    finish(own_profile, "a", 1800.0)
    plan.print_plan("own")
    printed = capsys.readouterr().out
    rows = {line.split()[-1]: line.split() for line in printed.splitlines() if line.endswith((" a", " b"))}
    assert rows == {"a": ["2/2", "a"], "b": ["1.00", "2.00", "~1.00", "0/2", "b"]}
    assert ": 3.0 by records" in printed
    assert list(rows) == ["b", "a"], "what is missing comes first"


def test_plan_of_what_is_stored_costs_nothing_and_is_not_shared(own_profile, monkeypatch, capsys):
    finish(own_profile, "a", 1800.0)
    monkeypatch.setattr(store, "find", lambda kind, name: own_profile if kind == "teachers" else None)
    plan.print_plan("own")
    printed = capsys.readouterr().out
    assert ["0", "2.00", "~1.00", "0/2", "b"] in [line.split() for line in printed.splitlines()]
    finish(own_profile, "b", 900.0)
    plan.print_plan("own")
    assert ": 0.0 by records" in capsys.readouterr().out


def test_share_to_make_counts_the_teachers_and_sets_of_all_tasks(own_root, monkeypatch):
    whole, several, asked = {"fingerprint": "copy", "classes": 10}, setting(tasks=5), {}
    assert plan.find_shares(several, whole, asked) == {"teacher": 1.0, "synthesis": 1.0}
    assert len(asked) == 10
    assert plan.find_shares(several, whole, asked) == {"teacher": None, "synthesis": None}
    stored = list(asked)[:2]
    monkeypatch.setattr(store, "find", lambda _, name: own_root if name in stored else None)
    assert plan.find_shares(several, whole, {}) == {"teacher": 0.6, "synthesis": 1.0}
    # More tasks than classes are refused when they are run, and not known to be too many before.
    assert plan.find_shares(setting(tasks=20), whole, {}) == {"teacher": 1.0, "synthesis": 1.0}


@pytest.mark.parametrize(("size", "text"), [(840, "0.8 kB"), (2_500_000, "2.5 MB"), (3_000_000_000, "3.0 GB")])
def test_bytes_are_shown_in_the_unit_that_fits(size, text):
    assert plan.format_bytes(size) == text


def test_plan_of_a_profile_that_does_not_exist_is_refused(refused):
    with refused("profile: 'huge'", "demo", "paper"):
        plan.print_plan("huge")
