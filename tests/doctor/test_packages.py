from __future__ import annotations

import pytest

from vggt_deploy.doctor import packages
from vggt_deploy.doctor.packages import PACKAGES, check_packages, check_torch


def test_packages_that_are_absent_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = (("numpy", "numpy"), ("no_such_module", "no-such-thing"))
    monkeypatch.setitem(PACKAGES, "export", ("cpu", wanted))
    check = check_packages("export")
    assert (check.state, check.found) == ("missing", "not installed: no-such-thing")
    assert "[cpu]" in check.fix
    monkeypatch.setitem(PACKAGES, "run", ("edge", wanted))
    assert "[edge]" in check_packages("run").fix
    monkeypatch.setitem(PACKAGES, "run", ("edge", wanted[:1]))
    assert check_packages("run").state == "ok"


@pytest.mark.parametrize("verb", PACKAGES)
def test_all_packages_are_here(verb: str) -> None:
    assert check_packages(verb).state == "ok"


def test_a_torch_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(packages.importlib, "import_module", broken)
    (check,) = check_torch()
    assert check.state == "missing"
    assert "does not import: libcudart.so.12" in check.found


def test_a_package_that_is_absent_and_one_that_lacks_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert packages.import_or_reason("no_such_module") == (None, "not installed")

    def lacking(_: str) -> None:
        raise ModuleNotFoundError("No module named 'deeper'", name="deeper")

    monkeypatch.setattr(packages.importlib, "import_module", lacking)
    assert packages.import_or_reason("outer") == (None, "No module named 'deeper'")
