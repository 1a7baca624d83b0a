"""Gradients for `minimize`, `get_gradients` and `get_updates`: autograd, `jax.vjp`, or the caller's function."""

import keras_arrays
import numpy as np
import pytest
from keras_arrays import after
from libraries import LIBRARIES, library_of

from multiopt import keras
from multiopt.keras import GradientTape, IndexedSlices, Variable
from multiopt.keras.legacy import Adadelta, Operation
from multiopt.keras.variables.differentiate import gradients


@pytest.fixture(params=["torch", "jax"])
def lib(request):
    with library_of(LIBRARIES[request.param]) as library:
        yield library


def made(lib, values, **options):
    return keras_arrays.made(lib, values, np.float64, **options)


def moved(gradient, x):
    """The values after a first step with learning rate 1."""
    return after([np.array(gradient)], 1.0, x=np.array(x))[0]


# A few roundings in float64.
CLOSE = {"rtol": 1e-13}


@pytest.mark.feature("ABE:minimize", "ABE:minimize-name")
def test_minimize_with_a_function(lib):
    """The example of the document."""
    var1, var2 = made(lib, [1.0, -2.0]), made(lib, [3.0, 0.5])
    opt = Adadelta(1.0)
    done = opt.minimize(lambda: (3 * var1 * var1 + 2 * var2 * var2).sum(), var_list=[var1, var2], name="both")
    assert done == Operation("both", 1)
    done.run()  # in a graph this would do the update, which is done here
    with pytest.raises(RuntimeError, match="both: this update was done once"):
        done.run()
    np.testing.assert_allclose(var1.numpy(), moved(6 * np.array([1.0, -2.0]), np.array([1.0, -2.0])), **CLOSE)
    np.testing.assert_allclose(var2.numpy(), moved(4 * np.array([3.0, 0.5]), np.array([3.0, 0.5])), **CLOSE)
    for _ in range(300):
        opt.minimize(lambda: (3 * var1 * var1 + 2 * var2 * var2).sum(), [var1, var2])
    assert (abs(var1.numpy()) < [1.0, 2.0]).all()


@pytest.mark.feature("ABE:minimize-grad_loss")
@pytest.mark.parametrize("grad_loss", [None, [10.0, -1.0]])
def test_a_loss_of_several_elements_is_summed_or_weighed_by_grad_loss(lib, grad_loss):
    v, weights = made(lib, [1.0, 2.0]), np.array(grad_loss or [1.0, 1.0])
    Adadelta(1.0).minimize(lambda: v * v, [v], grad_loss=grad_loss and lib.grad(weights))
    np.testing.assert_allclose(v.numpy(), moved(weights * [2.0, 4.0], [1.0, 2.0]), **CLOSE)


@pytest.mark.feature("ABE:minimize-callable-var_list")
def test_a_callable_list_of_variables_needs_the_loss_once(lib):
    layers, calls = [], []

    def loss():
        calls.append(len(layers))
        if not layers:
            layers.append(made(lib, [2.0]))
        return (layers[0] * layers[0]).sum()

    for kind in (Adadelta, keras.Adadelta):
        layers.clear()
        opt = kind(1.0)
        opt.minimize(loss, lambda: [layers[0]])  # before the loss is called, it raises
        # 0.95 in float32 is 1e-8 more than in float64, which the later face computes with.
        np.testing.assert_allclose(layers[0].numpy(), moved([4.0], [2.0]), rtol=1e-9)
        # JAX has to know what it differentiates: what the loss makes, it sees in a second call.
        assert calls == ([0] if lib.name == "torch" else [0, 1])
        calls.clear()
        opt.minimize(loss, lambda: layers)
        layers.append(made(lib, [1.0]))
        opt.minimize(loss, lambda: layers[:1])
        assert calls == [1, 2]
        calls.clear()


