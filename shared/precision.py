"""Mixed precision, the same in every training loop."""

import torch


def autocast(device: str, amp: bool) -> torch.autocast:
    """bf16 where `amp` asks for it; losses and pooling statistics stay fp32 by their own means.

    Args:
        device: such as 'cuda:1'.
        amp: False changes nothing.
    """
    return torch.autocast(device.split(':')[0], torch.bfloat16, enabled=amp)
