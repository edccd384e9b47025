"""A training loop without folder and files, for tests of what is done with its batches."""

from shared.meters import Meters


class FakeLoop:
    """What an epoch needs of a loop: batches, means, and where a stopped one goes on."""

    def __init__(self, batches, done=0):
        self.loader, self.meters, self.batches_done = batches, Meters(), done

    def batches(self, title):
        yield from self.loader[self.batches_done :]

    def means(self):
        return self.meters.means()
