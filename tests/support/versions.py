"""What a version of torch can't do that the tests ask for."""

import torch

OLD_TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 5)
