"""One step of Keras' Adadelta as one pass over memory, by the core's engines, in place where arrays are mutable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..averaging import AVERAGE
from ..averaging import PASS as MOVE
from ..backends.protocol import Array
from ..binding import Job, Pass, run
from ..gradients import PASS as SUM
from ..rule import ADADELTA
from .bound import Bound
from .mesh import local, reducer

if TYPE_CHECKING:
    from .optimizer import Adadelta

__all__ = ["Fused"]


class Fused:
    """The buckets of an optimizer's variables: made once it is built.

    Variables that weight decay spares get buckets of their own, because theirs is another pass.
    """

    def __init__(self, opt: Adadelta) -> None:
        engine = "auto" if opt.jit_compile else "eager"
        variables, slots = opt._trainable_variables, (opt._accumulated_grads, opt._accumulated_delta_vars)
        self.updates: list[tuple[bool, Bound]] = []
        for decayed in (True, False):
            places = [i for i, v in enumerate(variables) if opt._use_weight_decay(v) is decayed]
            if places:
                own = {name: [column[i] for i in places] for name, column in zip(ADADELTA.slots, slots, strict=True)}
                updated = [variables[i] for i in places]
                bound = Bound(ADADELTA, updated, own, places, engine)
                self.updates.append((decayed, bound))
        every, names = range(len(variables)), [v.name for v in variables]
        self.sums = self.averages = None
        if opt.gradient_accumulation_steps:
            self.sums = Bound(SUM.rule, opt._accumulated_gradients, {}, every, engine, names)
        if opt.use_ema:
            self.averages = Bound(AVERAGE, opt._model_variables_moving_average, {}, every, engine, names)

    def step(self, opt: Adadelta, grads: Sequence[Array | None], values: Mapping[str, Any], count: int) -> None:
        """Do one step; everything about the gradients is checked first.

        Parameters
        ----------
        opt : Adadelta
        grads : sequence of arrays or None
            One for each variable, laid out as it is.
        values : mapping
            Every number that a pass may read.
        count : int
            How many steps were done before this one.
        """
        shards = [None if g is None else local(g) for g in grads]
        every = opt.gradient_accumulation_steps or 1
        due = (count + 1) % every == 0
        if self.sums is not None:
            added = self.sums.jobs(SUM, shards, {})
            self._jobs(opt, shards, values)  # so that the pass is known to be good before anything is written
            run(added)
            self.sums.collect()
            opt._seen = [seen or g is not None for seen, g in zip(opt._seen, grads, strict=True)]
            held = opt._accumulated_gradients
            shards = [local(s.value) if seen else None for s, seen in zip(held, opt._seen, strict=True)]
        if due:
            jobs, boxes = self._jobs(opt, shards, values)
            normed = any(job.one_pass.normed for job in jobs)
            run(jobs, opt.global_clipnorm, reducer([box.value for box in boxes]) if normed else None)
            for _, bound in self.updates:
                bound.collect()
            if self.sums is not None:
                for held_sum in opt._accumulated_gradients:
                    held_sum.value = held_sum.backend.filled(held_sum.value, 0.0)
                opt._seen = [False] * len(opt._seen)
        if self.averages is not None:
            moved = [local(variable.value) for variable in opt._trainable_variables]
            run(self.averages.jobs(MOVE, moved, {"momentum": opt.ema_momentum}))
            self.averages.collect()
            if opt.ema_overwrite_frequency and (count // every + 1) % opt.ema_overwrite_frequency == 0:
                opt._overwrite()

    def _jobs(
        self, opt: Adadelta, shards: Sequence[Array | None], values: Mapping[str, Any]
    ) -> tuple[list[Job], list[Any]]:
        """What is to be done, and the variable of each row that clipping by norm will look at."""
        jobs: list[Job] = []
        boxes: list[Any] = []
        for decayed, bound in self.updates:
            one_pass = Pass(
                ADADELTA,
                scaled=values["scale"] != 1.0,
                clipped=opt.clipvalue is not None,
                normed=opt.clipnorm is not None or opt.global_clipnorm is not None,
                decoupled=decayed and values["weight_decay"] != 0.0,
            )
            jobs += bound.jobs(one_pass, shards, values, opt.clipnorm)
            boxes += [bound.columns[0][i] for _, indices in bound.buckets for i in indices]
        return jobs, boxes
