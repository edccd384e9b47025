"""Verification by crops against float64 loops over trials, files and crops (specs nawsv, oskdft 6)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recipes import TINY_WAVLM

from shared.errors import UserError
from shared.evaluation import crops
from shared.evaluation.crops import CropEmbedder, embed_cohort, verify_by_crops
from shared.evaluation.segments import cut_segments
from shared.evaluation.verification import verify
from shared.models.ssl_backends import LinearBackEnd, SslSpeakerEncoder
from shared.models.ssl_encoder import SslEncoder

SIZE, DIM = 40, 6  # samples of a crop, and of an embedding


def samples_of(wave):
    """The embedding of a file or crop: what follows its first third."""
    start = len(wave) // 3
    return wave[start : start + DIM]


class Samples(torch.nn.Module):
    def forward(self, waves, lengths=None):
        lengths = [waves.shape[1]] * len(waves) if lengths is None else lengths
        return torch.stack([samples_of(wave[:length]) for wave, length in zip(waves, lengths)])


def some_waves(count=8, seed=0):
    rng = np.random.default_rng(seed)
    return [np.float32(rng.uniform(-1, 1, rng.integers(30, 99))) for _ in range(count)]


def batches(waves, size=3):
    """What `whole_files` gives: zero-padded batches with the numbers of the files."""
    for start in range(0, len(waves), size):
        part = [torch.from_numpy(wave) for wave in waves[start : start + size]]
        yield {
            'index': torch.arange(start, start + len(part)),
            'waves': torch.nn.utils.rnn.pad_sequence(part, batch_first=True),
            'lengths': torch.tensor([len(wave) for wave in part]),
        }


def listed(waves, trials=40):
    """Random trials on these files, in memory."""
    rng = np.random.default_rng(1)
    trials = SimpleNamespace(
        name='some',
        sha256='0',
        files=[f'id{i % 3}/{i}.wav' for i in range(len(waves))],
        enrol=rng.integers(len(waves), size=trials),
        test=rng.integers(len(waves), size=trials),
        labels=np.arange(trials) % 2 == 0,
    )
    return SimpleNamespace(
        trials=trials, converted={'resampled': 2}, loader=lambda: [*batches(waves)]
    )


def verified(files, embed=None, **changes):
    how = {'count': 5, 'size': SIZE, 'full': True, 'device': 'cpu', **changes}
    return verify_by_crops(embed or Samples(), files, **how)


def naive_cosine(x, y):
    x, y = np.float64(x), np.float64(y)
    return x @ y / np.sqrt((x @ x) * (y @ y))


def naive_crops(wave, count=5):
    if len(wave) < SIZE:
        wave = np.pad(wave, (0, SIZE - len(wave)), mode='wrap')
    return [
        samples_of(wave[int(s) : int(s) + SIZE]) for s in np.linspace(0, len(wave) - SIZE, count)
    ]


def naive_tta(one, other):
    """The mean of 25 cosines."""
    return np.mean([naive_cosine(x, y) for x in naive_crops(one) for y in naive_crops(other)])


def naive_full(one, other):
    return naive_cosine(samples_of(one), samples_of(other))


def pairs_of(waves, trials):
    return [(waves[a], waves[b]) for a, b in zip(trials.enrol, trials.test)]


def test_embedder_gives_each_file_what_it_would_get_alone_and_its_crops():
    torch.manual_seed(0)
    network = SslSpeakerEncoder(SslEncoder(TINY_WAVLM), LinearBackEnd(3, 16, 8)).eval()
    embedder = CropEmbedder(network, 3, 4000, full=True).eval()
    lengths = torch.tensor([9000, 5001, 3000])
    waves = torch.zeros(3, 9000)
    for row, length in zip(waves, lengths):
        row[:length] = torch.randn(length)
    with torch.inference_mode():
        found = embedder(waves, lengths)
        assert found.shape == (3, 4, 8)
        for row, length, embeddings in zip(waves, lengths, found):
            wave = row[:length].numpy()
            pieces = [wave]
            for start in np.linspace(0, max(len(wave) - 4000, 0), 3):
                pieces.append(np.take(wave, np.arange(int(start), int(start) + 4000), mode='wrap'))
            alone = [network(torch.from_numpy(x)[None])[0] for x in pieces]
            torch.testing.assert_close(embeddings, torch.stack(alone), rtol=1e-4, atol=1e-4)
        embedder.full = False
        torch.testing.assert_close(embedder(waves, lengths), found[:, 1:])


@pytest.mark.parametrize('full', [True, False])
@pytest.mark.parametrize(
    'count, size, largest', [(5, 40, 5), (3, 40, 6), (15, 90, 15), (2, 500, 2)]
)
def test_embedder_hears_no_more_crops_at_once_than_the_batch_has_samples(
    count, size, largest, full
):
    """Three files of at most 100 samples; a file's crops are always heard together."""
    heard = []

    class Watched(Samples):
        def forward(self, waves, lengths=None):
            heard.append(waves.shape)
            return super().forward(waves, lengths)

    lengths = torch.tensor([100, 73, 31])
    waves = torch.rand(3, 100) * (torch.arange(100) < lengths[:, None])
    found = CropEmbedder(Watched(), count, size, full)(waves, lengths)
    cut = [shape[0] for shape in heard if shape[1] == size]
    assert sum(cut) == 3 * count and max(cut) == largest and not any(n % count for n in cut)
    whole = cut_segments(waves, lengths, count, size)
    expected = Samples()(whole.flatten(0, 1)).view(3, count, DIM)
    assert torch.equal(found[:, int(full) :], expected)


