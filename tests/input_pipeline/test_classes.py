"""Classes of a set as a network's: matched by meaning, or refused."""

import unicodedata

import pytest

from input_pipeline import DataError
from input_pipeline.classes import match
from input_pipeline.image_files import imagenet_classes

CIFAR = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip
WNIDS, NAMES = imagenet_classes()
ZERO_ON = tuple(map(str, range(10)))
# As a listing of folders has them: 1, 10, 2, ...
ONE_ON = tuple(sorted(map(str, range(1, 11))))


@pytest.mark.parametrize(
    ("found", "network", "labels", "how"),
    [
        (CIFAR, CIFAR, range(10), "10 classes matched by name"),
        (("truck", "cat"), CIFAR, (9, 3), "2 of 10 classes matched by name"),
        (ZERO_ON, CIFAR, range(10), "10 classes matched by number, 0..9"),
        (ONE_ON, CIFAR, (0, 9, *range(1, 9)), "10 classes matched by number, 1..10 for 0..9"),
        (ONE_ON, ZERO_ON, (0, 9, *range(1, 9)), "10 classes matched by number, 1..10 for 0..9"),
        (ZERO_ON, ONE_ON, (0, *range(2, 10), 1), "10 classes matched by number, 0..9 for 1..10"),
        (ONE_ON, ONE_ON, range(10), "10 classes matched by name"),
        (("07", "3"), ZERO_ON, (7, 3), "2 of 10 classes matched by number, 3, 7"),
        (
            ("Cat", "DOG"),
            ("cat", "dog"),
            (0, 1),
            "2 classes matched by name, of them 2 in another spelling: 'Cat' for 'cat', "
            "'DOG' for 'dog'",
        ),
        (
            ("polar_bear", "Straße"),
            ("STRASSE", "polar bear"),
            (1, 0),
            "2 classes matched by name, of them 2 in another spelling: 'polar_bear' for "
            "'polar bear', 'Straße' for 'STRASSE'",
        ),
        (NAMES, NAMES, range(1000), "1000 classes matched by name"),
        (WNIDS[::-7], NAMES, range(999, -1, -7), "143 of 1000 classes matched by wnid"),
        (NAMES[:3], (NAMES[2], NAMES[0], NAMES[1]), (1, 2, 0), "3 classes matched by name"),
        (WNIDS[:2], ("x", NAMES[1], NAMES[0]), (2, 1), "2 of 3 classes matched by name"),
        (NAMES[:2], (WNIDS[1], WNIDS[0]), (1, 0), "2 classes matched by name"),
        (WNIDS[5:7], (WNIDS[6], WNIDS[5]), (1, 0), "2 classes matched by wnid"),
    ],
)
def test_what_means_the_same_is_matched_and_said(found, network, labels, how):
    matched = match("photos", found, network, part=True)
    assert (list(matched.labels), matched.how) == (list(labels), how)


def test_names_in_another_unicode_form_are_the_same():
    composed, decomposed = (unicodedata.normalize(form, "Kühe") for form in ("NFC", "NFD"))
    assert composed != decomposed
    matched = match("photos", ("Hund", decomposed), (composed, "Hund"))
    assert matched.labels == (1, 0)
    assert "1 in another spelling" in matched.how


def test_an_exact_name_goes_before_one_that_is_spelled_alike():
    assert match("photos", ("cat", "Cat"), ("Cat", "cat")).labels == (1, 0)


def test_numbers_alone_are_read_only_where_they_show_how_they_count():
    network = tuple(f"class {k}" for k in range(11))
    assert match("photos", ("0", "7"), network, part=True).labels == (0, 7)
    assert match("photos", ("11", "7"), network, part=True).labels == (10, 6)
    for unclear in (("2", "10"), ("0", "11"), ("0", "12")):
        with pytest.raises(DataError, match=r"numbers are 0\.\.10, with 0, or 1\.\.11, with 11"):
            match("photos", unclear, network, part=True)
    with pytest.raises(DataError, match="do not match"):
        match("photos", ("0", "1", "01"), network, part=True)


def test_numbered_classes_of_a_whole_set_must_be_as_many():
    for network in (CIFAR, ZERO_ON):
        with pytest.raises(DataError, match=r"has 9 classes .* the network 10"):
            match("images.npz", ZERO_ON[:9], network)
    assert match("images.npz", ZERO_ON, CIFAR).how == "10 classes matched by number, 0..9"


@pytest.mark.parametrize(
    ("found", "network", "said"),
    [
        (("Katze", "Hund"), ("cat", "dog"), "has no class 'Katze'"),
        (("aeroplane", "cat"), ("airplane", "cat"), r"'aeroplane' \(is 'airplane' meant\?\)"),
        (("zero", "one"), ("0", "1"), "has no class 'zero'"),
        (("airplane", "cat"), ("0", "1"), "has no class 'airplane'"),
        (("cat", "CAT"), ("cat", "dog"), "not called alike"),
        (("cAt", "dog"), ("cat", "CAT", "dog"), "not called alike"),
        (("crane", "dog"), ("crane", "crane", "dog"), "not called alike"),
    ],
)
def test_what_does_not_mean_the_same_is_refused_with_both_sides(found, network, said):
    with pytest.raises(DataError, match=said) as caught:
        match("photos", found, network)
    text = str(caught.value)
    assert text.startswith(f"photos has {len(found)} classes ({found[0]!r}, {found[1]!r})")
    assert f"the network {len(network)} ({network[0]!r}, " in text
    assert ("--classes-in-order" in text) == (len(found) == len(network))


def test_long_lists_are_shortened():
    with pytest.raises(DataError) as caught:
        match("photos", [f"x{k}" for k in range(1000)], NAMES)
    assert "'x0', 'x1', 'x2', 'x3', 'x4' and 995 others" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_an_order_is_taken_where_it_is_insisted_on():
    matched = match("photos", ("Hund", "Katze"), ("cat", "dog"), in_order=True)
    assert matched.labels == (0, 1)
    assert matched.how == "2 classes taken in order: 'Hund' for 'cat', 'Katze' for 'dog'"
    by_number = match("photos", ("1", "10", "2"), ("a", "b", "c"), in_order=True)
    assert by_number.labels == (0, 2, 1)
    assert by_number.how.endswith("'1' for 'a', '2' for 'b', '10' for 'c'")
    with pytest.raises(DataError, match=r"photos has 2 classes .* network 3 .* expected as many"):
        match("photos", ("a", "b"), ("a", "b", "c"), in_order=True)


def test_a_key_tells_matchings_apart():
    keys = {match("photos", names, ("a", "b")).key for names in (("a", "b"), ("b", "a"))}
    assert len(keys) == 2
