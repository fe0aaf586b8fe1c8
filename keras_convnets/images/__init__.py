"""Images: files, decoding, resizing, and the preprocessing of pixels."""
