"""The trainings of papers/wavlm_ssl on pseudo-labels, and what embeds (spec 3.2, 4.2, 6, 7)."""

import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loops import FakeLoop
from recipes import QUIET_WAVLM, TINY_WAVLM, pretrained, weights

from shared.datasets.embeddings import read_embeddings, write_labels
from shared.datasets.items import Sample, Trials, Utterances, collate
from shared.datasets.samplers import ShuffledBatches
from shared.models.mhfa import Mhfa
from shared.models.ssl_checkpoints import read_ssl
from shared.models.ssl_config import WAVLM_BASE, frame_counts
from shared.models.ssl_encoder import SslEncoder
from shared.weight_files import write

COUNT, BATCH, CLASSES = 24, 6, 4
TINY = {'heads': 2, 'compression': 4, 'embed_size': 6, 'device': 'cpu', 'num_workers': 0}


@pytest.fixture
def wavlm_ssl(paper):
    return paper('wavlm_ssl')


def args_of(wavlm_ssl, path_ssl, **changes):
    args, *_ = wavlm_ssl.arguments.get_args([])
    return {**args, **TINY, 'path_ssl': str(path_ssl), **changes}


def crops(index):
    """A sample (2, L) of an utterance: the tone of its class with noise, and without."""
    time, rng = np.arange(4000) / 16000, np.random.default_rng(index)
    clean = 0.3 * np.sin(2 * np.pi * 250 * 2 ** (index % CLASSES) * time + rng.uniform(0, 6))
    noisy = clean + 0.05 * rng.normal(size=4000)
    waves = np.stack([noisy, clean]).astype(np.float32)
    return Sample(waves, label=index % CLASSES, index=index)


def batches_of(count=COUNT):
    return [collate([crops(i) for i in range(n, n + BATCH)]) for n in range(0, count, BATCH)]


# --- one epoch


@pytest.fixture
def method(wavlm_ssl, tmp_path):
    """The networks of a training without dropout, and its args."""
    path = pretrained(QUIET_WAVLM, tmp_path / 'wavlm')

    def make(**changes):
        args = args_of(wavlm_ssl, path, **changes)
        torch.manual_seed(0)
        encoder = wavlm_ssl.systems.encoder_of(args)
        backend = wavlm_ssl.systems.backend_of(args, encoder)
        criterion = wavlm_ssl.systems.criterion_of(args, CLASSES, args['margin'])
        framework = wavlm_ssl.framework.GatedFineTuning(encoder, backend, criterion, args)
        framework.pull_towards(encoder.state_dict(), 'cpu')
        return framework, args

    return make


def adamw(framework, args):
    groups = framework.groups(args['lr_mhfa'], args['lr_transformer'], args['llrd'])
    return torch.optim.AdamW(groups, lr=args['lr_mhfa'], weight_decay=args['weight_decay'])


def epoch_of(wavlm_ssl, framework, optimizer, args, gate=None, epoch=1, batches=None):
    """Metrics of an epoch on some batches."""
    gate = gate or wavlm_ssl.phases.DynamicGate(COUNT, 'cpu')
    loop = FakeLoop(batches_of() if batches is None else batches)
    return wavlm_ssl.train.finetune_epoch('', epoch, 0, gate, loop, framework, optimizer, args)


def all_numbers(framework, optimizer):
    """Copies of weights, moments and step counts, by name."""
    found = framework.copy_of_state()
    for i, state in optimizer.state_dict()['state'].items():
        found |= {f'{i} {name}': torch.as_tensor(value).clone() for name, value in state.items()}
    return found


