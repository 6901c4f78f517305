"""The problem of the model benches as PyTorch has it: the same weights and inputs."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx
from torch.nn import functional as F

from launch import bench_torch
from launch.bench_problem import Problem
from launch.bench_torch import Told, Transformer
from tavr_jax.diffusion import schedule
from tavr_jax.encoders.published import Entry, fetch
from tavr_jax.encoders.weights_tavr import entries
from tavr_jax.rl.rollout import PolicyConfig
from tavr_jax.training.optimizer import OptimizerConfig
from tavr_jax.training.supervised import Example
from tavr_jax.types import Conditions, PyTree

Cache = list[tuple[torch.Tensor, torch.Tensor]]


def begin(threads: int) -> None:
    """All cores, and TensorFloat32 where XLA uses it: on GPUs."""
    torch.set_num_threads(threads)
    if gpu():
        torch.set_float32_matmul_precision("high")


def gpu() -> bool:
    """Whether JAX and PyTorch both have one."""
    return jax.default_backend() == "gpu" and torch.cuda.is_available()


def device() -> torch.device:
    """Where the reference runs."""
    return torch.device("cuda" if gpu() else "cpu")


def finished(result: Any) -> Any:
    """`result`, when it is there."""
    if gpu():
        torch.cuda.synchronize()
    return result


def tensor(value: jax.Array | np.ndarray) -> torch.Tensor:
    """A copy with the same bits."""
    array = np.ascontiguousarray(value)
    if array.dtype == jax.numpy.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device())
    return torch.from_numpy(array.copy()).to(device())


def array(value: torch.Tensor) -> np.ndarray:
    """As float32, for comparing."""
    return value.detach().float().cpu().numpy()


def carried(params: PyTree, table: Iterable[Entry]) -> dict[str, torch.Tensor]:
    """`params` under their published names and in the published shapes."""
    flat, found = dict(nnx.to_flat_state(params)), {}
    for e in table:
        value = fetch(flat[e.ours].get_value(), e.layer)
        if e.axes is not None:
            value = value.reshape([e.shape[axis] for axis in e.axes])
            value = value.transpose(np.argsort(e.axes))
        found[e.official] = tensor(value.reshape(e.shape))
    return found


def weights(problem: Problem, params: PyTree) -> dict[str, torch.Tensor]:
    """The transformer's."""
    return carried(params, entries(problem.network(params)))


def network(problem: Problem, params: PyTree) -> Transformer:
    """With our weights, in the dtypes that they have here."""
    with torch.device("meta"):
        model = Transformer(problem.model)
    model.load_state_dict(weights(problem, params), assign=True)
    return model


def first(latents: jax.Array) -> torch.Tensor:
    """Channels first."""
    return tensor(np.moveaxis(np.asarray(latents), -1, 1))


def told(problem: Problem, conditions: Conditions) -> Told:
    """The conditions, and where their tokens stand."""
    c, sizes = problem.model, problem.sizes
    still = torch.from_numpy(np.flatnonzero(conditions.still_tokens[0])).to(device())
    reference = np.flatnonzero(conditions.reference_tokens[0])
    reference = torch.from_numpy(reference).to(device())
    video = sizes.latents * sizes.grid[0] * sizes.grid[1]
    times = torch.arange(sizes.latents + 1, device=device())
    times[-1] = 0
    later = torch.arange(sizes.reference_latents, device=device())
    tokens = torch.cat([torch.arange(video, device=device()), video + still])
    return Told(
        still=first(conditions.still),
        still_tokens=still,
        reference=first(conditions.reference),
        reference_tokens=reference,
        text=tensor(conditions.text),
        null_text=tensor(conditions.null_text),
        audio=tensor(conditions.audio),
        reference_audio=tensor(conditions.reference_audio),
        heard=bool(conditions.has_audio[0]),
        turns=bench_torch.turns(c, times, tokens, sizes.grid),
        reference_turns=bench_torch.turns(
            c, later + c.videoref_rope_offset, reference, sizes.grid
        ),
    )


class Guided:
    """Three-way guidance; branches of scale 1 are not computed."""

    def __init__(self, model: Transformer, told: Told, scales: tuple[float, float]):
        self.model, self.told, self.scales = model, told, scales
        self.mute = told._replace(heard=False)
        self.negative = told._replace(text=told.null_text)

    def prefill(self) -> tuple[Cache, Cache | None]:
        """Of the reference with its sound, and without."""
        full = self.model.prefill(self.told)
        return full, self.model.prefill(self.mute) if self.scales[1] != 1 else None

    def velocity(self, x: torch.Tensor, t: torch.Tensor, caches) -> torch.Tensor:
        """Of scales (text, audio)."""
        (text, audio), (full, mute) = self.scales, caches
        c = v = self.model(x, t, self.told, full)
        if audio != 1:
            v = v + (audio - 1) * (c - self.model(x, t, self.mute, mute))
        if text != 1:
            v = v + (text - 1) * (c - self.model(x, t, self.negative, full))
        return v

    def members(self, group: int) -> "Guided":
        """For `group` members of every sample."""
        names = ("still", "text", "null_text", "audio")
        many = {n: getattr(self.told, n).repeat_interleave(group, 0) for n in names}
        return Guided(self.model, self.told._replace(**many), self.scales)


