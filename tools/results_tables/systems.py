"""What the systems reach: reception, estimation and denoising against their baselines."""

import itertools

from .source import read, table

SHOWN_GAINS = (
    "guided diffusion over codec alone",
    "guided diffusion over Wiener",
    "edge guidance",
    "estimated over known SNR",
    "fast fading over AWGN, guided",
)
PRIORS = ("rayleigh", "gaussian", "learned")
PHOTO_RECEIVERS = {
    "pvd": "PVD, one start",
    "pvd-starts": "PVD, four starts",
    "pvd-plain": "PVD, code trained for noise alone, four starts",
    "pvd-csi": "PVD, channel known",
    "bound": "linearised bound",
    "oracle": "LMMSE, codeword known",
    "lmmse-m": "LMMSE + DJSCC, M pilots",
    "lmmse-m-equal": "LMMSE + DJSCC, M pilots, equal CBR",
    "lmmse-2m": "LMMSE + DJSCC, 2M pilots",
    "lmmse-2m-equal": "LMMSE + DJSCC, 2M pilots, equal CBR",
    "langevin-m": "Langevin + DJSCC, M pilots",
    "dps-m": "DPS, M pilots",
    "dps-m-equal": "DPS, M pilots, equal CBR",
    "dps-csi": "DPS, channel known",
    "djscc-csi": "DJSCC, channel known",
}
ORACLE_VARIANTS = {"paper": "noise as in (42)", "exact": "exact covariance"}
PAPER_SNR = {"4": "20", "64": "0"}
CLASSICAL = (("jpeg", "0"), ("jpeg", "0.1"), ("webp", "0"))  # codec, variance of the channel's error


def receiver() -> list[str]:
    """The blind receiver on held-out digits at 10 and 20 dB."""
    rows = [r for r in read("pvd_digits.csv") if r["snr_db"] in ("10", "20")]
    head = ["encoder", "users", "starts", "SNR", "success", "median NMSE", "mean of oracle LMMSE", "PSNR of successes"]
    out: list[list[str]] = []
    for r in rows:
        cells = [r["encoder"], r["users"], r["starts"], f"{r['snr_db']} dB", f"{100 * float(r['success_rate']):.1f} %"]
        cells += [f"{float(r[k]):.1f} dB" for k in ("nmse_median_db", "oracle_db", "psnr_db")]
        out.append(cells)
    r = rows[0]
    size = f"(K,Nr,Nt,T) = ({r['K']},{r['Nr']},{r['Nt']},{r['T']})"
    text = f"Blind reception of {r['images']} held-out digits over {r['channel_seeds']} channel seeds each, {size}, commit "
    text += f"{r['commit']} (success: NMSE < -6 dB; the encoders' training was stopped by the success rate on these digits, "
    return [text + "so they are held out of the training alone):", "", *table(head, out)]


def photographs() -> list[str]:
    """Blind reception of photographs beside receivers with pilots or a known channel."""
    rows = [r for r in read("pvd_photos.csv") if r["receiver"] in PHOTO_RECEIVERS]
    snrs = sorted({r["snr_db"] for r in rows}, key=float)
    head = ["receiver", "CBR", *(f"NMSE, {snr} dB" for snr in snrs), *(f"PSNR, {snr} dB" for snr in snrs)]
    shares = "mse_over_var" in rows[0]  # a file measured before has none
    head += [f"MSE over variance, {snrs[-1]} dB"] * shares
    out: list[list[str]] = []
    for name, label in PHOTO_RECEIVERS.items():
        found = {r["snr_db"]: r for r in rows if r["receiver"] == name}
        cells = [label, f"{float(found[snrs[0]]['cbr']):.3f}"]
        cells += [f"{float(found[snr]['nmse_db']):.1f} dB" if found[snr]["nmse_db"] else "-" for snr in snrs]
        for snr in snrs:
            value, error = found[snr]["psnr_db"], found[snr]["psnr_db_se"]
            cells.append(f"{float(value):.1f} ± {float(error):.1f} dB" if value else "-")
        if shares:
            share = found[snrs[-1]]["mse_over_var"]
            cells.append(f"{float(share):.4f}" if share else "-")
        out.append(cells)
    r = rows[0]
    return [
        f"Blind-MIMOSC on {r['crops']} held-out 32x32 grey crops of {r['photographs']} photographs, Rayleigh, "
        f"(K,Nr,Nt,T) = (8,8,2,16), commit {r['commit']}; {100 * float(r['mean_codeword_energy']):.0f} % of the code's "
        "energy is the same for all 16 crops, a superimposed pilot. Pilots are Gaussian, as in the paper's table; "
        "orthogonal ones estimate better. The bound knows second moments of photographs only:",
        "",
        *table(head, out),
    ]


