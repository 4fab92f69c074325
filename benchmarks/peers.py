"""Plain torch formulations of each op: what a researcher would write. The fastest of a group is "best torch"."""

import math

import torch
from torch import Tensor


def _energy(r: Tensor) -> Tensor:
    """[B,K,Nr,T] -> [B]; norms of the blocks first, which neither stores the squares nor adds millions in a row."""
    return torch.linalg.vector_norm(torch.view_as_real(r).flatten(2), dim=2).square().sum(1)


def score_matmul(y: Tensor, h: Tensor, x: Tensor):
    """Batched matmul, users summed."""
    r = y - apply_matmul(h, x)
    r1 = r.unsqueeze(1)
    return r1 @ x.mH, h.mH @ r1, _energy(r)


def score_baddbmm(y: Tensor, h: Tensor, x: Tensor):
    """One user: fused subtract-product, then two bmm."""
    b, k, nr, t = y.shape
    h3, x3 = h.reshape(b * k, nr, -1), x.reshape(b * k, -1, t)
    r = torch.baddbmm(y.reshape(b * k, nr, t), h3, x3, alpha=-1)
    gh, gx = torch.bmm(r, x3.mH), torch.bmm(h3.mH, r)
    return gh.reshape(h.shape), gx.reshape(x.shape), _energy(r.reshape(y.shape))


def score_einsum(y: Tensor, h: Tensor, x: Tensor):
    """torch.einsum throughout."""
    r = y - torch.einsum("bukrm,bukmt->bkrt", h, x)
    gh = torch.einsum("bkrt,bukmt->bukrm", r, x.conj())
    return gh, torch.einsum("bukrm,bkrt->bukmt", h.conj(), r), _energy(r)


def score_broadcast(y: Tensor, h: Tensor, x: Tensor):
    """Broadcast and sum: no matrix product at all; strong for one antenna."""
    hb, xb = h.unsqueeze(-1), x.unsqueeze(-3)  # [B,U,K,Nr,Nt,1] * [B,U,K,1,Nt,T]
    if h.shape[1] == 1 and h.shape[-1] == 1:
        r = torch.addcmul(y, h[:, 0], x[:, 0], value=-1)
        gh = (r * x[:, 0].conj()).sum(-1, keepdim=True).unsqueeze(1)
        return gh, (h[:, 0].conj() * r).sum(-2, keepdim=True).unsqueeze(1), _energy(r)
    r = y - (hb * xb).sum((1, 4))
    r6 = r[:, None, :, :, None]
    return (r6 * xb.conj()).sum(-1), (hb.conj() * r6).sum(3), _energy(r)


def apply_matmul(h: Tensor, x: Tensor):
    return h[:, 0] @ x[:, 0] if h.shape[1] == 1 else (h @ x).sum(1)


def apply_einsum(h: Tensor, x: Tensor):
    return torch.einsum("bukrm,bukmt->bkrt", h, x)


def apply_broadcast(h: Tensor, x: Tensor):
    """One pass and nothing to sum where one user has one antenna."""
    if h.shape[1] == 1 and h.shape[-1] == 1:
        return h[:, 0] * x[:, 0]
    return (h.unsqueeze(-1) * x.unsqueeze(-3)).sum((1, 4))


def adjoint_matmul(h: Tensor, y: Tensor):
    return (h[:, 0].mH @ y).unsqueeze(1) if h.shape[1] == 1 else h.mH @ y.unsqueeze(1)


def adjoint_einsum(h: Tensor, y: Tensor):
    return torch.einsum("bukrm,bkrt->bukmt", h.conj(), y)


def adjoint_broadcast(h: Tensor, y: Tensor):
    return (h.conj().unsqueeze(-1) * y[:, None, :, :, None]).sum(3)


def update_eager(mean, anchor, sample, denoised, score, sigma, above, zeta, score_var):
    """Elementwise eager code with torch's generator."""
    delta = above**2 - sigma**2
    pull = (anchor - sample) + (delta / sigma**2) * (denoised - sample) + score * (delta / score_var)
    new_mean = mean + zeta * pull
    lam = sigma**2 * delta / above**2
    return new_mean, new_mean + math.sqrt(lam) * torch.randn_like(new_mean)


