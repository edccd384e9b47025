"""Train lists, lists of one's own corpus, what a trial list is, room responses."""

import hashlib

import numpy as np
import pytest
import soundfile

from shared.datasets import corpus_lists, voxceleb
from shared.datasets.corpus_lists import describe_trials, own_lists, rir_index, train_list
from shared.datasets.items import DataError
from shared.errors import UserError

RATE = 16000


def write(path, seconds=0.1, rate=RATE, level=0.1, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.full((int(seconds * rate), channels), float(level))
    soundfile.write(path, wave, rate, subtype='PCM_16')


def corpus(root, speakers, each=3):
    """Speakers s00, ... with utterances of 0.1, 0.2, ... s, and no videos."""
    for s in range(speakers):
        for u in range(each):
            write(root / f's{s:02d}' / f'u{u}.wav', 0.1 * (u + 1))
    return root


def rows(path):
    return [line.split() for line in path.read_text().splitlines()]


def test_train_list_holds_every_utterance_with_its_seconds(tmp_path):
    root, out = corpus(tmp_path / 'wav', 2), tmp_path / 'train.txt'
    made = train_list(root, out)
    assert rows(out) == [
        [f's{s:02d}', f's{s:02d}/u{u}.wav', f'{0.1 * (u + 1):.10g}']
        for s in range(2)
        for u in range(3)
    ]
    assert made.describe() == f'{out}: 6 utterances of 2 speakers (3 to 3 each), 0.0 h'
    read = voxceleb.read_list(out, root)
    np.testing.assert_array_equal(read.seconds, made.utterances.seconds)


def test_train_list_leaves_out_what_it_is_told_and_what_does_not_open(tmp_path):
    root, out = corpus(tmp_path / 'wav', 4), tmp_path / 'train.txt'
    (root / 's01' / 'u9.wav').write_text('no audio')
    trials = tmp_path / 'trials.txt'
    trials.write_text('1 s00/u0.wav s00/u1.wav\n0 s00/u0.wav s03/u1.wav\n')
    made = train_list(root, out, exclude=[trials], min_seconds=0.2)
    assert [row[1] for row in rows(out)] == [f's0{s}/u{u}.wav' for s in (1, 2) for u in (1, 2)]
    assert (made.excluded, made.short, made.unreadable) == (6, 2, 1)
    assert made.describe().endswith(
        'left out: 6 excluded, 2 too short, 1 unreadable (train_skipped.txt)'
    )
    assert 's01/u9.wav: cannot be opened as audio' in (tmp_path / 'train_skipped.txt').read_text()


def test_train_list_again_is_the_same_and_another_one_is_never_replaced(tmp_path):
    root, out = corpus(tmp_path / 'wav', 2), tmp_path / 'train.txt'
    train_list(root, out)
    text = out.read_text()
    train_list(root, out)
    write(root / 's00' / 'new.wav')
    with pytest.raises(
        UserError, match='train.txt: is there already, with other lines: name anoth'
    ):
        train_list(root, out)
    assert out.read_text() == text


def test_train_list_says_why_nothing_is_left(tmp_path):
    root = corpus(tmp_path / 'wav', 2)
    with pytest.raises(
        DataError, match='nothing is left of 6 utterances: 0 excluded, 0 unreadable, 6'
    ):
        train_list(root, tmp_path / 'train.txt', min_seconds=9)
    trials = tmp_path / 'trials.txt'
    trials.write_text('1 wav/s00/u0.wav wav/s00/u1.wav\n0 wav/s00/u0.wav wav/s01/u1.wav\n')
    with pytest.raises(DataError, match='none of the 1 speakers to exclude, such as wav: leave'):
        train_list(root, tmp_path / 'train.txt', exclude=[trials])


def test_train_list_sends_compressed_audio_to_convert(tmp_path):
    path = tmp_path / 'aac' / 'id1' / 'v' / '00001.m4a'
    path.parent.mkdir(parents=True)
    path.touch()
    said = 'aac: holds .m4a files: first `python -m shared.datasets.prepare convert .*aac OUT`'
    with pytest.raises(DataError, match=said):
        train_list(tmp_path / 'aac', tmp_path / 'train.txt')
    with pytest.raises(DataError, match='none: no such folder'):
        train_list(tmp_path / 'none', tmp_path / 'train.txt')


def test_lists_refuse_names_that_they_could_not_hold(tmp_path):
    write(tmp_path / 'wav' / 's0' / 'my voice.wav')
    with pytest.raises(DataError, match='my voice.wav.*where a list would end it: rename it'):
        train_list(tmp_path / 'wav', tmp_path / 'train.txt')
    with pytest.raises(DataError, match='my voice.wav.*where a list would end it: rename it'):
        rir_index(tmp_path / 'wav', tmp_path / 'rirs.txt')


def test_own_lists_train_and_validate_on_different_speakers(tmp_path):
    root, out = corpus(tmp_path / 'mine', 30), tmp_path / 'lists'
    write(root / 'single' / 'u0.wav')
    made = own_lists(root, out, trials=50)
    train = {row[0] for row in rows(out / 'train.txt')}
    tested = {name.split('/')[0] for row in rows(out / 'valid_trials.txt') for name in row[1:]}
    assert len(tested) == made.speakers == 3 and len(train) == 28
    assert not train & tested and 'single' in train
    trials = voxceleb.read_trials(made.trials_path, root)
    # 3 speakers of 3 utterances: 3 pairs each, and 3 * 3 * 3 others
    assert trials.labels.sum() == 9 and len(trials) - trials.labels.sum() == 27
    for a, b, label in zip(trials.enrol, trials.test, trials.labels):
        assert (trials.files[a].split('/')[0] == trials.files[b].split('/')[0]) == label
    own_lists(root, out, trials=50)  # the same again
    with pytest.raises(UserError, match='valid_trials.txt: is there already, with other lines'):
        own_lists(root, out, trials=50, seed=1)


def test_own_lists_only_to_evaluate_take_every_speaker(tmp_path):
    root, out = corpus(tmp_path / 'mine', 3, each=2), tmp_path / 'lists'
    made = own_lists(root, out, train=False)
    assert made.train is None and made.speakers == 3
    assert [path.name for path in out.iterdir()] == ['trials.txt']
    assert len(made.trials.files) == 6


@pytest.mark.parametrize(
    'speakers, each, wanted, said',
    [
        (3, 2, None, 'has 3 speakers, 3 of them with two utterances or more; validation takes 2'),
        (9, 1, None, 'has 9 speakers, 0 of them with two'),
        (9, 2, 8, 'validation takes 8 of these .at least 2., training 2 others or more'),
        (9, 2, 1, 'validation takes 1 of these'),
    ],
)
def test_own_lists_refuse_too_few_speakers(tmp_path, speakers, each, wanted, said):
    root = corpus(tmp_path / 'mine', speakers, each)
    with pytest.raises(DataError, match=f'{said}.*(--eval_only)?'):
        own_lists(root, tmp_path / 'lists', valid_speakers=wanted)
    assert not (tmp_path / 'lists').exists()


def trial_text(count, layout='{y} {a} {b}\n'):
    lines = [layout.format(y=i % 2, a=f'id1/v/{i}.wav', b='id2/v/0.wav') for i in range(count)]
    return ''.join(lines)


def test_describe_trials_counts_and_names_the_published_list(tmp_path, monkeypatch):
    path = tmp_path / 'list.txt'
    text = trial_text(10)
    path.write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    counts = f'10 trials, 5 target, 11 files, SHA-256 {digest}'
    assert describe_trials(path) == f'{path}: no published list has as many trials; {counts}'
    monkeypatch.setitem(voxceleb.KNOWN_COUNTS, 10, 'Vox1-O cleaned')
    assert 'Vox1-O cleaned by its count, but other bytes' in describe_trials(path)
    monkeypatch.setitem(voxceleb.KNOWN_COUNTS, 10, 'Vox1-E original')
    assert f'{path}: Vox1-E original by its count; {counts}' == describe_trials(path)
    md5 = hashlib.md5(text.encode()).hexdigest()
    monkeypatch.setitem(corpus_lists.KNOWN_MD5, md5, 'Vox1-O cleaned')
    assert 'Vox1-O cleaned, byte for byte; 10' in describe_trials(path, sha256=digest.upper())


def test_describe_trials_checks_digest_and_files(tmp_path):
    path = tmp_path / 'list.txt'
    path.write_text(trial_text(4, '{a} {b} {y}\n'))
    with pytest.raises(DataError, match='list.txt: SHA-256 is [0-9a-f]{64}, not 00: get the list'):
        describe_trials(path, sha256='00')
    with pytest.raises(DataError, match='5 listed files are not below'):
        describe_trials(path, root=tmp_path)


def test_rir_index_lists_what_can_be_used_and_tells_of_the_rest(tmp_path):
    room = tmp_path / 'simulated_rirs' / 'smallroom' / 'Room001'
    write(room / 'a.wav', 0.25)
    write(room / 'b.wav', 0.5, rate=8000, channels=2)
    write(room / 'silent.wav', level=0)
    (room / 'text.wav').write_text('no audio')
    count, bad = rir_index(tmp_path, tmp_path / 'rirs.txt')
    inside = 'simulated_rirs/smallroom/Room001'
    assert rows(tmp_path / 'rirs.txt') == [
        [f'{inside}/a.wav', '0.25', '16000', '1'],
        [f'{inside}/b.wav', '0.5', '8000', '2'],
    ]
    assert count == 2 and 'silent.wav: the response is silent' in bad[0] and 'text.wav' in bad[1]
    assert (tmp_path / 'rirs_skipped.txt').read_text() == f'{bad[0]}\n{bad[1]}\n'
    for name in ('a.wav', 'b.wav'):
        (room / name).unlink()
    with pytest.raises(DataError, match='none of 2 responses can be used; the first: .*silent'):
        rir_index(tmp_path, tmp_path / 'rirs.txt')
