"""What pyproject.toml cannot say: ``planners``, ``trainers`` and ``dataset_conversion`` are packages inside ``emim_nnunet``.

Said here and not left to the links in ``emim_nnunet``: an sdist holds no links, and git makes none on every Windows.
A release gives the repository's address as ``REPOSITORY_URL``: where an index shows the README, relative links lead nowhere.
"""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

SIBLINGS = ("planners", "trainers", "dataset_conversion")
ADDRESS = os.environ.get("REPOSITORY_URL", "")
LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?!\w+:|#)")


def readme() -> str:
    """The README, its relative links as addresses where there is one."""
    text = Path(__file__).with_name("README.md").read_text("utf-8")
    kind = {"!": "raw", "": "blob"}
    return LINK.sub(lambda link: f"{link[0]}{ADDRESS}/{kind[link[1]]}/HEAD/", text) if ADDRESS else text


setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    project_urls={"Repository": ADDRESS} if ADDRESS else {},
    packages=sorted(
        {
            *find_packages(include=["emim_nnunet", "emim_nnunet.*"]),
            "emim_nnunet.nnunet_plugin",  # has no __init__.py
            *(f"emim_nnunet.{name}" for name in SIBLINGS),
        }
    ),
    package_dir={f"emim_nnunet.{name}": name for name in SIBLINGS},
)