def test_a_loss_may_make_more_variables_later(lib):
    layers = [made(lib, [3.0])]

    def loss():
        if len(layers) == 1:
            layers.append(made(lib, [2.0]))
        return (layers[0] * layers[1]).sum()

    pairs = gradients(loss, lambda: layers)
    assert [(lib.back(g).tolist(), v) for g, v in pairs] == [([2.0], layers[0]), ([3.0], layers[1])]
    with pytest.raises(ValueError, match=r"var_list\[1\]: expected a Variable or an array"):
        gradients(loss, lambda: [layers[0], None])


@pytest.mark.feature("ABE:minimize-valueerror")
@pytest.mark.parametrize("wrong", ["v", 3.0, None])
def test_what_is_no_variable_is_refused(lib, wrong):
    v = made(lib, [1.0])
    with pytest.raises(ValueError, match=r"var_list\[1\]: expected a Variable or an array"):
        Adadelta().minimize(lambda: v.value.sum(), [v, wrong])


@pytest.mark.feature("D:compute_gradients")
def test_a_variable_that_the_loss_does_not_need(lib):
    v, w = made(lib, [1.0], name="v"), made(lib, [1.0], name="w")
    pairs = gradients(lambda: (v * v).sum(), [v, w])
    assert lib.back(pairs[0][0]).tolist() == [2]
    assert pairs[1] == (None, w)
    # A gradient that is zero is one.
    assert [lib.back(g).tolist() for g, _ in gradients(lambda: (v * v + 0 * w).sum(), [v, w])] == [[2.0], [0.0]]
    opt = keras.Adadelta(1.0, weight_decay=0.5)
    with pytest.warns(UserWarning, match="no gradient for the variables \\['w'\\]"):
        opt.minimize(lambda: (v * v).sum(), [v, w])
    assert (w.numpy()[0], v.numpy()[0] < 1) == (1, True)
    for kind in (Adadelta, keras.Adadelta):
        with pytest.raises(ValueError, match="expected a gradient for at least one of w, got none"):
            kind().minimize(lambda: (v * v).sum(), [w])


def test_what_jax_differentiates_to_nothing(jnp):
    """Through what JAX compiles, stops or does not differentiate."""
    jax = pytest.importorskip("jax")
    v, w = Variable(jnp.asarray([1.0, 2.0])), Variable(jnp.asarray([3.0, 4.0]))
    for loss in (
        lambda: jax.jit(lambda x, y: (x * x).sum())(v.value, w.value),
        lambda: (v * jax.lax.stop_gradient(w.value)).sum(),
        lambda: v.value.sum() + jnp.argmax(w.value),
        lambda: jax.lax.cond(w[0] > 0, lambda x, y: x.sum(), lambda x, y: 2 * x.sum(), v.value, w.value),
    ):
        assert [g is None for g, _ in gradients(loss, [v, w])] == [False, True]
    assert gradients(lambda: jnp.ones(()), [v]) == [(None, v)]

    def traced(x, y):
        w.value = y
        pairs = gradients(lambda: (v * v).sum(), [v, w])
        return pairs[0][0] * x, pairs[1][0]

    doubled, nothing = jax.jit(traced)(2.0, w.value)
    assert (doubled.tolist(), nothing) == ([4, 8], None)


def test_containers_of_variables(lib):
    v, w = made(lib, [1.0]), made(lib, [2.0])
    Adadelta(1.0).minimize(lambda: (v * w).sum(), {"a": [v], "b": (w,)})
    np.testing.assert_allclose(v.numpy(), moved([2.0], [1.0]), **CLOSE)
    np.testing.assert_allclose(w.numpy(), moved([1.0], [2.0]), **CLOSE)


def test_two_libraries_are_refused(torch):
    v, w = Variable(torch.ones(1)), Variable(np.ones(1))
    with pytest.raises(ValueError, match="expected variables of one array library, got numpy, torch"):
        gradients(lambda: (v * v).sum(), [v, w])
    with pytest.raises(ValueError, match="expected variables of one array library, got none"):
        gradients(lambda: (v * v).sum(), [])


# --- libraries without differentiation ---


