"""A training batch, read a second time."""

from typing import Any

from torch.utils.data import DataLoader


def batch_again(loader: DataLoader, epoch: int, step: int) -> dict[str, Any]:
    """What a loader of `CropSet`s gave this rank in a step of an epoch, both counted from 1.

    A sample depends on (seed, epoch, index) alone, so this costs no memory until it is asked for,
    and gives the very batch as long as its files are what they were. In here, on the host.

    Returns:
        'batch' as `items.collate` makes it, 'keys' (epoch, index, ...) of its items, and 'files',
        for each item the paths of its utterances; where one of them could not be read, `skipped`
        of the batch tells that the next was taken.
    """
    sampler: Any = loader.batch_sampler
    dataset: Any = loader.dataset
    position = sampler.epoch, sampler.batch
    sampler.set_position(epoch, step - 1)
    keys = next(iter(sampler))
    sampler.set_position(*position)
    return {
        'batch': loader.collate_fn([dataset[key] for key in keys]),
        'keys': [list(key) for key in keys],
        'files': [[str(dataset.utterances.path(index)) for index in key[1:]] for key in keys],
    }