@pytest.mark.parametrize('elsewhere', [0, 1])
def test_a_batch_of_which_no_rank_learns_anything_moves_nothing(
    wavlm_ssl, method, monkeypatch, elsewhere
):
    """Moments, weight decay and pull would (quirk 6); `elsewhere`: samples of another rank."""
    framework, args = method()
    optimizer, gate = adamw(framework, args), wavlm_ssl.phases.DynamicGate(COUNT, 'cpu')
    epoch_of(wavlm_ssl, framework, optimizer, args, gate)
    gate.log_gate = -100.0
    all_reduce = wavlm_ssl.train.ddp.all_reduce

    def with_another(value, *op):
        reduced = all_reduce(value, *op)
        return reduced + elsewhere if value.dtype == torch.int64 and value.ndim == 0 else reduced

    monkeypatch.setattr(wavlm_ssl.train.ddp, 'all_reduce', with_another)
    before = all_numbers(framework, optimizer)
    assert any('exp_avg' in name and value.any() for name, value in before.items())
    metrics = epoch_of(wavlm_ssl, framework, optimizer, args, gate, epoch=2, batches=batches_of(6))
    assert metrics['kept %'] == metrics['corrected %'] == metrics['accuracy'] == 0
    after = all_numbers(framework, optimizer)
    unmoved = {name for name, value in after.items() if torch.equal(value, before[name])}
    if elsewhere:
        assert 'criterion.weight' not in unmoved and '0 step' not in unmoved
    else:
        assert unmoved == before.keys()


def test_networks_are_in_train_mode_for_both_views(wavlm_ssl, method):
    framework, args = method(lc_epoch=1)
    modes = []
    for part in (framework.encoder, framework.encoder.encoder.layers[1], framework.backend):
        part.register_forward_hook(lambda module, *_: modes.append(module.training))
    framework.eval()
    epoch_of(wavlm_ssl, framework, adamw(framework, args), args, batches=batches_of(6))
    assert modes == [True] * 6


def test_accuracy_is_of_what_is_learnt_and_the_record_of_all(wavlm_ssl, method):
    still = {'lr_mhfa': 0.0, 'lr_transformer': 0.0}  # every batch hears the same networks
    framework, args = method(scale=4.0, lc_epoch=1, lc_temperature=0.5, **still)
    gate, fates, hits = wavlm_ssl.phases.DynamicGate(COUNT, 'cpu'), [], []
    with torch.no_grad():
        batch = collate([crops(i) for i in range(COUNT)])
        embeddings, clean = (framework.embed(view) for view in batch['waves'].unbind(1))
        losses, logits = framework.criterion(embeddings, batch['labels'])
        p = (2 * clean @ framework.criterion.weight.T).softmax(1)
    gate.log_gate = float(losses.log().median())
    framework.lc_threshold = sure = float(p.max(1).values[losses.log() > gate.log_gate].median())
    for i, label in enumerate(batch['labels'].tolist()):
        kept = losses[i].log() <= gate.log_gate
        corrected = not kept and p[i].max() > sure
        fates.append('kept' if kept else 'corrected' if corrected else 'rejected')
        if kept or corrected:
            hits.append(logits[i].argmax() == (label if kept else p[i].argmax()))
    assert min(map(fates.count, ('kept', 'corrected', 'rejected'))) > 0
    assert 0 < sum(hits) < len(hits)
    metrics = epoch_of(wavlm_ssl, framework, adamw(framework, args), args, gate)
    assert metrics['kept %'] == pytest.approx(100 * fates.count('kept') / COUNT)
    assert metrics['corrected %'] == pytest.approx(100 * fates.count('corrected') / COUNT)
    assert metrics['accuracy'] == pytest.approx(100 * float(sum(hits)) / len(hits))
    assert metrics['threshold'] == gate.log_gate
    np.testing.assert_allclose(gate.record.values(), losses, rtol=1e-4, atol=1e-5)


def test_loss_falls_and_tones_are_told_apart(wavlm_ssl, method):
    """Spec 10.1-5, on four tones."""
    framework, args = method(lr_mhfa=0.02, lr_transformer=2e-3, lr_decay=1.0, scale=15.0)
    optimizer = adamw(framework, args)
    found = [epoch_of(wavlm_ssl, framework, optimizer, args, epoch=n) for n in range(1, 13)]
    assert found[-1]['aam_loss'] < 0.4 * found[0]['aam_loss']
    assert found[-1]['accuracy'] > 50 > 1.5 * found[0]['accuracy']
    assert found[0]['pull'] < found[-1]['pull']


# --- whole trainings: rates, gate, where they start


class Crops:
    """A loader of every utterance once an epoch."""

    def __init__(self, labels, seed):
        self.labels = torch.from_numpy(labels)
        self.batch_sampler = ShuffledBatches(len(labels), BATCH, seed)

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        for pairs in self.batch_sampler:
            batch = collate([crops(index) for _, index in pairs])
            yield {**batch, 'labels': self.labels[batch['index']]}


