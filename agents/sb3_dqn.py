"""DQN under an action mask, and its soft form, for Stable-Baselines3.

Stable-Baselines3's DQN meets a mask in four places: the random actions of the warm-up, the random actions of ε-greedy,
the greedy action, and the maximum over the next state's actions in the target. All four are masked here.

The mask is read from the observation (a Dict space, `mask_key`), not asked of the environment as sb3-contrib's
MaskablePPO does with `env.action_masks()`. A vector environment has reset a finished row before it can be asked: what
it answers after a truncation belongs to the next episode's first state, while the target bootstraps from the state that
was cut. The terminal observation carries that state's own mask, and replay stores it like any other observation.

Symbols: N environments, B batch, K actions. Needs the extra `tdistill[sb3]`.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces
from torch.nn import functional as F

from agents import objectives
from agents.errors import InputError

try:
    from stable_baselines3 import DQN
    from stable_baselines3.dqn.policies import DQNPolicy, MultiInputPolicy
except ImportError as error:
    raise ImportError("agents.sb3_dqn needs Stable-Baselines3; install tdistill[sb3]") from error

Observation = dict[str, npt.NDArray[Any]]
TensorDict = dict[str, th.Tensor]
Self = TypeVar("Self", bound="MaskableDQN")


def check_mask_space(observation_space: spaces.Space[Any], action_space: spaces.Space[Any], mask_key: str) -> None:
    """Require a mask that can be read: `observation_space[mask_key]` with one entry per action.

    MultiBinary alone: `VecNormalize` by default shifts and scales every Box it finds, a mask in a Box included.

    Args:
        observation_space: Dict; under `mask_key` a MultiBinary(K).
        action_space:      Discrete(K), counted from 0.
        mask_key:          name of the entry.
    Raises: InputError: not a Dict, no such entry, an entry of another kind or shape, actions that start elsewhere.
    """
    actions = int(getattr(action_space, "n", 0))
    if not isinstance(action_space, spaces.Discrete) or action_space.start != 0:
        raise InputError(f"the action space is {action_space}; masks are for Discrete(n) that starts at 0")
    if not isinstance(observation_space, spaces.Dict):
        raise InputError(
            f"the observation space is {observation_space}; a Dict with the action mask under {mask_key!r} is needed"
        )
    mask = observation_space.spaces.get(mask_key)
    if mask is None:
        known = ", ".join(observation_space.spaces)
        raise InputError(f"no {mask_key!r} among the observation's keys ({known}); name the mask's with mask_key=")
    if not isinstance(mask, spaces.MultiBinary) or mask.shape != (actions,):
        raise InputError(f"observation {mask_key!r} is {mask}; the mask must be MultiBinary({actions}), one per action")


def acting_mask(observation: TensorDict, mask_key: str) -> th.Tensor:
    """The mask of states in which an action is to be chosen.

    Args:
        observation: entries (N, ...), the mask (N, K).
    Returns: (N, K) bool.
    Raises:  InputError: a state without a legal action.
    """
    mask = observation[mask_key].bool()
    empty = ~mask.any(-1)
    if bool(empty.any()):
        rows = empty.nonzero().flatten().tolist()
        raise InputError(
            f"no legal action in row(s) {rows} of the observation; a state that is acted in needs one, "
            f"and an episode that runs out of actions must end as terminated"
        )
    return mask


def legal_argmax(q: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """The best legal action.

        argmax_{a : mask(a)} q(a)

    Source: own derivation.
    Args:
        q:    (N, K); illegal entries arbitrary, not-a-number and infinities included.
        mask: (N, K) bool, at least one per row.
    Returns: (N,) int64.
    >>> legal_argmax(th.tensor([[1.0, 3.0, 9.0]]), th.tensor([[True, True, False]]))
    tensor([1])
    """
    finite = q.clamp(min=th.finfo(q.dtype).min)  # a legal −∞ stays above what is illegal
    return th.where(mask, finite, -th.inf).argmax(-1)


def legal_sample(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """A legal action drawn uniformly, each row for itself, from NumPy's global generator (which `seed=` seeds).

    Args:
        mask: (N, K) bool, at least one per row.
    Returns: (N,) int64.
    """
    actions: npt.NDArray[np.int64] = np.where(mask, np.random.random_sample(mask.shape), -1.0).argmax(-1)
    return actions


class MaskableDQNPolicy(DQNPolicy):
    """A DQN policy that is right on its own: `policy.predict` takes the best legal action.

    Like DQN's policy it is greedy whatever `deterministic` says; exploration belongs to the algorithm. `MaskableDQN`
    masks by itself whatever `q_net` a policy has, so a custom policy needs this class only to be used without it.

    Args: as `DQNPolicy`, and `mask_key`, which `MaskableDQN` sets to its own.
    Raises: InputError: from `predict`, for a state without a legal action.
    """

    def __init__(self, *args: Any, mask_key: str = "mask", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mask_key = mask_key

    def _predict(self, obs: TensorDict, deterministic: bool = True) -> th.Tensor:
        return legal_argmax(self.q_net(obs), acting_mask(obs, self.mask_key))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "mask_key": self.mask_key}


class MaskableMultiInputPolicy(MaskableDQNPolicy, MultiInputPolicy):
    """`MultiInputPolicy`, greedy over the legal actions alone. The mask is one of the network's inputs too."""


