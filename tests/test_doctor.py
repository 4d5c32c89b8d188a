"""The doctor: what it finds, what stops a run and what does not, and that it never fails itself."""

import pytest

from agentcpm_kit import doctor
from agentcpm_kit.errors import KitError
from agentcpm_kit.profile import load_profile


@pytest.fixture
def locks(tmp_path, monkeypatch):
    """A checkout that is nothing but lock files; returns a function that writes one."""
    monkeypatch.setattr(doctor, "repo_root", lambda: tmp_path)
    monkeypatch.setattr(doctor, "version_of", {"torch": "2.1.0+cpu", "numpy": "1.0"}.get)
    (tmp_path / "requirements").mkdir()
    return lambda *lines: (tmp_path / "requirements/core.lock").write_text("# made by\n" + "\n".join(lines) + "\n")


def test_a_local_build_is_the_locked_release(locks):
    locks("torch==2.1.0", "numpy==1.0 ; python_version < '3.12'")
    check = doctor.lock_check("core")
    assert check.ok and check.found == "2 packages as locked"


def test_another_version_is_told_but_stops_nothing(locks):
    locks("torch==2.1.0", "numpy==1.1")
    check = doctor.lock_check("core")
    assert not check.ok and not check.needed and check.found == "numpy 1.0 (lock: 1.1)" and check.fix == "make setup"


def test_a_missing_package_stops_a_run(locks):
    locks("numpy==1.1", *(f"package{i}==1" for i in range(7)))
    check = doctor.lock_check("core")
    assert check.needed and check.found.startswith("package0 missing") and check.found.endswith("; 3 more")


def test_a_missing_lock_is_told(locks):
    check = doctor.lock_check("unsloth")
    assert not check.ok and not check.needed and "unsloth.lock" in check.fix


def test_a_profile_lists_all_that_this_machine_lacks(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "repo_root", lambda: tmp_path)
    monkeypatch.setattr(doctor, "hardware", lambda: {"memory_gb": 1.0, "cores": 1, "gpu": "Small GPU, 8192 MiB"})
    missing = doctor.fit(load_profile("paper")).missing
    assert len([m for m in missing if "GPU" in m or "of memory" in m]) == 2
    assert any("hf download" in m for m in missing)


def test_a_gpu_that_fits_is_not_missing(monkeypatch):
    gpu = {"memory_gb": 1000.0, "cores": 64, "gpu": "Large GPU, 81559 MiB"}
    monkeypatch.setattr(doctor, "hardware", lambda: gpu)
    assert not any("GPU" in m for m in doctor.fit(load_profile("paper")).missing)


@pytest.mark.parametrize("ok,needed,ready", [(True, True, True), (False, False, True), (False, True, False)])
def test_ready_means_that_micro_can_run(monkeypatch, ok, needed, ready):
    monkeypatch.setattr(doctor, "machine_checks", lambda: [doctor.Check("x", "y", ok, "fix", needed)])
    monkeypatch.setattr(doctor, "fit", lambda p: doctor.Fit(p.name, "", 1, False, p.name == "micro", []))
    assert doctor.diagnose()["ready"] is ready


def test_a_broken_profile_is_a_row_of_the_table(monkeypatch, capsys):
    def read(name):
        if name == "paper":
            raise KitError("profiles/paper.yaml is not YAML")
        return load_profile(name)

    monkeypatch.setattr(doctor, "load_profile", read)
    report = doctor.diagnose()
    assert {p["profile"]: p["missing"] for p in report["profiles"]}["paper"] == ["profiles/paper.yaml is not YAML"]
    doctor.print_diagnosis(report)
    assert "cannot be read" in " ".join(capsys.readouterr().out.split())


def test_a_machine_without_nvidia_smi_has_no_gpu(monkeypatch):
    from agentcpm_kit import environment

    def missing(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(environment.subprocess, "run", missing)
    assert environment.gpu_name() is None and environment.commit() == environment.os.environ.get("AGENTCPM_KIT_COMMIT")


def test_the_table_says_what_was_measured(capsys):
    report = doctor.diagnose()
    doctor.print_diagnosis(report)
    text = capsys.readouterr().out
    assert all(p["profile"] in text for p in report["profiles"])
    assert "estimate" in text or "measured" in text
