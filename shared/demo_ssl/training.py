"""Pre-training of a small WavLM on the demo corpus.

Masked prediction of clustered MFCCs (HuBERT, Hsu et al. 2021, first iteration) on waves that are
partly mixed with another utterance or noise (WavLM, Chen et al. 2022, section 3.1), at the scale of a
laptop. What differs from those papers, because there are hundreds of steps instead of 400,000:
- the MFCCs have no deltas, and each utterance's mean is taken off, as the encoder's first norm
  hides it;
- masks span 5 frames instead of 10, and frames that are not masked count too;
- the convolutions get a target of their own, the MFCCs. Much of what the probe finds comes from it:
  after 500 steps of a prototype (1 seed, O) its EER was 18.6 % with it, and 27.6 % without it and
  with an `unmasked_weight` of 1 instead of 0.5.

Legend: B utterances of a batch, L samples, T frames, D width, F features of a frame, C clusters.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.compliance import kaldi
from tqdm import tqdm

from shared.datasets.demo import DemoCorpus
from shared.datasets.loading import whole_files
from shared.datasets.musan import CATEGORIES, Musan
from shared.datasets.reading import AudioReader
from shared.datasets.voxceleb import read_list
from shared.models.span_masks import draw_spans
from shared.models.ssl_config import SslConfig
from shared.models.ssl_encoder import SslEncoder

RATE, WINDOW, HOP = 16000, 400, 320  # samples: what one frame of the encoder sees, and its step
COEFFICIENTS = 13  # F, of an MFCC


@dataclass(frozen=True)
class Recipe:
    """Settings of the pre-training; lengths in frames of 20 ms unless they say otherwise."""

    steps: int = 600
    batch_size: int = 8
    seconds: float = 1.5  # of a crop, or the shortest file
    lr: float = 8e-3  # of convolutions and heads, reached after a tenth of the steps, then falling
    lr_layers: float = 2e-3  # of the Transformer
    weight_decay: float = 0.01
    clusters: int = 100  # C
    mask_prob: float = 0.4
    mask_length: int = 5
    unmasked_weight: float = 0.5  # of the prediction where nothing is masked
    mfcc_weight: float = 5.0  # of the convolutions' own target
    code_width: int = 256
    temperature: float = 0.1
    mix_prob: float = 0.2  # of an utterance to be mixed with another or noise
    noise_share: float = 0.3  # of the mixed ones, from MUSAN
    speech_snr: tuple[float, float] = (-5.0, 5.0)  # dB, as WavLM
    noise_snr: tuple[float, float] = (-5.0, 20.0)  # dB, as WavLM


def mfcc(wave: Tensor) -> Tensor:
    """MFCCs of the frames that the encoder makes of a wave (L,): (T, 13) less their mean.

    Kaldi's frames of 25 ms without padding, one every 20 ms: frame t is samples 320 t to
    320 t + 400, which is exactly what the published convolutions see.
    """
    features = kaldi.mfcc(
        wave.unsqueeze(0) * 32768,  # Kaldi's scale
        num_ceps=COEFFICIENTS,
        frame_length=1000 * WINDOW / RATE,
        frame_shift=1000 * HOP / RATE,
        dither=0.0,
    )
    return features - features.mean(dim=0)


def targets(
    corpus: DemoCorpus, clusters: int, seed: int, workers: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Features (T, F), of unit variance, and cluster numbers (T,) of every training utterance."""
    import faiss  # here, so that only who pre-trains pays for its start

    utterances = read_list(corpus.train_list, corpus.train)
    loader = whole_files(
        utterances.all_paths(),
        utterances.seconds,
        AudioReader(),
        budget_seconds=120.0,
        workers=workers,
    )
    found: dict[int, Tensor] = {}
    for batch in tqdm(loader, desc='MFCCs', unit='batch', leave=False, disable=None):
        for row, wave, length in zip(batch['index'], batch['waves'], batch['lengths']):
            found[int(row)] = mfcc(wave[:length])
    features = [found[row] for row in range(len(utterances))]
    frames = [len(rows) for rows in features]
    table = torch.cat(features)
    table = table / table.std(dim=0)
    means = faiss.Kmeans(COEFFICIENTS, clusters, niter=20, seed=seed + 1, min_points_per_centroid=1)
    means.train(table.numpy())
    units = torch.from_numpy(means.index.search(table.numpy(), 1)[1][:, 0])
    return list(table.split(frames)), list(units.split(frames))