@pytest.fixture
def training(wavlm_ssl, tmp_path, monkeypatch):
    """`training(start=None, **changes)`: `main.finetune` in `folder`, without plots and validation.

    Its history, objects, rates of every step, gate at the beginning of every epoch and losses at its
    end; from the file `start` on with large margin.
    """
    path = pretrained(TINY_WAVLM, tmp_path / 'wavlm')
    names = [f'id{i % CLASSES}/v/{i}.wav' for i in range(COUNT)]
    speakers = np.arange(COUNT) % CLASSES
    train = Utterances(Path('/data'), np.array(names, 'S'), speakers, ('0', '1', '2', '3'))
    write_labels(tmp_path / 'labels.txt', names, speakers)
    corpus = types.SimpleNamespace(
        train=train, labelled_loader=lambda labels, seed, lmft: Crops(labels, seed)
    )
    main, found = wavlm_ssl.main, types.SimpleNamespace()
    loop_of, finetune_epoch = main.loop_of, wavlm_ssl.train.finetune_epoch

    def seen_loop(*given, framework, optimizer, gate):
        loop = loop_of(*given, framework=framework, optimizer=optimizer, gate=gate)
        optimizer.register_step_pre_hook(
            lambda *_: found.rates.append([group['lr'] for group in optimizer.param_groups])
        )
        found.loop, found.framework, found.optimizer = loop, framework, optimizer
        found.first = framework.copy_of_state()
        return loop

    def seen_epoch(title, epoch, done, gate, *more):
        found.gates.append(gate.log_gate)
        metrics = finetune_epoch(title, epoch, done, gate, *more)
        found.losses.append(gate.record.values())
        return metrics

    monkeypatch.setattr(main, 'loop_of', seen_loop)
    monkeypatch.setattr(main, 'gate_report', lambda *_: {})
    monkeypatch.setattr(
        main,
        'end_epoch',
        lambda title, epoch, metrics, loop, *_: loop.end_epoch(metrics, value=-epoch),
    )
    monkeypatch.setattr(wavlm_ssl.train, 'finetune_epoch', seen_epoch)

    def run(start=None, **changes):
        found.rates, found.gates, found.losses = [], [], []
        args = args_of(wavlm_ssl, path, path_log=str(tmp_path), **changes)
        output = tmp_path / 'seed1' / ('lmft0' if start else 'round0') / 'model.pt'
        main.finetune(tmp_path / 'labels.txt', start, output, 1, corpus, None, args)
        return types.SimpleNamespace(**vars(found), file=output, history=found.loop.history)

    return run


