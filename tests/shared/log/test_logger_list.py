import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from shared import log
from shared.errors import UserError
from shared.log import redaction
from shared.log._interface import ExperimentLogger
from shared.log.logger_list import LoggerList
from shared.log.pictures import as_png


class Recorder(ExperimentLogger):
    def __init__(self, fail_in=(), essential=False):
        self.calls, self.fail_in, self.essential = [], fail_in, essential

    def _note(self, name, *values):
        self.calls.append((name, *values))
        if name in self.fail_in:
            raise ConnectionError('service is down\nand more')

    def log_metrics(self, values, step=None):
        self._note('log_metrics', values, step)

    def log_arguments(self, arguments):
        self._note('log_arguments', arguments)

    def log_text(self, name, text):
        self._note('log_text', name, text)

    def log_image(self, name, image, step=None):
        self._note('log_image', name, image, step)

    def finish(self):
        self._note('finish')


def builder(args, tmp_path):
    scripts = tmp_path / 'scripts_here'
    scripts.mkdir(exist_ok=True)
    (scripts / 'main.py').write_text('')
    return log.LoggerList.Builder('name', 'project', ['tag'], 'what', scripts, args)


def test_builder_works_chained_and_line_by_line(tmp_path):
    chained = builder({}, tmp_path).use_local_logger(tmp_path / 'a').use_tensorboard_logger()
    assert len(chained.build()) == 2
    lines = builder({}, tmp_path)
    lines.use_tensorboard_logger()
    lines.use_local_logger(tmp_path / 'b')
    assert len(lines.build()) == 2
    assert (tmp_path / 'b/tensorboard').is_dir()


def test_builder_touches_no_file_on_other_ranks(tmp_path):
    made = builder({'rank': 1}, tmp_path).use_local_logger(tmp_path / 'run')
    logger = made.use_tensorboard_logger().use_wandb_logger('me').use_neptune_logger('me').build()
    logger.log_metric('a', 1.0)
    logger.log_arguments({'a': 1})
    logger.log_image('a', 'no such file')
    logger.save_model('a', {})
    logger.curves()
    logger.finish()
    assert len(logger) == 0 and not (tmp_path / 'run').exists()


def test_builder_needs_a_folder_for_a_sink_that_writes(tmp_path):
    with pytest.raises(UserError, match='run folder'):
        builder({}, tmp_path).use_tensorboard_logger().build()
    logger = builder({'path_log': tmp_path / 'x'}, tmp_path).use_tensorboard_logger().build()
    assert len(logger) == 1


def test_import_of_log_loads_no_service():
    code = (
        'import sys\nfrom shared import log\n'
        'assert not {"wandb", "neptune", "tensorboard", "matplotlib"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_metrics_reach_every_sink_as_floats():
    sinks = [Recorder(), Recorder()]
    logger = LoggerList(sinks)
    logger.log_metric('train/loss', torch.tensor(0.5), 4)
    logger.log_metrics({'a': np.float32(2), 'b': 3})
    for sink in sinks:
        assert sink.calls == [
            ('log_metrics', {'train/loss': 0.5}, 4),
            ('log_metrics', {'a': 2.0, 'b': 3.0}, None),
        ]
        assert type(sink.calls[0][1]['train/loss']) is float


def test_arguments_and_texts_reach_sinks_without_secrets():
    sink = Recorder()
    logger = LoggerList([sink])
    logger.log_arguments({'api_key': 'abc', 'lr': 1})
    logger.log_text('note', 'key ' + '0a' * 20)
    assert sink.calls == [
        ('log_arguments', {'api_key': '<redacted>', 'lr': 1}),
        ('log_text', 'note', 'key <redacted>'),
    ]


def test_a_failing_service_costs_one_warning_and_others_go_on():
    bad, good = Recorder(fail_in=('log_metrics',)), Recorder()
    logger = LoggerList([bad, good])
    with pytest.warns(RuntimeWarning, match='Recorder: log_metrics failed') as caught:
        logger.log_metric('a', 1)
        logger.log_metric('a', 2)
    assert len(caught) == 1 and len(bad.calls) == 1 and len(good.calls) == 2


def test_a_failing_run_folder_stops_the_run():
    with pytest.raises(ConnectionError):
        LoggerList([Recorder(fail_in=('log_metrics',), essential=True)]).log_metric('a', 1)


def test_finish_is_called_once():
    sink = Recorder()
    logger = LoggerList([sink])
    logger.finish()
    logger.finish()
    logger.log_metric('late', 1)
    assert sink.calls == [('finish',)]


@pytest.mark.parametrize('kind', ['grey', 'colour', 'floats', 'tensor'])
def test_image_arrays_keep_their_pixels(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    pixels = pixels[..., 0] if kind == 'grey' else pixels
    given = {'floats': pixels / 255, 'tensor': torch.from_numpy(pixels)}.get(kind, pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(as_png(given)))), pixels)


def test_image_may_be_a_figure_a_path_or_bytes(tmp_path):
    figure = Figure()
    figure.subplots().plot([1, 2])
    png = as_png(figure)
    (tmp_path / 'x.png').write_bytes(png)
    assert png.startswith(b'\x89PNG')
    assert as_png(tmp_path / 'x.png') == as_png(str(tmp_path / 'x.png')) == as_png(png) == png
    with pytest.raises(ValueError, match='shape'):
        as_png(np.zeros(3))


def test_tensorboard_files_hold_what_was_logged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = builder({'path_log': tmp_path}, tmp_path).use_tensorboard_logger().build()
    logger.log_metrics({'train/loss': 0.25}, 7)
    logger.log_arguments({'lr': 0.1, 'token': 'planted'})
    logger.log_text('note', 'hello')
    logger.log_image('valid/det', np.zeros((4, 5, 3), np.uint8), 2)
    logger.finish()
    events = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    assert [(e.step, e.value) for e in events.Scalars('train/loss')] == [(7, 0.25)]
    assert events.Images('valid/det')[0].width == 5
    assert {'arguments/text_summary', 'note/text_summary'} <= set(events.Tags()['tensors'])
    written = b''.join(p.read_bytes() for p in (tmp_path / 'tensorboard').iterdir())
    assert b'planted' not in written and b'| lr | 0.1 |' in written


def test_keys_given_to_the_builder_are_masked_whatever_they_look_like(tmp_path, monkeypatch):
    monkeypatch.setattr(redaction, '_remembered', set())
    made = builder({'note': 'odd-wandb, odd-neptune'}, tmp_path).use_local_logger(tmp_path / 'run')
    made.use_wandb_logger('me', api_key='odd-wandb').use_neptune_logger('me', token='odd-neptune')
    monkeypatch.setattr(made, '_makers', [])
    made.build().log_text('note', 'odd-wandb odd-neptune')
    assert (tmp_path / 'run/text/note.txt').read_text() == '<redacted> <redacted>'
    assert 'odd-' not in (tmp_path / 'run/run.json').read_text()
