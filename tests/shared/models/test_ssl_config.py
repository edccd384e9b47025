import pytest
import torch

from shared.models.ssl_config import WAVLM_BASE, SslConfig, frame_counts


def test_frames_are_counted_for_numbers_and_tensors():
    published = {400: 1, 719: 1, 720: 2, 16000: 49, 32240: 100, 48000: 149, 64000: 199}
    assert {length: frame_counts(length, WAVLM_BASE) for length in published} == published
    counts = frame_counts(torch.tensor(list(published)), WAVLM_BASE)
    assert counts.tolist() == list(published.values())


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'family': 'wavml'}, "'wavml'"),
        ({'conv_norm': 'batch'}, "'batch'"),
        ({'heads': 7}, 'heads 7'),
        ({'position_groups': 7}, 'position_groups 7'),
        ({'layers': 0}, 'layers 0'),
        ({'conv_kernels': (10, 3)}, 'conv_'),
        ({'conv_channels': (), 'conv_kernels': (), 'conv_strides': ()}, 'conv_'),
        ({'conv_bias': True}, 'conv_bias'),
    ],
)
def test_contradicting_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SslConfig(**{'family': 'wavlm', **fields})