def test_rates_of_every_step_are_those_of_the_paper(training):
    """Spec 6: MHFA and layers in epochs 1, 5, 9, 15 and in large-margin epochs 16 to 18."""
    done = training(gate_epoch=99)  # so that every step is made
    steps = COUNT // BATCH
    expected = {1: (5e-3, 2e-5), 5: (4.07e-3, 1.63e-5), 9: (3.32e-3, 1.33e-5)}
    expected[15] = 2.44e-3, 9.75e-6
    assert len(done.rates) == 15 * steps and len(done.history) == 15
    for epoch, (mhfa, layer) in expected.items():
        for step in range(steps * (epoch - 1), steps * epoch):
            assert done.rates[step] == pytest.approx([mhfa, layer, layer], rel=3e-3)
        row = done.history[epoch - 1]
        assert (row['lr_mhfa'], row['lr_layer 0']) == pytest.approx((mhfa, layer), rel=3e-3)
    large = training(start=done.file, gate_epoch=99)
    assert len(large.rates) == 3 * steps
    expected = [(2.32e-3, 9.27e-6), (2.20e-3, 8.80e-6), (2.09e-3, 8.36e-6)]
    for step, found in enumerate(large.rates):
        mhfa, layer = expected[step // steps]
        assert found == pytest.approx([mhfa, layer, layer], rel=3e-3)


def test_optimizer_is_adamw_with_the_decay_and_the_rates_of_the_arguments(training):
    done = training(epoch=1)
    assert type(done.optimizer) is torch.optim.AdamW
    for group in done.optimizer.param_groups:
        assert group['weight_decay'] == 0.01
        assert (group['betas'], group['eps']) == ((0.9, 0.999), 1e-8)
    (done.file.parent / 'last.pt').unlink()
    rates = {'lr_mhfa': 0.01, 'lr_transformer': 1e-3, 'llrd': 0.5, 'lr_decay': 0.7}
    done = training(epoch=2, weight_decay=0.3, **rates)
    assert [group['weight_decay'] for group in done.optimizer.param_groups] == [0.3] * 3
    assert done.rates[0] == pytest.approx([0.01, 1e-3, 5e-4])
    assert done.rates[-1] == pytest.approx([7e-3, 7e-4, 3.5e-4])


GATED = {'scale': 8.0, 'lr_transformer': 1e-3, 'lc_threshold': 0.3, 'lc_temperature': 1.0}


def test_thresholds_come_from_the_losses_of_the_epoch_before(wavlm_ssl, training):
    threshold = lambda losses: wavlm_ssl.gate.fit_gate(losses).threshold  # noqa: E731
    done = training(epoch=4, gate_epoch=2, lc_epoch=3, **GATED)
    assert done.gates[0] == np.inf and all(np.isfinite(x).all() for x in done.losses)
    assert done.gates[1:] == pytest.approx([threshold(x) for x in done.losses[:-1]])
    assert len(set(done.gates)) == 4
    corrected = [row['corrected %'] for row in done.history]
    assert corrected[:2] == [0, 0] and min(corrected[2:]) > 0
    last = np.load(done.file.parent / 'losses.npz')['losses']
    np.testing.assert_array_equal(last, done.losses[-1])
    large = training(start=done.file, lmft_epochs=2, **GATED)
    assert large.gates == pytest.approx([threshold(last), threshold(large.losses[0])])


def test_large_margin_may_begin_without_a_gate(wavlm_ssl, training):
    done = training(epoch=3, gate_epoch=2, **GATED)
    large = training(start=done.file, lmft_epochs=2, lmft_gate=False, **GATED)
    assert large.gates[0] == np.inf and large.history[0]['kept %'] == 100
    found = wavlm_ssl.gate.fit_gate(large.losses[0]).threshold
    assert large.gates[1] == pytest.approx(found)


def test_large_margin_starts_from_the_round_and_the_round_from_the_pre_trained_model(
    wavlm_ssl, training
):
    done = training(epoch=1, lr_mhfa=0.1, lr_transformer=0.01, scale=20.0)
    before = read_ssl(done.file.parents[2] / 'wavlm').state
    for name, value in before.items():
        assert torch.equal(done.first[f'encoder.{name}'], value)
    assert done.framework.criterion.margin == 0.2 and done.framework.criterion.scale == 20
    large = training(start=done.file, lmft_epochs=1, lr_mhfa=0.0, lr_transformer=0.0)
    assert large.framework.criterion.margin == 0.5
    trained, found = weights(done.file), weights(large.file)
    assert '__L__.weight' in trained and trained.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in trained.items())
    every_epoch = weights(large.file.with_name('model_epoch1.pt'))
    assert all(torch.equal(every_epoch[name], value) for name, value in trained.items())
    # the pull is towards the pre-trained weights, not those of the round
    for (name, now), towards in zip(large.framework.pulled(), large.framework.pretrained):
        assert torch.equal(towards, before[name])
        assert name.endswith('k_proj.bias') or not torch.equal(now, towards)
    assert large.history[0]['pull'] > 0


# --- the networks


def speaker_file(wavlm_ssl, path, args):
    """A file of the authors' layout: the pre-trained encoder with a random back-end."""
    torch.manual_seed(0)
    encoder = wavlm_ssl.systems.encoder_of(args)
    backend = wavlm_ssl.systems.backend_of(args, encoder)
    module = torch.nn.ModuleDict({'encoder': encoder, 'backend': backend})
    write(wavlm_ssl.published.to_published(module.state_dict()), path)
    return path