@pytest.mark.feature("ABE:minimize")
def test_numpy_needs_grad_fn():
    v, w = Variable(np.array([1.0]), name="v"), np.array([2.0])
    opt = Adadelta(1.0)
    with pytest.raises(ValueError, match=r"v: numpy has no automatic differentiation.*pass grad_fn, .*or call"):
        opt.minimize(lambda: (v * w).sum(), [v, w])
    opt.minimize(None, [v, w], grad_fn=lambda a, b: (1 * b, 1 * a))
    np.testing.assert_allclose(v.numpy(), moved([2.0], [1.0]), **CLOSE)
    np.testing.assert_allclose(w, moved([1.0], [2.0]), **CLOSE)
    opt.minimize(None, lambda: [v], grad_fn=lambda a: 2 * a)
    with pytest.raises(ValueError, match="grad_fn: expected 2 gradients, one for each variable, got 1"):
        opt.minimize(None, [v, w], grad_fn=lambda a, b: a)
    with pytest.raises(ValueError, match="grad_loss: expected None with grad_fn"):
        opt.minimize(None, [v], grad_loss=np.ones(1), grad_fn=lambda a: a)


# --- PyTorch's tape ---


@pytest.mark.feature("E:process-gradients")
def test_a_training_loop_keeps_its_shape(torch):
    v, w = Variable(torch.tensor([3.0, 4.0])), Variable(torch.tensor([1.0]))
    opt = Adadelta(1.0)
    with GradientTape() as tape:
        loss = (v * v).sum() * w.value[0]
    grads = tape.gradient(loss, [v, w])
    assert [g.tolist() for g in grads] == [[6, 8], [25]]
    processed = [g.clip(-7, 7) for g in grads]
    opt.apply_gradients(zip(processed, [v, w], strict=True))
    expected = moved([6.0, 7.0], [3.0, 4.0])
    np.testing.assert_allclose(v.numpy(), expected, rtol=1e-6)  # float32


@pytest.mark.feature("E:minimize-tape", "E:minimize-tape-valueerror")
def test_a_loss_that_was_computed_comes_with_its_tape(torch):
    v = Variable(torch.tensor([2.0], dtype=torch.float64))
    with GradientTape() as tape:
        loss = (v * v).sum()
    with pytest.raises(ValueError, match="tape: expected the GradientTape under which the loss was computed"):
        Adadelta().minimize(loss, [v])
    Adadelta(1.0).minimize(loss, [v], tape=tape)
    np.testing.assert_allclose(v.numpy(), moved([4.0], [2.0]), **CLOSE)


def test_the_tape_records_under_no_grad(torch):
    v = Variable(torch.ones(2))
    with torch.no_grad():
        with GradientTape() as tape:
            loss = (v * v).sum()
        assert not torch.is_grad_enabled()
    assert tape.gradient(loss, v).tolist() == [2, 2]


def test_the_tape_is_used_once_unless_it_is_persistent(torch):
    v = Variable(torch.ones(2))
    with GradientTape(persistent=True) as tape:
        loss = (v * v).sum()
    assert tape.gradient(loss, [v])[0].tolist() == tape.gradient(loss, {"v": v})["v"].tolist() == [2, 2]
    with GradientTape() as once:
        loss = (v * v).sum()
    once.gradient(loss, v)
    with pytest.raises(RuntimeError, match="not persistent"):
        once.gradient(loss, v)
    with once, pytest.raises(ValueError, match="recording already"):
        once.__enter__()


def test_what_the_tape_does_not_follow_has_no_gradient(torch):
    v, fixed = Variable(torch.ones(2)), Variable(torch.ones(2), trainable=False)
    with GradientTape() as tape:
        loss = (v * fixed).sum()
    assert tape.gradient(loss, [v, fixed])[1] is None
    with GradientTape() as tape:
        tape.watch(fixed)
        loss = (v * fixed).sum()
    assert tape.gradient(loss, [v, fixed])[1].tolist() == [1, 1]
    with GradientTape() as tape:
        constant = torch.ones(())
    assert tape.gradient(constant, v) is None


