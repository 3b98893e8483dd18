"""The wheel, the sdist and the editable install, each used outside the checkout.

Everything is built from a copy of the sources, without network: build tools and requirements are those of the running
environment, lent to the fresh ones by a .pth file. The checkout itself is out of their reach.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from emim_nnunet import __version__
from tests.test_architecture import imports, modules

pytest.importorskip("pip", reason="packaging tests need pip in the environment")

ROOT = Path(__file__).resolve().parent.parent
SIBLINGS = ("planners", "trainers", "dataset_conversion")
NOT_COPIED = shutil.ignore_patterns(
    ".*", "build", "dist", "demo", "emim_demo", "venv", "*.egg-info", "__pycache__", "tests", "benchmarks"
)

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
NOT_OURS = ("setup", "tests", "benchmarks", "documentation", "emim_nnunet")  # of the checkout, but not of the package
USE_EVERYTHING = """
import importlib, importlib.util, sys
from pathlib import Path

where = Path({where!r})
for name in {scripts!r}:
    main = importlib.import_module(f"emim_nnunet.cli.{{name}}").main
    try:
        main(["--help"])
    except SystemExit as end:
        assert end.code == 0, name
slow = [m for m in ("torch", "nnunetv2", "matplotlib", "SimpleITK") if m in sys.modules]
assert not slow, f"--help imports {{slow}}"

import emim_nnunet.trainers, emim_nnunet.planners, emim_nnunet.dataset_conversion
from emim_nnunet.trainer_search import enable_search, trainers_path
from importlib.metadata import version

assert emim_nnunet.__version__ == version("emim_nnunet")
assert not [name for name in {not_ours!r} if importlib.util.find_spec(f"emim_nnunet.{{name}}")]
for module in (emim_nnunet, emim_nnunet.trainers, emim_nnunet.planners, emim_nnunet.dataset_conversion):
    assert where in Path(module.__file__).parents, module.__file__
assert trainers_path().is_dir() and where in trainers_path().parents
assert not {{"trainers", "planners", "dataset_conversion"}} & set(sys.modules), "imported twice, under two names"

enable_search()
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
assert recursive_find_trainer_class_by_name("nnUNetTrainerEMIM") is emim_nnunet.trainers.nnUNetTrainerEMIM
"""


def run(command: list[str | Path], cwd: Path) -> str:
    """Output of a command that must succeed, without the variables that could lead it to this checkout."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "nnUNet_extTrainer")}
    process = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert process.returncode == 0, f"{command}\n{process.stdout}\n{process.stderr}"
    return process.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, links as links."""
    folder = tmp_path_factory.mktemp("sources") / "emim"
    return Path(shutil.copytree(ROOT, folder, ignore=NOT_COPIED, symlinks=True))


def use_everything(where: Path, scripts: dict[str, str]) -> str:
    """Code that runs what an installation offers and looks where it came from."""
    names = [name.removeprefix("emim_") for name in scripts]
    return USE_EVERYTHING.format(where=str(where), scripts=names, not_ours=NOT_OURS)


@pytest.fixture(scope="module")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-c", f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"], sources)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """The wheel, built from the sdist, so that what the sdist lacks is missing in it too."""
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", sdist.parent, sdist]
    run([sys.executable, *command], sdist.parent)
    return next(sdist.parent.glob("*.whl"))


def make_venv(folder: Path, *install: str | Path) -> tuple[Path, Path]:
    """A fresh environment that borrows the requirements; returns its bin and its site-packages."""
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    site = next(folder.glob("lib/python3*/site-packages"))
    lent = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "lent.pth").write_text("\n".join(lent) + "\n")
    pip_install(folder / "bin", *install)
    return folder / "bin", site


def pip_install(binaries: Path, *install: str | Path) -> None:
    """Install into the environment of that bin, without network."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "--python", binaries / "python", "install", *options, *install]
    run(command, binaries.parent.parent)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An environment with the wheel."""
    return make_venv(tmp_path_factory.mktemp("plain") / "venv", wheel)


@pytest.fixture(scope="module")
def scripts(wheel: Path) -> dict[str, str]:
    """Console scripts of the wheel and their targets."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        parser = ConfigParser()
        parser.read_string(archive.read(name).decode())
    return dict(parser["console_scripts"])


