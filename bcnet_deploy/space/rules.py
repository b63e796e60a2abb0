"""Which rule relates the channel layouts of an operator's inputs, parameters and outputs.

One function an operator family; what no rule covers is frozen by name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bcnet_deploy.space import layer_rules as layer
from bcnet_deploy.space import shape_rules as shape
from bcnet_deploy.space.capture import Call
from bcnet_deploy.space.layouts import Layouts, unknown

Rule = Callable[[Layouts, Call], None]


_NAMES: dict[Rule, str] = {
    # Beside what is element-wise by nature: activations that do not carry PyTorch's tag.
    shape.pointwise: """
        copy clone _to_copy detach alias dropout fill where zeros_like ones_like empty_like full_like
        rand_like randn_like bernoulli lift_fresh _prelu_kernel native_dropout uniform normal zero
        hardswish hardsigmoid hardtanh mish silu gelu elu celu selu softplus leaky_relu
        rrelu_with_noise threshold log_sigmoid_forward softshrink hardshrink relu relu6 clamp addcmul
        addcdiv lerp _fused_dropout""",
    shape.same_as_first: "_softmax _log_softmax softmax log_softmax cumsum",
    shape.created: """
        zeros ones empty full rand randn arange scalar_tensor new_zeros new_ones new_empty new_full
        empty_strided new_empty_strided""",
    layer.convolution: "convolution",
    layer.weight_norm: "_weight_norm_interface",
    layer.batch_norm: """
        native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
        _batch_norm_with_update _batch_norm_no_update cudnn_batch_norm""",
    layer.layer_norm: "native_layer_norm",
    layer.group_norm: "native_group_norm",
    layer.matmul: "mm addmm",
    layer.batched_matmul: "bmm baddbmm",
    layer.attention: """
        scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
        _scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable""",
    layer.linear: "linear",
    layer.spatial: """
        max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d
        upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d
        _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad2d replication_pad2d max_pool2d
        adaptive_avg_pool2d""",
    layer.fractional_pool: "fractional_max_pool2d",
    layer.unpool: "max_unpool2d",
    layer.constant_pad: "constant_pad_nd",
    layer.im2col: "im2col",
    layer.col2im: "col2im",
    layer.pixel_shuffle: "pixel_shuffle",
    layer.pixel_unshuffle: "pixel_unshuffle",
    shape.reduction: """
        mean sum amax amin max min var std var_mean std_mean argmax argmin prod norm
        linalg_vector_norm logsumexp any all""",
    shape.permute: "permute transpose t",
    shape.expand: "expand",
    shape.repeat: "repeat",
    shape.view: "view _unsafe_view reshape _reshape_alias unsqueeze unflatten flatten",
    shape.squeeze: "squeeze",
    shape.cat: "cat",
    shape.stack: "stack",
    shape.split: "split split_with_sizes chunk",
    shape.slice_: "slice",
    shape.select: "select unbind",
    shape.flip_or_roll: "flip roll",
    shape.glu: "glu",
    shape.as_strided: "as_strided",
}
_RULES = {name: rule for rule, names in _NAMES.items() for name in names.split()}


def rule_for(call: Call) -> Rule:
    """The rule of an operator; element-wise operators are known by PyTorch's own tag."""
    if (call.function, call.op) == ("rms_norm", "pow"):
        return layer.rms_norm
    rule = _RULES.get(call.op)
    if rule is not None:
        return rule
    if not call.outputs:
        # A question about a tensor (its device, say); answers that depend on values cannot be traced.
        return shape.nothing
    return shape.pointwise if torch.Tag.pointwise in call.func.tags else unknown
