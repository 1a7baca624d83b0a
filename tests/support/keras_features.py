"""Every feature that TensorFlow's four documents of Adadelta and its base class name, one line each.

The documents: A, ``tf.keras.optimizers.Adadelta`` of TensorFlow 2.3; B, the same of TensorFlow 2.1; D,
``tf.keras.dtensor.experimental.optimizers.Adadelta``; E, ``tf.keras.optimizers.Optimizer`` of TensorFlow 2.4.
A test says what it covers by a mark: ``@pytest.mark.feature("AB:clipnorm")``, for the feature in A and in B.
"""

from __future__ import annotations

DOCUMENTS = {
    "A": "`tf.keras.optimizers.Adadelta`, TensorFlow 2.3",
    "B": "`tf.keras.optimizers.Adadelta`, TensorFlow 2.1",
    "D": "`tf.keras.dtensor.experimental.optimizers.Adadelta`",
    "E": "`tf.keras.optimizers.Optimizer`, TensorFlow 2.4",
}

_CONFIG = {
    "get_config": "`get_config()` returns a dictionary that can be serialized",
    "from_config": "`from_config(config)` makes the same optimizer, without its state",
}
_CUSTOM_OBJECTS = {"custom_objects": "`from_config(config, custom_objects)` finds names in `custom_objects`"}
_STATE = {
    "iterations": "`iterations`: a Variable, increased by each update",
    "weights": "`weights`: the optimizer's variables in the order they were created",
    "variables": "`variables()`: the same",
    "add_slot": "`add_slot(var, slot_name, initializer='zeros')`",
    "add_weight": "`add_weight(name, shape, dtype, initializer, trainable, synchronization, aggregation)`",
    "get_slot": "`get_slot(var, slot_name)`",
    "get_slot_names": "`get_slot_names()`",
    "get_weights": "`get_weights()`: NumPy arrays, the count of iterations first",
    "set_weights": "`set_weights(weights)`",
}
_APPLY = {
    "apply_gradients": "`apply_gradients(grads_and_vars)` updates variables",
    "apply_gradients-name": "`apply_gradients(name=…)` names what is returned; the optimizer's name by default",
    "apply_gradients-typeerror": "`apply_gradients` raises TypeError if `grads_and_vars` is malformed",
    "apply_gradients-valueerror": "`apply_gradients` raises ValueError if no variable has a gradient",
}
_MINIMIZE = {
    "minimize": "`minimize(loss, var_list)` with a callable loss",
    "minimize-callable-var_list": "`minimize` with a callable `var_list`, for variables that the loss makes",
    "minimize-grad_loss": "`minimize(grad_loss=…)`: the gradient that the loss is given",
    "minimize-name": "`minimize(name=…)` names what is returned",
    "minimize-valueerror": "`minimize` raises ValueError if `var_list` has something else than Variables",
}
_GRADIENTS = {
    "get_gradients": "`get_gradients(loss, params)`",
    "get_gradients-valueerror": "`get_gradients` raises ValueError if a gradient cannot be computed",
    "get_updates": "`get_updates(loss, params)`",
}
_HYPERS = {
    "learning_rate": "`learning_rate`; 1.0 is the paper's form",
    "rho": "`rho`, the decay rate",
    "epsilon": "`epsilon`",
    "tensor-hypers": "`learning_rate`, `rho` and `epsilon` as tensors",
    "name": "`name`, 'Adadelta' by default",
    "clipnorm": "`clipnorm` clips each gradient by its norm",
    "clipvalue": "`clipvalue` clips gradients by value",
    "lr": "`lr` for backward compatibility",
    "decay": "`decay` for backward compatibility: inverse time decay of the learning rate",
}
_REPLICAS = {
    "aggregation": "`apply_gradients` sums the gradients of all replicas by default",
    "experimental_aggregate_gradients": "`experimental_aggregate_gradients=False` leaves the summing to the user",
}

