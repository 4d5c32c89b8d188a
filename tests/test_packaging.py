"""Locks, environment.yml, Makefile, Dockerfile and README tell the same story."""

import re

import yaml

from agentcpm_kit.profile import repo_root

ROOT = repo_root()
LOCKS = ("core", "unsloth", "vllm", "small", "gpu")


def pins(name):
    lines = (ROOT / f"requirements/{name}.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_line_is_a_full_pin():
    for name in LOCKS:
        for line in pins(name):
            assert re.fullmatch(r"[a-z0-9.\-]+==[^\s=;]+( ; python_version < '3.12')?", line), f"{name}: {line}"


def test_packages_in_several_locks_have_one_version():
    seen = {}
    for name in ("core", "unsloth", "vllm", "small"):
        for line in pins(name):
            package, version = line.split("==")
            assert seen.setdefault(package, version) == version, f"{package} differs in {name}.lock"


def test_gpu_lock_runs_the_same_kit():
    core, gpu = (dict(re.split("==| ;", p)[:2] for p in pins(n)) for n in ("core", "gpu"))
    for package in ("torch", "transformers", "trl", "mergekit", "papermill", "peft"):
        assert core[package] == gpu[package].strip()
    assert {"vllm", "unsloth"} <= set(gpu)


def test_environment_yml_has_the_pins_of_core_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][0] == "python=3.11"
    assert environment["dependencies"][-1]["pip"] == pins("core")


def test_direct_dependencies_are_locked():
    for name in ("core", "unsloth", "vllm", "small"):
        wanted = [re.split(r"[=<>\s]", line)[0] for line in (ROOT / f"requirements/{name}.in").read_text().splitlines()
                  if line and not line.startswith("#")]
        assert set(wanted) <= {p.split("==")[0] for p in pins(name)}, name


def test_dockerfile_installs_from_the_locks_as_another_user_and_bakes_the_commit():
    text = (ROOT / "Dockerfile").read_text()
    assert {"core", "unsloth", "gpu"} == set(re.findall(r"requirements/(\w+)\.lock", text))
    assert text.rindex("USER 1000") > text.rindex("RUN") and "AGENTCPM_KIT_COMMIT=${GIT_COMMIT}" in text


def test_ci_calls_make_test():
    assert "make test" in (ROOT / ".ci/run").read_text() and (ROOT / ".ci/run").stat().st_mode & 0o100


def test_readme_quotes_only_what_exists():
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z-]+)", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.M)) <= targets
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / path).exists(), path
    from typer.main import get_command

    from agentcpm_kit.cli import app

    assert set(re.findall(r"agentcpm-kit ([a-z][a-z-]*)", text)) <= set(get_command(app).commands)


def test_no_machine_paths_or_pickles():
    for path in [*ROOT.glob("agentcpm_kit/**/*.py"), *ROOT.glob("notebooks/**/*.ipynb")]:
        text = path.read_text()
        assert not re.search(r"/(home|root|work)/\w", text), path
        assert "trust_remote_code=True" not in text and "import pickle" not in text, path
