"""Miniatures of the data sets that emim_convert knows, each with the quirks of its files and folders."""

from __future__ import annotations

from tests.replicas.brats import BRATS
from tests.replicas.others import OTHERS
from tests.replicas.replica import Replica

REPLICAS: dict[str, Replica] = BRATS | OTHERS
