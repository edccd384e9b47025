"""Checks of samples and frames before a front-end or a network runs on them."""

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


def check_waves(waves: Tensor, lengths: Tensor | None, shortest: int) -> None:
    """Waves must be (B, L) of `shortest` samples or more, and lengths on the CPU within L.

    Raises:
        ValueError: they are not.
    """
    if waves.ndim != 2:
        raise ValueError(f'waves must be (B, L), not {tuple(waves.shape)}')
    least, longest = waves.shape[1], waves.shape[1]
    if lengths is not None and lengths.device.type == 'cpu' and len(lengths):
        least, longest = min(least, int(lengths.min())), int(lengths.max())
    if least < shortest:
        raise ValueError(
            f'a wave of {least} samples is too short: the front-end needs at least {shortest}'
        )
    if longest > waves.shape[1]:
        raise ValueError(f'a length of {longest} samples exceeds the {waves.shape[1]} given')
