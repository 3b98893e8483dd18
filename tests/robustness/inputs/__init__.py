"""Bad inputs, one by one and by chance: each must end in one line and exit code 2, and leave nothing behind.

Every module here that uses the decorators of :mod:`.table` adds to the table.
"""

from importlib import import_module
from pkgutil import iter_modules

from tests.robustness.inputs.table import INPUTS, judge_refusal, try_input

__all__ = ["INPUTS", "judge_refusal", "try_input"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