class Crops:
    """Batches of training crops with their targets, all drawn from one seed.

    Args:
        corpus: where the waves and MUSAN are.
        features: (T, F) of each training utterance.
        units: (T,) cluster numbers of each.
        recipe: sizes and rates.
        seed: of the draws.
    """

    def __init__(
        self,
        corpus: DemoCorpus,
        features: list[Tensor],
        units: list[Tensor],
        recipe: Recipe,
        seed: int,
    ):
        self.utterances = read_list(corpus.train_list, corpus.train)
        self.features, self.units, self.recipe = features, units, recipe
        self.reader = AudioReader()
        self.musan = Musan(corpus.musan, self.reader)
        self.rng = np.random.default_rng(seed)
        self.frames = min(int(recipe.seconds * RATE / HOP), *(len(x) for x in units))
        self.order: list[int] = []

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Waves (B, L) of T frames, some mixed; features (B, T, F) and units (B, T) of the clean."""
        waves, features, units = [], [], []
        for _ in range(self.recipe.batch_size):
            self.order = self.order or self.rng.permutation(len(self.utterances)).tolist()
            row = self.order.pop()
            first = int(self.rng.integers(len(self.units[row]) - self.frames + 1))
            with self.reader.open(self.utterances.path(row)) as audio:
                waves.append(audio.read(first * HOP, (self.frames - 1) * HOP + WINDOW))
            features.append(self.features[row][first : first + self.frames])
            units.append(self.units[row][first : first + self.frames])
        clean = np.stack(waves)
        return torch.from_numpy(self._mixed(clean)), torch.stack(features), torch.stack(units)

    def _mixed(self, clean: np.ndarray) -> np.ndarray:
        """Adds a piece of another row, or of MUSAN, somewhere in some rows (WavLM, algorithm 1)."""
        rng, recipe, mixed = self.rng, self.recipe, clean.copy()
        rows, length = clean.shape
        for row in np.flatnonzero(rng.random(rows) < recipe.mix_prob):
            size = int(rng.integers(length // 8, length // 2 + 1))
            if rng.random() < recipe.noise_share:
                category, snr = rng.choice(CATEGORIES), rng.uniform(*recipe.noise_snr)
                piece = self.musan.crop(str(category), size, rng)
            else:
                other = (row + rng.integers(1, max(rows, 2))) % rows
                snr, first = rng.uniform(*recipe.speech_snr), rng.integers(length - size + 1)
                piece = clean[other, first : first + size]
            power = np.square(clean[row]).mean() / (np.square(piece).mean() + 1e-6)
            first = rng.integers(length - size + 1)
            mixed[row, first : first + size] += np.sqrt(power * 10 ** (-snr / 10)) * piece
        return mixed


class PreTraining(nn.Module):
    """The encoder, and what predicts from it: clusters from its last state, MFCCs from its first."""

    def __init__(self, config: SslConfig, recipe: Recipe):
        super().__init__()
        self.recipe = recipe
        self.encoder = SslEncoder(config)
        self.project = nn.Linear(config.width, recipe.code_width)
        self.codes = nn.Parameter(torch.randn(recipe.clusters, recipe.code_width))
        self.reconstruct = nn.Linear(config.width, COEFFICIENTS)

    def forward(self, waves: Tensor, features: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, and [masked loss, accuracy at masked frames, MFCC loss] (3,) for the record."""
        recipe, encoder = self.recipe, self.encoder
        x = encoder.feature_projection(encoder.features(waves)[0])  # (B, T, D)
        rows, frames, _ = x.shape
        hidden = draw_spans(
            torch.full((rows,), frames, device=x.device),
            frames,
            prob=recipe.mask_prob,
            length=min(recipe.mask_length, frames),
            min_count=2,
        )
        seen = torch.where(hidden.unsqueeze(-1), encoder.masked_spec_embed, x)
        states = encoder.encoder(seen, None, None)
        # HuBERT eq. 3: cosine of projected state and code over a temperature
        codes = F.normalize(self.codes, dim=-1)
        logits = F.normalize(self.project(states[-1]), dim=-1) @ codes.T / recipe.temperature
        losses = F.cross_entropy(logits.transpose(1, 2), units, reduction='none')  # (B, T)
        masked, unmasked = (_mean_where(losses, where) for where in (hidden, ~hidden))
        mfcc_loss = F.smooth_l1_loss(self.reconstruct(x), features)
        loss = masked + recipe.unmasked_weight * unmasked + recipe.mfcc_weight * mfcc_loss
        accuracy = _mean_where((logits.argmax(-1) == units).float(), hidden)
        return loss, torch.stack([masked, accuracy, mfcc_loss]).detach()


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)


def train(model: PreTraining, crops: Crops, recipe: Recipe, device: torch.device) -> list[dict]:
    """Trains in place; returns the course, ten points with means since the one before."""
    layers = list(model.encoder.encoder.parameters())
    slow = {id(parameter) for parameter in layers}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in slow]
    groups = [{'params': rest, 'lr': recipe.lr}, {'params': layers, 'lr': recipe.lr_layers}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    warm = max(recipe.steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm, (recipe.steps - step) / max(recipe.steps - warm, 1)),
    )
    model.train()
    history: list[dict] = []
    since: list[Tensor] = []
    bar = tqdm(
        range(1, recipe.steps + 1), desc='pre-training', unit='step', leave=False, disable=None
    )
    for step in bar:
        loss, values = model(*(tensor.to(device) for tensor in crops.draw()))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        since.append(values)
        if step * 10 // recipe.steps > (step - 1) * 10 // recipe.steps:
            means = torch.stack(since).mean(0).tolist()
            names = ('masked_loss', 'masked_accuracy', 'mfcc_loss')
            history.append({'step': step, **dict(zip(names, means))})
            since.clear()
    return history
