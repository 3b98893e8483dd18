"""What pyproject.toml cannot say: ``planners``, ``trainers`` and ``dataset_conversion`` are packages inside ``emim_nnunet``.

Said here and not left to the links in ``emim_nnunet``: an sdist holds no links, and git makes none on every Windows.
"""

from setuptools import find_packages, setup

SIBLINGS = ("planners", "trainers", "dataset_conversion")

setup(
    packages=sorted(
        {
            *find_packages(include=["emim_nnunet", "emim_nnunet.*"]),
            "emim_nnunet.nnunet_plugin",  # has no __init__.py
            *(f"emim_nnunet.{name}" for name in SIBLINGS),
        }
    ),
    package_dir={f"emim_nnunet.{name}": name for name in SIBLINGS},
)
