"""Replicas: threads that share variables, processes of torch.distributed, and what an optimizer does with them."""

import json
import threading

import numpy as np
import pytest
from keras_arrays import made
from processes import run_python

from multiopt import keras
from multiopt.keras import IndexedSlices, Variable
from multiopt.keras.distribute import ReplicaContext, Replicas, get_replica_context
from multiopt.keras.distribute.aggregation import VariableAggregation, VariableSynchronization
from multiopt.keras.legacy import Adadelta


def grad(lib, values):
    return lib.grad(np.asarray(values, np.float32))


def alone(gradients, dtype=np.float64):
    """The values after these gradients, given by one replica."""
    v = Variable(np.zeros(len(gradients[0]), dtype))
    opt = Adadelta(1.0)
    for g in gradients:
        opt.apply_gradients([(np.asarray(g, dtype), v)])
    return v.numpy()


@pytest.mark.feature("AE:aggregation")
def test_gradients_are_summed_over_replicas(lib):
    v = made(lib, [0.0, 0.0])
    opt = Adadelta(1.0)

    def step(replica, gradient):
        for _ in range(3):
            opt.apply_gradients([(grad(lib, gradient), v)])
        return replica, int(opt.iterations)

    assert Replicas(2).run(step, [("a", [1.0, -1.0]), ("b", [3.0, 0.5])]) == [("a", 3), ("b", 3)]
    # Sums of halves and whole numbers are exact, and so are the same steps.
    np.testing.assert_array_equal(v.numpy(), alone([[4.0, -0.5]] * 3, np.float32))


@pytest.mark.feature("AE:aggregation")
def test_clipping_comes_after_the_sum():
    v = Variable(np.zeros(1))
    opt = Adadelta(1.0, clipvalue=2.0)
    Replicas(2).run(lambda g: opt.apply_gradients([(np.array([g]), v)]), [(1.0,), (3.0,)])
    np.testing.assert_array_equal(v.numpy(), alone([[2.0]]))


@pytest.mark.feature("AE:experimental_aggregate_gradients")
def test_the_user_may_aggregate(lib):
    """The example of the document."""
    v = made(lib, [0.0])
    opt = Adadelta(1.0)

    def step(gradient):
        grads = get_replica_context().all_reduce("sum", [grad(lib, [gradient])])
        processed = [g * 2 for g in grads]
        opt.apply_gradients(zip(processed, [v], strict=True), experimental_aggregate_gradients=False)

    Replicas(3).run(step, [(1.0,), (2.0,), (4.0,)])
    np.testing.assert_array_equal(v.numpy(), alone([[14.0]], np.float32))
    assert int(opt.iterations) == 1


def test_the_later_optimizer_sums_over_threads(lib):
    """As that of tf_keras; an optimizer that threads share takes one step for all of them."""

    def run(gradients, **options):
        v, table = made(lib, [0.0]), made(lib, np.zeros((2, 1)))
        opt = keras.Adadelta(1.0)

        def step(gradient):
            pairs = [(grad(lib, [gradient]), v), (IndexedSlices(grad(lib, [[gradient]]), [1]), table)]
            opt.apply_gradients(pairs, **options)

        Replicas(len(gradients)).run(step, [(g,) for g in gradients])
        assert int(opt.iterations) == 1
        np.testing.assert_array_equal(table.numpy()[:, 0], [0, v.numpy()[0]])
        return v.numpy().tolist(), opt.variables[1].numpy().tolist()

    assert run([1.0, 2.0, 4.0]) == run([7.0])
    for aggregated in ({"skip_gradients_aggregation": True}, {"experimental_aggregate_gradients": False}):
        assert run([7.0, 7.0], **aggregated) == run([7.0])
    with Replicas(2).scope(), pytest.raises(RuntimeError, match="called in a cross-replica context"):
        keras.Adadelta().apply_gradients([(np.ones(1), Variable(np.ones(1)))])


def test_means_and_rows(lib):
    def mean(gradient):
        return get_replica_context().all_reduce("mean", grad(lib, [gradient]))

    assert [lib.back(g).tolist() for g in Replicas(2).run(mean, [(1.0,), (4.0,)])] == [[2.5], [2.5]]

    table = made(lib, np.zeros((4, 1)))
    opt = Adadelta(1.0)

    def step(rows):
        opt.apply_gradients([(IndexedSlices(grad(lib, np.ones((len(rows), 1))), rows), table)])

    Replicas(2).run(step, [([0, 1],), ([1, 1, 3],)])
    np.testing.assert_array_equal(table.numpy()[:, 0], alone([[1.0, 3.0, 0.0, 1.0]], np.float32))


