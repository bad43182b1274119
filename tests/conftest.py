"""For all tests."""

import torch

# The models here are tiny: a second thread costs more than it brings, and far more where cores are shared.
torch.set_num_threads(1)