def update_addcmul(mean, anchor, sample, denoised, score, sigma, above, zeta, score_var):
    """The same with fewer passes: add with alpha folds every factor."""
    delta = above**2 - sigma**2
    rho = delta / sigma**2
    new_mean = torch.add(mean, anchor, alpha=zeta)
    new_mean.add_(sample, alpha=-zeta * (1 + rho)).add_(denoised, alpha=zeta * rho).add_(
        score, alpha=zeta * delta / score_var
    )
    lam = sigma**2 * delta / above**2
    return new_mean, torch.add(new_mean, torch.randn_like(new_mean), alpha=math.sqrt(lam))


def update_normal(mean, anchor, sample, denoised, score, sigma, above, zeta, score_var):
    """The same on real views, the draw scaled as it is made."""
    state = (mean, anchor, sample, denoised, score)
    m, a, x, d, g = (torch.view_as_real(t) if t.is_complex() else t for t in state)
    delta = above**2 - sigma**2
    rho = delta / sigma**2
    new = torch.add(m, a, alpha=zeta).add_(x, alpha=-zeta * (1 + rho)).add_(d, alpha=zeta * rho)
    new.add_(g, alpha=zeta * delta / score_var)
    deviation = sigma / above * math.sqrt(delta * (0.5 if mean.is_complex() else 1))
    drawn = torch.empty_like(new).normal_(0, deviation).add_(new)
    return (torch.view_as_complex(new), torch.view_as_complex(drawn)) if mean.is_complex() else (new, drawn)


def normalise_norm(z: Tensor, power: float):
    norm = torch.linalg.vector_norm(z, dim=(-3, -2, -1), keepdim=True)
    return z * (math.sqrt(power * z[0].numel()) / norm), norm.flatten()


def normalise_square(z: Tensor, power: float):
    norm = torch.view_as_real(z).square().sum((1, 2, 3, 4), keepdim=True).sqrt()
    return z * (math.sqrt(power * z[0].numel()) / norm[..., 0]), norm.flatten()


def calibrate_eager(noise_var, var_h, probe_x, probe_y, x_energy, nr, count):
    return noise_var + ((nr * var_h * (x_energy + probe_x)).sum(1) + probe_y) / count


def regularised(h: Tensor, alpha: float) -> Tensor:
    """h h^H + alpha I."""
    gram = h @ h.mH
    gram.diagonal(dim1=-2, dim2=-1).add_(alpha)
    return gram


def _columns(s: Tensor, h: Tensor) -> Tensor:
    """Symbols [N,K] or samples [N,T,K] of channels [N,K,M] as columns."""
    return s.unsqueeze(-1) if s.ndim == h.ndim - 1 else s.mT


def _precoded(h: Tensor, u: Tensor, s: Tensor) -> Tensor:
    """h^H u as (u^H h)^H: one vector is conjugated instead of a channel."""
    return (u.mH @ h).mH.squeeze(-1) if s.ndim == 2 else (h.mH @ u).mT


def rzf_solve(h: Tensor, s: Tensor, alpha: float):
    return _precoded(h, torch.linalg.solve(regularised(h, alpha), _columns(s, h)), s)


def rzf_cholesky(h: Tensor, s: Tensor, alpha: float):
    factor, _ = torch.linalg.cholesky_ex(regularised(h, alpha))
    return _precoded(h, torch.cholesky_solve(_columns(s, h), factor), s)


def rzf_inverse(h: Tensor, s: Tensor, alpha: float):
    inverse, _ = torch.linalg.inv_ex(regularised(h, alpha))
    return _precoded(h, inverse @ _columns(s, h), s)


def rzf_eliminate(h: Tensor, s: Tensor, alpha: float):
    """Elimination without pivots, one elementwise pass over all channels for each row, the batch in the last place."""
    rest = torch.cat([regularised(h, alpha), _columns(s, h)], -1).permute(1, 2, 0).contiguous()
    rows = []
    for _ in range(h.shape[1]):
        rows.append(rest[0, 1:] / rest[0, :1])
        rest = torch.addcmul(rest[1:, 1:], rest[1:, :1], rows[-1], value=-1)
    solved: list[Tensor] = []  # from the last unknown to the first
    for row in reversed(rows):
        value = row[len(solved) :]
        for i, later in enumerate(reversed(solved)):
            value = torch.addcmul(value, row[i], later, value=-1)
        solved.append(value)
    return _precoded(h, torch.stack(solved[::-1]).permute(2, 0, 1), s)


def rzf_gradients(forward):
    """Forward and backward in h, s and alpha of one of the above (their in-place diagonal is out of autograd's way)."""

    def run(h: Tensor, s: Tensor, alpha: Tensor, g: Tensor):
        x = forward(h, s, alpha)
        return torch.autograd.grad(x, (h, s, alpha), g)

    return run