@pytest.mark.feature("E:gradient_aggregator", "E:gradient_transformers")
def test_an_aggregator_of_ones_own_comes_before_the_transformers():
    order = []

    def averaged(pairs):
        order.append("aggregator")
        context = get_replica_context()
        return zip(context.all_reduce("mean", [g for g, _ in pairs]), [v for _, v in pairs], strict=True)

    def doubled(pairs):
        order.append("transformer")
        return [(2 * g, v) for g, v in pairs]

    v = Variable(np.zeros(1))
    opt = Adadelta(1.0, gradient_aggregator=averaged, gradient_transformers=[doubled])
    Replicas(2).run(lambda g: opt.apply_gradients([(np.array([g]), v)]), [(1.0,), (3.0,)])
    np.testing.assert_array_equal(v.numpy(), alone([[4.0]]))
    assert order.count("transformer") == order.count("aggregator") == 2
    opt.apply_gradients([(np.ones(1), v)], experimental_aggregate_gradients=False)
    assert order.count("aggregator") == 2


@pytest.mark.feature("E:apply_gradients-runtimeerror")
def test_a_cross_replica_context_is_refused():
    v, opt = Variable(np.zeros(1)), Adadelta(1.0)
    with Replicas(2).scope() as replicas:
        assert get_replica_context() is None
        with pytest.raises(RuntimeError, match="called in a cross-replica context"):
            opt.apply_gradients([(np.ones(1), v)])
        assert int(opt.iterations) == 0
        replicas.run(lambda: opt.apply_gradients([(np.ones(1), v)]))
    assert int(opt.iterations) == 1
    opt.apply_gradients([(np.ones(1), v)])


def test_a_replica_alone():
    context = get_replica_context()
    assert (context.num_replicas_in_sync, context.replica_id_in_sync_group) == (1, 0)
    g = np.ones(2)
    assert context.all_reduce("sum", g) is g
    assert context.all_reduce("mean", [g, None]) == [g, None]
    with pytest.raises(ValueError, match="operation: expected one of sum, mean, got 'max'"):
        context.all_reduce("max", g)


def test_replicas_know_their_number():
    def who():
        context = get_replica_context()
        assert isinstance(context, ReplicaContext)
        return context.replica_id_in_sync_group, context.num_replicas_in_sync

    assert Replicas(3).run(who) == [(0, 3), (1, 3), (2, 3)]
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match="count: expected a positive integer"):
            Replicas(wrong)
    with pytest.raises(ValueError, match="expected the arguments of 3 replicas, got 1"):
        Replicas(3).run(who, [()])


def test_an_error_in_one_replica_stops_all():
    opt, v, before = Adadelta(1.0), Variable(np.zeros(1)), set(threading.enumerate())

    def step(i):
        if i == 1:
            raise ArithmeticError("mine")
        opt.apply_gradients([(np.ones(1), v)])

    with pytest.raises(ArithmeticError, match="mine"):
        Replicas(3).run(step, [(0,), (1,), (2,)])
    # None waits for the replica that failed; the host engine's own threads may stay.
    assert not [t for t in set(threading.enumerate()) - before if not t.name.startswith("multiopt")]
    assert not v.numpy().any()


def test_replicas_that_differ_are_refused():
    v, w, opt = Variable(np.zeros(1)), Variable(np.zeros(1)), Adadelta(1.0)

    def step(which):
        opt.apply_gradients([(np.ones(1), v), (np.ones(1), w)][:which])

    with pytest.raises(ValueError, match="expected the same gradients in every replica"):
        Replicas(2).run(step, [(1,), (2,)])

    def unequal(times):
        for _ in range(times):
            opt.apply_gradients([(np.ones(1), v)])

    with pytest.raises(RuntimeError, match="one ended while another waited for it"):
        Replicas(2).run(unequal, [(3,), (1,)])


@pytest.mark.feature("AE:add_weight")
@pytest.mark.parametrize(("aggregation", "expected"), [("sum", 9.0), ("mean", 3.0), ("only_first_replica", 1.0)])
def test_variables_that_replicas_assign_to(aggregation, expected):
    opt = Adadelta()
    weight = opt.add_weight("w", (), "float64", aggregation=VariableAggregation(aggregation))
    Replicas(3).run(lambda value: weight.assign(value), [(1.0,), (3.0,), (5.0,)])
    assert float(weight) == expected
    weight.assign(7.0)
    assert float(weight) == 7.0
    assert VariableSynchronization.of(VariableSynchronization.AUTO) == "auto"