def channel_priors() -> list[str]:
    """PVD over correlated channels: what the prior of the channel is worth."""
    rows = read("pvd_channels.csv")
    head = ["channel", "codeword", "SNR", "Rayleigh prior", "Gaussian prior", "learned prior"]
    head += ["learned over Rayleigh", "the same, image by image", "success, Rayleigh and learned"]
    out: list[list[str]] = []
    for place in dict.fromkeys((r["channel"], r["codeword"], r["snr_db"]) for r in rows):
        found = {r["prior"]: r for r in rows if (r["channel"], r["codeword"], r["snr_db"]) == place}
        cells = [f"{float(found[name]['nmse_db']):.2f} dB" if name in found else "-" for name in PRIORS]
        learned = found.get("learned")
        for name in ("gain", "gain_per_image"):
            db, se = (float(learned[f"{name}_{part}"]) for part in ("db", "se")) if learned else (0.0, 0.0)
            cells.append(f"{db:+.2f} ± {se:.2f} dB" if learned else "-")
        rates = [
            f"{100 * float(found[name]['success_rate']):.1f} %" for name in ("rayleigh", "learned") if name in found
        ]
        out.append([place[0], place[1], f"{place[2]} dB", *cells, ", ".join(rates)])
    size = f"(K,Nr,Nt,T) = ({rows[0]['K']},{rows[0]['Nr']},{rows[0]['Nt']},{rows[0]['T']})"
    return [
        f"Blind-MIMOSC over correlated channels, NMSE of {rows[0]['images']} held-out digits, {size}, one start (the "
        "Gaussian prior has the exact covariance on the Kronecker channel, the sample covariance on CDL-C). The gain of the "
        "mean NMSE is that of one to three images that the Rayleigh prior loses; an image's own gain is the typical one:",
        "",
        *table(head, out),
    ]


def oracle() -> list[str]:
    """PVD's channel error beside LMMSE with the codeword known, at two settings of the paper."""
    rows = [r for r in read("pvd_oracle.csv") if r["variant"] in ORACLE_VARIANTS and r["snr_db"] == PAPER_SNR[r["Nr"]]]
    rows = [r for r in rows if r["codeword"] == "known" or r["starts"] == "4"]
    rows.sort(key=lambda r: (int(r["Nr"]), r["codeword"] == "blind", r["source"], float(r["load"] or 0), -int(r["K"])))
    head = [
        "(Nr,Nu,Nt), SNR",
        "codeword",
        "K",
        "load",
        "receiver",
        "oracle",
        "PVD over oracle",
        "bound over oracle",
        "success",
    ]
    out: list[list[str]] = []
    for r in rows:
        sent = "known" if r["codeword"] == "known" else f"blind, {r['source']}"
        bound = f"{float(r['bound_gap_db']):.2f} dB" if r["bound_gap_db"] else "-"
        cells = [f"({r['Nr']},{r['Nu']},{r['Nt']}), {r['snr_db']} dB", sent, r["K"], r["load"] or "-"]
        cells += [ORACLE_VARIANTS[r["variant"]], f"{float(r['oracle_db']):.2f} dB"]
        cells += [f"{float(r['gap_db']):.2f} ± {float(r['gap_se']):.2f} dB", bound]
        out.append([*cells, f"{100 * float(r['success_rate']):.0f} %"])
    return [
        f"How far PVD's channel is from LMMSE with the codeword known (the paper: within 0.7 dB), T = 24, commit "
        f"{rows[0]['commit']}. Load: real source values over what the codeword has room for beside the channel, "
        "n/(2 K Nt (T - M)); blindly, the best of four starts:",
        "",
        *table(head, out),
    ]


