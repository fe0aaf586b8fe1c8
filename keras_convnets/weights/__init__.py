"""Pretrained weights: records, download, one reader a file format, one assignment with one check."""