@pytest.mark.feature("AE:add_weight")
@pytest.mark.parametrize(
    ("aggregation", "before", "after"),
    [("sum", 21.0, [2.0, 2.0]), ("mean", 10.5, [4.0, 4.0]), ("only_first_replica", 10.0, [4.0, 4.0])],
)
def test_variables_of_which_each_replica_has_its_own_value(lib, aggregation, before, after):
    """The numbers are those of a SyncOnReadVariable on TensorFlow's MirroredStrategy of two devices."""
    opt = Adadelta()
    opt.add_slot(made(lib, [1.0]), "s")
    weight = opt.add_weight("w", (), initializer="ones", synchronization="on_read", aggregation=aggregation)
    assert float(weight) == 1.0

    def step(value):
        found = [float(weight)]
        weight.assign(value)
        weight.assign_add(1.0)
        return [*found, float(weight)]

    replicas = Replicas(2)
    assert replicas.run(step, [(9.0,), (10.0,)]) == [[1, 10], [1, 11]]
    assert float(weight) == before
    with replicas.scope():
        assert float(weight) == before
    assert weight.assign(4.0) is weight
    assert float(weight) == 4.0
    assert replicas.run(lambda: float(weight)) == after
    # A replica that has not used it has the value that was there before.
    replicas.run(lambda i: weight.assign(0.0) if i else None, [(0,), (1,)])
    assert float(weight) == {"sum": 2.0, "mean": 2.0, "only_first_replica": 4.0}[aggregation]


def test_values_that_nothing_aggregates():
    weight = Adadelta().add_weight("w", (2,), "int64", synchronization=VariableSynchronization.ON_READ)
    Replicas(2).run(lambda i: weight.assign([i, i]), [(1,), (2,)])
    assert Replicas(2).run(lambda: weight.numpy().tolist()) == [[1, 1], [2, 2]]
    assert "w" in repr(weight)
    with pytest.raises(ValueError, match="w: each replica has a value of its own"):
        weight.numpy()
    mean = Adadelta().add_weight("m", (), "int64", synchronization="on_read", aggregation="mean")
    Replicas(2).run(mean.assign, [(1,), (4,)])
    assert (mean.dtype, int(mean), mean.numpy().dtype) == ("int64", 2, np.int64)


PROCESS = """
import json, sys
import numpy as np
import torch
import torch.distributed as dist
from multiopt.keras import IndexedSlices, Variable
from multiopt.keras.distribute import get_replica_context
from multiopt.keras.legacy import Adadelta
import torch.multiprocessing as mp

def work(rank, path):
    dist.init_process_group("gloo", init_method="file://" + path, rank=rank, world_size=2)
    context = get_replica_context()
    assert (context.num_replicas_in_sync, context.replica_id_in_sync_group) == (2, rank)
    found = []
    for make in (lambda a: torch.tensor(a), np.array):
        v, w = Variable(make([0.0, 0.0])), Variable(make([[0.0], [0.0], [0.0]]))
        if make is not np.array:
            v, w = (Variable(x.value.double()) for x in (v, w))
        opt = Adadelta(1.0, clipvalue=3.0)
        given = v.value * 0 + (1 + 2 * rank)
        if make is not np.array:
            given = given.detach()
        rows = IndexedSlices(w.value[: 1 + rank] * 0 + 1 if make is np.array else w.value[: 1 + rank].detach() * 0 + 1,
                             [0, 2][: 1 + rank])
        opt.apply_gradients([(given, v), (rows, w)])
        assert given[0] == 1 + 2 * rank  # the caller's gradient is left alone
        own = Variable(np.zeros(2))
        opt.apply_gradients([(np.ones(2) * (rank + 1), own)], experimental_aggregate_gradients=False)
        found.append([v.numpy().tolist(), w.numpy()[:, 0].tolist(), own.numpy().tolist()])
    mean = context.all_reduce("mean", torch.tensor([float(rank)], dtype=torch.bfloat16))
    assert mean.tolist() == [0.5] and mean.dtype == torch.bfloat16
    try:
        opt.apply_gradients([(np.ones(2 + rank), Variable(np.zeros(2 + rank)))])
    except ValueError as error:
        assert "the same gradients in every process" in str(error)
    else:
        raise AssertionError("different shapes were not refused")
    dist.destroy_process_group()
    with open(path + str(rank), "w") as file:
        json.dump(found, file)

if __name__ == "__main__":
    mp.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
"""


@pytest.mark.feature("AE:aggregation", "AE:experimental_aggregate_gradients")
def test_processes_of_torch_distributed(tmp_path, torch):
    if not torch.distributed.is_available():
        pytest.skip("PyTorch was built without torch.distributed")
    code = f"import sys; sys.argv = ['', {str(tmp_path / 'meeting')!r}]\n{PROCESS}"
    run_python(code)
    summed = alone([[3.0, 3.0]])  # 1 + 3, clipped to 3
    rows = alone([[2.0, 0.0, 1.0]])
    for rank in (0, 1):
        mine = alone([[rank + 1.0, rank + 1.0]])
        found = json.loads((tmp_path / f"meeting{rank}").read_text())
        for values in found:
            np.testing.assert_array_equal(values[0], summed)
            np.testing.assert_array_equal(values[1], rows)
            np.testing.assert_array_equal(values[2], mine)
        assert len(found) == 2
