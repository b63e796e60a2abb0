"""Small, exact clean-ups of an exported ONNX graph."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from bcnet_deploy.errors import ExportError
from bcnet_deploy.runtime.layer_names import module_of

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "ConvTranspose", "Gemm")


def tidy(model: onnx.ModelProto) -> None:
    """Clean ``model`` in place, values unchanged.

    Constants become initializers, copies of initializers (the exporter shares equal ones through
    Identity nodes) become initializers of their own, unused initializers go, and the weights of folded
    layers are named after their module again.
    """
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    kept = []
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        target = node.output[0] if node.output else ""
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = target
            initializers[target] = tensor
        elif node.op_type == "Identity" and node.input[0] in initializers and target not in outputs:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(initializers[node.input[0]])
            tensor.name = target
            initializers[target] = tensor
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)

    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(outputs)
    taken = set(initializers)
    for node in graph.node:
        if node.op_type in WEIGHTED and (path := module_of(node.name)):
            for index, suffix in ((1, "weight"), (2, "bias")):
                old = node.input[index] if len(node.input) > index else ""
                new = f"{path}.{suffix}"
                if old in initializers and old.startswith("onnx::") and uses[old] == 1 and new not in taken:
                    tensor = initializers.pop(old)
                    tensor.name = new
                    initializers[new] = tensor
                    taken.add(new)
                    node.input[index] = new
                    uses[new] = 1
    del graph.initializer[:]
    graph.initializer.extend(tensor for name, tensor in initializers.items() if uses[name])
    fold_batch_norms(model)
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and not tensor.raw_data:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))


def fold_batch_norms(model: onnx.ModelProto) -> int:
    """Fold each batch norm that alone consumes a Conv or Gemm into it; return how many were folded.

    PyTorch's exporter folds those behind convolutions already; this catches Linear + BatchNorm1d and
    what its pattern misses. Batch norms in front of a convolution (DenseNet) stay: a ReLU is between.
    """
    from onnx import numpy_helper

    graph = model.graph
    if any(node.op_type == "BatchNormalization" for node in graph.node):
        _plain_products_to_gemm(model)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    folded = []
    for node in graph.node:
        if node.op_type != "BatchNormalization" or any(name not in tensors for name in node.input[1:5]):
            continue
        source = producers.get(node.input[0])
        if source is None or source.op_type not in ("Conv", "Gemm") or uses[node.input[0]] != 1:
            continue
        attributes = {attribute.name: attribute for attribute in source.attribute}
        plain_gemm = source.op_type != "Gemm" or (
            "transB" in attributes and attributes["transB"].i == 1
            and all(attributes[k].f == 1.0 for k in ("alpha", "beta") if k in attributes)
        )  # fmt: skip
        owned = [name for name in source.input[1:] if name in tensors and uses[name] == 1]
        if not plain_gemm or len(owned) != len(source.input) - 1:
            continue
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        gamma, beta, mean, variance = (
            numpy_helper.to_array(tensors[name]).astype(np.float64) for name in node.input[1:5]
        )
        factor = gamma / np.sqrt(variance + epsilon)
        weight_name = source.input[1]
        weight = numpy_helper.to_array(tensors[weight_name])
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        bias = numpy_helper.to_array(tensors[source.input[2]]) if len(source.input) > 2 else 0.0
        shifted = (bias - mean) * factor + beta
        tensors[weight_name].CopyFrom(numpy_helper.from_array(scaled.astype(weight.dtype), weight_name))
        if len(source.input) > 2:
            bias_name = source.input[2]
        else:
            # Of its own: another batch norm may read this one's beta.
            bias_name = f"{weight_name}/folded_bias"
            tensors[bias_name] = graph.initializer.add()
            source.input.append(bias_name)
        tensors[bias_name].CopyFrom(numpy_helper.from_array(shifted.astype(weight.dtype), bias_name))
        source.output[0] = node.output[0]
        folded.append(node)
    for node in folded:
        graph.node.remove(node)
    if folded:
        used = {name for node in graph.node for name in node.input}
        unused = [tensor for tensor in graph.initializer if tensor.name not in used]
        for tensor in unused:
            graph.initializer.remove(tensor)
    return len(folded)


def _plain_products_to_gemm(model: onnx.ModelProto) -> None:
    """MatMul of a matrix by a weight becomes Gemm where a batch norm follows: only that can take a bias."""
    import onnx
    from onnx import helper, numpy_helper

    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    wanted = {node.input[0] for node in graph.node if node.op_type == "BatchNormalization"}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    for node in graph.node:
        weight = tensors.get(node.input[1]) if node.op_type == "MatMul" else None
        if (
            weight is not None and node.output[0] in wanted and ranks.get(node.output[0]) == 2
            and len(weight.dims) == 2 and uses[node.input[1]] == 1
        ):  # fmt: skip
            transposed = np.ascontiguousarray(numpy_helper.to_array(weight).T)
            weight.CopyFrom(numpy_helper.from_array(transposed, weight.name))
            node.op_type = "Gemm"
            node.attribute.append(helper.make_attribute("transB", 1))


def with_batch(data: bytes, batch: int) -> bytes:
    """A serialised network with another fixed batch size.

    Reshape targets that begin with the old batch take theirs from their input instead.

    Raises:
        ExportError: the network does not follow the new batch size to its outputs.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(data)
    graph = model.graph
    dims = [value.type.tensor_type.shape.dim[0] for value in [*graph.input, *graph.output]]
    old = dims[0].dim_value
    if old == batch:
        return data
    for dim in dims:
        dim.ClearField("dim_param")
        dim.dim_value = batch
    del graph.value_info[:]
    if old:
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            target = tensors.get(node.input[1]) if node.op_type == "Reshape" else None
            if target is not None:
                shape = numpy_helper.to_array(target).copy()
                if shape.size and shape[0] == old:
                    shape[0] = 0
                    target.CopyFrom(numpy_helper.from_array(shape, target.name))
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(
            f"the network cannot take a batch of {batch}: {str(error).splitlines()[0]}"
        ) from error
    if inferred.graph.output[0].type.tensor_type.shape.dim[0].dim_value != batch:
        raise ExportError(f"the network cannot take a batch of {batch}: its outputs do not follow")
    return bytes(model.SerializeToString())