def downlink() -> list[str]:
    """The MU-MIMO downlink on held-out photo crops, per variant, scenario and SNR."""
    rows = read("mu_mimo.csv")
    shown = [r for r in rows if r["snr_db"] in ("-7", "1", "7") and (r["scenario"] == "umi" or r["snr_db"] == "7")]
    labels = sorted(k.removeprefix("accuracy_") for k in rows[0] if k.startswith("accuracy_") and not k.endswith("_se"))
    head = ["variant", "scenario", "SNR", "PSNR", "SSIM", *(f"accuracy, {name}" for name in labels)]
    out: list[list[str]] = []
    for r in shown:
        cells = [r["variant"], r["scenario"], f"{r['snr_db']} dB"]
        cells += [f"{float(r['psnr_db']):.2f} ± {float(r['psnr_se']):.2f} dB", f"{float(r['ssim']):.3f}"]
        cells += [f"{100 * float(r[f'accuracy_{name}']):.1f} %" if r[f"accuracy_{name}"] else "-" for name in labels]
        out.append(cells)
    r = rows[0]
    return [
        f"MU-MIMO OFDM downlink, Nf = {r['subcarriers']}, {r['images']} held-out photo crops, {r['seeds']} seeds of "
        f"channel and noise (± standard error over them), commit {r['commit']}. Small networks trained for "
        "at most two hours on one core on crops of 18 photographs; not the paper's CIFAR-10 figures:",
        "",
        *table(head, out),
    ]


def classical_downlink() -> list[str]:
    """The classical downlink in every mode beside the full system: PSNR, and how many blocks are lost."""
    rows = read("mu_mimo_classical.csv")
    full = {r["snr_db"]: r["psnr_db"] for r in read("mu_mimo.csv") if (r["variant"], r["scenario"]) == ("full", "umi")}
    modes = list(dict.fromkeys(r["mode"] for r in rows))
    cells = {(r["codec"], r["csi_error_var"], r["snr_db"], r["mode"]): r for r in rows if r["scenario"] == "umi"}
    out = []
    for (codec, error), snr in itertools.product(CLASSICAL, ("-7", "-3", "1", "3", "7")):
        found = [cells[codec, error, snr, mode] for mode in modes]
        best = max(float(r["psnr_db"]) for r in found)
        shown = [f"{float(r['psnr_db']):.1f} dB, {100 * float(r['bler']):.1f} %" for r in found]
        shown = [s if float(r["over_budget"]) < 1 else "does not fit" for r, s in zip(found, shown, strict=True)]
        marked = [f"**{s}**" if float(r["psnr_db"]) == best > 0 else s for r, s in zip(found, shown, strict=True)]
        semantic = f"{float(full[snr]):.1f} dB" if error == "0" else "-"
        out.append([codec, error, f"{snr} dB", *marked, semantic])
    r = rows[0]
    return [
        f"The classical downlink over UMi: Nf = {r['subcarriers']}, the same {r['images']} photo crops, channels and noise, "
        f"{r['seeds']} seeds, commit {r['commit']}. Mean PSNR, a lost image counting as 0 dB, and blocks in error; in bold "
        "the best mode. Error: variance of the base station's channel entries' error. Last: `full` of the table above, its "
        "channel known:",
        "",
        *table(["codec", "error", "SNR", *modes, "`full`"], out),
    ]


def downlink_sizes() -> list[str]:
    """Parameters of the MU-MIMO networks, counted on the networks themselves."""
    from semcom_fast.systems.mu_mimo.system import MuMimoSystem, SystemConfig, keras_count

    rows = []
    for variant, sizes in (("full", (32, 64, 128)), ("no-pilot", (128,)), ("rzf", (128,)), ("djscc", (128,))):
        for n in sizes:
            system = MuMimoSystem(SystemConfig(variant, n))
            network = system.precoder.network
            counts = [keras_count(m) if m is not None else 0 for m in (system.encoder, network, system.decoder)]
            rows.append([variant, str(n), *(f"{c:,}" for c in (*counts, sum(counts)))])
    return [
        "Parameters, counted as Keras does (moving statistics included), as the paper's Table III is. The closed-form "
        "precoder has one, the factor of its regulariser:",
        "",
        *table(["variant", "Nf", "encoder", "precoder network", "decoder", "sum"], rows),
    ]


