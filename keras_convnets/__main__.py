"""`python -m keras_convnets` is the command `keras-convnets`."""

from keras_convnets.commands.main import main

if __name__ == "__main__":
    raise SystemExit(main())
