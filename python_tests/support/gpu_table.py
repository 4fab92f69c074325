"""What the checks of every registered op on a device need to know of its samples (op_samples.py).

A new op needs one line here; a test of ordinary CI fails without it.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """One op. Argument and output numbers count from 0, in the order of the op's schema."""

    rows: dict[int, int] = field(default_factory=dict)  # arguments with a batch axis 0 -> rows of one item
    out: tuple[int, ...] = (1,)  # rows of one item in each output, 0 = no batch axis
    sample: int = 0  # the sample whose arguments are split, emptied, spoilt and enlarged
    item: int | None = None  # the argument first_item
    draws: bool = False  # normals are drawn inside: 2e-6 absolute beside the roundings
    growth: float = 32  # error of an output entry, in unit roundoffs of the largest entry
    constant: tuple[int, ...] = ()  # arguments that carry no gradient
    counts: tuple[int, ...] = ()  # integer arguments in proportion to the batch
    spoilt: tuple[int, ...] | None = None  # arguments a NaN is put into (default: those of `rows`)
    graded: int | None = None  # outputs that carry a gradient, from the first (default: all)
    waits: bool = False  # the derivative of a derivative, in torch's own solvers: they check, and so wait
    numerical: bool = True  # whether gradcheck may move the sample's operands (no edge of a domain, no fixed results)


def _rows(*arguments: int, per: int = 1) -> dict[int, int]:
    return dict.fromkeys(arguments, per)


TABLE: dict[str, Entry] = {
    "mimo_matmul": Entry(_rows(0, 1), sample=4),
    "blockdiag_apply": Entry(_rows(0, 1)),
    "blockdiag_adjoint": Entry(_rows(0, 1)),
    "likelihood_score": Entry(_rows(0, 1, 2, 4), (1,) * 5, sample=2),
    "power_normalise": Entry(_rows(0), (1, 1)),
    "power_normalise_vjp": Entry(_rows(0, 1, 2)),
    "pvd_update": Entry(_rows(*range(5)), (1, 1), sample=2, item=14, draws=True),
    "pvd_calibrate": Entry(_rows(0, 1, 2, 3), spoilt=(1, 2, 3)),
    "pvd_channel_step": Entry(_rows(0, 2, 3, 4, 12), (1,) * 6, sample=1, item=16, draws=True, spoilt=(0, 2, 3, 4)),
    "philox_normal": Entry(_rows(0), item=4, draws=True),
    "rzf_precode": Entry({0: 2, 1: 2, 2: 1}, (2, 0, 2), growth=512, spoilt=(0, 1), graded=1),
    "rzf_precode_vjp": Entry(
        {0: 2, 1: 2, 2: 1, 3: 2, 4: 2, 5: 2},
        (2, 2, 2),
        growth=512,
        counts=(11,),
        spoilt=(0, 1, 5),
        numerical=False,
        waits=True,
    ),
    "lmmse_equalise": Entry({0: 2, 1: 2, 2: 1}, (2, 2, 0), growth=512, spoilt=(0, 1)),
    "cir_to_ofdm": Entry(_rows(0, 1), growth=512, constant=(2,)),
    "cdl_channels": Entry(_rows(0, 1, 2), growth=512),
    "waterfill_equalise": Entry(_rows(0, 1, 2), (1, 1)),
    "waterfill_inject": Entry(_rows(0, 1), item=6, draws=True, numerical=False),
    "waterfill_step": Entry(_rows(0, 1, 2, 3, 4, 5, 9, 10), item=13, draws=True, sample=1, spoilt=(0, 1)),
    "waterfill_step_authors": Entry(_rows(0, 1, 2, 3), (1, 1), item=12, draws=True, spoilt=(0, 3), numerical=False),
    "pilot_posterior_step": Entry(_rows(0, 1, 2, 3), growth=512, constant=tuple(range(4, 10))),
    "renoise": Entry(_rows(0), item=4, draws=True, constant=(2,)),
    "elbo_reduce": Entry(
        _rows(0, 1, 5), (1, 1), item=11, draws=True, growth=512, constant=(3, 4, 6, 7, 8), spoilt=(0, 1)
    ),
    "dirichlet_responsibilities": Entry(_rows(0, 1, 2, 3), (1, 1), growth=512, spoilt=(0,)),
}