class MaskableDQN(DQN):
    """DQN whose actions are the legal ones, in behaviour and in the target.

        y = r + γ(1 − done) · max_{a' : mask'(a')} Q̄(s', a');   double_q: Q̄(s', argmax_{a' : mask'(a')} Q(s', a'))

    Departures from `DQN`: the mask; one ε coin for each environment instead of one for all; `predict` runs the network
    only on rows that do not explore. A terminal next state may have an empty mask, and its value counts 0; a truncated
    one is bootstrapped under its own mask (`TimeLimit.truncated`, `handle_timeout_termination`).

    Source: Mnih et al. (2015); van Hasselt, Guez & Silver (2016), arXiv:1509.06461, equation 4; hard form of
    equation (3) of the design.
    Args:
        policy:   "MultiInputPolicy", or a DQNPolicy class whose `q_net(observation)` is (N, K).
        env:      its observation space is a Dict with the mask under `mask_key`.
        mask_key: name of the mask in the observation.
        double_q: choose the next action by the online network.
        Others as `DQN`. `n_steps` > 1 is not there for Dict observations (a replay buffer that returns discounts is).
    Raises: InputError: no readable mask, n_steps > 1, or, while it runs, a non-terminal state without a legal action.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {**DQN.policy_aliases, "MultiInputPolicy": MaskableMultiInputPolicy}

    def __init__(
        self,
        policy: str | type[Any],
        env: Any,
        *args: Any,
        mask_key: str = "mask",
        double_q: bool = False,
        **kwargs: Any,
    ) -> None:
        self.mask_key = mask_key
        self.double_q = double_q
        super().__init__(policy, env, *args, **kwargs)

    def _setup_model(self) -> None:
        # here, not in the constructor: loading a file restores attributes between the two
        check_mask_space(self.observation_space, self.action_space, self.mask_key)
        if self.n_steps != 1 and self.replay_buffer_class is None:
            raise InputError(f"n_steps is {self.n_steps}; replay of Dict observations, which hold the mask, has 1")
        super()._setup_model()
        if isinstance(self.policy, MaskableDQNPolicy):
            self.policy.mask_key = self.mask_key

    def _sample_action(
        self, learning_starts: int, action_noise: Any = None, n_envs: int = 1
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Warm-up: uniform over the legal actions; afterwards `predict`. The buffer stores the action as it is."""
        if self.num_timesteps >= learning_starts:
            chosen: tuple[npt.NDArray[Any], npt.NDArray[Any]]
            chosen = super()._sample_action(learning_starts, action_noise, n_envs)
            return chosen
        obs, _ = self._to_batch(self._last_obs)
        actions = self._explore(acting_mask(obs, self.mask_key))
        return actions, actions

    def predict(
        self,
        observation: Observation,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Legal actions: the best ones, or, unless deterministic, by the behaviour and its ε.

        Args:
            observation: one observation, or N of them stacked.
            state, episode_start: passed through; there is no recurrent state.
            deterministic: best action, no exploration.
        Returns: actions (N,) or (), int64, and `state`.
        Raises:  InputError: not a dict with the mask, or a state without a legal action.
        """
        obs, vectorized = self._to_batch(observation)
        mask = acting_mask(obs, self.mask_key)  # (N, K)
        exploring = np.zeros(len(mask), bool) if deterministic else self._coins(len(mask))
        actions = np.empty(len(mask), np.int64)
        if exploring.any():
            actions[exploring] = self._explore(mask[th.as_tensor(exploring, device=mask.device)])
        if not exploring.all():
            rows = th.as_tensor(~exploring, device=mask.device)
            self.policy.set_training_mode(False)
            with th.no_grad():
                q = self.q_net({key: value[rows] for key, value in obs.items()})
                chosen = legal_argmax(q, mask[rows]) if deterministic else self._exploit(q, mask[rows])
            actions[~exploring] = chosen.cpu().numpy()
        return (actions if vectorized else actions.squeeze(0)), state

    def _to_batch(self, observation: Any) -> tuple[TensorDict, bool]:
        """Observation as tensors (N, ...), and whether it came stacked."""
        if not isinstance(observation, dict) or self.mask_key not in observation:
            raise InputError(
                f"the observation is a {type(observation).__name__} without {self.mask_key!r}; pass the environment's "
                f"Dict observation (of Gymnasium's reset(), the first of the pair)"
            )
        obs, vectorized = self.policy.obs_to_tensor(observation)
        return obs, bool(vectorized)

    def _coins(self, n: int) -> npt.NDArray[np.bool_]:
        """Which of n rows explore: independent coins of probability ε. (n,) bool."""
        coins: npt.NDArray[np.bool_] = np.random.random_sample(n) < self.exploration_rate
        return coins

    def _explore(self, mask: th.Tensor) -> npt.NDArray[np.int64]:
        """Random actions (N,) for masks (N, K)."""
        return legal_sample(mask.cpu().numpy())

    def _exploit(self, q: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """Actions (N,) of rows that do not explore, for Q (N, K) and masks (N, K)."""
        return legal_argmax(q, mask)

    def _next_values(self, observations: TensorDict, mask: th.Tensor) -> th.Tensor:
        """Values (B,) of next states under their masks (B, K); terminal ones arbitrary."""
        slow = self.q_net_target(observations)  # (B, K)
        if not self.double_q:
            return objectives.double_value(slow, slow, mask)
        self.policy.set_training_mode(False)  # neither dropout nor batch statistics in a target
        chooser = self.q_net(observations)
        self.policy.set_training_mode(True)
        return objectives.double_value(chooser, slow, mask)

    @th.no_grad()
    def _targets(self, batch: Any) -> th.Tensor:
        """TD targets (B, 1) of a replay batch. Raises InputError: a non-terminal next state without a legal action."""
        discounts = self.gamma if batch.discounts is None else batch.discounts
        mask = batch.next_observations[self.mask_key].bool()  # (B, K)
        if bool((~mask.any(-1, keepdim=True) & (batch.dones == 0)).any()):
            raise InputError(
                "a next state that is not terminal has no legal action; an episode that runs out of actions must end "
                "as terminated, and a truncated one must hand over its last observation with that state's mask"
            )
        values = self._next_values(batch.next_observations, mask)[:, None]
        return objectives.bootstrap(batch.rewards, discounts * (1 - batch.dones), values)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Gradient steps of the Huber loss on replayed transitions; `DQN.train` with masked targets."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        losses = []
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            targets = self._targets(batch)  # (B, 1)
            current = self.q_net(batch.observations).gather(1, batch.actions.long())  # (B, 1)
            loss = F.smooth_l1_loss(current, targets)
            losses.append(loss.item())
            self.policy.optimizer.zero_grad()
            th.autograd.backward(loss)
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", np.mean(losses))

    def learn(
        self: Self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """`DQN.learn`; the TensorBoard run is named after the class unless told otherwise."""
        name = tb_log_name or type(self).__name__
        super().learn(total_timesteps, callback, log_interval, name, reset_num_timesteps, progress_bar)
        return self


class SoftDQN(MaskableDQN):
    """DQN for the entropy-regularised return: the soft target, and a Boltzmann behaviour.

        y = r + γ(1 − done) · V̄(s'),   V̄(s') = α · log Σ_{a' : mask'(a')} exp(Q̄(s', a') / α)
        behaviour: π(a|s) ∝ exp(Q(s, a) / α) on the legal actions

    The ε coins are there but come up heads with probability 0 unless `exploration_initial_eps` and
    `exploration_final_eps` say otherwise; the warm-up stays uniform. `predict(deterministic=True)` is the argmax.
    As α → 0 it becomes `MaskableDQN`.

    Source: equation (3) of the design; Haarnoja et al. (2017), arXiv:1702.08165, equations 3 and 8.
    Args:
        alpha: temperature > 0, in units of reward.
        Others as `MaskableDQN`, without `double_q`.
    Raises: InputError: alpha ≤ 0, double_q, and as `MaskableDQN`; from `train`, n-step replay: rewards without the
        entropy of the steps between are not a soft return.
    """

    def __init__(
        self,
        policy: str | type[Any],
        env: Any,
        *args: Any,
        alpha: float = 1.0,
        exploration_initial_eps: float = 0.0,
        exploration_final_eps: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.alpha = alpha
        kwargs["exploration_initial_eps"] = exploration_initial_eps
        kwargs["exploration_final_eps"] = exploration_final_eps
        super().__init__(policy, env, *args, **kwargs)

    def _setup_model(self) -> None:
        if not 0 < self.alpha < np.inf:
            raise InputError(f"alpha is {self.alpha}; it must be positive and finite (for the hard limit: MaskableDQN)")
        if self.double_q:
            raise InputError("double_q is for MaskableDQN; a soft value is over all actions and chooses none")
        super()._setup_model()

    def _exploit(self, q: th.Tensor, mask: th.Tensor) -> th.Tensor:
        """One draw from softmax(Q/α) on the legal actions, as the argmax of Q/α plus Gumbel noise."""
        gumbel = -th.empty_like(q, dtype=th.float32).exponential_().log()
        return legal_argmax(q.float() / self.alpha + gumbel, mask)

    def _next_values(self, observations: TensorDict, mask: th.Tensor) -> th.Tensor:
        some = mask | ~mask.any(-1, keepdim=True)  # a terminal state's value is not used; it only has to exist
        return objectives.soft_value(self.q_net_target(observations), some, self.alpha)

    def _targets(self, batch: Any) -> th.Tensor:
        if batch.discounts is not None:
            raise InputError("the replay buffer returns n-step returns; the soft target is one step (n_steps=1)")
        return super()._targets(batch)
