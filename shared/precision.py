"""Mixed precision, the same in every training loop.

Wherever code here says "in fp32" it is stored and summed in fp32; on a GPU the factors of its matrix
products and convolutions are rounded to TF32, 10 bits of mantissa (`ddp.launch` allows it).
"""

import torch


def autocast(device: str, amp: bool) -> torch.autocast:
    """bf16 where `amp` asks for it; losses and pooling statistics stay fp32 by their own means.

    Args:
        device: such as 'cuda:1'.
        amp: False changes nothing.
    """
    return torch.autocast(device.split(':')[0], torch.bfloat16, enabled=amp)
