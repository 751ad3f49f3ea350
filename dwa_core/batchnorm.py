"""The BatchNorm terms of the synthesis: how far statistics of the images are from those that the teacher keeps."""

import torch
from torch import nn

FIRST_LAYER_WEIGHT = 10.0


class NormaliseWithStatistics(torch.autograd.Function):
    """BatchNorm in eval mode that also returns mean and biased variance of its input.

    One backward formula serves all three outputs, `dx = dy * scale + a * x + b` per channel, in place of
    the several passes over the activations that autograd would make. Weight and bias of the layer get gradients where
    they ask for them.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, layer, scale, idle_mean, idle_variance):
        # BatchNorm's own kernel: one pass, wide accumulation, and fp32 results for bf16 input if the running
        # buffers, of which it updates these two idle ones, are fp32. var_mean took 20 times as long on a CPU.
        mean, variance = torch.batch_norm_update_stats(x, idle_mean, idle_variance, momentum=0.0)
        ctx.save_for_backward(x, scale, mean)
        ctx.layer = layer
        # Without the activation that timm's BatchNorm layers end with.
        return nn.BatchNorm2d.forward(layer, x), mean, variance

    @staticmethod
    def backward(ctx, d_output, d_mean, d_variance):
        x, scale, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = d_variance * (2 / count)
        offset = d_mean / count - slope * mean
        d_input = torch.addcmul(per_channel(offset, x), x, per_channel(slope, x))
        d_weight = d_bias = None
        if ctx.needs_input_grad[1]:
            layer, wide = ctx.layer, d_output.to(scale.dtype)
            normalised = (x - per_channel(layer.running_mean, wide)) / per_channel(
                (layer.running_var + layer.eps).sqrt(), wide
            )
            d_weight, d_bias = (wide * normalised).sum((0, 2, 3)), wide.sum((0, 2, 3))
        return d_input.addcmul_(d_output, per_channel(scale, x)), d_weight, d_bias, None, None, None, None


def per_channel(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One value per channel, of the type of `like` (NCHW) and shaped to broadcast over it."""
    return values.to(like.dtype).view(1, -1, 1, 1)


class MatchedBatchNorm(nn.Module):
    """A BatchNorm2d layer in eval mode that keeps the statistics of its latest input."""

    def __init__(self, layer: nn.BatchNorm2d):
        super().__init__()
        self.layer = layer
        with torch.no_grad():
            self.scale = layer.weight / (layer.running_var + layer.eps).sqrt()
        self.idle = torch.zeros_like(self.scale), torch.zeros_like(self.scale)
        self.mean = self.variance = None
        # timm's BatchNorm2d layers go on with a dropout and an activation of their own.
        self.rest = nn.Sequential(layer.drop, layer.act) if hasattr(layer, "act") else nn.Identity()

    def forward(self, x):
        y, self.mean, self.variance = NormaliseWithStatistics.apply(
            x, self.layer.weight, self.layer.bias, self.layer, self.scale, *self.idle
        )
        return self.rest(y)


def match_statistics(network: nn.Module) -> list[MatchedBatchNorm]:
    """Replaces every BatchNorm2d of `network`, in place, and returns the new layers in their order."""
    layers = []
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            matched = MatchedBatchNorm(module)
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, matched)
            layers.append(matched)
    return layers


class BatchNormTerms:
    """The BatchNorm part of SRe2L's loss, with the variance weighted apart as DWA does, for a network's layers.

    Called after a forward pass, it returns (layers,):
    `w_l * (r_var * ||Var_l - sigma2_l||_2 + ||Mean_l - mu_l||_2)`; w is 10 for the first layer and 1 for the rest.
    """

    def __init__(self, layers: list[MatchedBatchNorm], r_var: float):
        self.layers, self.r_var = layers, r_var
        means = [matched.layer.running_mean for matched in layers]
        self.means, self.variances = torch.cat(means), torch.cat([matched.layer.running_var for matched in layers])
        # All layers' channels as one matrix with a row per layer, the shorter rows filled up with zeros: a handful
        # of kernels in place of a dozen per layer, which on a GPU took longer than the convolutions would.
        self.shape = len(layers), max(len(mean) for mean in means)
        starts = [row * self.shape[1] + torch.arange(len(mean)) for row, mean in enumerate(means)]
        self.places = torch.cat(starts).to(self.means.device)
        self.weights = torch.ones_like(means[0][:1]).repeat(len(layers))
        self.weights[0] = FIRST_LAYER_WEIGHT

    def reference_terms(self) -> torch.Tensor:
        """What a call would return if mean and variance of every layer's input were zero."""
        return self.weights * (self.r_var * self.norms(self.variances) + self.norms(self.means))

    def __call__(self) -> torch.Tensor:
        mean = self.norms(torch.cat([matched.mean for matched in self.layers]) - self.means)
        variance = self.norms(torch.cat([matched.variance for matched in self.layers]) - self.variances)
        return self.weights * (self.r_var * variance + mean)

    def norms(self, differences: torch.Tensor) -> torch.Tensor:
        """(layers,): the norm of each layer's part of `differences`."""
        rows = differences.new_zeros(self.shape[0] * self.shape[1]).index_copy(0, self.places, differences)
        return torch.linalg.vector_norm(rows.view(self.shape), dim=1)


@torch.no_grad()
def measure_reference(network: nn.Module, images: torch.Tensor, r_var: float) -> torch.Tensor:
    """(layers,): the BatchNorm terms of `images`, or of statistics of zero where those are larger.

    A teacher of few epochs has running statistics that are far from those of any images. The BatchNorm layers of
    `network` are replaced.
    """
    terms_of = BatchNormTerms(match_statistics(network), r_var)
    network(images)
    return torch.maximum(terms_of(), terms_of.reference_terms())