def test_waves_are_heard_as_they_are_whatever_the_folder_says(wavlm_ssl, tmp_path):
    loud = replace(QUIET_WAVLM, normalise_wave=True)
    path = pretrained(loud, tmp_path / 'wavlm')
    assert read_ssl(path).config.normalise_wave
    args = args_of(wavlm_ssl, path)
    assert not wavlm_ssl.systems.encoder_of(args).config.normalise_wave
    file = speaker_file(wavlm_ssl, tmp_path / 'model.pt', args)
    assert not wavlm_ssl.systems.system_of(file, args).encoder.config.normalise_wave


def test_embeddings_repeat_unless_they_are_to_be_noisy(wavlm_ssl, tmp_path, monkeypatch):
    args = args_of(wavlm_ssl, pretrained(TINY_WAVLM, tmp_path / 'wavlm'))
    file = speaker_file(wavlm_ssl, tmp_path / 'round0' / 'model.pt', args)
    names = np.array([f'id{i}/v/{i}.wav' for i in range(BATCH)], 'S')
    train = Utterances(Path('/data'), names, np.arange(BATCH), tuple(map(str, range(BATCH))))
    waves = torch.randn(BATCH, 4000)
    whole = {'index': torch.arange(BATCH), 'waves': waves, 'lengths': torch.full((BATCH,), 4000)}
    corpus = types.SimpleNamespace(train=train, whole_loader=lambda: [whole])

    def embedded(seed, noisy, newest=file):
        given = {**args, 'noisy_embeddings': noisy}
        wavlm_ssl.steps.embed(newest, tmp_path / 'e.pt', seed, corpus, None, given)
        return read_embeddings(tmp_path / 'e.pt')[1]

    still = embedded(1, False)
    np.testing.assert_array_equal(embedded(2, False), still)
    noisy, other, again = (embedded(seed, True) for seed in (1, 2, 1))
    assert (abs(noisy - still).max(1) > 0.01).all() and (abs(noisy - other).max(1) > 0.01).all()
    np.testing.assert_array_equal(noisy, again)
    # DINO's teacher has nothing but batch statistics to be disturbed
    system = wavlm_ssl.systems.system_of(file, args)
    monkeypatch.setattr(wavlm_ssl.steps, 'dino_system', lambda file, args: system)
    np.testing.assert_array_equal(embedded(3, True, tmp_path / 'dino' / 'encoder.pt'), still)


def test_checkpointing_computes_the_layers_twice(wavlm_ssl, method):
    for checkpointing, passes in ((False, 1), (True, 2)):
        framework, args = method(checkpointing=checkpointing)
        calls = []
        layer = framework.encoder.encoder.layers[0]
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        epoch_of(wavlm_ssl, framework, adamw(framework, args), args, batches=batches_of(6))
        assert len(calls) == passes


def test_crops_have_the_frames_of_the_spec(wavlm_ssl):
    data = wavlm_ssl.data
    ends = dict.fromkeys(('snr_noise', 'snr_speech', 'snr_music'), (0.0, 0.0))
    utterances = Utterances(Path('/data'), np.array(['a/v/1.wav'], 'S'), np.zeros(1, int), ('a',))
    for frames, expected in ((300, 150), (400, 200), (600, 300)):
        args = {**ends, 'max_frames': frames, 'babble': (3, 8), 'babble_music': 'music'}
        size = data.LabelledCrops(utterances, np.zeros(1, int), None, None, args, 0).size
        assert frame_counts(size, WAVLM_BASE) == expected
    with torch.no_grad():
        assert SslEncoder(TINY_WAVLM)(torch.zeros(1, size)).states[-1].shape[1] == 300


