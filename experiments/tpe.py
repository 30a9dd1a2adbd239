"""Trials by the tree-structured Parzen estimator of Optuna, kept in the run folder.

Source: Bergstra et al. (2011), Algorithms for Hyper-Parameter Optimization, section 4; Optuna's multivariate form.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from agents.search import Range, Search
from envs.errors import InputError
from experiments.arms import split_arm
from experiments.folder import digest
from experiments.samplers import GRID, TPE, Case, arm_of, defaults_of, given, space_of

FILE = Path("shared") / "search.db"
DIGITS = 3  # of sampled numbers: nobody tells 0.000123 from 0.0001234, and arms are named by them


def check(arm: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ends of an arm's space, one setting at its end at a time: what its agent has to accept.

    Args:
        settings: what the run says of the arm's agent, where trial 0 begins.
    Raises: InputError: Optuna is not installed, or trial 0 lies outside the space.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError(f"--sampler {TPE} needs Optuna: pip install 'tdistill[search]', or take --sampler {GRID}")
    ends = options_of(arm)
    for name, value in given(arm, settings).items():
        if value not in (options := ends[name]):
            says = (
                f"{options.low:g} to {options.high:g}" if isinstance(options, Range) else ", ".join(map(str, options))
            )
            agent, own = split_arm(arm)
            raise InputError(
                f"{arm} begins with {name} = {value}, outside what a search tries ({says}); fix it in the arm, as "
                f"{arm_of(agent, own | {name: value})}, or begin inside"
            )
    return [
        {name: end}
        for name, options in ends.items()
        for end in ((options.low, options.high) if isinstance(options, Range) else options)
    ]


def options_of(arm: str) -> Search:
    """What a search may try of an arm, its defaults among the choices."""
    usual, found = defaults_of(arm), dict[str, Range | tuple[Any, ...]]()
    for name, values in space_of(arm).items():
        others = () if isinstance(values, Range) else tuple(value for value in values if value != usual[name])
        found[name] = values if isinstance(values, Range) else (usual[name], *others)
    return found


def at_random(count: int) -> int:
    """How many of an arm's first trials do not look at others, the given one among them: a third, of 3 to 10."""
    return min(count, 10, max(3, count // 3))


class TreeParzen:
    """A study an arm and mass in `shared/search.db`, which `optuna.load_study` reads.

    A trial is written down before it runs and its score when it has ended; what was written down is not drawn again.
    Trial k is drawn with a seed of its own, which follows from the names of the settings and from k alone: arms with
    the same space get the same first draws, and a search that was stopped draws what it would have drawn.

    Args:
        out: folder of the run.
        begin: arm -> its `given` settings.
        count: trials of each arm.
        lower: whether the lowest score is the best.
    """

    def __init__(self, out: Path, begin: Mapping[str, Mapping[str, Any]], count: int, lower: bool) -> None:
        self.file, self.begin, self.count = out / FILE, begin, count
        self.direction = "minimize" if lower else "maximize"
        self.options = {arm: options_of(arm) for arm in begin}
        self._studies: dict[Case, Any] = {}

    def rounds(self) -> Sequence[Sequence[int]]:
        """The random ones at once, then one by one."""
        first = at_random(self.count)
        return [range(first), *([number] for number in range(first, self.count))]

    def trial(self, case: Case, number: int) -> str | None:
        """The trial as an arm; of an arm that leaves nothing open trial 0 alone."""
        arm = case[0]
        if not self.options[arm]:
            return None if number else arm
        point, (agent, own) = self._point(case, number), split_arm(arm)
        return arm_of(agent, own | point) if number else arm

    def tell(self, case: Case, number: int, score: float | None) -> None:
        """Write a score down. One that has diverged has none, and counts as worse than any."""
        from optuna.trial import TrialState

        if self.options[case[0]]:
            state = None if score is not None else TrialState.PRUNED
            with self._storage():
                self._study(case).tell(number, score, state=state, skip_if_finished=True)

    def _point(self, case: Case, number: int) -> dict[str, Any]:
        """The settings of a trial, written down now if they were not before."""
        from optuna.trial import TrialState, create_trial

        arm, study = case[0], self._study(case)
        with self._storage():
            before = study.get_trials(deepcopy=False)
            if number < len(before):
                return dict(before[number].params)
            distributions = _distributions(self.options[arm])
            if number == 0:
                point = dict(self.begin[arm])
            else:
                finished = [trial for trial in before[:number] if trial.state.is_finished()]
                look = finished if number >= at_random(self.count) else []
                point = draw(self.options[arm], look, number, self.direction)
            study.add_trial(create_trial(state=TrialState.RUNNING, params=point, distributions=distributions))
        return point

    def _study(self, case: Case) -> Any:
        import optuna

        if case not in self._studies:
            with self._storage():
                self._studies[case] = optuna.create_study(
                    storage=self._database,
                    study_name=f"{case[0]} {case[1]:g}",
                    direction=self.direction,
                    load_if_exists=True,
                )
        return self._studies[case]

    @cached_property
    def _database(self) -> Any:
        import optuna

        self.file.parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.RDBStorage(f"sqlite:///{self.file}")

    @contextmanager
    def _storage(self) -> Iterator[None]:
        """Within, Optuna says nothing, and what its file does not let it do is one error.

        Raises: InputError: a full disk, or a broken file.
        """
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            with warnings.catch_warnings():  # Optuna 4 calls its multivariate estimator experimental
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                yield
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            cause = str(error.__cause__ or error).splitlines()[0]
            raise InputError(
                f"{self.file} cannot be read or written ({cause}); free some disk and give the same command again, or "
                "give another --out"
            ) from error


def draw(options: Search, finished: Sequence[Any], number: int, direction: str) -> dict[str, Any]:
    """The settings of trial `number`: at random if no trial has finished, else by the estimator from these."""
    import optuna

    seed = int(digest(f"{sorted(options)} {number}"), 16) % 2**32
    random = optuna.samplers.RandomSampler(seed)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, multivariate=True) if finished else random
    study = optuna.create_study(sampler=sampler, direction=direction)
    study.add_trials(finished)
    found = study.ask(_distributions(options)).params
    return {name: _rounded(found[name], values) for name, values in options.items()}


def _rounded(value: Any, values: Range | tuple[Any, ...]) -> Any:
    if not isinstance(values, Range) or values.whole:
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), values.low), values.high)


def _distributions(options: Search) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for name, values in options.items():
        if not isinstance(values, Range):
            found[name] = CategoricalDistribution(values)
        elif values.whole:
            found[name] = IntDistribution(int(values.low), int(values.high), log=values.log)
        else:
            found[name] = FloatDistribution(values.low, values.high, log=values.log)
    return found
