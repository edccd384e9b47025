"""The FitHuBERT-shaped student of papers/oskdft (spec oskdft 3.4)."""

from dataclasses import replace

import pytest
import torch
import transformers
from modules import load

from shared.models.adapters import AdapterSettings
from shared.models.ssl_config import HUBERT_BASE, WAVLM_BASE, XLSR_53, SslConfig
from shared.models.ssl_encoder import SpanMasks

TEACHER = SslConfig('hubert', layers=3, width=20, heads=2, position_kernel=6, position_groups=2)
THIN = (4, 4, 4, 4, 4, 4, 6, 6, 6)


@pytest.fixture(scope='module')
def models():
    return load('oskdft', 'models')


def student(models, teacher=TEACHER, **options):
    torch.manual_seed(0)
    module = models.FitStudent(
        teacher, **{'layers': 3, 'width': 8, 'channels': THIN, **options}
    ).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:  # norms and biases too, so that none can be forgotten
                parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def waves(rows=2, samples=6000):
    return torch.randn(rows, samples, generator=torch.Generator().manual_seed(1))


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_student_has_the_published_number_of_parameters_and_149_frames(models):
    # the published example has adapters: 12 x 61,984 of its parameters
    with torch.device('meta'):
        whole = models.FitStudent(HUBERT_BASE, adapters=AdapterSettings(64, 'relu')).eval()
        plain = models.FitStudent(HUBERT_BASE)
        out = whole(torch.empty(2, 48_000))
    assert (parameters(whole), parameters(whole.heads)) == (31_975_648, 9_968_256)
    assert parameters(whole) - parameters(plain) == 12 * 61_984
    assert [tuple(state.shape) for state in out.states] == 12 * [(2, 149, 768)]
    assert (whole.width, whole.states, whole.layers, out.frames) == (768, 12, 12, None)


def hugging_face(module):
    """transformers' HuBERT with the structure and weights of the student's encoder."""
    c = module.encoder.config
    model = transformers.HubertModel(
        transformers.HubertConfig(
            hidden_size=c.width,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            intermediate_size=c.width,
            conv_dim=THIN,
            conv_kernel=(10, 1, 3, 3, 3, 3, 1, 2, 2),
            conv_stride=(5, 1, 2, 2, 2, 2, 1, 2, 2),
            num_feat_extract_layers=9,
            conv_bias=False,
            feat_extract_norm='group',
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=c.position_kernel,
            num_conv_pos_embedding_groups=c.position_groups,
        )
    )
    model.load_state_dict(module.encoder.state_dict())  # strict
    return model.eval()


def naive_states(module, x):
    """Spec 3.4 around transformers' layers: time reduction before them, a head behind each."""
    model = hugging_face(module).to(x.dtype)
    frames = model.feature_extractor(x).mT  # (B, T, C)
    first, second = module.time_reduction.weight.unbind(-1)
    slow = [
        frames[:, t] @ first.T + frames[:, t + 1] @ second.T
        for t in range(0, frames.shape[1] - 1, 2)
    ]
    y = model.feature_projection(torch.stack(slow, 1))
    layers = []
    for layer in model.encoder.layers:
        layer.register_forward_hook(
            lambda _, __, out: layers.append(out[0] if isinstance(out, tuple) else out)
        )
    last = model.encoder(y).last_hidden_state
    layers[-1] = last  # behind the last layer norm, as transformers collects it
    states = []
    for head, h in zip(module.heads, layers, strict=True):
        steps = []
        for t in range(frames.shape[1]):
            frame = head.tconv.bias
            if t // 2 < h.shape[1]:
                frame = frame + h[:, t // 2] @ head.tconv.weight[:, :, t % 2]
            steps.append((frame @ head.fc.weight.T + head.fc.bias).expand(len(x), -1))
        states.append(torch.stack(steps, 1))
    return states


@pytest.mark.parametrize('samples', [6000, 6300])  # 18 frames, and 19
def test_states_and_gradients_equal_transformers_and_loops(models, samples):
    module = student(models).double()
    x = waves(samples=samples).double()
    found, expected = module(x).states, naive_states(module, x)
    assert len(found) == 3 and found[0].shape == (2, (samples - 80) // 320, 20)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    cotangents = [torch.randn_like(state) for state in found]
    learnt = [module.time_reduction.weight, *module.heads.parameters()]
    ours, theirs = (
        torch.autograd.grad(sum((s * c).sum() for s, c in zip(states, cotangents)), learnt)
        for states in (found, expected)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('family', ['hubert', 'wavlm'])
def test_padded_rows_get_what_they_get_alone(models, family):
    module = student(models, replace(TEACHER, family=family))
    x, lengths = waves(4), [6000, 5100, 3900, 720]
    x[torch.arange(6000) >= torch.tensor(lengths)[:, None]] = 7.0  # padding need not be zero
    with torch.no_grad():
        batch = module(x, torch.tensor(lengths))
        assert batch.frames.tolist() == [18, 15, 11, 2]  # odd ones too
        for row, length in enumerate(lengths):
            alone = module(x[row : row + 1, :length])
            for ours, theirs in zip(batch.states, alone.states, strict=True):
                count = int(batch.frames[row])
                torch.testing.assert_close(ours[row, :count], theirs[0], rtol=1e-4, atol=1e-4)


def test_convolutions_can_be_run_once_for_two_halves(models):
    module, x = student(models, adapters=AdapterSettings(4, 'relu')), waves()
    frames, count = module.features(x)
    assert frames.shape == (2, 18, 6) and count is None
    adapt = torch.tensor([False, False, True, True])
    out = module.encode(torch.cat([frames, frames]), None, adapt)
    without, adapted = module(x, adapt=torch.tensor([False, False])), module(x)
    for state, plain, other in zip(out.states, without.states, adapted.states, strict=True):
        torch.testing.assert_close(state[:2], plain)
        torch.testing.assert_close(state[2:], other)
        assert (state[:2] - state[2:]).abs().max() > 1e-4
    sum(state[:2].sum() for state in out.states).backward()
    adapters = [p for name, p in module.named_parameters() if '.adapter.' in name]
    assert len(adapters) == 3 * 4 and all((p.grad == 0).all() for p in adapters)
    assert module.time_reduction.weight.grad.abs().sum() > 0


def test_masks_hide_frames_in_training_only(models):
    still = replace(TEACHER, dropout=0.0, attention_dropout=0.0, layer_drop=0.0)
    masks = SpanMasks(time_prob=0.3, time_length=2)
    module, x = student(models, still, masks=masks), waves()
    assert torch.equal(module(x).states[0], module(x).states[0])
    module.train()
    sum(state.square().sum() for state in module(x).states).backward()
    assert module.encoder.masked_spec_embed.grad.abs().sum() > 0


@pytest.mark.parametrize('teacher', [WAVLM_BASE, XLSR_53], ids=['wavlm', 'xlsr'])
def test_every_teacher_can_be_followed(models, teacher):
    with torch.device('meta'):
        module = models.FitStudent(teacher, layers=2).eval()
        out = module(torch.empty(1, 48_000))
    assert [tuple(state.shape) for state in out.states] == 2 * [(1, 149, teacher.width)]
