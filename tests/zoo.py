"""Writers of ONNX files as the ONNX Model Zoo has them, with random weights: onnxruntime then says what they compute.

Written from the papers' tables and from how Caffe2 and MXNet Gluon export, not from the package: nothing here imports
it. Tensors are NCHW; kernels are [out, in, height, width], those of `Gemm` with transB=1 are [out, in].
"""

import contextlib
import math

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

# Units of each of the fully connected layers of AlexNet and VGG.
HIDDEN = 4096
# VGG configuration D (Simonyan and Zisserman 2014, table 1); "M" is the pooling.
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
# He et al. 2015, table 1: blocks in conv2_x to conv5_x.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
# Szegedy et al. 2014, table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, projection; "M" is the pooling between stages.
INCEPTION = (
    *("3a", 64, 96, 128, 16, 32, 32),
    *("3b", 128, 128, 192, 32, 96, 64),
    "M",
    *("4a", 192, 96, 208, 16, 48, 64),
    *("4b", 160, 112, 224, 24, 64, 64),
    *("4c", 128, 128, 256, 24, 64, 64),
    *("4d", 112, 144, 288, 32, 64, 64),
    *("4e", 256, 160, 320, 32, 128, 128),
    "M",
    *("5a", 256, 160, 320, 32, 128, 128),
    *("5b", 384, 192, 384, 48, 128, 128),
)


