"""The command line `keras-convnets`: `main` parses and delegates, each command is a file, thin over Python.

The commands alone may import training and export, and only inside functions: help and `models` answer
without Keras.
"""

PROGRAM = "keras-convnets"
# Exit statuses besides 0.
FAILURE, USER_ERROR, INTERRUPTED = 1, 2, 130