def test_tta_is_the_mean_of_25_cosines_to_a_millionth():
    waves = some_waves()
    files = listed(waves)
    records, scores = verified(files, full=False)
    expected = [naive_tta(x, y) for x, y in pairs_of(waves, files.trials)]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    assert list(records) == ['tta'] and records['tta']['crop'] == 'tta'


def test_headline_with_whole_files_is_the_mean_of_their_cosine_and_tta():
    waves = some_waves()
    files = listed(waves)
    records, scores = verified(files, known_name='public', eer_rule='max', resamples=3)
    expected = [(naive_full(x, y) + naive_tta(x, y)) / 2 for x, y in pairs_of(waves, files.trials)]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-6)
    assert list(records) == ['tta', 'full', 'full+tta']
    for crop, record in records.items():
        assert record['crop'] == crop and record['converted'] == {'resampled': 2}
        assert record['known_name'] == 'public' and record['confidence']['resamples'] == 3
        assert record['eer'] == record['eer_by_rule']['max']
    assert len({record['eer_threshold'] for record in records.values()}) == 3


def test_as_norm_of_whole_files_is_that_of_the_loops_and_not_the_headline(monkeypatch):
    """Spec oskdft 6: raw speaker means, each file's highest cosines once."""
    waves, heard = some_waves(), some_waves(12, seed=2)
    heard = [wave * (1 + i) for i, wave in enumerate(heard)]  # raw means: the loud count more
    speakers = np.arange(12) % 5
    cohort = embed_cohort(Samples(), [*batches(heard)], speakers, 'cpu')
    means = [
        np.mean([samples_of(w) for w, s in zip(heard, speakers) if s == k], 0) for k in range(5)
    ]
    np.testing.assert_allclose(cohort, means, rtol=1e-6)

    kept = []

    def keep(*args, **how):
        kept.append(verify(*args, **how))
        return kept[0]

    monkeypatch.setattr(crops, 'verify', keep)
    files = listed(waves)
    records, scores = verified(files, cohort=cohort, cohort_name='dev', top_k=3)
    expected = []
    for x, y in pairs_of(waves, files.trials):
        score, sides = naive_full(x, y), []
        for one in (x, y):
            best = sorted(naive_cosine(samples_of(one), mean) for mean in means)[-3:]
            sides.append((score - np.mean(best)) / np.std(best))
        expected.append(np.mean(sides))
    np.testing.assert_allclose(kept[0][1], expected, rtol=1e-4, atol=1e-4)
    record = records.pop('full, AS-norm')
    assert record['crop'] == 'full, AS-norm' and record['converted'] == {'resampled': 2}
    assert record['score_norm'] == {
        'name': 'as-norm',
        'cohort': 'dev',
        'cohort_size': 5,
        'top_k': 3,
        'deviation': 'population',
    }
    plain, same = verified(files)
    assert records == plain and np.array_equal(scores, same)


def test_cohort_without_whole_files_is_refused():
    with pytest.raises(ValueError, match='needs full=True'):
        verified(listed(some_waves()), full=False, cohort=torch.ones(9, DIM))


def test_cohort_leaves_out_what_has_no_embedding():
    heard, speakers = some_waves(6), np.array([4, 4, 2, 2, 9, 9])
    for broken in (1, 4, 5):
        heard[broken][:] = np.nan
    cohort = embed_cohort(Samples(), [*batches(heard)], speakers, 'cpu')
    expected = [(samples_of(heard[2]) + samples_of(heard[3])) / 2, samples_of(heard[0])]  # 2, 4
    np.testing.assert_allclose(cohort, expected, rtol=1e-6)
    for wave in heard:
        wave[:] = np.nan
    with pytest.raises(UserError, match='no file of the cohort'):
        embed_cohort(Samples(), [*batches(heard)], speakers, 'cpu')


def test_files_without_a_finite_embedding_are_named():
    waves = some_waves()
    waves[3][:] = np.nan
    with pytest.raises(UserError, match='some: 1 of 8 files have no finite.*id0/3.wav'):
        verified(listed(waves))


def test_lengths_are_never_compiled_for_and_the_network_ends_in_eval_mode():
    def backend(*_):
        raise AssertionError('compiled')

    embed = Samples()
    embed.forward = torch.compile(embed.forward, backend=backend)
    verified(listed(some_waves()), embed)
    assert not embed.training
    embed.train()
    embed_cohort(embed, [*batches(some_waves())], np.arange(8), 'cpu')
    assert not embed.training
