"""Loss gate, controller, training samples and frameworks of papers/lgl (spec lgl 2, 5, 6)."""

from collections import Counter

import numpy as np
import pytest
import soundfile
import torch

from shared.augmentations.augment import augment
from shared.datasets.items import Utterances, collate
from shared.datasets.musan import Musan
from shared.datasets.reading import AudioReader
from shared.datasets.rirs import Rirs
from shared.losses.aam_softmax import AamSoftmax
from shared.losses.contrastive import ContrastiveLoss


@pytest.fixture
def lgl(paper):
    return paper('lgl')


# --- the gate (spec 5.3) and the controller (spec 6.2)


def golden_losses():
    """Per-sample AAM losses of spec 5.3, with the embeddings they depend on."""
    classifier = AamSoftmax(5, 3, margin=0.2, scale=30.0)
    with torch.no_grad():
        classifier.weight.copy_(torch.cos(0.8 * torch.arange(1, 16)).reshape(5, 3))
    x = torch.sin(1.1 * torch.arange(1, 13)).reshape(4, 3).requires_grad_()
    return classifier(x, torch.tensor([0, 3, 2, 4]))[0], x


@pytest.mark.parametrize(
    ('gate', 'loss', 'count'),
    [(1000.0, 14.912795, 4), (20.0, 10.665959, 3), (11.0, 9.737316, 2), (9.0, 8.836796, 1)],
)
def test_gated_mean_gives_the_golden_values(lgl, gate, loss, count):
    losses, _ = golden_losses()
    value, mask, number = lgl.losses.gated_mean(losses, gate)
    assert mask.sum() == number == count
    assert value.item() == pytest.approx(loss, rel=1e-5)


def test_gated_mean_gives_the_golden_gradient(lgl):
    losses, x = golden_losses()
    lgl.losses.gated_mean(losses, 20.0)[0].backward()
    expected = torch.tensor([-2.826688, 5.160930, 10.481588])
    torch.testing.assert_close(x.grad[0], expected, rtol=1e-4, atol=1e-4)


def test_gated_mean_equals_a_loop_in_value_and_gradient(lgl):
    losses = torch.linspace(0.1, 4, 9, dtype=torch.float64).requires_grad_()
    gate = losses[4].item()  # inclusive
    value, mask, _ = lgl.losses.gated_mean(losses, gate)
    value.backward()
    selected = [x.item() for x in losses if x.item() <= gate]
    assert len(selected) == 5 and mask.tolist() == [True] * 5 + [False] * 4
    assert value.item() == pytest.approx(sum(selected) / len(selected))
    assert losses.grad.tolist() == pytest.approx([1 / 5] * 5 + [0] * 4)


def test_gated_mean_of_nothing_is_zero_with_zero_gradient(lgl):
    losses, x = golden_losses()
    value, mask, number = lgl.losses.gated_mean(losses, 6.0)
    value.backward()
    assert value.item() == 0 and not mask.any() and number == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_gated_mean_lets_a_nan_loss_be_seen(lgl):
    losses = torch.tensor([0.5, float('nan')])
    assert lgl.losses.gated_mean(losses, float('inf'))[0].isnan()
    assert lgl.losses.gated_mean(losses, 1.0)[0].isnan()


@pytest.mark.parametrize(
    ('eers', 'over'),
    [
        ([5, 6, 6], False),
        ([5, 6, 6, 6], True),
        ([6, 5, 6, 5], False),
        ([5, 6, 6, 5, 6, 6], False),
        ([5, 6, 6, 5, 6, 6, 6], True),
        ([5.001, 5.004, 5.003, 5.002], False),  # all print 5.00
        ([6, 6.1, 6.2, 6.3], True),
        ([], False),
    ],
)
def test_phase_over_decides_as_the_published_controller(lgl, eers, over):
    assert lgl.losses.phase_over(eers, patience=3, minimum=4) is over


# --- frameworks


class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.map = torch.nn.Linear(6, 4)

    def forward(self, waves):
        return self.map(waves)