def _is_shared(matrix: Tensor) -> bool:
    """Is it [...,1,m,n], one matrix for the vectors [...,T,n] beside it?"""
    return matrix.ndim > 3 and matrix.shape[-3] == 1


def _filtered(gain: Tensor, y: Tensor) -> Tensor:
    """gain y; vectors [...,T,Nr] of one filter [...,1,Nt,Nr] are the rows of a matrix product."""
    if _is_shared(gain):
        return y @ gain.squeeze(-3).mT
    return (gain @ y.unsqueeze(-1)).squeeze(-1)


def equalise_solve(y: Tensor, h: Tensor, noise_var: float):
    gram = h.mH @ h
    gain = torch.linalg.solve(gram + noise_var * torch.eye(h.shape[-1], dtype=h.dtype, device=h.device), h.mH)
    diagonal = (gain @ h).diagonal(dim1=-2, dim2=-1).real
    return _filtered(gain, y) / diagonal, 1 / diagonal - 1


def equalise_cholesky(y: Tensor, h: Tensor, noise_var: float):
    gram = h.mH @ h
    gram.diagonal(dim1=-2, dim2=-1).add_(noise_var)
    factor, _ = torch.linalg.cholesky_ex(gram)
    gain = torch.cholesky_solve(h.mH, factor)
    diagonal = (gain @ h).diagonal(dim1=-2, dim2=-1).real
    return _filtered(gain, y) / diagonal, 1 / diagonal - 1


def equalise_inverse(y: Tensor, h: Tensor, noise_var: float):
    """diag(G h) = 1 - noise_var diag(A^-1): no product with the channel but h^H y."""
    gram = h.mH @ h
    gram.diagonal(dim1=-2, dim2=-1).add_(noise_var)
    inverse, _ = torch.linalg.inv_ex(gram)
    diagonal = 1 - noise_var * inverse.diagonal(dim1=-2, dim2=-1).real
    if _is_shared(h):
        return _filtered(inverse @ h.mH, y) / diagonal, 1 / diagonal - 1
    matched = (y.unsqueeze(-2).conj() @ h).mH
    return (inverse @ matched).squeeze(-1) / diagonal, 1 / diagonal - 1


def channel_solve(y: Tensor, pilots: Tensor, noise_var: float):
    gram = pilots @ pilots.mH
    gram.diagonal(dim1=-2, dim2=-1).add_(noise_var)
    return torch.linalg.solve(gram, pilots @ y.mH).mH


def _phases(delays: Tensor, frequencies: Tensor) -> Tensor:
    angle = delays.unsqueeze(-1) * (-2 * torch.pi * frequencies)
    return torch.polar(torch.ones_like(angle), angle)


def ofdm_einsum(gains: Tensor, delays: Tensor, frequencies: Tensor):
    return torch.einsum("bkmp,bkpf->bfkm", gains, _phases(delays.squeeze(2), frequencies)).contiguous()


def ofdm_matmul(gains: Tensor, delays: Tensor, frequencies: Tensor):
    return (gains @ _phases(delays.squeeze(2), frequencies)).permute(0, 3, 1, 2).contiguous()


def waterfill_equalise_eager(y: Tensor, h: Tensor, noise_var: float):
    gain, sigma2 = h.abs(), noise_var / 2
    power = gain.square().add_(sigma2)
    z = y * h.conj() / (gain * power.sqrt())
    return torch.cat([z.real, z.imag], -1), sigma2 / power


def _halves(t: Tensor) -> Tensor:
    return t.unflatten(-1, (2, -1))


def inject_where(f: Tensor, d: Tensor, beta: float):
    """All the algebra per symbol, a full draw as torch makes it."""
    rest = (1 - d).reciprocal_()
    keep, add = (rest * (1 - beta)).sqrt_().unsqueeze(-2), ((beta - d) * rest).clamp_(min=0).sqrt_().unsqueeze(-2)
    halves = _halves(f)
    return torch.where(
        (d >= beta).unsqueeze(-2), halves, torch.addcmul(halves * keep, add, torch.randn_like(halves))
    ).flatten(-2)


def _fill_waiting(out: Tensor, f: Tensor, d: Tensor, beta: float) -> Tensor:
    """Top up the waiting elements of `out` in place: their indices, and no more normals than they need."""
    at = (d.reshape(-1) < beta).nonzero().squeeze(1)
    level = d.reshape(-1)[at]
    rest = (1 - level).reciprocal_()
    keep, add = (rest * (1 - beta)).sqrt_(), ((beta - level) * rest).sqrt_()
    symbols = d.shape[-1]
    first = at + at.div(symbols, rounding_mode="floor") * symbols
    for place in (first, first + symbols):
        drawn = torch.addcmul(f.reshape(-1).take(place) * keep, add, torch.randn_like(level))
        out.view(-1).index_copy_(0, place, drawn)
    return out


