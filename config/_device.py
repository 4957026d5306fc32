"""Device and precision: which there are, and which are the fastest."""
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from config import Error, require


def pick_device(device: str = 'auto'):
    """The torch.device of that name; 'auto': cuda, mps or cpu, the first that is there. Error
    if it is not."""
    if device == 'auto':
        if torch.cuda.is_available():
            device = 'cuda'
        elif torch.backends.mps.is_available():
            device = 'mps'
        else:
            device = 'cpu'
    try:
        found = torch.empty(0, device=device).device
        torch.autocast(found.type)                         # raises for a device that cannot compute
    except Exception as e:
        raise Error(f'device={device} is not available here; try --device=cpu') from e
    return found


def attention_without_cudnn():
    """A context manager for generation: on GPUs, cuDNN's attention would prepare a kernel for each
    new length of a text, 50 ms each."""
    return sdpa_kernel(
        [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def pick_dtype(dtype: str, device):
    """The torch.dtype of matrix products on a device; 'auto': the fastest that its hardware has
    natively.

    torch.cuda.is_bf16_supported() is not asked: it also says yes where bf16 is emulated, which
    is slow."""
    if dtype == 'auto':
        dtype = 'float32'
        if device.type == 'cuda':
            is_recent = torch.cuda.get_device_capability(device)[0] >= 8
            dtype = 'bfloat16' if is_recent else 'float16'
        elif device.type == 'cpu':
            has = getattr(torch.cpu, 'get_capabilities', dict)()
            if has.get('avx512_bf16') or has.get('amx_bf16'):
                dtype = 'bfloat16'
    allowed = ['float32', 'bfloat16']
    if device.type == 'cuda':
        allowed.append('float16')
    require(dtype in allowed,
            f'dtype={dtype} does not work on {device.type}: use auto, {", ".join(allowed)}')
    return getattr(torch, dtype)
