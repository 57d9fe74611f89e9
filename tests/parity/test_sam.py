"""SAM, ASAM, LookSAM and ESAM against closed forms and against a separate computation on one flat vector.

Takes about 10 s on one core.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

from nfnet_ray.models import create_model
from nfnet_ray.optim import sam
from nfnet_ray.optim.sam import LookDirection, global_norm, perturbation, perturbed, sharpest
from nfnet_ray.recipe import SAMRecipe

RHO = 0.05
METHODS = ["sam", "asam", "looksam", "esam"]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def drawn(
    *shape: int, seed: int, dtype: torch.dtype = torch.float64, layout: str = "contiguous"
) -> torch.Tensor:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return tensor.contiguous(memory_format=LAYOUTS[layout]) if len(shape) == 4 else tensor


def some_parameters(
    dtype: torch.dtype = torch.float64, layout: str = "contiguous"
) -> tuple[list[nn.Parameter], list[Tensor]]:
    """A convolution's weight, gain and bias, a skip gain, a linear layer's weight; and a gradient for each."""
    shapes = [(6, 4, 3, 3), (6,), (6,), (), (5, 6)]
    values = [drawn(*s, seed=n, dtype=dtype, layout=layout) for n, s in enumerate(shapes)]
    gradients = [drawn(*s, seed=100 + n, dtype=dtype, layout=layout) for n, s in enumerate(shapes)]
    return [nn.Parameter(value) for value in values], gradients


def flat(tensors: list[Tensor] | list[nn.Parameter]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


# The ascent step


@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_the_gradient_of_a_quadratic_is_the_closed_form(rho: float) -> None:
    """L(w) = w'Hw / 2 with w in three tensors: SAM's gradient is H (w + rho Hw / |Hw|)."""
    square = drawn(12, 12, seed=0)
    hessian = square @ square.T
    parameters = [nn.Parameter(drawn(*shape, seed=n)) for n, shape in enumerate([(2, 3), (5,), ()], start=1)]

    def loss() -> Tensor:
        w = torch.cat([parameter.reshape(-1) for parameter in parameters])
        return w @ hessian @ w / 2

    w = flat(parameters)
    ascent = torch.autograd.grad(loss(), parameters)
    with perturbed(parameters, perturbation(parameters, ascent, SAMRecipe(rho=rho), seed=0)):
        descent = torch.autograd.grad(loss(), parameters)
    expected = hessian @ (w + rho * hessian @ w / (hessian @ w).norm())
    torch.testing.assert_close(flat(list(descent)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["sam", "looksam"])
def test_one_norm_over_all_parameters(method: str) -> None:
    parameters, gradients = some_parameters()
    steps = perturbation(parameters, gradients, SAMRecipe(rho=RHO, method=method), seed=0)
    g = flat(gradients)
    torch.testing.assert_close(flat(steps), RHO * g / g.norm(), rtol=1e-14, atol=0)
    assert [step.shape for step in steps] == [parameter.shape for parameter in parameters]


@pytest.mark.parametrize("eta", [0.0, 0.01, 0.5])
def test_asam_scales_weights_by_their_size_and_leaves_gains_and_biases(eta: float) -> None:
    parameters, gradients = some_parameters()
    steps = perturbation(parameters, gradients, SAMRecipe(rho=RHO, method="asam", asam_eta=eta), seed=0)
    size = flat([p.abs() + eta if p.ndim >= 2 else torch.ones_like(p) for p in parameters])
    g = flat(gradients)
    expected = RHO * size**2 * g / (size * g).norm()
    torch.testing.assert_close(flat(steps), expected, rtol=1e-13, atol=1e-16)


def perturbed_loss(method: str, factor: float) -> float:
    """Of a ReLU network of two layers without biases, after the first is scaled up and the second down."""
    inputs, targets = drawn(16, 7, seed=1), drawn(16, 3, seed=2)
    layers = [nn.Parameter(drawn(9, 7, seed=3) * factor), nn.Parameter(drawn(3, 9, seed=4) / factor)]

    def loss() -> Tensor:
        return F.mse_loss(F.relu(inputs @ layers[0].T) @ layers[1].T, targets)

    recipe = SAMRecipe(rho=RHO, method=method, asam_eta=0.0)
    with perturbed(layers, perturbation(layers, torch.autograd.grad(loss(), layers), recipe, seed=0)):
        return float(loss().detach())


def test_asam_does_not_see_a_rescaling_that_leaves_the_network_as_it_is() -> None:
    assert perturbed_loss("asam", 5.0) == pytest.approx(perturbed_loss("asam", 1.0), rel=1e-12)
    assert perturbed_loss("sam", 5.0) != pytest.approx(perturbed_loss("sam", 1.0), rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_gradient_moves_nothing(method: str, dtype: torch.dtype) -> None:
    parameters, gradients = some_parameters(dtype)
    zeros = [torch.zeros_like(gradient) for gradient in gradients]
    steps = perturbation(parameters, zeros, SAMRecipe(rho=RHO, method=method), seed=0)
    assert all(torch.equal(step, zero) for step, zero in zip(steps, zeros, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_parameter_without_a_gradient_stays_and_the_others_do_not_care(method: str) -> None:
    parameters, gradients = some_parameters()
    recipe = SAMRecipe(rho=RHO, method=method)
    zeroed = [*gradients[:2], torch.zeros_like(gradients[2]), *gradients[3:]]
    expected = perturbation(parameters, zeroed, recipe, seed=3)
    steps = perturbation(parameters, [*gradients[:2], None, *gradients[3:]], recipe, seed=3)
    assert not steps[2].any()
    assert torch.equal(flat(steps), flat(expected))


@pytest.mark.parametrize("method", METHODS)
def test_memory_format_does_not_matter(method: str) -> None:
    recipe = SAMRecipe(rho=RHO, method=method)
    plain, last = (perturbation(*some_parameters(layout=layout), recipe, seed=1) for layout in LAYOUTS)
    assert last[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain, last, rtol=1e-14, atol=0)


def test_the_norm_of_a_large_float32_tensor_is_right() -> None:
    """torch's own is 9e-5 too small here on a CPU, and so would the step be too long."""
    tensors = [torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0)), torch.ones(3)]
    expected = torch.cat([tensor.double().reshape(-1) for tensor in tensors]).norm()
    assert global_norm(tensors).dtype == torch.float32
    assert float(global_norm(tensors)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_device_is_not_waited_for(method: str) -> None:
    """Tensors on the meta device have no values: whoever reads one to decide something fails."""
    parameters, gradients = ([t.detach().to("meta") for t in ts] for ts in some_parameters(torch.float32))
    steps = perturbation(parameters, gradients, SAMRecipe(rho=RHO, method=method), seed=0)
    with perturbed(parameters, steps):
        pass
    direction = LookDirection()
    direction.remember(gradients, steps)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    direction.add_to_gradients(parameters, alpha=0.7)
    assert sharpest(torch.empty(10, device="meta"), torch.empty(10, device="meta"), 0.25).shape == (3,)


# Perturbed weights


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_the_weights_come_back_to_the_bit(method: str, dtype: torch.dtype, layout: str) -> None:
    parameters, gradients = some_parameters(dtype, layout)
    before = copy.deepcopy(parameters)
    places = [parameter.data_ptr() for parameter in parameters]
    steps = perturbation(parameters, gradients, SAMRecipe(rho=3.0, method=method), seed=0)
    with perturbed(parameters, steps):
        for parameter, old, step in zip(parameters, before, steps, strict=True):
            assert torch.equal(parameter, old + step)
            assert parameter.stride() == old.stride()
            assert parameter.requires_grad
            assert parameter.is_leaf
    assert all(torch.equal(new, old) for new, old in zip(parameters, before, strict=True))
    assert [parameter.data_ptr() for parameter in parameters] == places


def test_the_weights_come_back_when_something_goes_wrong() -> None:
    parameters, gradients = some_parameters()
    before = copy.deepcopy(parameters)
    steps = perturbation(parameters, gradients, SAMRecipe(rho=3.0), seed=0)
    with pytest.raises(KeyboardInterrupt), perturbed(parameters, steps):
        raise KeyboardInterrupt
    assert all(torch.equal(new, old) for new, old in zip(parameters, before, strict=True))


@pytest.mark.parametrize("forward_inside", [False, True])
def test_a_backward_pass_at_other_weights_is_noticed(forward_inside: bool) -> None:
    weight, step = nn.Parameter(drawn(3, 3, seed=0)), torch.ones(3, 3)
    loss = (weight**2).sum()
    if forward_inside:
        with perturbed([weight], [step]):
            loss = (weight**2).sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    else:
        with (
            perturbed([weight], [step]),
            pytest.raises(RuntimeError, match="modified by an inplace operation"),
        ):
            loss.backward()


# ESAM


def numpy_mask(count: int, share: float, seed: int) -> np.ndarray:
    """SplitMix64 as its authors write it: a state that steps by the golden ratio, and a mixed output."""

    def mixed(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    state = mixed((seed + 0x9E3779B97F4A7C15) % 2**64)
    hashes = [mixed((state + place * 0x9E3779B97F4A7C15) % 2**64) for place in range(count)]
    # The order of int64: the upper half of the hashes are the negative numbers.
    return np.array([(h ^ 2**63) < share * 2**64 for h in hashes])


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_esam_masks_entries_by_seed_and_place_alone(seed: int) -> None:
    parameters, gradients = some_parameters()
    recipe = SAMRecipe(rho=RHO, method="esam", esam_weight_share=0.3)
    g = flat(gradients)
    mask = torch.from_numpy(numpy_mask(len(g), 0.3, seed))
    expected = mask.double() * RHO / 0.3 * g / g.norm()
    steps = flat(perturbation(parameters, gradients, recipe, seed=seed))
    torch.testing.assert_close(steps, expected, rtol=1e-14, atol=0)


def esam_step(share: float, seed: int, count: int = 40_000) -> Tensor:
    """For a gradient of ones, in float64; several chunks of the mask."""
    ones = [torch.ones(count // 100, 100, dtype=torch.float64), torch.ones(1, dtype=torch.float64)]
    recipe = SAMRecipe(rho=1.0, method="esam", esam_weight_share=share)
    return flat(perturbation(ones, ones, recipe, seed=seed))


@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
def test_esam_moves_its_share_of_the_weights(share: float) -> None:
    moved = torch.stack([esam_step(share, seed) for seed in range(20)]) > 0
    five_sigma = 5 * (share * (1 - share)) ** 0.5
    assert float(moved.double().mean()) == pytest.approx(share, abs=five_sigma / moved.numel() ** 0.5)
    # Seeds, and neighbours in one mask, are independent: products of their deviations cancel.
    deviations = moved.double() - share
    variance = share * (1 - share)
    for products in (deviations[1:] * deviations[:-1], deviations[:, 1:] * deviations[:, :-1]):
        assert abs(float(products.mean())) < 5 * variance / products.numel() ** 0.5


def test_esams_mask_does_not_depend_on_how_much_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = esam_step(0.6, seed=1)
    monkeypatch.setitem(sam._DRAWN_AT_ONCE, "cpu", 999)
    assert torch.equal(esam_step(0.6, seed=1), whole)


def test_esams_expected_step_is_sams() -> None:
    mean = torch.stack([esam_step(0.6, seed, count=400) for seed in range(2000)]).mean(dim=0)
    sam = 1 / 401**0.5
    sigma = sam * (0.4 / 0.6 / 2000) ** 0.5
    assert float((mean - sam).abs().max()) < 5 * sigma


def test_esam_with_all_weights_is_sam() -> None:
    parameters, gradients = some_parameters(torch.float32)
    sam = perturbation(parameters, gradients, SAMRecipe(rho=RHO), seed=0)
    recipe = SAMRecipe(rho=RHO, method="esam", esam_weight_share=1.0)
    esam = perturbation(parameters, gradients, recipe, seed=0)
    assert torch.equal(flat(esam), flat(sam))
    everything = sharpest(torch.zeros(5), torch.tensor([3.0, -1.0, 2.0, 2.0, 0.0]), 1.0)
    assert everything.tolist() == [0, 1, 2, 3, 4]


def test_the_sharpest_images_are_those_whose_loss_rose_most() -> None:
    before = torch.tensor([1.0, 5.0, 2.0, 0.0, 3.0, 1.0])
    after = torch.tensor([2.0, 5.5, 4.0, 1.0, 2.0, 9.0])  # rises: 1, .5, 2, 1, -1, 8
    assert sharpest(before, after, 0.5).tolist() == [0, 2, 5]  # of 0 and 3, which rose alike, the earlier
    assert sharpest(before, after, 4 / 6).tolist() == [0, 2, 3, 5]
    assert sharpest(before, after, 0.01).tolist() == [5]
    assert sharpest(before, after, 0.5).dtype == torch.int64
    assert sharpest(before[:0], after[:0], 0.5).tolist() == []


@pytest.mark.parametrize(("share", "count"), [(0.55, 55), (0.29, 29), (0.5, 50), (0.501, 51)])
def test_a_share_of_the_images_is_rounded_up_but_not_by_rounding_errors(share: float, count: int) -> None:
    assert len(sharpest(torch.zeros(100), torch.ones(100), share)) == count


# LookSAM


def with_gradients(parameters: list[nn.Parameter], gradients: list[Tensor]) -> list[nn.Parameter]:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return parameters


def test_the_kept_direction_is_orthogonal_and_added_at_the_length_of_the_equation() -> None:
    parameters, ascent = some_parameters()
    descent = [drawn(*g.shape, seed=200 + n) for n, g in enumerate(ascent)]
    kept = [gradient.clone() for gradient in ascent + descent]
    direction = LookDirection()
    direction.remember(ascent, descent)
    assert all(torch.equal(a, b) for a, b in zip(ascent + descent, kept, strict=True))  # left as they were

    now = [drawn(*g.shape, seed=300 + n) for n, g in enumerate(ascent)]
    direction.add_to_gradients(with_gradients(parameters, now), alpha=0.7)
    g, g_s, plain = flat(ascent), flat(descent), flat(now)
    g_v = g_s - g_s.norm() * (g @ g_s / (g.norm() * g_s.norm())) * g / g.norm()
    result = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    torch.testing.assert_close(result, plain + 0.7 * plain.norm() / g_v.norm() * g_v, rtol=1e-12, atol=1e-12)
    assert abs(float((result - plain) @ g)) < 1e-13 * float(plain.norm() * g.norm())


def test_the_direction_between_nearly_parallel_gradients_survives_float32() -> None:
    """An angle of 1e-3. The usual formula, in float32, is off by 100 times as much."""
    ascent, other = [drawn(300, 300, seed=1)], [drawn(300, 300, seed=2)]
    descent = [ascent[0] + 1e-3 * other[0]]
    direction = LookDirection()
    direction.remember([a.float() for a in ascent], [d.float() for d in descent])
    parameter = nn.Parameter(torch.zeros(300, 300))
    parameter.grad = torch.ones(300, 300)
    direction.add_to_gradients([parameter], alpha=1.0)
    found = (parameter.grad - 1).double().reshape(-1) / 300
    g = flat(ascent)
    expected = flat(other) - (flat(other) @ g) / (g @ g) * g
    assert float((found - expected / expected.norm()).norm()) < 1e-3
    assert abs(float(found @ g / g.norm())) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["parallel", "zero ascent", "zero descent", "both zero"])
def test_where_there_is_no_direction_nothing_is_added(case: str, dtype: torch.dtype) -> None:
    parameters, gradients = some_parameters(dtype)
    zeros = [torch.zeros_like(gradient) for gradient in gradients]
    ascent = zeros if case in ("zero ascent", "both zero") else gradients
    descent = zeros if case in ("zero descent", "both zero") else [3 * gradient for gradient in gradients]
    direction = LookDirection()
    direction.remember(ascent, descent)
    now = [torch.ones_like(gradient) for gradient in gradients]
    direction.add_to_gradients(with_gradients(parameters, now), alpha=1.0)
    result = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    added = result - flat(now)
    if case == "zero ascent":  # all of the descent gradient is orthogonal to nothing
        g_s = flat(descent)
        torch.testing.assert_close(added, flat(now).norm() * g_s / g_s.norm(), rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(added, torch.zeros_like(added))


def looked(interval: int, steps: int, resume_at: int | None = None) -> Tensor:
    """Weights after some steps on a quartic bowl, with LookSAM; possibly through a checkpoint."""
    weights = [nn.Parameter(drawn(4, 3, seed=1)), nn.Parameter(drawn(5, seed=2))]
    recipe, direction = SAMRecipe(rho=0.5, method="looksam", looksam_interval=interval), LookDirection()
    for step in range(steps):
        if step == resume_at:
            file = io.BytesIO()
            torch.save(direction.state_dict(), file)
            file.seek(0)
            direction = LookDirection()
            direction.load_state_dict(torch.load(file))
        gradients = gradient_at(weights)
        if step % interval == 0:
            with perturbed(weights, perturbation(weights, gradients, recipe, seed=step)):
                descent = gradient_at(weights)
            direction.remember(gradients, descent)
            with_gradients(weights, descent)
        else:
            direction.add_to_gradients(with_gradients(weights, gradients), recipe.looksam_alpha)
        with torch.no_grad():
            for weight in weights:
                assert weight.grad is not None
                weight -= 0.01 * weight.grad
    return flat(weights)


def gradient_at(weights: list[nn.Parameter]) -> list[Tensor]:
    loss = sum(((weight - 1) ** 4 * (1 + n)).sum() for n, weight in enumerate(weights))
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, weights))


def test_looksam_in_every_step_is_sam() -> None:
    weights = [nn.Parameter(drawn(4, 3, seed=1)), nn.Parameter(drawn(5, seed=2))]
    for _ in range(7):
        with perturbed(weights, perturbation(weights, gradient_at(weights), SAMRecipe(rho=0.5), seed=0)):
            descent = gradient_at(weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, descent, strict=True):
                weight -= 0.01 * gradient
    assert torch.equal(looked(interval=1, steps=7), flat(weights))
    assert not torch.equal(looked(interval=3, steps=7), flat(weights))


@pytest.mark.parametrize("resume_at", [4, 5, 6])
def test_looksam_resumes_from_a_checkpoint_to_the_bit(resume_at: int) -> None:
    assert torch.equal(looked(interval=3, steps=8, resume_at=resume_at), looked(interval=3, steps=8))


def test_a_direction_that_was_never_found_is_not_added() -> None:
    parameters, _ = some_parameters()
    with pytest.raises(RuntimeError, match="an ascent step comes first"):
        LookDirection().add_to_gradients(parameters, alpha=0.7)


# A whole network


def tiny_network() -> nn.Module:
    """NFNet-pico without dropout, away from its initial point, where skip gains hide most of it."""
    torch.manual_seed(0)
    model = create_model("nfnet_pico", num_classes=10, dropout=0.0, stochastic_depth=0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * torch.randn_like(parameter)
            if name.endswith("skip_gain"):
                parameter += 0.5
    return model


def images_and_labels(count: int = 10) -> tuple[Tensor, Tensor]:
    return drawn(count, 3, 32, 32, seed=1), torch.arange(count) % 10


def descent_gradient(model: nn.Module, recipe: SAMRecipe, share: float, dtype: torch.dtype) -> Tensor:
    """As the library does it, in place on the module."""
    images, labels = images_and_labels()
    images = images.to(dtype)
    first = int(share * len(labels))
    parameters = list(model.parameters())

    def gradients(count: int) -> list[Tensor]:
        loss = F.cross_entropy(model(images[:count]).to(dtype), labels[:count], label_smoothing=0.1)
        return list(torch.autograd.grad(loss, parameters))

    with perturbed(parameters, perturbation(parameters, gradients(first), recipe, seed=5)):
        return flat(gradients(len(labels)))


def flat_loss(model: nn.Module) -> tuple[Tensor, Callable[[Tensor, int], Tensor]]:
    """All parameters as one vector, and the loss of the first images as a function of it."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    images, labels = images_and_labels()

    def loss(w: Tensor, count: int) -> Tensor:
        pieces = w.split([shape.numel() for shape in shapes.values()])
        parameters = {n: p.view(s) for (n, s), p in zip(shapes.items(), pieces, strict=True)}
        logits = functional_call(model, parameters, (images[:count],))
        return F.cross_entropy(logits, labels[:count], label_smoothing=0.1)

    return flat(list(model.parameters())), loss


@pytest.mark.parametrize("share", [1.0, 0.2])
@pytest.mark.parametrize("method", ["sam", "asam"])
def test_a_networks_gradient_is_that_of_one_flat_vector(method: str, share: float) -> None:
    model = tiny_network().double()
    recipe = SAMRecipe(rho=0.3, method=method)
    found = descent_gradient(model, recipe, share, torch.float64)
    w, loss = flat_loss(model)
    g = grad(loss)(w, int(share * 10))
    if method == "asam":
        is_weight = flat([torch.full_like(p, p.ndim >= 2) for p in model.parameters()])
        size = torch.where(is_weight > 0, w.abs() + recipe.asam_eta, 1.0)
        moved = w + 0.3 * size**2 * g / (size * g).norm()
    else:
        moved = w + 0.3 * g / g.norm()
    expected = grad(loss)(moved, 10)
    assert float((found - expected).norm() / expected.norm()) < 1e-12
    # It could fail: the gradient at the weights, or with the other share, is another one.
    for other in (grad(loss)(w, 10), grad(loss)(w + 0.3 * grad(loss)(w, 7) / grad(loss)(w, 7).norm(), 10)):
        assert float((other - expected).norm() / expected.norm()) > 1e-2


@pytest.mark.parametrize("rho", [0.05, 0.3])
def test_float32_and_bfloat16_are_close_to_float64(rho: float) -> None:
    """bfloat16 is autocast over float32 weights: the step is added to weights that can hold it.

    One autocast context around both passes: with the copies of weights that it keeps, the second pass would
    see unperturbed layers, and be off by 0.2.
    """
    recipe = SAMRecipe(rho=rho)

    def gradients(model: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """At the perturbed weights, and how it differs from the one at the weights."""
        found = descent_gradient(model, recipe, 1.0, dtype).double()
        return found, found - descent_gradient(model, SAMRecipe(rho=1e-12), 1.0, dtype).double()

    exact, exact_turn = gradients(tiny_network().double(), torch.float64)
    single, _ = gradients(tiny_network(), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half, turn = gradients(tiny_network(), torch.float32)
    assert float((single - exact).norm() / exact.norm()) < 1e-5
    assert 1e-3 < float((half - exact).norm() / exact.norm()) < 0.03
    assert float(turn @ exact_turn / (turn.norm() * exact_turn.norm())) > 0.98


def test_autocast_sees_the_weights_come_back() -> None:
    layer = nn.Linear(4, 4)
    inputs = torch.ones(1, 4)
    with torch.autocast("cpu", torch.bfloat16):
        before = layer(inputs)
        with perturbed([layer.weight], [torch.ones(4, 4)]):
            assert not torch.equal(layer(inputs), before)
        assert torch.equal(layer(inputs), before)


def test_a_step_would_be_lost_in_bfloat16_weights() -> None:
    """rho = 0.05 over F0's weights is 6e-6 for each; bfloat16 resolves 1e-4 at the size that its weights have."""
    count, fan_in = 1_000_000, 1152  # some of F0's weights; inputs of one output of its grouped convolutions
    weights = [drawn(count // fan_in, fan_in, seed=0, dtype=torch.float32) / fan_in**0.5]
    gradients = [drawn(count // fan_in, fan_in, seed=1, dtype=torch.float32)]
    rho = RHO * (count / 71_489_284) ** 0.5  # of the step over all of F0, the part that falls to these
    (step,) = perturbation(weights, gradients, SAMRecipe(rho=rho), seed=0)
    assert float(step.square().mean().sqrt()) == pytest.approx(5.9e-6, rel=0.01)

    def arriving(moved: Tensor, start: Tensor) -> float:
        """How far along the step it went, of the step's length."""
        return float(((moved.float() - start.float()) * step).sum() / step.square().sum())

    weight = weights[0]
    assert arriving(weight + step, weight) == pytest.approx(1, abs=1e-4)
    # float32 weights, rounded when they are used (autocast): each tenth weight changes, by more than its step.
    assert arriving((weight + step).bfloat16(), weight.bfloat16()) == pytest.approx(1, abs=0.05)
    assert arriving(weight.bfloat16() + step.bfloat16(), weight.bfloat16()) < 0.2


@pytest.mark.parametrize("method", METHODS)
def test_parameters_may_come_from_a_network_one_by_one(method: str) -> None:
    network = nn.Linear(3, 2)
    gradients = [torch.ones_like(parameter) for parameter in network.parameters()]
    recipe = SAMRecipe(rho=0.05, method=method)
    steps = perturbation(network.parameters(), iter(gradients), recipe)
    before = network.weight.detach().clone()
    with perturbed(network.parameters(), iter(steps)):
        assert torch.equal(network.weight, before + steps[0])
    assert torch.equal(network.weight, before)
