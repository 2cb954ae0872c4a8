"""What is installed is whole, works outside the checkout, and starts without torch."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import safeedit

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "datasets", "sklearn", "scipy", "peft", "pandas")

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="these tests need a checkout"
)


def python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """Standard output of a Python that must succeed, run in ``cwd``, with ``path`` first on
    its module path."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    environment.pop("PYTHONPATH", None)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# The package's face ---------------------------------------------------------------------


def typed_names() -> set[str]:
    """The names that ``safeedit/__init__.py`` imports for type checkers."""
    tree = ast.parse(Path(safeedit.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def test_the_public_names_are_the_same_for_readers_checkers_and_python() -> None:
    public = set(safeedit.__all__) - {"__version__"}
    assert public == typed_names()
    assert safeedit.__all__ == sorted(safeedit.__all__)
    assert dir(safeedit) == safeedit.__all__


@pytest.mark.parametrize("name", safeedit.__all__)
def test_every_public_name_leads_to_something_with_a_docstring(name: str) -> None:
    value = getattr(safeedit, name)
    if name != "__version__":
        assert value.__doc__
        assert value.__module__.startswith("safeedit.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'apply_everything'"):
        _ = safeedit.apply_everything


def test_the_guide_in_the_docstring_names_every_part_of_the_package() -> None:
    guide = set(re.findall(r":mod:`safeedit\.(\w+)`", safeedit.__doc__ or ""))
    helpers = {"suggest", "encoding", "layers"}
    package = Path(safeedit.__file__).parent
    parts = {p.name.removesuffix(".py") for p in package.iterdir() if not p.name.startswith("_")}
    assert guide == parts - helpers - {"py.typed"}


# Starting without torch -----------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        "import safeedit",
        "import safeedit; safeedit.load_policy, safeedit.PolicyError, safeedit.RunRecord",
        "from safeedit.cli.main import main; main(['--help'])",
        "from safeedit.cli.main import main; main(['--version'])",
        "from safeedit.cli.main import main; main(['apply', '--help'])",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(script: str, tmp_path: Path) -> None:
    check = (
        "import sys\n"
        "try:\n"
        f"    {script}\n"
        "except SystemExit as exit:\n"
        "    assert exit.code in (0, None), exit.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    python("-c", check, cwd=tmp_path)


def test_the_launcher_of_a_checkout_is_the_command(tmp_path: Path) -> None:
    said = python(str(ROOT / "cli.py"), "--version", cwd=tmp_path)
    assert said.strip().endswith(safeedit.__version__)


def test_the_folder_of_data_sets_does_not_hide_the_library_of_that_name() -> None:
    assert not list((ROOT / "datasets").rglob("*.py"))
    spec = importlib.util.find_spec("datasets")
    assert spec is not None
    assert spec.origin is not None
    assert "site-packages" in spec.origin


# The project file -----------------------------------------------------------------------


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]  # type: ignore[no-any-return]


def distribution(requirement: str) -> str:
    name = re.split(r"[<>=!~;\[ ]", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def test_exact_pins_are_in_the_constraints_and_nowhere_else() -> None:
    extras = project()["optional-dependencies"]
    wanted = project()["dependencies"] + extras["dev"] + extras["attest"] + extras["age"]
    wanted = [one for one in wanted if distribution(one) != "safeedit"]  # extras of its own
    assert [requirement for requirement in wanted if "==" in requirement] == []
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    assert {distribution(requirement) for requirement in wanted} <= set(map(distribution, pins))


OPTIONAL = {
    "bitsandbytes": "nf4",
    "cryptography": "attest",
    "in_toto_attestation": "attest",
    "lm_eval": "lm-eval",
    "model_signing": "attest",
    "securesystemslib": "attest",
    "pyrage": "age",
    "ray": "ray",
    "sigstore": "attest",
    "tqdm": "lm-eval",
}
"""Library that is used where a user has it -> the extra that brings it."""


def test_every_library_that_the_package_imports_is_a_dependency() -> None:
    names = {
        "cyclonedx": "cyclonedx-python-lib",
        "google": "protobuf",
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
    }
    wanted = {distribution(requirement) for requirement in project()["dependencies"]}
    imported = set()
    for path in Path(safeedit.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"safeedit"}
    extras = project()["optional-dependencies"]
    for library, extra in OPTIONAL.items():
        assert distribution(library) in map(distribution, extras[extra])
        foreign.remove(library)
    assert {name for name in foreign if distribution(names.get(name, name)) not in wanted} == set()


# The wheel ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    python(*command, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel alone in a folder; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    python("-m", "pip", "install", "-qq", "--no-deps", "--target", str(folder), str(wheel),
           cwd=folder)  # fmt: skip
    return folder


def test_the_wheel_holds_every_module_data_set_and_policy(wheel: Path) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in Path(safeedit.__file__).parent.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for kind in ("datasets", "policies"):
        expected |= {
            f"safeedit/_data/{path.relative_to(ROOT).as_posix()}"
            for path in (ROOT / kind).rglob("*")
            if path.is_file()
        }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert found == expected
    assert len(licences) == 1


def test_the_installed_package_works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = python("-c", "import safeedit; print(safeedit.__file__)", cwd=tmp_path, path=installed)
    assert Path(where.strip()).is_relative_to(installed)
    said = python("-m", "safeedit.cli.main", "--version", cwd=tmp_path, path=installed)
    assert said.strip().endswith(safeedit.__version__)


def test_the_installed_package_finds_its_own_data_sets_and_policies(
    installed: Path, tmp_path: Path
) -> None:
    for kind, names in (
        ("datasets", {path.name for path in (ROOT / "datasets").iterdir() if path.is_dir()}),
        ("policies", {path.stem for path in (ROOT / "policies").glob("*.yaml")}),
    ):
        listed = python("-m", "safeedit.cli.main", "list", kind, cwd=tmp_path, path=installed)
        assert names
        assert names <= set(listed.split())


def test_policies_of_the_installed_package_load_with_their_data(
    installed: Path, tmp_path: Path
) -> None:
    script = (
        "from safeedit.policy.builtin import builtin_policies, root\n"
        "from safeedit.policy import load_policy\n"
        "for path in builtin_policies().values():\n"
        "    load_policy(path)\n"
        "print(root())\n"
    )
    root = python("-c", script, cwd=tmp_path, path=installed).strip()
    assert Path(root).is_relative_to(installed)


def test_the_wheel_asks_for_the_named_libraries(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    required = {
        distribution(line.removeprefix("Requires-Dist: "))
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }
    assert {"torch", "transformers", "datasets", "detoxify", "scikit-learn", "click"} <= required


# The build ------------------------------------------------------------------------------


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()


@pytest.mark.parametrize("target", ["test", "demo", "check"])
def test_every_road_through_the_makefile_sets_up_first(target: str, tmp_path: Path) -> None:
    """On a bare clone (no stamps) each target makes the environment before it uses it."""
    done = subprocess.run(
        ["make", "--dry-run", f"VENV={tmp_path / 'venv'}", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))},
    )
    assert done.returncode == 0, done.stderr
    steps = ["-m venv", "constraints.txt", " torch\n", "-e '.[dev,profanity]'"]
    places = [done.stdout.find(step) for step in steps]
    assert -1 not in places
    assert places == sorted(places)
