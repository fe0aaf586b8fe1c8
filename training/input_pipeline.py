"""The stream of training batches: a function of seed and step alone, so that a resumed run sees the same images."""

from __future__ import annotations

import tensorflow as tf

from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.training.data.parallel import parallel_map
from keras_convnets.training.data.splits import of_one_size
from keras_convnets.training.plan import Plan
from keras_convnets.training.seeds import purpose_seed


def training_batches(plan: Plan, preprocessing: Preprocessing | None, first_step: int = 0) -> tf.data.Dataset:
    """Return the endless stream of augmented batches.

    Photographs are cropped one by one from their encoded files, all other images are resized and centre-cropped;
    the recipe's batch augmentation follows.

    Args:
        plan: the recipe and its data.
        preprocessing: what the network's first layer does.
        first_step: how many batches to pass over.

    Returns:
        A dataset of (images [batch_size, H, W, 3] in 0-255, labels int64 [batch_size]).
    """
    recipe, train = plan.recipe, plan.data.split("train")
    augment = recipe.augment(plan.data, preprocessing, plan.sample)
    first = first_step * recipe.batch_size
    batches = (
        _photographs(plan, first)
        if recipe.reads_photographs
        else of_one_size(train).shuffled(recipe.batch_size, recipe.seed, first, balanced=recipe.balanced)
    )

    stream = tf.constant(purpose_seed(recipe.seed, "augmentation"), tf.int64)

    def augmented(step: tf.Tensor, batch: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = batch
        return augment(images, tf.stack([stream, step])), labels

    numbered = tf.data.Dataset.zip(tf.data.Dataset.counter(first_step), batches)
    dataset = parallel_map(numbered, augmented).prefetch(4)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def _photographs(plan: Plan, first: int) -> tf.data.Dataset:
    recipe, size = plan.recipe, plan.view.crop[0]
    encoded = plan.data.split("train").encoded_shuffled(recipe.seed, first, balanced=recipe.balanced)

    stream = tf.constant(purpose_seed(recipe.seed, "crops"), tf.int64)

    def read(number: tf.Tensor, example: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, tf.Tensor]:
        data, label, _ = example
        return recipe.read(data, tf.stack([stream, number]), size), label

    numbered = tf.data.Dataset.zip(tf.data.Dataset.counter(first), encoded)
    return parallel_map(numbered, read).batch(recipe.batch_size, drop_remainder=True)
