"""The one door to nnU-Net: every symbol of nnunetv2 that this package uses is imported here and nowhere else.

``tests/test_nnunet_contract.py`` holds the signature of each and of every method that is overridden or reached into, so that a
new release of nnU-Net fails there, in plain words, and not in the middle of a training.
"""
