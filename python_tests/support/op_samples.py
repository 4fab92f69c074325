"""Positional arguments of every registered op, for tests that treat all ops alike."""

import torch
import vb_calls
import waterfill_calls
from sf_testing import draw
from torch import Tensor

import semcom_fast as sf

OPS = torch.ops.semcom_fast


def _scalar(v: float) -> Tensor:
    return torch.tensor(v, dtype=torch.float64)


def packet_samples(dtype: torch.dtype) -> dict[str, list[tuple]]:
    """By op: its argument tuples, with and without each optional operand; `dtype` is complex."""
    real = dtype.to_real()
    y, h, x = (
        draw(2, 3, 4, 5, seed=1, dtype=dtype),
        draw(2, 2, 3, 4, 2, seed=2, dtype=dtype),
        draw(2, 2, 3, 2, 5, seed=3, dtype=dtype),
    )
    one = h[:1].contiguous()
    s = [draw(2, 3, 4, seed=i, dtype=dtype) for i in range(6)]
    many = [s[0], s[1], *(draw(2, 2, 3, 4, seed=i, dtype=dtype) for i in range(2, 6))]
    levels = [_scalar(v) for v in (0.5, 0.7, 0.1, 0.9)]
    seed, step = torch.tensor(3), torch.tensor(4)
    var = draw(2, 2, seed=9, dtype=real).abs()
    z, norm = x, torch.linalg.vector_norm(x, dim=(-3, -2, -1))
    square, tall = draw(6, 3, 3, seed=10, dtype=dtype), draw(6, 4, 2, seed=11, dtype=dtype)
    streams, rows = draw(6, 3, 2, seed=12, dtype=dtype), draw(6, 5, 4, seed=13, dtype=dtype)
    alpha = torch.rand(3, dtype=real) + 0.5
    # operands, then rows, M-form, mode, refuse zero, power (0: none), groups (and want_info, one channel)
    one_alpha = alpha[:1].clone()
    precode = [
        (square, streams, alpha, False, False, 1, False, 0.0, 1, True, False),
        (square[:1].clone(), streams, one_alpha, False, False, 1, False, 2.0, 3, False, False),
        (square, None, alpha, False, False, 1, False, 0.0, 1, False, False),
        (tall[:1].clone(), rows, one_alpha, True, True, 1, True, 0.0, 1, True, True),
        (tall, rows, alpha, True, True, 1, True, 3.0, 6, True, False),
    ]
    adjoint = []
    for args in precode[-1:]:  # streams as rows, M-form, power: every branch of the adjoint
        x_of, norm_of, _ = OPS.rzf_precode(*args)
        adjoint.append(
            (*args[:3], x_of, norm_of, draw(*x_of.shape, seed=14, dtype=dtype), *args[3:9], True, args[1] is not None)
        )
    a, b = draw(2, 3, 4, 5, seed=21, dtype=dtype), draw(2, 3, 5, 17, seed=22, dtype=dtype)
    return {
        "mimo_matmul": [
            (a[:, 0].clone(), b[:, 0].clone(), False, False),
            (a, b.mH.resolve_conj().contiguous(), False, True),
            (a.mH.resolve_conj().contiguous(), b[0, 0].clone(), True, False),
            (draw(3, 1, 130, seed=23, dtype=dtype), draw(3, 130, 2, seed=24, dtype=dtype), False, False),
            # ours in any batch and layout, on CPUs and GPUs
            (draw(3, 12, 11, seed=25, dtype=dtype), draw(3, 12, 13, seed=26, dtype=dtype), True, False),
        ],
        "blockdiag_apply": [(h, x), (one, x)],
        "blockdiag_adjoint": [(h, y), (one, y)],
        "likelihood_score": [
            (y, h, x, None, None),
            (y, h, x, torch.rand(2, dtype=real) + 0.5, None),
            (y, h, x, None, x + 1),
            (y, one, x, torch.rand(1, dtype=real) + 0.5, x + 1),
        ],
        "power_normalise": [(x, 1.0, 3), (x.real.clone(), 0.5, 2)],
        "power_normalise_vjp": [(z, norm, x + 1, 1.0, 3)],
        "pvd_update": [
            (*s, *levels, None, None, step, 0, 0),
            (*s, *levels, _scalar(0.3), None, step, 0, 0),
            (*s[:5], None, *levels, None, seed, step, 1, 5),
            (*many, *levels, None, None, step, 0, 0),
        ],
        "pvd_calibrate": [(torch.rand(2, dtype=real) + 0.1, var, var + 1, var[:, 0].contiguous(), 3.0, 4, 12)],
        "pvd_channel_step": [
            (y, x, h, h + 1, 2 * h, x + 1, h * 1j, *levels, _scalar(0.3), var + 1, None, step, 1, 0),
            (y, x[:1].clone(), h, h + 1, 2 * h, None, None, *levels, None, _scalar(1.0), seed, step, 1, 5),
        ],
        "philox_normal": [
            ((2, 3), seed, step, 1, 5, real, torch.device("cpu")),
            ((0,), seed, step, 0, 0, dtype, torch.device("cpu")),
        ],
        "rzf_precode": precode,
        "rzf_precode_vjp": adjoint,
        "lmmse_equalise": [
            (rows[:, :1].clone(), tall, alpha, 1, False),
            (rows, tall, alpha, 1, False),
            (rows, tall[:1].clone(), one_alpha, 1, True),
        ],
        "cir_to_ofdm": [
            (streams, draw(6, 2, seed=16, dtype=real)[:, None], draw(5, seed=17, dtype=torch.float64), 1),
            (streams, draw(6, 3, 2, seed=18, dtype=real), draw(5, seed=17, dtype=torch.float64), 2),
        ],
        "cdl_channels": [(s[0][0], *(draw(3, 4, seed=i, dtype=real) for i in (19, 20)), 3, 2)],
        **waterfill_calls.samples(dtype, seed, step),
        **vb_calls.samples(dtype, seed),
    }


