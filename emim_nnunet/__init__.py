"""Self-supervised pretraining for multimodal MRI inside nnU-Net v2.

``planners``, ``trainers`` and ``dataset_conversion`` are packages of this one whose folders lie at the top of the repository:
relative links beside this file show them to Python, editors and type checkers. An installation needs no links (``setup.py``).
"""

__version__ = "0.1.0"
