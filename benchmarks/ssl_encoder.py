"""Speed of the SSL encoder against transformers and torchaudio, on crops of 3 s.

    python benchmarks/ssl_encoder.py            # Base models on a CPU, about two minutes
    python benchmarks/ssl_encoder.py --quick    # one crop, fewer rounds, for CI
    python benchmarks/ssl_encoder.py --large    # the Large models too

All three have the same structure, rates of dropout and random weights where names agree, and return
all hidden states; LayerDrop and masks are off, so that all do the same work. Forward: evaluation in
inference mode. Forward + backward: training mode, gradients of all parameters. They take turns, and
the best round counts. CPU: one thread, processor time, which other jobs disturb little, fp32. GPU:
batches of 32 crops, wall time, peak memory of forward + backward; fp32 with TF32 as torch sets it,
bf16 is autocast, compiled is torch.compile as it comes.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
import torchaudio
import transformers
from table import add_json, hand_over, row
from torch import Tensor, nn

from shared.models.ssl_config import (
    HUBERT_BASE,
    WAVLM_BASE,
    WAVLM_LARGE,
    XLSR_53,
    SslConfig,
)
from shared.models.ssl_encoder import SslEncoder

CROP = 48_000  # samples, 3 s
MODELS = {'WavLM-Base+': WAVLM_BASE, 'HuBERT-Base': HUBERT_BASE}
LARGE = {'WavLM-Large': WAVLM_LARGE, 'XLSR-53': XLSR_53}
LIBRARIES = ('ours', 'transformers', 'torchaudio')
NOISE = 0.02  # of a ratio from run to run
GPU_WAYS = (  # precision, compiled
    ('fp32', False),
    ('bf16', False),
    ('bf16', True),
)


@dataclass
class Contender:
    """An encoder and the call that gives all its hidden states."""

    network: nn.Module
    states: Callable[[Tensor], list[Tensor]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--large', action='store_true')
    add_json(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    print(
        f'torch {torch.__version__}, transformers {transformers.__version__}, '
        f'torchaudio {torchaudio.__version__}'
    )
    models = {**MODELS, **LARGE} if options.large else MODELS
    crops, rounds = (1, 2) if options.quick else (2, 3)
    slower, rows = cpu_table(models, crops, rounds)
    if torch.cuda.is_available():
        rows += gpu_table({**MODELS, **LARGE}, crops=32, rounds=5)
    else:
        print('\nGPU: not measured, none here')
        rows.append(gpu_row('WavLM-Base+', None, None))
    hand_over(rows, options.json)
    print(f'\nnever slower on the CPU: {"NO: " + ", ".join(slower) if slower else "yes"}')
    return 1 if slower and not options.quick else 0


def cpu_table(models: dict[str, SslConfig], crops: int, rounds: int) -> tuple[list[str], list]:
    """Prints times and how many times ours they are; where ours is slower, and the rows."""
    print(f'\nCPU, 1 thread, fp32, {crops} crops; processor time, best of {rounds}')
    print(f'{"":<14}{"":<14}{"forward":>10}{"":>8}{"forward + backward":>22}')
    slower, rows = [], []
    for name, config in models.items():
        contenders = {library: build(library, config) for library in LIBRARIES}
        waves = torch.randn(crops, CROP)
        check(contenders, waves[:1])
        taken = {library: ([], []) for library in LIBRARIES}
        for _ in range(rounds):
            for library, contender in contenders.items():
                for times, work in zip(taken[library], (forward, forward_backward)):
                    times.append(seconds(lambda: work(contender, waves), time.process_time))  # noqa: B023
        best = {library: [min(times) for times in both] for library, both in taken.items()}
        for i, (library, (ahead, whole)) in enumerate(best.items()):
            ratios = [a / b for a, b in zip((ahead, whole), best['ours'])]
            print(
                f'{"" if i else name:<14}{library:<14}{ahead:>8.2f} s{ratios[0]:>7.2f}x'
                f'{whole:>12.2f} s{ratios[1]:>7.2f}x'
            )
            slower += [f'{name} ({library})'] if min(ratios) < 1 - NOISE else []
            if library != 'ours':
                what = f'{name}, {crops} crops of 3 s, forward + backward; other: {library}'
                target = f'>= {1 - NOISE:g}x'
                rows.append(row(what, best['ours'][1], whole, unit='s', target=target))
    return slower, rows


def gpu_table(models: dict[str, SslConfig], crops: int, rounds: int) -> list:
    """Prints times and peak memory for each precision, and how many times ours they are; rows."""
    rows = []
    torch.set_float32_matmul_precision('high')
    print(f'\n{torch.cuda.get_device_name()}, {crops} crops; wall time, best of {rounds}')
    heads = ('forward', '', 'forward + backward', '', 'peak memory')
    print('{:<42}{:>10}{:>8}{:>22}{:>8}{:>14}'.format('', *heads))
    for name, config in models.items():
        plain = {}
        for precision, compiled in GPU_WAYS:
            best = {}
            for library in LIBRARIES:
                way = f'{precision}{", compiled" if compiled else ""}'
                contender = build(library, config, 'cuda', compiled)
                best[library] = gpu_figures(contender, precision, crops, rounds)
                ahead, whole, memory = best[library]
                ratios = [a / b for a, b in zip((ahead, whole), best['ours'])]
                print(
                    f'{name:<14}{way:<14} {library:<13}{1e3 * ahead:>7.1f} ms{ratios[0]:>7.2f}x'
                    f'{1e3 * whole:>19.1f} ms{ratios[1]:>7.2f}x{memory:>10.1f} GiB'
                )
                del contender
            plain = plain or best
        rows.append(gpu_row(name, best['ours'][1], plain['transformers'][1]))
    return rows


def gpu_row(name: str, ours: float | None, other: float | None) -> dict:
    """Ours as fast as it gets against transformers as it comes."""
    what = f'{name}, 32 crops, forward + backward, bf16 and compiled; other: transformers, fp32'
    device = torch.cuda.get_device_name() if ours is not None else 'GPU'
    target = '>= 2x' if name == 'WavLM-Base+' else None
    return row(what, ours, other, unit='s', target=target, device=device)


def gpu_figures(
    contender: Contender, precision: str, crops: int, rounds: int
) -> tuple[float, float, float]:
    """Seconds of forward, of forward + backward, GiB of the latter at its peak."""
    waves = torch.randn(crops, CROP, device='cuda')
    bf16 = precision == 'bf16'
    best = []
    for work in (forward, forward_backward):
        with torch.autocast('cuda', dtype=torch.bfloat16) if bf16 else nullcontext():
            for _ in range(2):  # compiles, fills caches
                work(contender, waves)
            torch.cuda.reset_peak_memory_stats()
            times = [seconds(lambda: work(contender, waves), device_time) for _ in range(rounds)]  # noqa: B023
            best.append(min(times))
    return *best, torch.cuda.max_memory_allocated() / 2**30


def device_time() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(call: Callable, clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


def forward(contender: Contender, waves: Tensor) -> None:
    contender.network.eval()
    with torch.inference_mode():
        contender.states(waves)


def forward_backward(contender: Contender, waves: Tensor) -> None:
    contender.network.train()
    torch.stack([state.float().mean() for state in contender.states(waves)]).sum().backward()
    contender.network.zero_grad()


def check(contenders: dict[str, Contender], waves: Tensor) -> None:
    """Ours and transformers' states agree: they have the same weights."""
    both = []
    for library in ('ours', 'transformers'):
        contenders[library].network.eval()
        with torch.inference_mode():
            both.append(contenders[library].states(waves)[:-1])
    for own, theirs in zip(*both):  # without the last, which transformers does not normalise
        torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-3)


