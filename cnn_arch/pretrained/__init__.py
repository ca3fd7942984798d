"""Other people's weights: into a network by their names, and out of it again.

Everything here is about dicts of arrays; files are the business of `weight_files`. A naming is the
way one source names and lays out the tensors of the networks it publishes:

torchvision: torchvision.models' alexnet, vgg11 to vgg19 with and without _bn, resnet18 to resnet152
    and googlenet.
timm: pytorch-image-models' vgg and resnet. Its resnets have torchvision's names; its vgg has
    convolutions in place of the hidden fully connected layers.
cifar: the CIFAR-10 ResNets of github.com/akamaster/pytorch_resnet_cifar10, with shortcuts A or B.
caffe: `<layer>.0` (weights) and `<layer>.1` (bias) of CaffeNet, BVLC's AlexNet and GoogLeNet, and
    the Caffe models that the authors of VGG released.
cnn-depth: the names and shapes of `flat_state`.

Kernels are (H, W, in / groups, out) here and (out, in / groups, H, W) there. A map is flattened as
(H, W, C) here and as (C, H, W) there, which reorders the inputs of the first fully connected layer.
Two sources have their channels in another order than the networks here, which changes no logit but
must be undone:

- Caffe's images are BGR. Networks here always take RGB: the kernels of the first layer are reversed
  over their input channels.
- Shortcut A of 'cifar' puts its input in the middle of the added zeros, here it comes first
  (`IdentityShortcut`): the maps of the second and the third stage are permuted.

Both ways are exact: what is exported and loaded again is the same to the last bit.
"""

from cnn_arch.pretrained.exchange import (
    NAMINGS,
    Report,
    arguments,
    detect,
    export,
    load,
    preprocessing,
)
from cnn_arch.pretrained.preparation import Preprocessing

__all__ = [
    "NAMINGS",
    "Preprocessing",
    "Report",
    "arguments",
    "detect",
    "export",
    "load",
    "preprocessing",
]