def expected_modules() -> set[str]:
    """Paths inside the wheel of all modules of the checkout."""
    library = {str(p.relative_to(ROOT)) for p in (ROOT / "emim_nnunet").rglob("*.py")}
    return library.union(
        f"emim_nnunet/{path.relative_to(ROOT)}" for folder in SIBLINGS for path in (ROOT / folder).rglob("*.py")
    )


def test_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    information = f"emim_nnunet-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"emim_nnunet", information}
    assert {name for name in names if name.endswith(".py")} == expected_modules()
    assert "emim_nnunet/py.typed" in names
    assert any(name.startswith(information) and name.endswith("/LICENSE") for name in names)


def constants_that_name_a_page(module: str, source: str) -> list[str]:
    """Texts that may be shown to the user and name a page of ``documentation/``, which an installation lacks."""
    shown = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    docs = [
        ast.get_docstring(node, clean=False) for node in ast.walk(ast.parse(source)) if isinstance(node, DOCUMENTED)
    ]
    return [
        f"{module}:{node.lineno}: {node.value}"
        for node in shown
        if isinstance(node.value, str) and "documentation/" in node.value and node.value not in docs
    ]


def test_no_message_sends_the_user_to_a_page_that_is_not_installed() -> None:
    assert [line for module, source in modules() for line in constants_that_name_a_page(module, source)] == []
    text = '"""See documentation/x.md."""\n\n\ndef f() -> str:\n    """In documentation/y.md."""\n'
    text += '    return f"{1}: see documentation/z.md"\n'
    assert constants_that_name_a_page("m", text) == ["m:6: : see documentation/z.md"]


def test_sdist_holds_what_a_packager_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "setup.py", "pyproject.toml"} <= names
    assert {"trainers/nnUNetTrainerEMIM.py", "planners/__init__.py"} <= names
    assert not [name for name in names if name.startswith("emim_nnunet/trainers")], "twice"
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "documentation").rglob("*.*")} <= names


