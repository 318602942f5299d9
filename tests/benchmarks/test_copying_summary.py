"""What rows are summed up to: copies, delivery, intervals, comparisons."""

from dataclasses import replace

import numpy as np

from twig.benchmarks.copying.measures import (  # fmt: skip
    ARRANGEMENT,
    PRIMARY,
    REPORTED,
)
from twig.benchmarks.copying.summary import Rate, delivered_counts, dominated, summarise
from twig.engine.study.intervals import bootstrap


def row(method="ours", strength=1.0, source=13, copies=(0, 1), delivered=(1, 1), objects=None, classes=(1, 1), **more):
    similar = {name: [0.1] * len(copies) for name in REPORTED}
    flags = {name: list(copies) for name in REPORTED}
    about = {"objects": objects} if objects else {"source": source, "copies": flags, "similarity": similar}
    return {
        "cell": f"{method}-{strength:g}/x{source}{objects}", "method": method, "strength": strength, "held_out": True,
        "pictures": len(copies), "delivered": list(delivered), "avoided": 1.0, "classes": list(classes),
        "colours": list(classes),
        "sharpness": 1.0, "rows": 40.0, "seconds": 0.1, "duplicates": 128, "caption": "ordinary",
    } | about | more  # fmt: skip


def test_a_refused_picture_is_neither_a_copy_nor_right():
    rows = [row(copies=(1, 1), delivered=(1, 0)), row(objects=1, classes=(1, 1), delivered=(1, 0)), row(objects=2)]
    (one,) = summarise(rows, lambda _: True)
    assert one.copies.value == 0.5
    assert one.refused == 0.5
    assert one.one_object.value == 0.5
    assert one.adherence == 0.75


def test_pictures_of_each_source_are_counted_as_delivered():
    rows = [
        row(copies=(1, 1), delivered=(1, 0)),
        row(copies=(1, 0, 0), delivered=(1, 1, 1), classes=(1, 1, 1)),
        row(source=16),
    ]
    assert delivered_counts(rows, PRIMARY) == {("ours", 1.0): {13: (1, 3), 16: (1, 2)}}
    (one,) = summarise(rows, lambda _: True)
    assert str(one.arrangement).endswith(" of 7")


def test_rows_that_are_older_than_a_measure_say_nothing_of_it():
    old = row()
    del old["copies"][ARRANGEMENT]
    (one,) = summarise([old], lambda _: True)
    assert one.arrangement is None
    assert one.copies.value == 0.5
    assert delivered_counts([old], ARRANGEMENT) == {}


def test_the_interval_is_of_sources_not_of_pictures():
    alike = [np.ones(50), np.zeros(50), np.ones(50), np.zeros(50)]
    mixed = [np.tile([0.0, 1.0], 25)] * 4
    low, high = bootstrap(alike)
    assert (low, high) == (0, 1)
    assert bootstrap(mixed) == (0.5, 0.5)
    assert 0 < bootstrap([np.tile([0.0, 1.0], 25)])[0] < 0.5


def test_methods_are_compared_on_the_same_captions():
    many = row(objects=1) | {"pictures": 4, "classes": [1, 0, 1, 1], "delivered": [1] * 4, "colours": [1] * 4}
    (all_of_them,), (first,) = (summarise([many], lambda _: True, captions=n) for n in (None, 2))
    assert all_of_them.one_object.value == 0.75
    assert first.one_object.value == 0.5


def test_a_point_is_dominated_by_one_that_copies_no_more_and_adheres_no_less():
    (best,) = summarise([row(copies=(0, 0)), row(objects=1), row(objects=2)], lambda _: True)
    worse = replace(best, copies=Rate(0.5, 0.4, 0.6, 2))
    assert dominated([worse, best], [best]) == [worse]
    assert dominated([best], [worse]) == []
