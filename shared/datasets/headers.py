"""What the first bytes of an audio file say: where PCM-16 samples are, and how many there are."""

import struct

UNKNOWN_SIZES = (0xFFFFFFFF, 0x7FFFFFFF)  # bytes of audio in the header of a wav from a pipe
HEADER = 512  # bytes searched for the data chunk; usually it is at 44


def pcm16_layout(head: bytes) -> tuple[int, int, int, int] | None:
    """(rate, channels, first byte, bytes) of the audio of a plain PCM-16 wav; None for any other."""
    if head[:4] != b'RIFF' or head[8:12] != b'WAVE':
        return None
    at, rate, channels = 12, 0, 0
    while at + 8 <= len(head):
        kind, size = struct.unpack_from('<4sI', head, at)
        at += 8
        if kind == b'data':
            return (rate, channels, at, size) if rate and channels and size else None
        if kind == b'fmt ' and at + 16 <= len(head):
            tag, channels, rate, _, block, bits = struct.unpack_from('<HHIIHH', head, at)
            if (tag, bits, block) != (1, 16, 2 * channels):
                return None
        at += size + size % 2  # chunks are padded to an even number of bytes
    return None


def form(head: bytes, size: int) -> tuple[int, int, int]:
    """(samples of a channel, samples per second, channels) of a PCM-16 wav or a FLAC file.

    Zeros where these `HEADER` bytes do not tell, or tell of more than the file's `size` bytes.
    """
    if layout := pcm16_layout(head):
        rate, channels, first, said = layout
        found = size - first
        frames = (found if said in UNKNOWN_SIZES else said) // (2 * channels)
        if frames and (said <= found or said in UNKNOWN_SIZES):
            return frames, rate, channels
    elif head[:4] == b'fLaC' and size > HEADER and head[4] & 0x7F == 0:  # a shorter one is empty
        fields = int.from_bytes(head[18:26], 'big')  # 20 bits, 3 channels, 5 bits, 36 frames
        frames, rate, channels = fields & (1 << 36) - 1, fields >> 44, (fields >> 41 & 7) + 1
        if frames and rate:
            return frames, rate, channels
    return 0, 0, 0
