"""One interface for every data set: `load_dataset` gives a `DataSet`, whatever it is read from."""

from keras_convnets.training.data.dataset import DataSet
from keras_convnets.training.data.integrity import BrokenImage
from keras_convnets.training.data.sources import load_dataset
from keras_convnets.training.data.splits import ArraySplit, FileSplit, SizedSplit, Split

__all__ = ["ArraySplit", "BrokenImage", "DataSet", "FileSplit", "SizedSplit", "Split", "load_dataset"]
