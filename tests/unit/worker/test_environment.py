"""The snapshot says what matters and nothing private."""

import getpass
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lem_domain.wire.workers import Device, DeviceKind
from lem_worker.daemon.environment import clock_pair, cpu_facts, snapshot

DEVICE = Device(uuid="CPU-0", kind=DeviceKind.CPU, name="cpu")


def test_it_is_json_and_names_the_essentials() -> None:
    facts = json.loads(json.dumps(snapshot([DEVICE])))
    assert facts["devices"] == [{"uuid": "CPU-0", "kind": "cpu", "name": "cpu"}]
    assert facts["cpu"]["logical_cores"] >= 1
    assert facts["memory_bytes"] > 2**28
    assert facts["packages"]["pydantic"]
    assert facts["kernel"].startswith("Linux ")
    assert set(facts["lem"]) == {"version", "commit"}


def test_every_leased_device_is_described_and_not_the_first_alone() -> None:
    gpus = [Device(uuid=f"GPU-{number}", kind=DeviceKind.GPU, name="NVIDIA H100") for number in range(3)]
    known = [{"index": number, "uuid": f"GPU-{number}", "power_limit_w": 300.0 + number} for number in (1, 0)]
    assert snapshot(gpus, known)["devices"] == [
        {"index": 0, "uuid": "GPU-0", "kind": "gpu", "name": "NVIDIA H100", "power_limit_w": 300.0},
        {"index": 1, "uuid": "GPU-1", "kind": "gpu", "name": "NVIDIA H100", "power_limit_w": 301.0},
        {"uuid": "GPU-2", "kind": "gpu", "name": "NVIDIA H100"},
    ]


def test_secrets_names_and_paths_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    monkeypatch.setenv("LEM_TOKEN", "lem_secret_value")
    monkeypatch.setenv("USER", "somebody-special")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = json.dumps(snapshot([DEVICE]))
    for secret in ("hf_secret_value", "lem_secret_value", "somebody-special", str(Path.home()), str(Path.cwd())):
        assert secret not in text
    user = getpass.getuser()
    assert f'"{user}"' not in text
    assert f"/{user}" not in text
    assert json.loads(text)["variables"]["OMP_NUM_THREADS"] == "1"


def test_a_container_gets_the_name_of_its_image_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEM_IMAGE", "lem@sha256:12")
    assert json.loads(json.dumps(snapshot([DEVICE])))["container"]["image"] == "lem@sha256:12"
    monkeypatch.setenv("LEM_IMAGE", "")
    assert json.loads(json.dumps(snapshot([DEVICE])))["container"]["image"] is None


def test_an_image_without_a_source_tree_gets_its_commit_from_its_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEM_COMMIT", "0" * 40)
    monkeypatch.setenv("PATH", "")  # no git
    assert json.loads(json.dumps(snapshot([DEVICE])))["lem"]["commit"] == "0" * 40


def test_it_imports_no_engine() -> None:
    code = (
        "import sys; from lem_worker.daemon.environment import snapshot; snapshot(());"
        "sys.exit(bool({'torch', 'transformers', 'codecarbon'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_clock_pair_is_the_narrowest_bracket() -> None:
    monotonic = iter([100, 200, 1000, 1006] + [10_000 * step for step in range(1, 37)])
    utc = iter([1_700_000_000_000_000_001, 1_700_000_000_000_000_777] + [0] * 18)
    assert clock_pair(lambda: next(monotonic), lambda: next(utc)) == {
        "monotonic_ns": 1003,
        "utc": "2023-11-14T22:13:20.000000777Z",
        "uncertainty_ns": 3,
    }


def test_physical_cores_are_counted_once_whatever_their_threads() -> None:
    threads = [
        f"model name\t: Some CPU\nphysical id\t: {socket}\ncore id\t\t: {core}\n"
        for socket in (0, 1)
        for core in (0, 1)
        for _ in range(2)
    ]
    assert cpu_facts("\n".join(threads)) == ("Some CPU", 4)
    assert cpu_facts("Features : fp asimd\n") == (None, None)