def public_calls(device: str) -> dict:
    """name -> (public function of several operands given by keyword, those operands on `device`)."""
    y, h, x = draw(2, 3, 4, 8), draw(2, 1, 3, 4, 2, seed=1), draw(2, 1, 3, 2, 8, seed=2)
    names = ("mean", "anchor", "sample", "denoised", "score", "noise")
    state = {name: draw(3, 2, 5, seed=i) for i, name in enumerate(names)}
    channel = {"y": y, "x": x, **{name: draw(2, 1, 3, 4, 2, seed=i) for i, name in enumerate(names[:3])}}
    var = draw(3, 2, dtype=torch.float64).abs() + 0.1
    levels = {"sigma": 0.5, "sigma_above": 0.7, "zeta": 0.1}
    square, symbols, alpha = draw(5, 3, 3), draw(5, 3, seed=1), torch.full((5,), 0.3, dtype=torch.float64)
    calls = {
        "blockdiag_apply": (sf.blockdiag_apply, {"h": h, "x": x}),
        "blockdiag_adjoint": (sf.blockdiag_adjoint, {"h": h, "y": y}),
        "likelihood_score": (sf.likelihood_score, {"y": y, "h": h, "x": x, "probe": x}),
        "pvd_update": (lambda **k: sf.pvd_update(**k, **levels), state),
        "pvd_calibrate": (
            lambda **k: sf.pvd_calibrate(0.1, **k, x_energy=3.0, nr=4, count=9),
            {"var_h": var, "probe_x": var, "probe_y": var[:, 0]},
        ),
        "pvd_channel_step": (lambda **k: sf.pvd_channel_step(**k, **levels, score_var=1.0, seed=1), channel),
        "rzf_precode": (sf.rzf_precode, {"h": square, "s": symbols, "alpha": alpha}),
        "rzf_matrix": (sf.rzf_matrix, {"h": square, "alpha": alpha}),
        "lmmse_equalise": (lambda y, h: sf.lmmse_equalise(y, h, 0.1), {"y": symbols, "h": square}),
        "lmmse_channel": (lambda y, pilots: sf.lmmse_channel(y, pilots, 0.1), {"y": y, "pilots": x[:, 0]}),
        "cir_to_ofdm": (sf.cir_to_ofdm, {"gains": symbols, "delays": symbols.real, "frequencies": var[:, 0]}),
        **waterfill_calls.calls(),
        **vb_calls.calls(),
    }
    return {n: (fn, {k: t.to(device) for k, t in given.items()}) for n, (fn, given) in calls.items() if len(given) > 1}
