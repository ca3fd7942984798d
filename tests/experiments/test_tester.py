"""How a test is cut into batches."""

from types import SimpleNamespace

import jax
import pytest

from experiments import network
from experiments.testing.tester import Tester
from input_pipeline import crops


@pytest.mark.parametrize(("asked", "used"), [(10**6, 40), (41, 40), (40, 40), (7, 7)])
def test_a_batch_holds_no_more_images_than_there_are(asked, used, monkeypatch):
    budgets = []

    def tested(part, mesh, budget, view, places):
        budgets.append(budget)
        return iter(())

    data = SimpleNamespace(counts={"train": 5000, "holdout": 20, "test": 40}, tested=tested)
    skeleton, mesh = network.Skeleton(None, None, None), jax.make_mesh((1,), ("data",))
    tester = Tester(skeleton=skeleton, data=data, constants=None, mesh=mesh, batch=asked)
    monkeypatch.setattr(Tester, "_program", lambda self, view, mirror, layer, fuses: None)
    for part in ("holdout", "test"):  # one program serves both
        list(tester.batches(None, None, part, crops.CentreView(crop=8, Q=8)))
    assert budgets == [used, used]