def test_classification_learns_only_from_selected_samples(lgl):
    torch.manual_seed(0)
    framework = lgl.framework.GatedClassification(Linear(), AamSoftmax(3, 4))
    waves, labels = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    losses = framework.classifier(framework.encoder(waves), labels)[0].detach()
    gate = losses.sort().values[2].item()
    framework(waves, labels, gate)['loss'].backward()
    gated = framework.encoder.map.weight.grad.clone()

    framework.zero_grad()
    kept = losses <= gate
    framework.classifier(framework.encoder(waves[kept]), labels[kept])[0].mean().backward()
    torch.testing.assert_close(gated, framework.encoder.map.weight.grad)


def test_unselected_samples_never_count_as_correct(lgl):
    framework = lgl.framework.GatedClassification(torch.nn.Identity(), AamSoftmax(2, 2))
    with torch.no_grad():
        framework.classifier.weight.copy_(torch.eye(2))
    waves, labels = torch.eye(2), torch.tensor([0, 1])
    result = framework(waves, labels, gate=-1.0)
    assert result['selected'] == 0 and result['hits'] == 0  # the published code counts class 0


def test_adversary_labels_shared_augmentation_as_one(lgl):
    torch.manual_seed(0)
    adversary = lgl.framework.Adversary(lgl.models.AugmentationDiscriminator(4))
    a, s, p = torch.randn(3, 5, 4)
    adversary.eval()
    total = 0.0
    for i in range(5):
        for other, label in ((s, 1), (p, 0)):
            scores = adversary.discriminator(torch.cat([a[i], other[i]])[None])
            total -= scores.log_softmax(1)[0, label].item()
    assert adversary(a, s, p).item() == pytest.approx(total / 10, rel=1e-5)


def test_fooling_reverses_the_gradient_and_teaches_the_discriminator_nothing(lgl):
    torch.manual_seed(0)
    adversary = lgl.framework.Adversary(lgl.models.AugmentationDiscriminator(4)).eval()
    views = [torch.randn(5, 4, requires_grad=True) for _ in range(3)]
    adversary(*views).backward()
    straight = [view.grad.clone() for view in views]
    adversary.zero_grad(set_to_none=True)
    for view in views:
        view.grad = None
    adversary.fool(*views).backward()
    for view, gradient in zip(views, straight):
        torch.testing.assert_close(view.grad, -gradient)
    assert all(p.grad is None and p.requires_grad for p in adversary.parameters())


def test_stage_one_total_gradient_is_speaker_minus_three_times_aat(lgl):
    torch.manual_seed(0)
    framework = lgl.framework.Contrastive(Linear(), ContrastiveLoss())
    adversary = lgl.framework.Adversary(lgl.models.AugmentationDiscriminator(4)).eval()
    waves = torch.randn(4, 3, 6)

    def gradient(make):
        framework.zero_grad()
        make(*framework(waves)).backward()
        return framework.encoder.map.weight.grad.clone()

    speaker = gradient(lambda losses, _: losses['speaker_loss'])
    straight = gradient(lambda _, views: adversary(*views))
    total = gradient(lambda losses, views: losses['speaker_loss'] + 3 * adversary.fool(*views))
    torch.testing.assert_close(total, speaker - 3 * straight, rtol=1e-4, atol=1e-6)


def test_contrastive_takes_its_views_from_crops_with_different_augmentation(lgl):
    framework = lgl.framework.Contrastive(torch.nn.Identity(), ContrastiveLoss())
    waves = torch.randn(4, 3, 6)
    losses, (a, s, p) = framework(waves)
    assert torch.equal(a, waves[:, 0]) and torch.equal(s, waves[:, 1])
    expected = ContrastiveLoss()(waves[:, 0], waves[:, 2])[0]
    assert losses['speaker_loss'] == expected


# --- training samples (spec 2.4, 2.5)


