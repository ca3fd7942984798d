"""Heads on features: scikit-learn's, the same by L-BFGS on the device, and neighbours."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from experiments.transfer import heads

N, D = 240, 6


def made(classes, seed=0):
    """Features of classes that overlap, and their targets."""
    rng = np.random.default_rng(seed)
    labels = np.arange(N) % classes
    x = rng.normal(size=(N, D)) + 1.5 * rng.normal(size=(classes, D))[labels]
    targets = np.zeros((N, classes), np.int8)
    targets[np.arange(N), labels] = 1
    return x.astype(np.float32), labels, targets


@pytest.mark.parametrize("classes", [2, 5])
def test_logistic_is_scikit_learns(classes):
    x, labels, targets = made(classes)
    head = heads.fit("logistic", x, targets, 3.0)
    theirs = LogisticRegression(C=3.0, max_iter=2000).fit(x, labels)
    scores = head.scores(x)
    mine = np.exp(scores - scores.max(axis=1, keepdims=True))
    mine /= mine.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(mine, theirs.predict_proba(x), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
def test_svm_is_scikit_learns(classes):
    x, labels, targets = made(classes)
    head = heads.fit("svm", x, targets, 0.5)
    theirs = LinearSVC(C=0.5, max_iter=2000, random_state=0).fit(x, labels)
    decisions = theirs.decision_function(x)
    np.testing.assert_allclose(head.scores(x)[:, -1], decisions.reshape(N, -1)[:, -1])
    assert (head.scores(x).argmax(axis=1) == theirs.predict(x)).all()


@pytest.mark.parametrize("kind", ["logistic", "svm"])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_device_solves_the_same(kind, classes, monkeypatch):
    monkeypatch.setattr(heads, "CHUNK", 100)
    x, _, targets = made(classes)
    host = heads.fit(kind, x, targets, 2.0).scores(x)
    device = heads.fit(kind, x, targets, 2.0, on_device=True).scores(x)
    if kind == "logistic":  # a number added to all classes changes nothing
        host, device = (s - s.mean(axis=1, keepdims=True) for s in (host, device))
    np.testing.assert_allclose(device, host, atol=0.1)  # as near as scikit-learn comes
    assert (device.argmax(axis=1) == host.argmax(axis=1)).mean() > 0.99


@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_images_of_several_classes(kind):
    x, _, targets = made(4)
    targets[:, 0] |= targets[:, 1]  # class 0 is there where 1 is
    targets[::7, 2] = -1  # and here nobody knows
    head = heads.fit(kind, x, targets, 1.0, several=True)
    device_head = heads.fit(kind, x, targets, 1.0, several=True, on_device=True)
    np.testing.assert_allclose(device_head.scores(x), head.scores(x), atol=0.1)
    counts = targets[:, 2] >= 0
    Solver = LogisticRegression if kind == "logistic" else LinearSVC
    more = {} if kind == "logistic" else {"random_state": 0}
    theirs = Solver(C=1.0, max_iter=2000, **more).fit(x[counts], targets[counts, 2])
    np.testing.assert_allclose(head.scores(x)[:, 2], theirs.decision_function(x), atol=1e-6)


def test_neighbours_by_hand():
    x = np.array([[0.0], [1.0], [2.0], [10.0]], np.float32)
    targets = np.eye(2, dtype=np.int8)[[0, 0, 1, 1]]
    head = heads.fit("knn", x, targets, 3)
    np.testing.assert_allclose(
        head.scores(np.array([[0.4], [9.0]], np.float32)), [[2 / 3, 1 / 3], [1 / 3, 2 / 3]]
    )
    assert heads.fit("knn", x, targets, 50).scores(x).tolist() == [[0.5, 0.5]] * 4


def test_who_does_not_converge_says_so(monkeypatch):
    monkeypatch.setattr(heads, "MOST_ITERATIONS", 1)
    x, _, targets = made(3)
    for on_device in (False, True):
        notes = []
        heads.fit("logistic", x, targets, 100.0, on_device=on_device, on_note=notes.append)
        assert notes == ["logistic with C=100 did not converge in 1 iterations"]
