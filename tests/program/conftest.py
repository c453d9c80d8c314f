"""The reference on tiny models: a second thread only makes torch slower."""

import torch

torch.set_num_threads(1)
