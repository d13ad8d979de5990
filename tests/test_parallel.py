"""Many processes give what one gives, in order; and none outlives the one that it works for."""

import os
import signal
import time

import pytest

from siftune import parallel, processes


@pytest.mark.parametrize("num_cores", [1, 3])
@pytest.mark.parametrize("num_items", [0, 1, 2, 50])
def test_results_come_in_the_order_of_the_items(monkeypatch, num_cores, num_items):
    monkeypatch.setattr(parallel, "num_cores", lambda: num_cores)
    items = list(range(num_items))
    assert list(parallel.in_order(lambda item: item * item, items)) == [n * n for n in items]


def test_workers_end_with_the_process_that_they_work_for(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "num_cores", lambda: 2)

    def work(item: int) -> int:
        (tmp_path / str(os.getpid())).touch()
        time.sleep(0.05)
        return item

    parent = os.fork()
    if parent == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for _ in parallel.in_order(work, range(10_000)):
            pass
        os._exit(0)
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(processes.start_time(one) for one in workers):
        time.sleep(0.05)
    assert [one for one in workers if processes.start_time(one)] == []