def test_output_gradients(torch):
    v = Variable(torch.ones(2))
    with GradientTape() as tape:
        outputs = [v * 2, v * 3]
    seeds = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 10.0])]
    assert tape.gradient(outputs, v, output_gradients=seeds).tolist() == [2, 30]


def test_sparse_embeddings_give_rows(torch):
    table = torch.nn.Embedding(4, 2, sparse=True)
    with GradientTape(persistent=True) as tape:
        loss = table(torch.tensor([1, 1, 3])).sum()
    rows = tape.gradient(loss, table.weight)
    assert isinstance(rows, IndexedSlices)
    assert rows.indices.tolist() == [1, 1, 3]
    loss.backward()  # the same rows as a sparse tensor
    before = table.weight.detach().clone()
    Adadelta(1.0).apply_gradients([(table.weight.grad, table.weight)])
    assert (table.weight != before).all(dim=1).tolist() == [False, True, False, True]


def test_a_tape_is_for_pytorch(jnp):
    pytest.importorskip("torch")
    with GradientTape() as tape:
        v = Variable(jnp.ones(2))
        loss = (v * v).sum()
    with pytest.raises(TypeError, match="a tape records PyTorch tensors, got a jax array; give minimize a function"):
        tape.gradient(loss, v)
    with pytest.raises(TypeError, match=r"got a numpy array; .* and grad_fn"):
        tape.gradient(np.ones(2), np.ones(2))


def test_plain_tensors_are_followed_while_they_are_differentiated(torch):
    x = torch.tensor([2.0], dtype=torch.float64)
    Adadelta(1.0).minimize(lambda: (x * x).sum(), [x])
    np.testing.assert_allclose(x.numpy(), moved([4.0], [2.0]), **CLOSE)
    assert not x.requires_grad


def test_modules_of_pytorch(torch):
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    inputs, targets = torch.ones(4, 2), torch.zeros(4, 1)
    opt, losses = Adadelta(1.0, epsilon=1e-4), []
    for _ in range(50):
        with GradientTape() as tape:
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
        variables = list(model.parameters())
        opt.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_jax_variables_hold_their_values_again_after_an_error(jnp):
    v = Variable(jnp.ones(2))

    def loss():
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        Adadelta().minimize(loss, [v])
    assert v.numpy().tolist() == [1, 1]


# --- get_gradients and get_updates ---


@pytest.mark.feature("ABE:get_gradients", "ABE:get_updates")
def test_get_gradients_and_get_updates(lib):
    v, w = made(lib, [1.0]), made(lib, [3.0])
    opt = Adadelta(1.0, name="opt")

    def loss():
        return (v * w).sum()

    assert [lib.back(g).tolist() for g in opt.get_gradients(loss, [v, w])] == [[3], [1]]
    assert opt.get_updates(loss, [v, w]) == [Operation("opt", 1)]
    np.testing.assert_allclose(v.numpy(), moved([3.0], [1.0]), **CLOSE)


def test_get_gradients_of_a_tensor_or_by_a_function(torch):
    v = Variable(torch.ones(2))
    opt = Adadelta()
    assert opt.get_gradients((v * v).sum(), [v])[0].tolist() == [2, 2]
    assert opt.get_gradients(None, [np.ones(2)], grad_fn=lambda x: 5 * x)[0].tolist() == [5, 5]


@pytest.mark.feature("ABE:get_gradients-valueerror")
def test_a_gradient_that_cannot_be_computed_is_refused(torch):
    v, w = Variable(torch.ones(2), name="v"), Variable(torch.ones(2), name="w")
    with pytest.raises(ValueError, match="w: expected a loss that depends on it"):
        Adadelta().get_gradients((v * v).sum(), [v, w])
    with pytest.raises(ValueError, match="v: expected a loss that depends on it"):
        Adadelta().get_gradients(lambda: torch.argmax(v.value).float(), [v])
    with pytest.raises(ValueError, match="numpy has no automatic differentiation"):
        Adadelta().get_gradients(lambda: 1.0, [Variable(np.ones(1))])
