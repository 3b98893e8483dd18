"""Classification of whole cases from a pretrained encoder, on the data that nnU-Net preprocessed."""
