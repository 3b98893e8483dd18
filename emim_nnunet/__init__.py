"""Self-supervised pretraining for multimodal MRI inside nnU-Net v2."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

# in a source checkout the folders planners, trainers and dataset_conversion are siblings of this one
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.py").is_file() and (_checkout / "trainers" / "__init__.py").is_file():
    __path__.append(str(_checkout))
