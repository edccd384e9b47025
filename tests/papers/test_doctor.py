"""`python main.py --doctor` in every paper: what it reads, and that it trains nothing."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from audio_trees import wav
from recipes import TINY_WAVLM, TORCHRUN, pretrained, small_ssl_corpus, ssl_paths

from shared.published import unispeech

ROOT = Path(__file__).parents[2]
SMALL = {  # batches that 24 utterances fill
    'lgl': {'contrastive_batch': 8, 'batch_size': 8, 'clusters': 4},
    'enskd': {'batch_size': 8, 'teacher_batch_size': 8, 'path_teacher': 'none'},
    'oskdft': {'batch_size': 8},
    'nawsv': {'warmup_batch_size': 4, 'batch_size': 8},
    'wavlm_ssl': {
        'dino_batch_size': 8,
        'batch_size': 8,
        'lmft_batch_size': 8,
        'centroids': 20,
        'clusters': 4,
    },
}
PAPERS = sorted(SMALL)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return small_ssl_corpus(tmp_path_factory.mktemp('corpus') / 'demo')


def options(name, corpus, path_log, **changes):
    """The command line behind main.py."""
    values = {
        'usable_gpu': '',
        'num_workers': 0,
        'path_log': path_log,
        'name': 'run',
        **ssl_paths(corpus),
        'path_valid': corpus.vox1,
        'trials_valid': corpus.trials['valid'],
        **SMALL[name],
        **changes,
    }
    if name == 'lgl':
        values.pop('path_ssl')
    if name == 'nawsv':  # what it makes, else in /data
        made = {'path_musan_split': path_log / 'musan_split', 'path_noisy': path_log / 'noisy'}
        values = made | values
    return [str(word) for key in values for word in (f'--{key}', values[key])]


@pytest.fixture
def report(paper, corpus, tmp_path):
    """`report('lgl', key=value)`: exit status and the lines that are not ok, then all of them."""

    def examine(name, **changes):
        modules = paper(name)
        argv = options(name, corpus, tmp_path, **changes)
        args, _, experiment_args = modules.arguments.get_args(argv)
        args.update(rank=0, world_size=1, device='cpu')
        status = 0
        try:
            modules.health.examine(0, args, experiment_args)
        except SystemExit as end:
            status = end.code
        (file,) = tmp_path.rglob('*/run/*')  # nothing else is left there
        lines = file.read_text().splitlines()[:-1]
        return status, [line for line in lines if not line.startswith('ok')], lines

    return examine


@pytest.mark.parametrize('name', PAPERS)
def test_a_good_corpus_has_no_error(report, name):
    status, odd, lines = report(name)
    text = '\n'.join(lines)
    assert status == 0 and not [line for line in odd if line.startswith('error')]
    assert 'all 24 files are on the disk' in text and '24 files opened and read' in text
    assert ('path_ssl: ' in text) == (name != 'lgl')
    assert ('MUSAN noise' in text and 'rooms: ' in text) == (name != 'oskdft')  # DA_p is 0
    assert all(f'{batch} ' in text for batch in SMALL[name] if 'batch' in batch)


@pytest.mark.parametrize('name', PAPERS)
def test_what_would_spoil_the_run_is_found_in_every_paper(report, corpus, tmp_path, name):
    musan = tmp_path / 'musan'
    musan.mkdir()
    changes = {'path_train': corpus.vox1, 'list_train': 'none', 'path_musan': musan}
    status, odd, _ = report(name, **changes, batch_size=1000, accumulate=3)
    text = '\n'.join(odd)
    assert status == 1
    assert 'error   speakers: 3 of 3 speakers of' in text
    assert 'are more than the 24 training utterances' in text
    odd_parts = 'does not divide among 1 processes of accumulate 3 parts each: use a multiple of 3'
    assert f' 1000 {odd_parts}' in text
    whole = ('contrastive_batch', 'warmup_batch_size', 'dino_batch_size')
    assert not [line for line in odd for name in whole if f'{name} ' in line and odd_parts in line]
    assert ('error   MUSAN: ' in text) == (name != 'oskdft')


@pytest.mark.parametrize('name', [name for name in PAPERS if name != 'lgl'])
def test_weights_that_cannot_be_read_are_found(report, tmp_path, name):
    page = tmp_path / 'page.pt'
    page.write_text('<!doctype html>')
    _, odd, _ = report(name, path_ssl=page)
    assert any(line.startswith(f'error   path_ssl: {page}: a web page') for line in odd)
    gone = report(name, path_ssl='/nowhere.pt')[1]
    assert any('path_ssl: /nowhere.pt is not there; hf download' in line for line in gone)


def test_enskd_teacher_must_know_the_speakers(report, paper, corpus, tmp_path):
    modules = paper('enskd')
    sizes = {'teacher_embed_size': 8, 'teacher_width': 16, 'teacher_top_k': 2}
    args, *_ = modules.arguments.get_args(options('enskd', corpus, tmp_path / 'other', **sizes))
    for classes, wrong in ((7, 'knows 7 speakers, the training set has 6'), (6, None)):
        teacher = modules.systems.untrained_teacher(args, classes)
        file = tmp_path / 'teacher.pth'
        weight = teacher.criterion.weight.detach()
        torch.save(unispeech.to_published(teacher.student.state_dict(), weight), file)
        _, odd, _ = report('enskd', path_teacher=file)
        complaints = [line for line in odd if line.startswith('error   path_teacher')]
        assert len(complaints) == (wrong is not None)
        assert wrong is None or f'{file}: {wrong}; row "WavLM large' in complaints[0]
        assert any('which is not wavlm_large_finetune.pth' in line for line in odd)
    torch.save(unispeech.to_published(teacher.student.state_dict()), file)
    assert 'has no classifier' in '\n'.join(report('enskd', path_teacher=file)[1])


def test_enskd_list_that_names_its_files_is_read_without_a_folder(report, corpus, tmp_path):
    files = sorted(corpus.train.rglob('*.wav'))
    (tmp_path / 'wav.scp').write_text(''.join(f'k{i} {file}\n' for i, file in enumerate(files)))
    speakers = [file.relative_to(corpus.train).parts[0] for file in files]
    (tmp_path / 'utt2spk').write_text(''.join(f'k{i} {s}\n' for i, s in enumerate(speakers)))
    lists = {'list_train': tmp_path / 'wav.scp', 'utt2spk': tmp_path / 'utt2spk'}
    status, _, lines = report('enskd', **lists, path_train='/nowhere')
    assert status == 0 and 'ok      training: 24 listed utterances' in lines
    (tmp_path / 'wav.scp').write_text('k0 /nowhere.wav\n')
    status, odd, _ = report('enskd', **lists, path_train='/nowhere')
    assert status == 1 and any('1 listed files are not below' in line for line in odd)


def test_wavlm_ssl_model_must_be_a_wavlm(report, tmp_path):
    config = dataclasses.replace(TINY_WAVLM, family='hubert')
    _, odd, _ = report('wavlm_ssl', path_ssl=pretrained(config, tmp_path / 'hubert'))
    assert any('a hubert, not a WavLM; hf download' in line for line in odd)


def test_nawsv_takes_no_musan_in_pieces_and_needs_room_for_what_it_makes(report, corpus, tmp_path):
    for category in ('noise', 'speech', 'music'):
        wav(tmp_path / 'musan' / category / 'set' / 'stem' / '00003.wav')
    _, odd, lines = report(
        'nawsv', path_musan=tmp_path / 'musan', path_noisy=tmp_path / 'noisy', test_snrs='0,5'
    )
    assert any('does not end in a number from 0000 to 0999' in line for line in odd)
    assert any(f'{tmp_path}/noisy: ' in line and 'files made of' in line for line in lines)


def test_oskdft_other_speech_is_looked_at(report, tmp_path):
    _, odd, _ = report('oskdft', path_kd=wav(tmp_path / 'other' / '1.wav', rate=8000).parent)
    assert any(line.startswith('warning other speech: 1 of the 1 files') for line in odd)


def test_lgl_more_clusters_than_utterances_are_found(report):
    _, odd, _ = report('lgl', clusters=25)
    assert any('clusters: 25 are more than the 24 training' in line for line in odd)


@pytest.mark.slow
@pytest.mark.parametrize('name', PAPERS)
def test_the_command_line_leads_there_and_an_error_is_its_status(corpus, tmp_path, name):
    done = command(name, corpus, tmp_path, doctor_full='true', path_test='/nowhere')
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr and 'path_test: /nowhere is not there' in done.stdout
    assert 'doctor: 1 error, ' in done.stdout.splitlines()[-1]


def command(name, corpus, path_log, launcher=(sys.executable,), **changes):
    """A finished `main.py`."""
    main = ROOT / 'papers' / name / 'main.py'
    words = [*launcher, main, *options(name, corpus, path_log, **changes)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize('size, status', [(8, 0), (9, 1)])
def test_two_ranks_under_torchrun_reach_each_other_and_end_alike(corpus, tmp_path, size, status):
    done = command('lgl', corpus, tmp_path, TORCHRUN, doctor='true', batch_size=size)
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout.count('2 ranks reach each other by gloo') == 1
    assert ('9 does not divide among 2 processes' in done.stdout) == bool(status)
