"""The smallest run of papers/lgl, in seconds: a recipe for a `small_corpus`."""

from recipes import Recipe

SMALL = {
    'width': 8,
    'mfa_width': 24,
    'attention_width': 8,
    'se_width': 8,
    'embed_size': 16,
    'contrastive_epoch': 2,
    'contrastive_batch': 8,
    'contrastive_crop': 8000,
    'crop_size': 12000,
    'batch_size': 8,
    'clusters': 4,
    'iterations': 1,
    'gates': '2.0',
    'patience': 1,
    'phase_epoch_min': 1,
    'phase_epoch_max': 2,
    'eval_seconds': 60,
    'num_workers': 0,
    'usable_gpu': '',
}


def paths(corpus):
    """The arguments that name what is in the corpus."""
    return {
        'path_train': corpus.train,
        'list_train': corpus.train_list,
        'path_test': corpus.vox1,
        'trials_test': corpus.trials['O'],
        'path_valid': corpus.vox1,
        'trials_valid': corpus.trials['valid'],
        'path_musan': corpus.musan,
        'path_rir': corpus.rirs,
    }


LGL = Recipe('lgl', 'LGL', SMALL, paths)