def denoising() -> list[str]:
    """SGD-JSCC: paired gains on held-out photo crops, then what each receiver reaches."""
    gains = [
        r
        for r in read("sgd_jscc_gains.csv")
        if r["what"] in SHOWN_GAINS and r["snr_db"] in ("-5", "0", "10") and r["channel"] != "slow"
    ]
    head = ["difference", "channel", "SNR", "SSIM", "PSNR"]
    out: list[list[str]] = []
    for r in gains:
        cells = [r["what"], r["channel"], f"{r['snr_db']} dB"]
        cells += [f"{float(r['ssim']):+.3f} ± {float(r['ssim_se_photos']):.3f}"]
        cells += [f"{float(r['psnr_db']):+.2f} ± {float(r['psnr_db_se_photos']):.2f} dB"]
        out.append(cells)
    rows = read("sgd_jscc.csv")
    means_head = ["receiver", "channel", "SNR", "SSIM", "PSNR"]
    means: list[list[str]] = []
    for r in rows:
        if r["snr_db"] not in ("-5", "0", "10") or r["channel"] == "slow":
            continue
        cells = [r["receiver"], r["channel"], f"{r['snr_db']} dB", f"{float(r['ssim']):.3f}"]
        means.append([*cells, f"{float(r['psnr_db']):.2f} dB"])
    crops, photographs = gains[0]["crops"], gains[0]["photographs"]
    text = f"SGD-JSCC, {crops} held-out 64x64 crops of {photographs} photographs, small networks trained for minutes on one "
    text += (
        "core; paired differences ± standard error over photographs. Edge guidance takes symbols of its own beside the "
        "latent's (below). A demonstration: never compare with the paper's figures:"
    )
    return [text, "", *table(head, out), "", "What each receiver reaches:", "", *table(means_head, means)]


def estimation() -> list[str]:
    """DM-VB beside its references: NMSE per channel set, profile and SNR, then what a channel costs."""
    rows = read("dm_vb.csv")
    names = list(dict.fromkeys(r["estimator"] for r in rows))
    found = {(r["set"], r["data"], r["profile"], r["snr_db"], r["estimator"]): r for r in rows if r["density"] == "0.6"}
    head = ["set", "profile", "SNR", *(f"`{name}`" for name in names)]
    out: list[list[str]] = []
    for kind, data, profile, snr in dict.fromkeys(key[:4] for key in found):
        if snr not in ("0", "10", "20", "30") or (data != "balanced" and not data.endswith(profile)):
            continue
        cells = [kind if data == "balanced" else f"{kind}, {data}", profile, f"{snr} dB"]
        for name in names:
            r = found.get((kind, data, profile, snr, name))
            chosen = f" ({float(r['selection']):.2f})" if r and r["selection"] and name.startswith("dm-vb") else ""
            cells.append(f"{float(r['nmse_db']):.2f} ± {float(r['nmse_se']):.2f}{chosen}" if r else "-")
        out.append(cells)
    costs = []
    for name in names:
        r = found.get(("fixed", "balanced", "CDL-C", "20", name))
        if r:
            costs.append(f"`{name}` {float(r['cpu_ms_per_channel']):.3g} ms, {float(r['gflop_per_channel']):.2g} GFLOP")
    gains: list[list[str]] = []
    pairs = [r for r in read("dm_vb_gains.csv") if r["estimator"] == "dm-vb" and r["density"] == "0.6"]
    for kind, data, base in dict.fromkeys((r["set"], r["data"], r["over"]) for r in pairs):
        cells = []
        for snr in ("0", "10", "20", "30"):
            key = (kind, data, base, snr)
            found_gains = [float(r["gain_db"]) for r in pairs if (r["set"], r["data"], r["over"], r["snr_db"]) == key]
            ends = sorted({f"{g:+.1f}" for g in (min(found_gains), max(found_gains))}, key=float)
            cells.append(" to ".join(ends) + " dB")
        name = kind if data == "balanced" else f"{kind}, {data}"
        gains.append([name, f"`{base}`", *cells])
    r = next(r for r in rows if r["profile"])
    commits = " and ".join(dict.fromkeys(row["commit"] for row in rows if row["profile"]))
    missing = [f"- `{m['estimator']}` on the {m['set']} set: {m['note']}" for m in rows if not m["profile"]]
    return [
        f"DM-VB: NMSE in dB ± standard error over {r['channels']} held-out 16x64 channels, 38 QPSK pilots for 64 antennas, "
        f"commit {commits} (in brackets: how often the profile's own expert was chosen):",
        "",
        *table(head, out),
        "",
        f"Processor time and operations of a channel of CDL-C at 20 dB, {r['threads']} thread(s): "
        + "; ".join(costs)
        + ".",
        *missing,
        "",
        "DM-VB's gain on the same channels, least and most over the profiles:",
        "",
        *table(["set", "over", "0 dB", "10 dB", "20 dB", "30 dB"], gains),
    ]
