"""Packaging: ``planners``, ``trainers`` and ``dataset_conversion`` lie beside the library and are installed inside it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
SIBLINGS = ("planners", "trainers", "dataset_conversion")
TEST = ["pytest", "pytest-xdist", "filelock", "setuptools>=77"]
COMMANDS = (
    "classify",
    "compare",
    "convert",
    "demo",
    "diagnose",
    "estimate",
    "export",
    "plan_and_preprocess",
    "pool",
    "pretrain",
    "register",
    "train",
    "trainers_path",
)


def read(*parts: str) -> str:
    """Text of a file of the repository."""
    return HERE.joinpath(*parts).read_text(encoding="utf-8")


version = re.search(r'^__version__ = "(.+)"$', read("emim_nnunet", "__init__.py"), re.MULTILINE).group(1)

setup(
    name="emim_nnunet",
    version=version,
    description="Self-supervised pretraining for multimodal MRI inside nnU-Net v2",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["emim_nnunet", "emim_nnunet.*"]),
        "emim_nnunet.nnunet_plugin",
        *(f"emim_nnunet.{name}" for name in SIBLINGS),
    ],
    package_dir={f"emim_nnunet.{name}": name for name in SIBLINGS},
    package_data={"emim_nnunet": ["py.typed"]},
    install_requires=["nnunetv2>=2.8,<3", "SimpleITK", "batchgenerators", "numpy"],
    extras_require={"test": TEST, "dev": [*TEST, "ruff", "build"]},
    entry_points={"console_scripts": [f"emim_{name} = emim_nnunet.cli.{name}:entry" for name in COMMANDS]},
)
