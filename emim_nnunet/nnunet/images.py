"""nnU-Net's readers and writers of images."""

from __future__ import annotations

from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

__all__ = ["NaturalImage2DIO", "SimpleITKIO", "determine_reader_writer_from_dataset_json"]