@pytest.fixture(scope='module')
def corpora(tmp_path_factory):
    """Utterances whose samples count up, constant noises and one-tap rooms, so that what was
    drawn can be read off."""
    root = tmp_path_factory.mktemp('corpora')
    lengths = [9000, 5002, 4000, 1500, 900]
    names = []
    for i, length in enumerate(lengths):
        names.append(f'id{i}/video/{i}.wav')
        (root / 'wav' / names[-1]).parent.mkdir(parents=True)
        ramp = (np.arange(length) + 1) / 2**15
        soundfile.write(root / 'wav' / names[-1], ramp.astype(np.float32), 16000, subtype='FLOAT')
    for category in ('noise', 'speech', 'music'):
        for i in range(10):
            path = root / 'musan' / category / 'set' / f'{i}.wav'
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.full(4000, 0.1 + 0.01 * i, np.float32), 16000)
    path = root / 'rirs' / 'room' / 'Room001' / '1.wav'
    path.parent.mkdir(parents=True)
    soundfile.write(path, np.array([0.5, 0.25], np.float32), 16000, subtype='FLOAT')
    utterances = Utterances(
        root / 'wav', np.array(names, dtype='S'), np.arange(5), tuple(map(str, range(5)))
    )
    reader = AudioReader()
    return utterances, Musan(root / 'musan', reader), Rirs(root / 'rirs', reader)


def args_of(lgl, **changes):
    values = lgl.arguments.get_args([])[0]
    return {**values, 'contrastive_crop': 2000, 'crop_size': 2000, **changes}


def test_stage_one_crops_never_overlap_and_come_in_either_order(lgl, corpora):
    data = lgl.data.ContrastiveSet(*corpora, args_of(lgl))
    orders, gaps = Counter(), set()
    for epoch in range(300):
        waves = data.sample(epoch, 1).waves  # 5002 samples: gaps of 1..1000 samples
        first, second = waves[0, 0] * 2**15, waves[1, 0] * 2**15
        gap = abs(second - first) - 2000
        orders[first < second] += 1
        gaps.add(gap)
        assert np.array_equal(waves[1], waves[2])
        assert gap >= 1
    assert min(orders.values()) > 100
    assert len(gaps) > 100


@pytest.mark.parametrize('index', [2, 3, 4])
def test_stage_one_wraps_files_too_short_for_two_crops(lgl, corpora, index):
    sample = lgl.data.ContrastiveSet(*corpora, args_of(lgl)).sample(1, index)
    assert sample.waves.shape == (3, 2000)
    assert np.isfinite(sample.waves).all() and not sample.skipped


def test_stage_one_shares_profile_zero_between_two_views(lgl, corpora):
    """The same room, gain, noise file and SNR for views 0 and 1; RIR and noise in 75 % each."""
    data = lgl.data.ContrastiveSet(*corpora, args_of(lgl))
    kinds = Counter()
    for epoch in range(400):
        sample = data.sample(epoch, 0)
        rirs, noises = dict(sample.rirs), {v: (x[0], snr) for v, x, snr in sample.noises}
        assert (0 in rirs) == (1 in rirs) and (0 in noises) == (1 in noises)
        if 0 in rirs:
            assert np.array_equal(rirs[0], rirs[1])
        if 0 in noises:
            assert noises[0] == noises[1]
        kinds['rir'] += 0 in rirs
        kinds['noise'] += 0 in noises
        kinds['clean'] += 0 not in rirs and 0 not in noises
        kinds['other rir'] += 2 in rirs
    assert kinds['clean'] == 0
    for name in ('rir', 'noise', 'other rir'):
        assert 0.67 < kinds[name] / 400 < 0.83


def test_stage_one_rir_gain_is_the_published_exponent(lgl, corpora):
    data = lgl.data.ContrastiveSet(*corpora, args_of(lgl))
    gains = []
    for epoch in range(200):
        gains += [rir[0] / 0.5 for view, rir in data.sample(epoch, 0).rirs if view == 2]
    exponents = 10 * np.log10(gains)  # h' = h 10^(0.1 g)
    assert exponents.min() > -7.001 and exponents.max() < 3.001
    assert exponents.min() < -6 and exponents.max() > 2


