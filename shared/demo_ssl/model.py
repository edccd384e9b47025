"""A small WavLM, pre-trained on the demo corpus in two minutes, in place of a published one.

It has the structure of a real one, kernels and strides included, and is written and read like one;
`training` says how it is trained, `probe` what it is worth.
"""

import copy
import dataclasses
import json
import time
from pathlib import Path

import torch

from shared import ddp
from shared.datasets.demo import DemoCorpus
from shared.demo_ssl.probe import PROTOCOL, probe
from shared.demo_ssl.training import Crops, PreTraining, Recipe, targets, train
from shared.errors import UserError
from shared.files import remove_unfinished, replacing
from shared.models.ssl_checkpoints import ssl_encoder, write_ssl
from shared.models.ssl_config import SslConfig

VERSION = 1  # raise it when the same settings give other weights
RECORD = 'pretraining.json'
# The front of a real one (20 ms frames), tapered: its first layers see most samples.
SMALL = SslConfig(
    'wavlm',
    layers=3,
    width=96,
    heads=4,
    ffn_width=384,
    conv_channels=(24, 24, 32, 48, 64, 64, 96),
    position_kernel=32,
    position_groups=8,
    dropout=0.0,
    attention_dropout=0.0,
    layer_drop=0.0,
)


def make(
    folder: Path | str,
    corpus: DemoCorpus,
    *,
    seed: int = 0,
    device: torch.device | str = 'cpu',
    workers: int = 0,
    config: SslConfig = SMALL,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
) -> Path:
    """Pre-trains once, and returns the folder: Hugging Face layout and `pretraining.json`.

    A complete folder of the same settings is returned at once. Rank 0 works, the others wait. The
    record holds the settings, losses and accuracies over time, seconds, and the EER of a linear
    probe (`probe`) for the weights read back from the folder ('pretrained') and for
    the same network as it was initialised ('random').

    Args:
        folder: to make.
        corpus: of `shared.datasets.demo.make`; its training part and MUSAN are learnt from.
        seed: of weights, crops, masks and mixtures; torch's own generators are left as they were.
        device: where it is computed.
        workers: loader processes of the pass that computes the MFCCs.
        config: of the encoder, a WavLM with the usual kernels and strides.
        recipe: of the training.

    Raises:
        UserError: the folder holds something else, or a model of other settings (named).
    """
    folder = Path(folder).absolute()
    if ddp.is_main():
        wanted = _settings(corpus, seed, config, recipe)
        if not _is_complete(folder, wanted):
            _make(folder, corpus, wanted, seed, torch.device(device), workers, config, recipe)
    ddp.barrier()
    return folder


def describe(folder: Path | str) -> str:
    """What a model of `make` is worth, in one line."""
    found = json.loads((Path(folder) / RECORD).read_text(encoding='utf-8'))['probe']
    return (
        'small WavLM, EER % of a linear probe on unseen speakers: '
        f'{found["pretrained"]["eer"]:.2f} pre-trained, {found["random"]["eer"]:.2f} as initialised'
    )


def _settings(corpus: DemoCorpus, seed: int, config: SslConfig, recipe: Recipe) -> dict:
    """What the weights depend on, as JSON reads it back."""
    parts = {'config': dataclasses.asdict(config), 'recipe': dataclasses.asdict(recipe)}
    parts['corpus'] = json.loads((corpus.root / 'corpus.json').read_text())
    flat = {f'{part}.{name}': x for part, fields in parts.items() for name, x in fields.items()}
    return json.loads(json.dumps({'version': VERSION, 'seed': seed, **flat}))


def _is_complete(folder: Path, wanted: dict) -> bool:
    """Whether the model is there; if not, makes sure that nothing else is."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / RECORD).is_file():
        raise UserError(f'{folder} is there and no demo model; name another folder')
    found = json.loads((folder / RECORD).read_text())['settings']
    differing = [
        f'{name}: {found.get(name)} there, {wanted.get(name)} wanted'
        for name in sorted({*wanted, *found})
        if found.get(name) != wanted.get(name)
    ]
    if differing:
        raise UserError(
            f'{folder} holds a demo model of other settings ({"; ".join(differing)}); '
            'remove it or name another folder'
        )
    return True


def _make(folder, corpus, settings, seed, device, workers, config, recipe) -> None:
    remove_unfinished(folder.parent)
    cuda = [device] if device.type == 'cuda' else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        started = time.perf_counter()
        model = PreTraining(config, recipe).to(device)
        untrained = copy.deepcopy(model.encoder)
        features, units = targets(corpus, recipe.clusters, seed, workers)
        crops = Crops(corpus, features, units, recipe, seed)
        history = train(model, crops, recipe, device)
        trained = time.perf_counter()
        with replacing(folder) as temporary:
            write_ssl(config, model.encoder.state_dict(), temporary)
            pretrained = probe(ssl_encoder(temporary), corpus, device)
            random = probe(untrained, corpus, device)
            seconds = {'pre-training': trained - started, 'probe': time.perf_counter() - trained}
            record = {
                'settings': settings,
                'parameters': sum(p.numel() for p in model.encoder.parameters()),
                'history': history,
                'probe': {'pretrained': pretrained, 'random': random, 'protocol': PROTOCOL},
                'seconds': {part: round(value, 1) for part, value in seconds.items()},
            }
            text = json.dumps(record, indent=1) + '\n'
            (temporary / RECORD).write_text(text, encoding='utf-8')
