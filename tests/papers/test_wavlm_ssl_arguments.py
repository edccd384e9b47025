"""The settings of papers/wavlm_ssl: those of the spec, its presets, and what is refused."""

import pytest

from shared.errors import UserError
from shared.files import require_paths

SPEC = {  # of a run without any argument, by section of the spec
    # 1.1, 5: rounds and labels
    'rounds': 2,
    'normalise': True,  # ours (quirk 18)
    'centroids': 50000,
    'clusters': 7500,
    'kmeans_iterations': 300,
    'cluster_seed': 0,
    'noisy_embeddings': False,  # ours (quirk 4)
    # 1.3, 3.3, 6: fine-tuning; batches of two processes of 120 and 50
    'heads': 64,
    'compression': 128,
    'embed_size': 256,
    'epoch': 15,
    'batch_size': 240,
    'max_seg_per_spk': 500,
    'lr_mhfa': 5e-3,
    'lr_transformer': 2e-5,
    'llrd': 1.0,
    'lr_decay': 0.95,
    'weight_decay': 0.01,
    'pull': 0.01,
    'pull_squared': False,
    'margin': 0.2,
    'scale': 30.0,
    'max_frames': 300,
    # 4.2 to 4.4
    'gate_epoch': 5,
    'gate_least': 0.0,
    'lc_epoch': 9,
    'lc': 'hard',
    'lc_threshold': 0.5,
    'lc_temperature': 0.1,
    # large margin; quirks 1 and 3
    'lmft_epochs': 3,
    'lmft_margin': 0.5,
    'lmft_batch_size': 100,
    'lmft_gate': True,
    'lmft_frames': 600,
    # 2.3
    'babble_music': 'music',
    'snr_noise': (0.0, 15.0),
    'snr_speech': (13.0, 20.0),
    'snr_music': (5.0, 15.0),
    'babble': (3, 8),
    # 7
    'num_eval': 15,
    'eval_frames': 400,
    'longest': 700000,
    'as_norm': False,
    'cohort_top': 300,
    'eer_rule': 'interpolated',  # ours
    # 8.1, 8.2
    'dino': 'rdino',
    'dino_epoch': 70,
    'dino_take': 60,
    'dino_batch_size': 208,
    'dino_lr': 0.325,
    'dino_lr_min': 1e-5,
    'dino_warmup': 10,
    'dino_weight_decay': 5e-5,
    'dino_clip': 3.0,
    'dino_momentum': 0.996,
    'freeze_last_epoch': 1,
    'student_temperature': 0.1,
    'teacher_temperature': 0.04,
    'centre_momentum': 0.9,
    'dino_hidden': 2048,
    'dino_bottleneck': 256,
    'dino_outputs': 65536,
    'dino_regulariser': 8192,
    'reg_divisor': 65536,
    'reg_std': 10.0,
    'reg_cov': 1.0,
    'reg_weight': (0.05, 0.2),
    'reg_epochs': 10,
    'dino_width': 1024,
    'dino_mfa_width': 3072,
    'dino_attention_width': 128,
    'dino_se_width': 128,
    'dino_embed_size': 512,
    'global_size': 64000,
    'local_size': 32000,
    'locals': 4,
    'dino_rir_gain': (-7.0, 3.0),
}
OURS = {'seeds', 'deterministic', 'amp', 'tf32', 'sync_bn', 'embeddings', 'labels', 'published'}
OURS |= {'max_bad_share', 'accumulate'}
PRESETS = {  # what they change
    'rdino': {},
    'dino': {  # 8.3
        'dino': 'dino',
        'dino_epoch': 80,
        'dino_take': 0,
        'dino_batch_size': 128,
        'dino_lr': 0.2,
        'dino_regulariser': 0,
    },
    'repo': {'normalise': False, 'noisy_embeddings': True, 'eer_rule': 'max'},
}


@pytest.fixture
def wavlm_ssl(paper):
    return paper('wavlm_ssl')


@pytest.mark.parametrize('preset', [None, *PRESETS])
def test_settings_are_those_of_the_spec_and_of_the_presets(wavlm_ssl, preset):
    given = ['--preset', preset] if preset else []
    _, system, experiment = wavlm_ssl.arguments.get_args(given)
    assert experiment.keys() - OURS == SPEC.keys()
    found = {name: experiment[name] for name in SPEC}
    assert found == SPEC | PRESETS.get(preset, {})
    assert not experiment['amp'] and experiment['sync_bn']  # float32; 8.1
    assert (system['num_workers'], system['checkpointing'], system['compile']) == (
        None,
        False,
        False,
    )
    assert wavlm_ssl.arguments.PRESETS.keys() == PRESETS.keys()


@pytest.mark.parametrize(
    'given, words',
    [
        ('--centroids 12 --clusters 13', 'clusters 13: at most the 12 centroids'),
        ('--dino_epoch 10 --dino_take 3', 'dino_warmup: fewer than dino_epoch'),
        ('--seeds 1,1', 'seeds: one or more, none twice'),
        ('--epoch 0', 'epoch 0: 1 or more'),
        ('--heads 0', 'heads 0: 1 or more'),
        ('--num_eval 0', 'num_eval 0: 1 or more'),
        ('--locals 0', 'locals 0: 1 or more'),
        ('--rounds -1', 'rounds, lmft_epochs: 0 or more'),
        ('--lmft_epochs -1', 'rounds, lmft_epochs: 0 or more'),
        ('--local_size 64001', 'local_size: at most global_size'),
        ('--lmft_frames 24', 'lmft_frames, eval_frames: 25 or more'),
        ('--gate_least 1', 'gate_least 1.0: a share'),
        ('--gate_epoch 1', 'gate_epoch: 2 or more'),
        ('--snr_music 15,5', 'snr_music 15.0,5.0: the lower bound comes first'),
        ('--babble 8,3', 'babble 8,3: the lower bound comes first'),
    ],
)
def test_impossible_settings_are_refused_in_one_line(wavlm_ssl, given, words):
    with pytest.raises(UserError, match=words) as caught:
        wavlm_ssl.arguments.get_args(given.split())
    assert '\n' not in str(caught.value)


def test_missing_paths_are_named_before_anything_is_written(wavlm_ssl, tmp_path):
    paths = {'path_ssl': '/nowhere/wavlm', 'embeddings': '/nowhere/e', 'path_log': tmp_path}
    given = [word for name in paths for word in (f'--{name}', str(paths[name]))]
    args, _, experiment_args = wavlm_ssl.arguments.get_args(given)
    with pytest.raises(UserError) as caught:
        wavlm_ssl.main.run(0, {**args, 'device': 'cpu'}, experiment_args)
    needed = {**paths, **{name: args[name] for name in ('path_train', 'path_musan', 'path_rir')}}
    needed.pop('path_log')
    for name, path in needed.items():
        assert f'{name} {path}' in str(caught.value)
    assert '\n' not in str(caught.value) and not list(tmp_path.iterdir())
    scoring = wavlm_ssl.paths.needed_paths({**args, 'eval': True, 'published': '/nowhere/p'})
    assert scoring.keys() == {'path_test', 'trials_test', 'published', 'embeddings', 'labels'}
    with pytest.raises(UserError, match='published /nowhere/p'):
        require_paths(scoring)
