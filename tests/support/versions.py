"""Limits of old versions of torch that tests are left out for."""

import torch

OLD_TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 5)