FEATURES: dict[str, dict[str, str]] = {
    "A": {
        "defaults": "`learning_rate=0.001, rho=0.95, epsilon=1e-07, name='Adadelta'`",
        **_HYPERS,
        "schedule": "`learning_rate` as a LearningRateSchedule",
        "name-valueerror": "ValueError if `name` is malformed: not a non-empty string",
        **_STATE,
        **_APPLY,
        **_REPLICAS,
        **_CONFIG,
        **_CUSTOM_OBJECTS,
        **_GRADIENTS,
        **_MINIMIZE,
    },
    "B": {
        "rule": "the formula: two accumulators from 0, the step from the accumulator before it is updated",
        **_HYPERS,
        **_STATE,
        **_APPLY,
        **_CONFIG,
        **_CUSTOM_OBJECTS,
        **_GRADIENTS,
        **_MINIMIZE,
    },
    "D": {
        "mesh": "variables are initialised as their mesh and layout say",
        "defaults": "`learning_rate=0.001, rho=0.95, epsilon=1e-07`",
        "learning_rate": "`learning_rate` as a number; 1.0 is the paper's form",
        "schedule": "`learning_rate` as a LearningRateSchedule",
        "rho": "`rho`: a Tensor or a number",
        "epsilon": "`epsilon`",
        "name": "`name`",
        "clipnorm": "`clipnorm` clips each gradient by its norm",
        "clipvalue": "`clipvalue` clips gradients by value",
        "global_clipnorm": "`global_clipnorm` clips by the norm of all gradients",
        "use_ema": "`use_ema`: an exponential moving average of the variables",
        "ema_momentum": "`ema_momentum`, 0.99 by default",
        "ema_overwrite_frequency": "`ema_overwrite_frequency`: variables are overwritten every so many steps",
        "jit_compile": "`jit_compile`, ignored where there is no GPU",
        "kwargs": "keyword arguments for backward compatibility",
        "iterations": "`iterations`, increased by one by `apply_gradients`",
        "learning_rate-attribute": "`learning_rate` as an attribute",
        "add_variable": "`add_variable(shape, dtype, initializer, name)`",
        "add_variable_from_reference": "`add_variable_from_reference(model_variable, variable_name, initial_value)`",
        "apply_gradients": "`apply_gradients(grads_and_vars)`",
        "apply_gradients-typeerror": "`apply_gradients` raises TypeError if `grads_and_vars` is malformed",
        "build": "`build(var_list)` makes the optimizer's variables; subclasses call super's",
        "compute_gradients": "`compute_gradients(loss, var_list, tape)`: pairs, in which a gradient may be None",
        "finalize_variable_values": "`finalize_variable_values(var_list)` puts the averages into the variables",
        **_CONFIG,
        "minimize": "`minimize(loss, var_list)`",
        "minimize-tape": "`minimize(loss, var_list, tape)` with a loss that was computed",
        "update_step": "`update_step(gradient, variable)`: the rule of a subclass",
    },
    "E": {
        "name": "`name`: a string",
        "gradient_aggregator": "`gradient_aggregator`: how gradients are aggregated across devices",
        "gradient_transformers": "`gradient_transformers`: functions of the list of pairs, after the aggregator",
        "clipvalue": "`clipvalue`: argument and attribute",
        "clipnorm": "`clipnorm`: argument and attribute",
        "global_clipnorm": "`global_clipnorm`: argument and attribute",
        "valueerror": "ValueError in case of any invalid argument",
        "constraints": "variable constraints are applied after the update",
        "constraints-sparse": "variable constraints are not supported with sparse gradients",
        "thread-compatible": "thread compatible: one optimizer per thread needs no synchronization",
        "process-gradients": "gradients from a `GradientTape`, processed by the user, then applied",
        "hyper-attributes": "hyperparameters can be overwritten as attributes",
        "hyper-tensors": "hyperparameters as tensors",
        "hyper-callables": "hyperparameters as callables, called in `apply_gradients`",
        "schedule": "`learning_rate` as a LearningRateSchedule, built-in or one's own, called with the iteration",
        "callable-learning_rate": "`learning_rate` as a function without arguments",
        "custom-dense": "custom optimizers override `_resource_apply_dense`",
        "custom-sparse": "custom optimizers override `_resource_apply_sparse`",
        "custom-slots": "custom optimizers override `_create_slots`",
        "custom-config": "custom optimizers override `get_config`, which is abstract",
        **_STATE,
        **_APPLY,
        "apply_gradients-runtimeerror": "`apply_gradients` raises RuntimeError in a cross-replica context",
        **_REPLICAS,
        "from_config": _CONFIG["from_config"],
        **_CUSTOM_OBJECTS,
        **_GRADIENTS,
        **_MINIMIZE,
        "minimize-tape": "`minimize(loss, var_list, tape=tape)` with a loss that was computed under the tape",
        "minimize-tape-valueerror": "`minimize` raises ValueError if such a loss comes without its tape",
    },
}
