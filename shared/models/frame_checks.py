"""Checks of the number of frames before a network runs on them."""

from torch import Tensor

from shared.models.masks import frame_mask


def checked_mask(
    features: Tensor, frames: Tensor | None, shortest: int, training: bool
) -> Tensor | None:
    """The mask of a padded batch, once it is certain that a network can embed every row.

    Args:
        features: (B, F, T).
        frames: (B,) own number of frames of each utterance; None when every frame counts.
        shortest: frames that the network needs.
        training: whether it is in training mode.

    Returns:
        (B, 1, T) of `frame_mask`, None without `frames`.

    Raises:
        ValueError: `frames` in training mode, where padding would enter the batch statistics; fewer
            frames than `shortest`. `frames` that already live on a GPU are not read back: a row too
            short gets NaN instead.
    """
    if frames is not None and training:
        raise ValueError('padded batches are for evaluation: call eval() or crop to one length')
    fewest = features.shape[-1]
    if frames is not None and frames.device.type == 'cpu' and len(frames):
        fewest = min(fewest, int(frames.min()))
    if fewest < shortest:
        raise ValueError(f'{fewest} frames are too few: the network needs at least {shortest}')
    return None if frames is None else frame_mask(frames, features.shape[-1])