class Averages(torch.nn.Module):
    """An embedding of few numbers; notes the shapes that it hears."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def forward(self, waves, lengths=None):
        self.heard.append(tuple(waves.shape))
        lengths = torch.full((len(waves),), waves.shape[1]) if lengths is None else lengths
        rows = [wave[: int(n)] for wave, n in zip(waves, lengths)]
        return torch.stack(
            [torch.stack([x.mean(), x.std(), x[0], x[-1], x[len(x) // 3]]) for x in rows]
        )


@pytest.fixture
def trial_files():
    """Four files, one shorter than a crop, and all of their pairs."""
    rng = np.random.default_rng(0)
    sizes = [90_000, 70_001, 64_240, 50_000]
    waves = [torch.from_numpy(rng.normal(size=n).cumsum().astype(np.float32)) for n in sizes]
    enrol, test = np.triu_indices(4, 1)
    labels = np.array([True, False, True, False, False, True])
    trials = Trials('list', enrol, test, labels, tuple('abcd'), 'digest')
    batches = [
        {'index': torch.tensor([i]), 'waves': wave[None], 'lengths': torch.tensor([len(wave)])}
        for i, wave in enumerate(waves)
    ]
    files = types.SimpleNamespace(trials=trials, converted={}, loader=lambda: batches)
    return waves, files


def naive_scores(waves, trials):
    """Spec 7: 15 crops of 64,240 samples, evenly from start to end; whole files; the mean."""
    embed, units = Averages(), []
    for wave in waves:
        long = torch.from_numpy(np.resize(wave.numpy(), max(len(wave), 64_240)))
        starts = np.linspace(0, len(long) - 64_240, 15).astype(int)
        crops = embed(torch.stack([long[start : start + 64_240] for start in starts]))
        units.append((F.normalize(crops), F.normalize(embed(wave[None]))))
    found = {'tta': [], 'full': []}
    for a, b in zip(trials.enrol, trials.test):
        pairs = [x @ y for x in units[a][0] for y in units[b][0]]
        found['tta'].append(float(sum(pairs)) / 225)
        found['full'].append(float(units[a][1][0] @ units[b][1][0]))
    return {name: np.array(values) for name, values in found.items()}


def test_scores_of_wavlm_are_the_mean_of_crops_and_whole_files_and_of_dino_whole_files(
    wavlm_ssl, trial_files, tmp_path
):
    waves, files = trial_files
    args, expected = args_of(wavlm_ssl, '/nowhere'), naive_scores(waves, files.trials)
    assert np.ptp(expected['tta'] - expected['full']) > 0.01
    both = (expected['tta'] + expected['full']) / 2
    for step, crop, scores in (
        ('round0', 'full+tta', both),
        ('lmft0', 'full+tta', both),
        ('dino', 'full', expected['full']),
    ):
        embed = Averages()
        scored = wavlm_ssl.evaluation.score(step, 1, embed, [files], tmp_path / step, args)
        found = np.load(tmp_path / step / 'scores.npy')
        np.testing.assert_allclose(found, scores, atol=1e-5)
        row = wavlm_ssl.evaluation.summary(scored)
        (record,) = [r for r in scored['records'] if r['crop'] == crop]
        assert row['EER %'] == record['eer'] and row['full EER %'] is not None
        heard = {shape for shape in embed.heard if shape[0] > 1}
        assert heard == (set() if step == 'dino' else {(15, 64_240)})
        one = {**scored, 'folder': tmp_path / step}
        (shown,) = wavlm_ssl.evaluation.evaluations([one], [files])
        assert shown.record is record
    records, scores = wavlm_ssl.train.validate(embed, files, args, full=False)  # of every epoch
    assert set(records) == {'tta'}
    np.testing.assert_allclose(scores, expected['tta'], atol=1e-5)


def test_only_the_beginning_of_a_long_file_is_scored(wavlm_ssl):
    torch.manual_seed(0)
    encoder = SslEncoder(QUIET_WAVLM)
    backend = Mhfa(encoder.states, encoder.width, heads=2, compression=4, dim=6)
    speaker = wavlm_ssl.systems.WavlmSpeaker
    cut, whole = speaker(encoder, backend, 4000).eval(), speaker(encoder, backend).eval()
    waves, lengths = torch.randn(3, 9000), torch.tensor([9000, 3000, 4000])
    with torch.no_grad():
        long, short, fitting = cut(waves, lengths)
        torch.testing.assert_close(long, whole(waves[:1, :4000])[0])
        torch.testing.assert_close(short, whole(waves[1:2, :3000])[0])
        torch.testing.assert_close(fitting, whole(waves[2:, :4000])[0])
        torch.testing.assert_close(cut(waves), whole(waves[:, :4000]))
        torch.testing.assert_close(whole(waves)[0], backend(*encoder(waves))[0])
        assert not torch.allclose(whole(waves)[0], long, atol=1e-4)
