"""Sampling on GPUs: a step of one token is launched as one CUDA graph, for extras/sampling.py."""
import torch
from torch import Tensor


class CapturedStep:
    """The steps of a text from a position on, each launched as one CUDA graph. A CPU needs longer
    to launch the hundreds of kernels of a step one by one than a GPU needs to compute them."""

    def __init__(self, step, idx: Tensor, position: int, keys: list, values: list):
        """step: a function of (idx, position, keys, values), see extras/cache.py."""
        self.idx = idx.clone()                                          # (B, 1)
        self.position = torch.tensor([position], device=idx.device)     # (1,)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):     # once without: it prepares what cannot be captured
            step(self.idx, self.position, keys, values)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = step(self.idx, self.position, keys, values)   # (B, V)
            self.position += 1

    def __call__(self, idx: Tensor) -> Tensor:
        """Logits (B, V) after ids (B, 1) at the next position. The next call overwrites them."""
        self.idx.copy_(idx)
        self.graph.replay()
        return self.logits