@pytest.fixture(scope="module")
def all_requirements(wheel: Path) -> list[tuple[str, str]]:
    """What the wheel needs: name, as the index spells it, and range or extra."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"emim_nnunet-{__version__}.dist-info/METADATA").decode()
    assert "Requires-Python: >=3.10" in metadata
    requires = re.findall(r"^Requires-Dist: ([\w-]+)(.*)$", metadata, re.MULTILINE)
    return [(normalised(name), rest) for name, rest in requires]


@pytest.fixture(scope="module")
def requirements(all_requirements: list[tuple[str, str]]) -> dict[str, str]:
    """What the wheel needs without extras."""
    return {name: rest for name, rest in all_requirements if "extra ==" not in rest}


def normalised(name: str) -> str:
    """``acvl_utils`` -> ``acvl-utils``."""
    return re.sub("[-_.]+", "-", name).lower()


def test_requirements_pin_nothing_but_nnunetv2(requirements: dict[str, str]) -> None:
    assert set(re.split("[<>=,]+", requirements["nnunetv2"])) >= {"2.8", "3"}
    assert {name for name, versions in requirements.items() if versions} == {"nnunetv2"}, "it says which others fit it"
    assert not requirements.keys() & {"torchvision", "timm"}


def test_requirements_are_what_we_import(requirements: dict[str, str], all_requirements: list[tuple[str, str]]) -> None:
    imported = {
        name.split(".")[0]
        for module, source in modules()
        for _, name in imports(ast.parse(source))
        if not name.startswith("emim_nnunet")
    }
    distributions = packages_distributions()
    extras = {name for name, rest in all_requirements if re.search("extra == .(hub|tensorboard|wandb)", rest)}
    names = {name: normalised(distributions.get(name, [name])[0]) for name in imported}
    needed = {names[name] for name in imported - set(sys.stdlib_module_names)} - extras
    # what nnU-Net's own modules, which ours derive from, are made of: named, although no line of ours imports it
    assert requirements.keys() - needed == {"batchgenerators"}
    assert needed <= requirements.keys()


def test_every_command_module_is_a_console_script(scripts: dict[str, str]) -> None:
    modules = {p.stem for p in (ROOT / "emim_nnunet" / "cli").glob("*.py") if not p.name.startswith("_")}
    assert scripts == {f"emim_{name}": f"emim_nnunet.cli.{name}:entry" for name in modules}


def test_plain_install_works_outside_the_checkout(
    installed: tuple[Path, Path], scripts: dict[str, str], tmp_path: Path
) -> None:
    binaries, site = installed
    assert {p.name for p in site.iterdir()} == {"emim_nnunet", f"emim_nnunet-{__version__}.dist-info", "lent.pth"}
    run([binaries / "python", "-c", use_everything(site, scripts)], tmp_path)


def test_every_console_script_answers_help(
    installed: tuple[Path, Path], scripts: dict[str, str], tmp_path: Path
) -> None:
    for name in scripts:
        output = run([installed[0] / name, "--help"], tmp_path)
        assert output.startswith(f"usage: {name}"), name
        assert "Example:" in output, name
    assert list(tmp_path.iterdir()) == []


def test_editable_install_works_outside_the_checkout(
    sources: Path, scripts: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("editable")
    sources = Path(shutil.copytree(sources, folder / "emim", symlinks=True))
    binaries, _ = make_venv(folder / "venv", "-e", sources)
    run([binaries / "python", "-c", use_everything(sources, scripts)], folder)
    plugin = run([binaries / "emim_trainers_path"], folder).strip()
    assert Path(plugin) == sources / "emim_nnunet" / "nnunet_plugin"
    # an sdist has no links, and git without core.symlinks makes text files of them
    for name in SIBLINGS:
        (sources / "emim_nnunet" / name).unlink(missing_ok=True)
        (sources / "emim_nnunet" / name).write_text(f"../{name}")
    pip_install(binaries, "-e", sources)
    code = f"from importlib.util import find_spec\nfor n in {SIBLINGS}: print(find_spec('emim_nnunet.' + n).origin)"
    assert run([binaries / "python", "-c", code], folder).split() == [
        str(sources / name / "__init__.py") for name in SIBLINGS
    ]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an sdist has no links: it wants an installation")
def test_checkout_without_installation_has_the_siblings(sources: Path, tmp_path: Path) -> None:
    """Pytest in a fresh clone, and python at its root even when the package is installed plainly elsewhere."""
    lent = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    code = f"""import sys; sys.path[:0] = [{str(sources)!r}]; sys.path += {lent!r}
import emim_nnunet.trainers as t
from importlib.util import find_spec
print(t.__file__, [name for name in {NOT_OURS!r} if find_spec("emim_nnunet." + name)])"""
    printed = run([sys.executable, "-S", "-c", code], tmp_path).split()
    assert printed == [str(sources / "emim_nnunet" / "trainers" / "__init__.py"), "[]"]
    assert {name: os.readlink(sources / "emim_nnunet" / name) for name in SIBLINGS} == {n: f"../{n}" for n in SIBLINGS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "strict editable"])
def test_mypy_of_a_user_finds_the_trainers(kind: str, sources: Path, wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not in the environment")
    strict = ["--config-settings", "editable_mode=strict", "-e", sources]
    binaries, _ = make_venv(tmp_path / "venv", *([wheel] if kind == "wheel" else strict))
    script = tmp_path / "script.py"
    script.write_text("from emim_nnunet.trainers import nnUNetTrainerEMIM, NoSuch\n\nreveal_type(nnUNetTrainerEMIM)\n")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--python-executable",
        binaries / "python",
        "--follow-imports=silent",
        script,
    ]
    shown = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert 'Module "emim_nnunet.trainers" has no attribute "NoSuch"' in shown
    assert '-> emim_nnunet.trainers.nnUNetTrainerEMIM.nnUNetTrainerEMIM"' in shown
    assert "Found 1 error" in shown
