"""What the doctor finds in the data of a run as a whole, and in noises and rooms."""

import pytest
from audio_trees import told, tree, wav
from recipes import small_corpus

from shared.datasets.items import DataError
from shared.datasets.musan import CATEGORIES
from shared.doctor import data as doctor_data
from shared.doctor.data import look_at_data, missing_paths, noises, rooms
from shared.doctor.plan import Corpora, Facts


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp('corpus') / 'demo')


def corpora(corpus, **changes):
    kind = {
        'needed': {'train': corpus.train, 'lists': (corpus.trials['O'], corpus.trials['E'])},
        'train': corpus.train,
        'train_list': corpus.train_list,
        'tests': [corpus.trials['O'], corpus.trials['E']],
        'test_root': corpus.vox1,
        'valid_list': corpus.trials['valid'],
        'valid_root': corpus.vox1,
        'musan': corpus.musan,
        'rooms': corpus.rirs,
        'published': False,
    }
    return Corpora(**{**kind, **changes})


def test_a_good_corpus_has_nothing_odd(corpus):
    odd, fine, facts = told(look_at_data(corpora(corpus), full=True))
    assert odd == []
    assert (facts.utterances, facts.speakers) == (24, 6)
    listed = {line.split()[i] for line in corpus.trials['O'].open() for i in (1, 2)}
    assert facts.test_bytes == sum((corpus.vox1 / name).stat().st_size for name in listed)
    sizes = [path.stat().st_size for path in corpus.musan.rglob('*.wav')]
    assert facts.musan_bytes == sum(sizes)
    assert [line.split()[1] for line in fine[:2]] == ['paths:', 'training']


def test_missing_paths_are_errors_and_hide_nothing(corpus):
    gone = corpora(
        corpus, needed={'path_train': '/nowhere', 'given': None}, train='/nowhere', rooms='/no'
    )
    odd, fine, facts = told(look_at_data(gone))
    assert odd == [
        'error   path_train: /nowhere is not there; edit arguments.py, or try --demo first'
    ]
    assert facts.utterances == 0 and facts.test_bytes > 0
    assert told(missing_paths({'a': '/no', 'b': ('/no', '/not')}))[0][2].startswith(
        'error   b: /not'
    )


def test_nothing_that_can_be_read_is_an_error_of_its_part_alone(corpus, tmp_path):
    odd, fine, facts = told(look_at_data(corpora(corpus, musan=tmp_path, train_list=tmp_path)))
    assert [line.split()[1] for line in odd] == ['training:', 'MUSAN:']
    assert 'no folders noise, speech and music in it' in odd[1]
    assert facts == Facts(0, 0, facts.test_bytes, 0) and facts.test_bytes > 0


def make_musan(root, counts):
    for name, count in zip(CATEGORIES, counts):
        tree(root, *(f'{name}/set/{name}-{i:04d}.wav' for i in range(count)), seconds=0.1)
    return root


def test_a_part_of_musan_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_data, 'MUSAN_FILES', {'noise': 3, 'speech': 2, 'music': 2})
    root = make_musan(tmp_path, (3, 2, 1))
    (line,), *_ = told(noises(Corpora({}, musan=root), full=False))
    assert '3 noise, 2 speech, 1 music; published: 3 noise, 2 speech, 2 music;' in line
    make_musan(tmp_path, (3, 2, 2))
    odd, fine, _ = told(noises(Corpora({}, musan=root), full=False))
    assert odd == [] and fine[0].endswith('2 music')
    make_musan(tmp_path, (9, 9, 9))
    assert told(noises(Corpora({}, musan=root), full=False))[1][0].endswith('in pieces?)')


def test_names_of_musan_that_do_not_do_are_an_error(tmp_path):
    def refuse(name):
        raise DataError(f'{name}: is no name')

    corpora = Corpora({}, musan=make_musan(tmp_path, (1, 1, 1)), published=False, musan_name=refuse)
    odd, *_ = told(look_at_data(corpora))
    assert odd == ['error   MUSAN: noise/set/noise-0000.wav: is no name']


def test_a_bad_noise_is_found(tmp_path):
    root = make_musan(tmp_path, (2, 1, 1))
    wav(root / 'noise/set/noise-0001.wav', rate=8000)
    odd, *_ = told(noises(Corpora({}, musan=root, published=False), full=False))
    assert len(odd) == 1 and odd[0].startswith('warning MUSAN noise: 1 of the 2 files')


def test_rooms_are_counted_and_may_have_channels_but_no_silence(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_data, 'ROOMS', 2)
    simulated = 'simulated_rirs/smallroom/Room001'
    tree(tmp_path, *(f'{simulated}/{i}.wav' for i in range(2)), seconds=0.1, channels=2)
    odd, fine, _ = told(rooms(Corpora({}, rooms=tmp_path), full=False))
    assert odd == [] and fine[0].endswith(': 2 responses')
    wav(tmp_path / 'real_rirs_isotropic_noises/1.wav')  # is not counted among these
    assert told(rooms(Corpora({}, rooms=tmp_path), full=False))[0] == []
    wav(tmp_path / simulated / '2.wav', fill=0.0)
    odd, *_ = told(rooms(Corpora({}, rooms=tmp_path), full=False))
    assert '3 responses; RIRS_NOISES has 2 simulated ones; others on purpose' in odd[0]
    assert 'are digital silence' in odd[1]


def test_further_folders_are_opened_and_sources_may_have_any_rate(tmp_path):
    root = tree(tmp_path, '1.wav', rate=8000)
    more = Corpora({}, more={'other speech': root}, sources={'nonspeech': root})
    odd, fine, _ = told(look_at_data(more))
    assert len(odd) == 1 and odd[0].startswith('warning other speech: 1 of the 1 files looked at')
    assert fine == ['ok      nonspeech: 1 files opened and read']
