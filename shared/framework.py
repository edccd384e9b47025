"""The base of every method: named modules, which of them learn, one wrap."""

import torch
from torch import Tensor, nn

from shared import ddp
from shared.errors import UserError
from shared.precision import is_compiled


class Framework(nn.Module):
    """Networks and losses of a method; a subclass says in `forward` what is learnt from what.

    It is an ordinary module, so device, state and train/eval need no re-implementation. Methods
    are called on this object, never on the wrapper: an attribute set on a DDP wrapper does not
    reach the module inside.
    """

    def freeze(self, *names: str, saved: bool = True) -> None:
        """Stops the named children from learning and keeps them in eval mode.

        Args:
            names: of children.
            saved: False leaves them out of the state: public weights, read from their own file.
        """
        for name in names:
            self.get_submodule(name).requires_grad_(False)
        self._frozen = tuple(dict.fromkeys((*getattr(self, '_frozen', ()), *names)))
        if not saved:
            self._leave_out(tuple(f'{name}.' for name in names))
        self.train(self.training)

    def _leave_out(self, prefixes: tuple[str, ...]) -> None:
        """Entries with these prefixes are not in the state, and not missed when one is loaded."""

        def forget(module, state, prefix, local_metadata):
            for key in [key for key in state if key.startswith(prefixes)]:
                del state[key]

        def forgive(module, incompatible):
            missing = incompatible.missing_keys
            missing[:] = [key for key in missing if not key.startswith(prefixes)]

        self.register_state_dict_post_hook(forget)
        self.register_load_state_dict_post_hook(forgive)

    def unfreeze(self, *names: str) -> None:
        """Lets the named children learn again, in the mode of the whole; wrap anew afterwards."""
        for name in names:
            self.get_submodule(name).requires_grad_(True)
        self._frozen = tuple(name for name in getattr(self, '_frozen', ()) if name not in names)
        self.train(self.training)

    def learnable(self) -> list[nn.Parameter]:
        """The parameters an optimizer should receive."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def train(self, mode: bool = True) -> 'Framework':
        """As `nn.Module.train`, but frozen children stay in eval mode."""
        super().train(mode)
        for name in getattr(self, '_frozen', ()):
            self.get_submodule(name).eval()
        return self

    def copy_of_state(self) -> dict[str, Tensor]:
        """The state on the CPU, detached from later training."""
        return {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}

    def distribute(self, device: str | torch.device, sync_bn: bool = False) -> nn.Module:
        """Moves to the device and, with several processes, returns the DDP wrapper.

        Call it after freezing, and again whenever that changes: parameters frozen at the wrap and
        unfrozen later would silently differ between ranks.

        Args:
            device: this rank's device.
            sync_bn: batch statistics over the global batch (GPU only: torch has none for CPU).

        Raises:
            UserError: synchronised batch norm in a compiled module, where torch cannot have it.
        """
        several = ddp.world_size() > 1
        synchronised = several and sync_bn and torch.device(device).type == 'cuda'
        if synchronised and any(map(_compiled_with_norm, self.modules())):
            raise UserError(
                'compile: torch cannot compile batch norm over several GPUs; run with --compile '
                'false, or with --sync_bn false under another `name`'
            )
        self.to(device)
        if not several:
            return self
        if synchronised:
            nn.SyncBatchNorm.convert_sync_batchnorm(self)
        return nn.parallel.DistributedDataParallel(self)


def _compiled_with_norm(module: nn.Module) -> bool:
    norms = nn.modules.batchnorm._BatchNorm
    parts = module.modules() if is_compiled(module) else ()
    return any(isinstance(part, norms) and part.training for part in parts)