def build(
    library: str, config: SslConfig, device: str = 'cpu', compiled: bool = False
) -> Contender:
    """An encoder of `library`; ours and transformers' get the same weights."""
    config = replace(config, layer_drop=0.0, normalise_wave=False)
    torch.manual_seed(0)
    ours = SslEncoder(config)
    if library == 'ours':
        network, states = ours, lambda waves: call(waves).states
    elif library == 'transformers':
        network = hugging_face(config)
        network.load_state_dict(ours.state_dict())
        states = lambda waves: call(waves, output_hidden_states=True).hidden_states  # noqa: E731
    else:
        network = torchaudio_network(config)
        states = lambda waves: call(waves)[0]  # noqa: E731
    network.to(device)
    call = network.extract_features if library == 'torchaudio' else network
    call = torch.compile(call) if compiled else call
    return Contender(network, states)


def hugging_face(config: SslConfig) -> nn.Module:
    kinds = {
        'wavlm': (transformers.WavLMConfig, transformers.WavLMModel),
        'hubert': (transformers.HubertConfig, transformers.HubertModel),
        'wav2vec2': (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    }
    config_class, model_class = kinds[config.family]
    settings = config_class(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.ffn_width,
        conv_bias=config.conv_bias,
        feat_extract_norm=config.conv_norm,
        do_stable_layer_norm=config.pre_norm,
        hidden_dropout=config.dropout,
        attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout,
        feat_proj_dropout=config.projection_dropout,
        layerdrop=0.0,
        apply_spec_augment=False,
    )
    return model_class(settings)


def torchaudio_network(config: SslConfig) -> nn.Module:
    wavlm = config.family == 'wavlm'
    make = torchaudio.models.wavlm_model if wavlm else torchaudio.models.wav2vec2_model
    stack = zip(config.conv_channels, config.conv_kernels, config.conv_strides)
    distances = {'encoder_num_buckets': 320, 'encoder_max_distance': 800} if wavlm else {}
    return make(
        extractor_mode=f'{config.conv_norm}_norm',
        extractor_conv_layer_config=list(stack),
        extractor_conv_bias=config.conv_bias,
        encoder_embed_dim=config.width,
        encoder_projection_dropout=config.projection_dropout,
        encoder_pos_conv_kernel=config.position_kernel,
        encoder_pos_conv_groups=config.position_groups,
        encoder_num_layers=config.layers,
        encoder_num_heads=config.heads,
        encoder_attention_dropout=config.attention_dropout,
        encoder_ff_interm_features=config.ffn_width,
        encoder_ff_interm_dropout=config.activation_dropout,
        encoder_dropout=config.dropout,
        encoder_layer_norm_first=config.pre_norm,
        encoder_layer_drop=0.0,
        aux_num_out=None,
        **distances,
    )


if __name__ == '__main__':
    raise SystemExit(main())