def test_stage_two_draws_every_start_and_the_published_shares(lgl, corpora):
    utterances = corpora[0].select([3])  # 1500 samples
    args = args_of(lgl, crop_size=1497)
    data = lgl.data.LabelledCrops(utterances, np.array([7]), *corpora[1:], args)
    starts, kinds, babble = Counter(), Counter(), Counter()
    for epoch in range(400):
        sample = data.sample(epoch, 0)
        assert sample.label == 7 and sample.waves.shape == (1, 1497)
        starts[round(sample.waves[0, 0] * 2**15) - 1] += 1
        kinds[bool(sample.rirs), bool(sample.noises)] += 1
        babble[len(sample.noises)] += 1
    assert sorted(starts) == [0, 1, 2, 3]  # the last valid start included
    assert all(70 < kinds[key] < 130 for key in kinds) and len(kinds) == 4
    assert set(babble) == {0, 1, 3, 4, 5, 6, 7, 8}


def test_stage_two_snr_ranges_belong_to_the_category(lgl, corpora):
    args = args_of(lgl, noise_prob=1.0)
    labels = np.zeros(5, dtype=np.int64)
    data = lgl.data.LabelledCrops(corpora[0], labels, *corpora[1:], args)
    babble, single = [], []
    for epoch in range(300):
        noises = data.sample(epoch, 0).noises
        files = [noise[0] for _, noise, _ in noises]
        assert len(set(files)) == len(files)  # without replacement
        (babble if len(noises) > 1 else single).extend(snr for _, _, snr in noises)
    assert 13 <= min(babble) < 13.5 and 19.5 < max(babble) <= 20
    assert 0 <= min(single) < 1.5 and 14 < max(single) <= 15


def test_samples_depend_on_seed_epoch_and_index_alone(lgl, corpora):
    data = lgl.data.ContrastiveSet(*corpora, args_of(lgl))
    again = lgl.data.ContrastiveSet(*corpora, args_of(lgl))
    again.sample(5, 1)  # other draws in between change nothing
    first, second = (augment(collate([d[(3, 0)], d[(3, 1)]])) for d in (data, again))
    assert torch.equal(first, second)
    assert not torch.equal(first, augment(collate([data[(4, 0)], data[(4, 1)]])))
    other = lgl.data.ContrastiveSet(*corpora, args_of(lgl, rand_seed=101))
    assert not torch.equal(first, augment(collate([other[(3, 0)], other[(3, 1)]])))


def test_each_phase_of_stage_two_draws_its_own_crops(lgl, corpora):
    labels = np.zeros(5, dtype=np.int64)
    train, gated = (
        lgl.data.LabelledCrops(corpora[0], labels, *corpora[1:], args_of(lgl), phase)
        for phase in (2, 3)
    )
    assert not np.array_equal(train.sample(1, 0).waves, gated.sample(1, 0).waves)


def test_labels_round_trip_and_refuse_another_train_list(lgl, corpora, tmp_path):
    utterances = corpora[0]
    path = tmp_path / 'labels' / '1.txt'
    lgl.data.write_labels(path, utterances, np.array([3, 0, -1, 2, 2]), {'NMI %': 50.0})
    labels, quality = lgl.data.read_labels(path, utterances)
    assert labels.tolist() == [3, 0, -1, 2, 2] and quality == {'NMI %': 50.0}
    path.write_text(path.read_text().replace('id2/', 'id9/'))
    with pytest.raises(lgl.data.DataError, match='no label for id2/video/2.wav'):
        lgl.data.read_labels(path, utterances)


def test_defaults_are_the_published_values(lgl):
    """Spec 2.3, 5.2, 5.3, 6.2."""
    args = lgl.arguments.get_args([])[0]
    assert (args['margin'], args['scale'], args['aat_weight']) == (0.2, 30.0, 3.0)
    assert args['gates'] == (1.0, 3.0, 3.0, 5.0, 6.0)
    assert (args['contrastive_crop'], args['crop_size']) == (29040, 48240)
    assert (args['contrastive_batch'], args['batch_size'], args['clusters']) == (300, 400, 6000)
    repo = lgl.arguments.get_args(['--preset', 'repo'])[0]
    assert (repo['selection'], repo['epoch_total'], repo['eer_rule']) == ('test', 100, 'max')
    paper = lgl.arguments.get_args(['--preset', 'paper'])[0]
    assert (paper['contrastive_batch'], paper['width_last']) == (256, 1024)
