//! Convolutions of channels-last maps, with weights in PyTorch's layout.

use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Initializer;
use burn::tensor::{Device, Tensor};

use crate::ops::{self, ConvShape};

/// Configuration of a [`Conv2d`] with a square kernel.
#[derive(Config, Debug)]
pub struct Conv2dConfig {
    /// Channels of the input.
    pub c_in: usize,
    /// Channels of the output.
    pub c_out: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Pixels from one output to the next.
    #[config(default = 1)]
    pub stride: usize,
    /// Zeros around the image.
    #[config(default = 0)]
    pub padding: usize,
    /// Groups of channels; `c_in` makes the convolution depthwise.
    #[config(default = 1)]
    pub groups: usize,
}

/// Two-dimensional convolution.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// Kernel `[c_out, c_in / groups, kernel, kernel]`.
    pub weight: Param<Tensor<4>>,
    /// Bias `[c_out]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    shape: ConvShape,
}

/// PyTorch's default of convolutions: uniform within `±1/sqrt(fan_in)`, weight and bias.
fn uniform(fan_in: usize) -> Initializer {
    let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
    Initializer::Uniform {
        min: -bound,
        max: bound,
    }
}

impl Conv2dConfig {
    /// Creates the layer with PyTorch's default initialisation. Values are drawn on first use.
    pub fn init(&self, device: &Device) -> Conv2d {
        let groups = self.groups.max(1);
        let kernel = [self.c_out, self.c_in / groups, self.kernel, self.kernel];
        let init = uniform(kernel[1..].iter().product());
        Conv2d {
            weight: init.init(kernel, device),
            bias: init.init([self.c_out], device),
            shape: ConvShape {
                stride: self.stride.max(1),
                padding: self.padding,
                groups,
            },
        }
    }
}

impl Conv2d {
    /// `[batch, height, width, c_in]` to `[batch, rows, columns, c_out]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        ops::conv2d(x, self.weight.val(), self.bias.val(), self.shape)
    }
}

/// Transposed convolution with kernel 2 and stride 2, which doubles both sides.
#[derive(Module, Debug)]
pub struct UpConv2x2 {
    /// Kernel `[c_in, c_out, 2, 2]`.
    pub weight: Param<Tensor<4>>,
    /// Bias `[c_out]`.
    pub bias: Param<Tensor<1>>,
}

impl UpConv2x2 {
    /// Creates the layer with PyTorch's default initialisation.
    pub fn new(c_in: usize, c_out: usize, device: &Device) -> Self {
        // PyTorch takes the second axis for the fan-in of a transposed convolution.
        let init = uniform(c_out * 4);
        Self {
            weight: init.init([c_in, c_out, 2, 2], device),
            bias: init.init([c_out], device),
        }
    }

    /// `[batch, height, width, c_in]` to `[batch, 2·height, 2·width, c_out]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        ops::up_conv_2x2(x, self.weight.val(), self.bias.val())
    }
}
