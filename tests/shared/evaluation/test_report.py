import base64
import json
import re
from html.parser import HTMLParser

import pytest

from shared.evaluation.report import write_report

PNG = base64.b64decode(
    'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII='
)
EVIL = '<script>alert("x")</script> & \'quotes\''


class Page(HTMLParser):
    """Collects tags, attributes and visible text; notices a tag that is closed out of order."""

    VOID = ('meta', 'img', 'br')

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def run(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    write('run.json', json.dumps({'name': 'lgl demo', 'project': 'LGL', 'tags': ['a', EVIL]}))
    write('status.json', json.dumps({'started': 'then', 'finished': None, 'starts': 2}))
    table = [
        {'phase': 'Stage I', 'EER (%)': 12.345678, 'NMI': None},
        {'phase': EVIL, 'EER (%)': 8.5, 'NMI': 0.7, 'late': True},
    ]
    evaluations = [{'name': 'vox1_O', 'eer': 8.5, 'protocol': {'sha256': 'ab' * 32, 'list': [1]}}]
    write('results.json', json.dumps({'table': table, 'evaluations': evaluations}))
    for name in ('curves/train.png', 'plots/det_vox1_O.png', 'stage1/plots/scores.png'):
        write(name, PNG)
    write('wandb/run/media/images/no.png', PNG)
    write('arguments.json', json.dumps({'lr': 0.1, 'note': EVIL}))
    write('environment.json', json.dumps({'python': '3.11', 'packages': {'numpy': '2.0'}}))
    write('commit.txt', 'abc123\n')
    write('commit-2.txt', 'def456\n')
    write('text/note.txt', EVIL)
    return tmp_path


def test_report_shows_results_arguments_and_provenance(run):
    page = Page(write_report(run).read_text())
    text = ' '.join(page.text)
    for part in ('lgl demo', 'LGL', 'Stage I', '12.3457', '8.5', 'vox1_O', 'protocol.sha256'):
        assert part in text
    for part in ('lr', '0.1', '3.11', 'numpy', 'def456', 'not finished', '2 starts'):
        assert part in text
    assert 'abc123' not in text  # the commit of the latest start


def test_report_holds_every_plot_inside_and_loads_nothing(run):
    source = write_report(run).read_text()
    page = Page(source)
    images = [value for key, value in page.attributes if key == 'src']
    assert len(images) == 3
    for image in images:
        assert base64.b64decode(image.removeprefix('data:image/png;base64,')) == PNG
    links = [value for key, value in page.attributes if key == 'href']
    assert links and all(link.startswith('#') for link in links)
    ids = {value for key, value in page.attributes if key == 'id'}
    assert {link[1:] for link in links} == ids
    assert not re.search(r'https?://|@import|url\(', source)


def test_report_escapes_what_it_shows(run):
    source = write_report(run).read_text()
    page = Page(source)
    assert 'script' not in page.tags and '<script' not in source
    assert ' '.join(page.text).count(EVIL) == 4  # tag, table, argument, note


def test_report_marks_the_lowest_error(run):
    source = write_report(run).read_text()
    assert re.findall(r'<td class="[^"]*best[^"]*">([^<]*)<', source) == ['8.5']


def test_report_of_an_empty_folder_is_still_a_page(tmp_path):
    page = Page(write_report(tmp_path).read_text())
    assert tmp_path.name in ' '.join(page.text)


@pytest.mark.parametrize(
    'results', ['{"table": ', '[]', '3', '{"table": 3, "evaluations": [4]}', '[{"a": [1, {}]}]']
)
def test_report_tolerates_odd_results(tmp_path, results):
    (tmp_path / 'results.json').write_text(results)
    (tmp_path / 'run.json').write_text('[]')
    Page(write_report(tmp_path).read_text())


def test_report_is_written_again_in_place(run):
    first = write_report(run)
    (run / 'commit-3.txt').write_text('fresh\n')
    assert write_report(run) == first and 'fresh' in first.read_text()
    assert not list(run.glob('.report*'))