def inject_masked(f: Tensor, d: Tensor, beta: float):
    """Only the waiting elements are touched; strong when few wait."""
    return _fill_waiting(f.clone(), f, d, beta)


def guided_lerp(x0: Tensor, x0_uncond: Tensor | None, w: float) -> Tensor:
    return x0 if x0_uncond is None else torch.lerp(x0_uncond, x0, w)


def waterfill_where(g, x0, f, d, beta_t: float, beta_s: float, x0_uncond=None, w: float = 1.0):
    """Update everything, inject everywhere, then choose."""
    a = math.sqrt(beta_s / beta_t)
    b = math.sqrt(1 - beta_s) - a * math.sqrt(1 - beta_t)
    moved = torch.add(g * a, guided_lerp(x0, x0_uncond, w).to(g.dtype), alpha=b)
    active = (d >= beta_s).unsqueeze(-2)
    rest = (1 - d).reciprocal_()
    keep, add = (rest * (1 - beta_s)).sqrt_().unsqueeze(-2), ((beta_s - d) * rest).clamp_(min=0).sqrt_().unsqueeze(-2)
    halves = _halves(f)
    drawn = torch.addcmul(halves * keep, add, torch.randn_like(halves))
    return torch.where(active, _halves(moved), drawn).flatten(-2)


def waterfill_masked(g, x0, f, d, beta_t: float, beta_s: float, x0_uncond=None, w: float = 1.0):
    """Update everything, then top up only the waiting elements."""
    return _fill_waiting(waterfill_slow(g, x0, f, d, beta_t, beta_s, x0_uncond, w), f, d, beta_s)


def waterfill_slow(g, x0, f, d, beta_t: float, beta_s: float, x0_uncond=None, w: float = 1.0):
    """Slow fading: no element waits, two elementwise passes."""
    a = math.sqrt(beta_s / beta_t)
    b = math.sqrt(1 - beta_s) - a * math.sqrt(1 - beta_t)
    return torch.add(g * a, guided_lerp(x0, x0_uncond, w).to(g.dtype), alpha=b)


def waterfill_authors(f, g, d, x0, beta_t: float, beta_s: float):
    """Own base, amplitude top-up, unit RMS."""
    halves = _halves(f)
    own = d.clamp(max=beta_t).unsqueeze(-2)
    a = (beta_s / own).sqrt_()
    b = math.sqrt(1 - beta_s) - a * (1 - own).sqrt_()
    state = torch.where(own >= beta_s, torch.addcmul(halves * a, _halves(x0), b), halves)
    own = d.clamp(max=beta_s).unsqueeze(-2)
    keep = ((1 - beta_s) / (1 - own)).sqrt_()
    add = math.sqrt(beta_s) - keep * own.sqrt()
    new = torch.addcmul(state * keep, add, torch.randn_like(state)).flatten(-2)
    return state.flatten(-2), new / new.square().mean(-1, keepdim=True).sqrt_()


def posterior_matmul(h, eps, weights, yv, u, s, v, *, noise_var, alpha_bar, beta, lam, lik):
    """The step in the pilots' basis, as two matrix products and elementwise torch in the state's dtype."""
    mixed = (weights[..., None, None] * eps).sum(1)
    residual = (h if lik == "dmps" else h - (1 - alpha_bar) ** 0.5 * mixed) / alpha_bar**0.5
    gain = s / (noise_var + (1 - alpha_bar) / alpha_bar * s**2)
    score = ((yv - residual @ (u * s)) * gain) @ u.mH / alpha_bar**0.5
    return (h - beta / (1 - alpha_bar) ** 0.5 * mixed + lam * beta * score) / (1 - beta) ** 0.5


def posterior_inverse(h, eps, weights, yv, u, s, v, *, noise_var, alpha_bar, beta, lam, lik):
    """The step as the papers write it: P and Y themselves, and the inverse of an Np x Np matrix in every step."""
    pilots, y = (u * s) @ v.mH, yv @ v.mH
    mixed = (weights[..., None, None] * eps).sum(1)
    residual = (h if lik == "dmps" else h - (1 - alpha_bar) ** 0.5 * mixed) / alpha_bar**0.5
    gram = noise_var * torch.eye(pilots.shape[1], device=h.device) + (1 - alpha_bar) / alpha_bar * pilots.mH @ pilots
    score = (y - residual @ pilots) @ (torch.linalg.inv(gram) @ pilots.mH) / alpha_bar**0.5
    return (h - beta / (1 - alpha_bar) ** 0.5 * mixed + lam * beta * score) / (1 - beta) ** 0.5