class Writer:
    """A graph under construction. Every method takes and returns names of tensors.

    linear: how fully connected layers are written: "transB=1", "transB=0", "matmul" (MatMul and Add), or "behind
        constants": the matrix and the bias are what other operators make of stored tensors, as Caffe2 leaves them.
    folded: whether batch normalisations are part of the convolutions before them, as PyTorch exports them.
    constants: whether arrays come from `Constant` nodes instead of initialisers.
    """

    def __init__(self, side, *, opset, seed=0, linear="transB=1", constants=False, epsilon=1e-5, folded=False):
        self.rng = np.random.default_rng(seed)
        self.opset, self.linear_as, self.constants, self.epsilon = opset, linear, constants, epsilon
        self.folded = folded
        self.nodes, self.arrays, self.shapes = [], [], {"data": (3, side, side)}

    def node(self, op, *inputs, shape=None, extra=(), **attributes):
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, list(inputs), [name, *(name + text for text in extra)], name, **attributes)
        )
        self.shapes[name] = self.shapes[inputs[0]] if shape is None else shape
        return name

    def array(self, values):
        name = f"array{len(self.nodes)}_{len(self.arrays)}"
        tensor = numpy_helper.from_array(values, name)
        if self.constants:
            self.nodes.append(helper.make_node("Constant", [], [name], f"constant_{name}", value=tensor))
        self.arrays.append(tensor)
        return name

    def normal(self, shape, deviation, mean=0.0):
        return self.array(self.rng.standard_normal(shape, np.float32) * np.float32(deviation) + np.float32(mean))

    def conv(self, x, filters, kernel, stride=1, pad=0, group=1, bias=True):
        maps, *sides = self.shapes[x]
        weights = [self.normal((filters, maps // group, kernel, kernel), math.sqrt(2 * group / (maps * kernel**2)))]
        weights += [self.normal((filters,), 0.5)] if bias or self.folded else []
        return self.node(
            "Conv",
            *(x, *weights),
            shape=(filters, *((side + 2 * pad - kernel) // stride + 1 for side in sides)),
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
            dilations=[1, 1],
            group=group,
        )

    def relu(self, x):
        return self.node("Relu", x)

    def norm(self, x):
        if self.folded:
            return x
        maps = self.shapes[x][:1]
        gamma = self.array(self.rng.uniform(0.7, 1.3, maps).astype(np.float32))
        beta, mean = self.normal(maps, 0.3), self.normal(maps, 0.3)
        variance = self.array(self.rng.uniform(0.5, 3.0, maps).astype(np.float32))
        return self.node("BatchNormalization", x, gamma, beta, mean, variance, epsilon=self.epsilon, momentum=0.9)

    def pool(self, x, kernel, stride, pads=(0, 0, 0, 0), **attributes):
        rounded = math.ceil if attributes.get("ceil_mode") else math.floor
        maps, *sides = self.shapes[x]
        sides = [rounded((side + pads[0] + pads[2] - kernel) / stride) + 1 for side in sides]
        how = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": list(pads), **attributes}
        return self.node("MaxPool", x, shape=(maps, *sides), **how)

    def lrn(self, x, bias=1.0):
        return self.node("LRN", x, size=5, alpha=1e-4, beta=0.75, bias=bias)

    def flat(self, x):
        return self.node("Flatten", x, shape=(math.prod(self.shapes[x]),))

    def linear(self, x, outputs, gain=2.0):
        (inputs,) = self.shapes[x]
        # Where weights are transposed they are the same numbers: files differ only in how they are written.
        # Uniform, in the arrays' own memory: a hundred million normal numbers would take seconds.
        kernel = self.rng.random((outputs, inputs), np.float32)
        kernel -= np.float32(0.5)
        kernel *= np.float32(math.sqrt(12 * gain / inputs))
        bias = self.rng.standard_normal(outputs, np.float32) * np.float32(0.5)
        if self.linear_as == "behind constants":
            stored = self.array(np.float64(kernel).reshape(1, outputs, inputs, 1))
            whole = self.node("Squeeze", self.node("Cast", stored, to=1, shape=()), axes=[0, 3], shape=())
            kernel = self.node("Identity", self.node("Transpose", whole, perm=[1, 0], shape=()), shape=())
            lying = self.node("Unsqueeze", self.array(bias), axes=[0], shape=())
            bias = self.node("Reshape", lying, self.array(np.array([-1], np.int64)), shape=())
        else:
            kernel = self.array(kernel if self.linear_as == "transB=1" else np.ascontiguousarray(kernel.T))
            bias = self.array(bias)
        if self.linear_as == "matmul":
            return self.node("Add", self.node("MatMul", x, kernel, shape=(outputs,)), bias)
        how = {"transB": 1} if self.linear_as == "transB=1" else {}
        return self.node("Gemm", x, kernel, bias, shape=(outputs,), alpha=1.0, beta=1.0, **how)

    def save(self, path, output):
        side = self.shapes["data"][1]
        inputs = [helper.make_tensor_value_info("data", onnx.TensorProto.FLOAT, ["N", 3, side, side])]
        arrays = [] if self.constants else self.arrays
        # Files of that age list their initialisers among the inputs, which is how onnx then wanted it.
        old = self.opset < 9
        inputs += [helper.make_tensor_value_info(array.name, array.data_type, array.dims) for array in arrays if old]
        outputs = [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["N", *self.shapes[output]])]
        graph = helper.make_graph(self.nodes, "zoo", inputs, outputs, arrays)
        opsets = [helper.make_opsetid("", self.opset)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=3 if old else 7), path)
        return path


def alexnet(path, side=227, classes=1000, pool_pads=(0, 0, 0, 0), lrn_bias=1.0, channels_last=False, **how):
    """Caffe's AlexNet: BGR minus (104, 117, 123) to probabilities.

    pool_pads: Caffe2 wrote Caffe's rounding up as (0, 0, 1, 1), which changes nothing where maps have odd sides.
    channels_last: whether the maps are turned to height, width, channels before they are flattened.
    """
    net = Writer(side, opset=12, **how)
    x = net.relu(net.conv("data", 96, 11, stride=4))
    x = net.pool(net.lrn(x, lrn_bias), 3, 2, pool_pads)
    x = net.relu(net.conv(x, 256, 5, pad=2, group=2))
    x = net.pool(net.lrn(x, lrn_bias), 3, 2, pool_pads)
    for filters, group in ((384, 1), (384, 2), (256, 2)):
        x = net.relu(net.conv(x, filters, 3, pad=1, group=group))
    x = net.pool(x, 3, 2, pool_pads)
    size = math.prod(net.shapes[x])
    x = net.node("Transpose", x, perm=[0, 2, 3, 1]) if channels_last else x
    x = net.node("Reshape", x, net.array(np.array([-1, size], np.int64)), shape=(size,))
    for _ in range(2):
        x = net.node("Dropout", net.relu(net.linear(x, HIDDEN)), extra=("_mask",))
    # A small gain: the images are of some 100 a pixel, and a saturated softmax would show nothing.
    return net.save(path, net.node("Softmax", net.linear(x, classes, gain=1e-3), axis=1))


def vgg16(path, side=224, classes=1000, **how):
    """Gluon's VGG-16: unit scaled RGB to logits."""
    net = Writer(side, opset=7, **how)
    x = "data"
    for row in VGG16:
        x = net.pool(x, 2, 2) if row == "M" else net.relu(net.conv(x, row, 3, pad=1))
    for _ in range(2):
        x = net.node("Dropout", net.relu(net.linear(net.flat(x), HIDDEN)), ratio=0.5)
    return net.save(path, net.linear(net.flat(x), classes))


def googlenet(path, side=224, classes=1000, backwards=False, **how):
    """Caffe's GoogLeNet: BGR minus (104, 117, 123) to probabilities.

    backwards: whether a module's branches stand in the file from the last to the first of the concatenation.
    """
    net = Writer(side, opset=12, **how)

    def conv(x, *arguments, **more):
        return net.relu(net.conv(x, *arguments, **more))

    def pooled(x):
        return net.pool(x, 3, 2, ceil_mode=1)

    x = net.lrn(pooled(conv("data", 64, 7, stride=2, pad=3)))
    x = pooled(net.lrn(conv(conv(x, 64, 1), 192, 3, pad=1)))
    rows = iter(INCEPTION)
    for row in rows:
        if row == "M":
            x = pooled(x)
            continue
        n1, reduce3, n3, reduce5, n5, projection = (next(rows) for _ in range(6))
        branches = [((n1, 1, 0),), ((reduce3, 1, 0), (n3, 3, 1)), ((reduce5, 1, 0), (n5, 5, 2)), ((projection, 1, 0),)]
        parts = {}
        for position in (3, 2, 1, 0) if backwards else (0, 1, 2, 3):
            y = net.pool(x, 3, 1, (1, 1, 1, 1)) if position == 3 else x
            for filters, kernel, pad in branches[position]:
                y = conv(y, filters, kernel, pad=pad)
            parts[position] = y
        x = net.node(
            "Concat",
            *(parts[position] for position in range(4)),
            axis=1,
            shape=(n1 + n3 + n5 + projection, *net.shapes[x][1:]),
        )
    x = net.flat(net.node("GlobalAveragePool", x, shape=(1024, 1, 1)))
    return net.save(path, net.node("Softmax", net.linear(x, classes, gain=1e-2), axis=1))


def resnet(path, depth, side=224, classes=1000, downsample_first=True, stride_on_3x3=False, blocks=None, **how):
    """Gluon's ResNet v1: unit scaled RGB to logits.

    blocks: other numbers of blocks than the paper's.
    downsample_first: whether a block's projection stands before its body, in the graph and in the sum.
    """
    net = Writer(side, opset=7, **how)
    x = net.relu(net.norm(net.conv("data", 64, 7, stride=2, pad=3, bias=False)))
    x = net.pool(x, 3, 2, (1, 1, 1, 1))
    for stage, count in enumerate(blocks or BLOCKS[depth]):
        for number in range(count):
            stride = 2 if stage > 0 and number == 0 else 1
            x = _block(net, x, depth >= 50, 64 * 2**stage, stride, downsample_first, stride_on_3x3)
    x = net.flat(net.node("GlobalAveragePool", x, shape=(net.shapes[x][0], 1, 1)))
    return net.save(path, net.linear(x, classes))


def _block(net, x, bottleneck, filters, stride, downsample_first, stride_on_3x3):
    outputs = filters * (4 if bottleneck else 1)

    def shortcut():
        if stride == 1 and net.shapes[x][0] == outputs:
            return x
        return net.norm(net.conv(x, outputs, 1, stride=stride, bias=False))

    def body():
        if not bottleneck:
            y = net.relu(net.norm(net.conv(x, filters, 3, stride=stride, pad=1, bias=False)))
            return net.norm(net.conv(y, filters, 3, pad=1, bias=False))
        # Gluon leaves the 1x1 convolutions their biases, although a normalisation follows.
        first, second = (1, stride) if stride_on_3x3 else (stride, 1)
        y = net.relu(net.norm(net.conv(x, filters, 1, stride=first)))
        y = net.relu(net.norm(net.conv(y, filters, 3, stride=second, pad=1, bias=False)))
        return net.norm(net.conv(y, outputs, 1))

    parts = [part() for part in ((shortcut, body) if downsample_first else (body, shortcut))]
    return net.relu(net.node("Add", *parts))


def run(path, images):
    """What onnxruntime makes of preprocessed images, float32 [batch, H, W, 3]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    data = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    return session.run(None, {session.get_inputs()[0].name: data})[0]


@contextlib.contextmanager
def removed_after(path):
    """Give a file's path, and remove the file in the end: half a gigabyte is not to lie about."""
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
