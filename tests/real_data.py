"""Where the real data are that some tests need."""

DATA_VARIABLE = "KERAS_CONVNETS_TEST_DATA"
