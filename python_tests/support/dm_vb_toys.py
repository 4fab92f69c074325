"""Toys for the tests of DM-VB: closed-form experts, small sets, protocols of a few channels."""

import pytest
import torch

from semcom_fast.receivers.vb_moe_config import VBMoEConfig
from semcom_fast.systems.dm_vb import estimators as estimators_module
from semcom_fast.systems.dm_vb.estimators import Estimators, Experts, Setting
from semcom_fast.systems.dm_vb.evaluate import Protocol

CONFIG = VBMoEConfig(steps=10, beta_max=0.7)


@pytest.fixture(scope="module", autouse=True)
def small_sets(tmp_path_factory):
    """Training sets of 60 channels, in a folder of their own, so that nothing is drawn for long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMCOM_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setattr(estimators_module, "TRAIN", 60)
        patch.setattr(estimators_module, "SCARCE", 30)
        yield


def white_expert(var: float):
    """The exact noise predictor of channels CN(0, var I)."""
    alpha_bar = CONFIG.tables().alpha_bar

    def expert(h_t: torch.Tensor, t: int) -> torch.Tensor:
        a = float(alpha_bar[t])
        return (1 - a) ** 0.5 / (a * var + 1 - a) * h_t

    return expert


def toy_networks(mark: str = "") -> dict[str, Experts]:
    """Four white experts of different power, and one; that of CDL-C has the channels' own."""
    return {
        "dm-vb": Experts([white_expert(var) for var in (0.01, 0.1, 1.0, 0.03)], 2e6, mark),
        "single-dm": Experts([white_expert(1.0)], 8e6, mark),
    }


def toy_estimators(setting: Setting | None = None, mark: str = "") -> Estimators:
    return Estimators(setting, networks=toy_networks(mark), config=CONFIG)


def toy_protocol(**changes) -> Protocol:
    small = {"snrs_db": (0.0, 20.0), "densities": (0.25, 0.6), "profiles": ("CDL-A", "CDL-C"), "channels": 3}
    names = ("dm-vb", "single-dm", "lmmse", "rls")
    return Protocol(**{"estimators": names, **small, **changes})
