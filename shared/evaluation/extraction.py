"""Embeddings of many files: each rank embeds its share, and every rank gets the whole table.

Legend: B files of a batch, N files, S segments of a file, D embedding size, L samples.
"""

import math
import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from shared import ddp
from shared.errors import UserError


def extract(
    embed: Callable[[Tensor, Tensor], Tensor],
    loader: Iterable[dict],
    count: int,
    device: torch.device | str,
) -> Tensor:
    """Embeddings of N files, (N, D) float32 on the CPU and the same on every rank.

    Each rank embeds its share, with the buffers (running statistics) of rank 0, then all ranks
    exchange them. Nothing is compiled: every length would be, anew. Rank 0 shows a progress bar (files/s, time left) when there is more than one
    batch; it counts its own files times the ranks.

    Args:
        embed: (waves (B, L), lengths (B,) in samples) -> (B, D), or (B, S, D) for S segments a
            file; called in inference mode. A module, or method of one, must be in eval mode; of
            anything else the buffers are not known and stay each rank's own.
        loader: this rank's batches (`shared.datasets.loading.whole_files`): dicts of index (B,)
            0..N-1, waves and lengths, and maybe `skipped`, a message for each file left out
            because its audio is bad. Such files get a row of NaN.
        count: N, over all ranks.
        device: where `embed` runs.

    Raises:
        ValueError: a module in train mode, a file that came more than once, an index outside
            0..N-1, or files that neither came nor were skipped (their indices are named).
        UserError: no file could be read.
    """
    owner = embed if isinstance(embed, nn.Module) else getattr(embed, '__self__', None)
    if isinstance(owner, nn.Module):
        if owner.training:
            raise ValueError('the network is in train mode: call .eval() before extract')
        ddp.broadcast_buffers(owner)
    index, rows, skipped = _embed_share(embed, loader, count, device)
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < count:
        raise ValueError(f'file index {int(index.min())}..{int(index.max())} of {count} files')

    # A rank without files does not know the shape of a row.
    shares = ddp.gather_objects((tuple(rows[0].shape[1:]) if rows else None, skipped))
    seen = ddp.all_reduce(torch.bincount(index, minlength=count).to(device)).cpu()
    _check_each_came_once(seen, sum(messages for _, messages in shares))
    shape = next((shape for shape, _ in shares if shape), None)
    if shape is None:
        raise UserError(f'none of {count} files could be read: check the data folder')
    table = torch.zeros(count, *shape, device=device)
    if rows:
        table[index.to(device)] = torch.cat(rows)
    table = ddp.all_reduce(table).cpu()  # a row is zero on all ranks but one: the sum is exact
    table[seen == 0] = math.nan
    return table


def _embed_share(embed, loader, count, device) -> tuple[Tensor, list[Tensor], int]:
    """This rank's file numbers (n,), their embeddings in batches on the device, files skipped."""
    ranks, skipped = ddp.world_size(), 0
    silent = not ddp.is_main() or len(loader) <= 1
    often = 0.1 if sys.stderr.isatty() else 30.0  # seconds; a log file is no screen
    indices, rows = [torch.zeros(0, dtype=torch.int64)], []
    with (
        torch.inference_mode(),
        torch.compiler.set_stance('force_eager'),
        tqdm(
            total=count,
            desc='embeddings',
            unit=' files',
            leave=False,
            mininterval=often,
            disable=silent,
        ) as bar,
    ):
        for batch in loader:
            files = len(batch['index'])
            skipped += len(batch.get('skipped', ()))
            if files:  # a batch of unreadable files is empty
                waves = batch['waves'].to(device, non_blocking=True)
                lengths = batch['lengths'].to(device, non_blocking=True)
                rows.append(embed(waves, lengths).float())
                indices.append(batch['index'].cpu())
                if len(rows[-1]) != files:
                    raise ValueError(f'{len(rows[-1])} embeddings for {files} files')
            bar.update(min(files * ranks, count - bar.n))
    return torch.cat(indices), rows, skipped


def _check_each_came_once(seen: Tensor, skipped: int) -> None:
    twice = (seen > 1).nonzero().flatten().tolist()
    if twice:
        raise ValueError(f'{len(twice)} files were embedded more than once: {first_few(twice)}')
    never = (seen == 0).nonzero().flatten().tolist()
    if len(never) > skipped:
        raise ValueError(
            f'{len(never)} files never came, {skipped} were skipped: {first_few(never)}'
        )


def first_few(items: list) -> str:
    """The first five of a list, for error messages."""
    return ', '.join(map(str, items[:5])) + (', ...' if len(items) > 5 else '')