def renoise_randn(h: Tensor, alpha_bar: Tensor):
    """torch's own normals, stored."""
    bar = alpha_bar.to(h.device, torch.float32)[:, None, None]
    return bar.sqrt() * h.unsqueeze(1) + (1 - bar).sqrt() * torch.randn(
        (h.shape[0], bar.shape[0], *h.shape[1:]), dtype=h.dtype, device=h.device
    )


def elbo_randn(eps, h, yv, u, s, v, alpha_bar: Tensor, w: Tensor, noise_var: float):
    """As much noise drawn as is needed, then the two energies; the first step is tau."""
    bar = float(alpha_bar[0])
    noise = torch.randn((*eps.shape[:2], *h.shape[1:]), dtype=h.dtype, device=h.device)
    miss = noise.unsqueeze(2) - eps
    bound = -torch.einsum("bse,s->be", torch.view_as_real(miss).square().sum((3, 4, 5)), w.to(h.device, torch.float32))
    residual = yv.unsqueeze(1) - (h.unsqueeze(1) + ((1 - bar) / bar) ** 0.5 * miss[:, 0]) @ (u * s)
    return bound, -torch.view_as_real(residual).square().sum((2, 3, 4)) / noise_var


def responsibilities_softmax(evidence: Tensor, data: Tensor):
    """Softmax with two digamma calls, in the input's dtype."""
    gamma = torch.ones_like(evidence)
    score = evidence + torch.digamma(gamma) - torch.digamma(gamma.sum(1, keepdim=True)) + data
    rho = torch.softmax(score, 1)
    return rho, gamma + rho


def _steering(turns: Tensor, n: int) -> Tensor:
    """exp(j 2 pi turns (i - (n-1)/2)), [B,R] -> [B,R,n]."""
    phase = turns.unsqueeze(-1) * (2 * math.pi * (torch.arange(n, device=turns.device) - (n - 1) / 2))
    return torch.polar(torch.ones_like(phase), phase)


def cdl_matmul(gains: Tensor, rx: Tensor, tx: Tensor, nr: int, nt: int):
    """One batched product of steering matrices, the gains folded into the smaller."""
    return (_steering(rx, nr) * gains.unsqueeze(-1)).mT @ _steering(tx, nt)


def cdl_einsum(gains: Tensor, rx: Tensor, tx: Tensor, nr: int, nt: int):
    return torch.einsum("br,bri,brj->bij", gains, _steering(rx, nr), _steering(tx, nt))


def cdl_powers(gains: Tensor, rx: Tensor, tx: Tensor, nr: int, nt: int):
    """Steering matrices by running products of one phasor per ray instead of a sine and cosine per entry."""
    sides = []
    for turns, n in ((rx, nr), (tx, nt)):
        step = torch.polar(torch.ones_like(turns), 2 * math.pi * turns).unsqueeze(-1).expand(*turns.shape, n).clone()
        step[..., 0] = torch.polar(torch.ones_like(turns), -math.pi * (n - 1) * turns)
        sides.append(step.cumprod(-1))
    return (sides[0] * gains.unsqueeze(-1)).mT @ sides[1]


def cdl_draw(tables, batch: int, nr: int, nt: int):
    """A draw with torch's generator: random phases, offsets coupled by sorting, then the best of the products above.

    tables: amplitude and delay phasor per cluster [C], ray angles (AoD, AoA, ZoD, ZoA) [4,C,20].
    """
    factors, angles = tables
    clusters = factors.shape[0]
    order = torch.rand(4, batch, clusters, 20).argsort(-1)
    aod, aoa, zod, zoa = angles.unsqueeze(1).expand(4, batch, clusters, 20).gather(-1, order).flatten(2)
    phase = torch.rand(batch, clusters, 20) * (2 * math.pi)
    gains = (torch.polar(torch.ones_like(phase), phase) * factors.unsqueeze(-1)).flatten(1)
    rx, tx = (0.5 * zenith.sin() * azimuth.sin() for azimuth, zenith in ((aoa, zoa), (aod, zod)))
    return cdl_matmul(gains, rx, tx, nr, nt)