def block(p: Problem, params: PyTree) -> Callable:
    """bench_cases.block."""
    model, conditions = network(p, params), told(p, p.conditions)

    def inputs():
        main = model.of_main(first(p.latents), tensor(p.timestep), conditions)
        return *main, *model.prefill(conditions)[0]

    x, *context = inferred(inputs)()
    return inferred(lambda: model.blocks[0].main(x, *context))


def prefill(p: Problem, params: PyTree) -> Callable:
    """bench_cases.prefill."""
    model, conditions = network(p, params), told(p, p.conditions)
    return inferred(lambda: model.prefill(conditions))


def guided(p: Problem, params: PyTree, scales: tuple[float, float]) -> Callable:
    """bench_cases.step and guidance."""
    both = Guided(network(p, params), told(p, p.conditions), scales)
    x, t, caches = first(p.latents), tensor(p.timestep), inferred(both.prefill)()
    return inferred(lambda: both.velocity(x, t, caches).movedim(1, -1))


def gradient(p: Problem, example: Example) -> Callable:
    """bench_learning.gradient: the loss and the gradients by name."""
    model, loss = _learning(p, example)

    def run():
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        # the learned nulls are not read, so they have none
        grads = {
            name: torch.zeros_like(weight) if weight.grad is None else weight.grad
            for name, weight in model.named_parameters()
        }
        return finished((value, grads))

    return run


def train(
    p: Problem, example: Example, rates: OptimizerConfig, rate: list[float]
) -> Callable:
    """bench_learning.train: the loss and the norm of its gradient, then an update."""
    model, loss = _learning(p, example)
    matrices = bench_torch.Dense | bench_torch.Embedding
    decayed = [m.weight for m in model.modules() if isinstance(m, matrices)]
    ids = {id(weight) for weight in decayed}
    rest = [weight for weight in model.parameters() if id(weight) not in ids]
    adam = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": rates.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ],
        betas=(rates.b1, rates.b2),
        fused=True,
    )
    rate_of_step = iter(rate)

    def run():
        now = next(rate_of_step)
        adam.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        weights = list(model.parameters())
        norm = torch.nn.utils.clip_grad_norm_(weights, rates.clip_norm)
        for group in adam.param_groups:
            group["lr"] = now
        adam.step()
        return finished((value.detach(), norm))

    return run


def rollout(
    p: Problem, params: PyTree, start: Callable, policy: PolicyConfig
) -> Callable:
    """bench_learning.rollout, by the Euler ODE from the noise that `start` gives."""
    scales = (policy.text_scale, policy.audio_scale)
    one = Guided(network(p, params), told(p, p.conditions), scales)
    many = one.members(policy.group_size)
    grid = schedule.euler(policy.steps, policy.shift)
    noise = functools.cache(lambda: first(start()))

    def repeated(cache: Cache | None) -> Cache | None:
        if cache is None:
            return None
        return [
            tuple(y.repeat_interleave(policy.group_size, 0) for y in pair)
            for pair in cache
        ]

    def run():
        caches, x = tuple(map(repeated, one.prefill())), noise()
        for i, t in enumerate(grid.timesteps):
            t = torch.full((len(x),), float(t), device=x.device)
            change = float(grid.sigmas[i + 1] - grid.sigmas[i])
            x = x + change * many.velocity(x, t, caches)
        return x.movedim(1, -1)

    return inferred(run)


def inferred(run: Callable) -> Callable:
    """`run` without gradients, until its result is there."""

    def call():
        with torch.inference_mode():
            return finished(run())

    return call


def _learning(p: Problem, example: Example) -> tuple[Transformer, Callable]:
    """The network and its loss of flow matching."""
    model, conditions = network(p, p.params), told(p, p.conditions)
    clean, noise = first(example.clean), first(example.noise)
    sigma = tensor(example.sigma)

    def loss() -> torch.Tensor:
        level = sigma[:, None, None, None, None]
        x, cache = (1 - level) * clean + level * noise, model.prefill(conditions)
        v = model(x, 1000 * sigma, conditions, cache)
        return F.mse_loss(v, noise - clean)

    return model, loss
