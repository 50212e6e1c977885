"""Signatures: who made a bundle, and what is said when that is not who was expected."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from vggt_deploy.errors import BundleError, DeployError, RuntimeUnavailableError
from vggt_deploy.ship.bundle import bundle
from vggt_deploy.ship.verify import unpack, verify

Forge = Callable[..., Path]


@pytest.fixture
def signed(tmp_path: Path, h200: Path, keys: Any) -> Path:
    return bundle([h200], tmp_path / "signed.bundle", sign_key=keys.private).path


def test_signed_and_checked(signed: Path, keys: Any, tmp_path: Path) -> None:
    found = verify(signed, public_key=keys.public, device=False)
    assert found.signature == "valid"
    assert found.signer == found.index.signed_by
    assert len(found.signer or "") == 64
    assert unpack(signed, tmp_path / "out", public_key=keys.public).is_dir()


def test_signed_but_no_key_was_given(signed: Path) -> None:
    found = verify(signed, device=False)
    assert found.signature == "unproven"
    assert found.signer is not None


def test_another_key(signed: Path, other_keys: Any, tmp_path: Path) -> None:
    for check in (
        lambda: verify(signed, public_key=other_keys.public),
        lambda: unpack(signed, tmp_path / "out", public_key=other_keys.public),
    ):
        with pytest.raises(BundleError, match="signed with another key"):
            check()
    assert not (tmp_path / "out").exists()


def test_unsigned_where_a_signature_is_asked_for(packed: Path, keys: Any) -> None:
    with pytest.raises(BundleError, match="is not signed, and a signature was asked for"):
        verify(packed, public_key=keys.public)
    assert verify(packed, device=False).signature == "unsigned"


def test_a_rewritten_index_does_not_fit_the_signature(
    signed: Path, forge: Forge, keys: Any
) -> None:
    """The hashes of a forged bundle are right; the signature is what does not fit."""
    forge(signed, index=lambda index: index.update(precision="fp32"))
    for key in (keys.public, None):
        with pytest.raises(BundleError, match="signature does not fit index"):
            verify(signed, public_key=key)


def test_a_signature_that_was_taken_out(signed: Path, forge: Forge, keys: Any) -> None:
    def strip(members: list[Any]) -> None:
        members[:] = [m for m in members if m[0].name not in ("index.sig", "index.pub")]

    forge(signed, members=strip)
    with pytest.raises(BundleError, match="the signature was taken out"):
        verify(signed)
    with pytest.raises(BundleError, match="is not signed"):
        verify(signed, public_key=keys.public)


def test_a_signature_put_onto_an_unsigned_bundle(
    packed: Path, h200: Path, forge: Forge, keys: Any, tmp_path: Path
) -> None:
    """Signed by its forger over an index that names nobody."""
    with tarfile.open(packed) as archive:
        text = archive.extractfile("index.json").read()  # type: ignore[union-attr]
    key = load_pem_private_key(keys.private.read_bytes(), None)
    signature = key.sign(text)  # type: ignore[union-attr, call-arg]

    def add(members: list[Any]) -> None:
        for name, data in (("index.pub", keys.public.read_bytes()), ("index.sig", signature)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            members.insert(0, (info, data))

    forge(packed, members=add)
    with pytest.raises(BundleError, match="the index names nobody"):
        verify(packed)


def test_every_byte_of_the_signature_counts(signed: Path, keys: Any) -> None:
    original = signed.read_bytes()
    with tarfile.open(signed) as archive:
        places = [archive.getmember(name) for name in ("index.sig", "index.pub")]
    for info in places:
        for position in range(info.offset, info.offset_data + info.size, 7):
            data = bytearray(original)
            data[position] ^= 4
            signed.write_bytes(data)
            with pytest.raises(DeployError):
                verify(signed, device=False)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_makes_the_keys_and_checks_the_bundle(h200: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    openssl("genpkey", "-algorithm", "ed25519", "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    path = bundle([h200], tmp_path / "b", sign_key=private).path
    assert verify(path, public_key=public, device=False).signature == "valid"
    by_hand = tmp_path / "by-hand"
    by_hand.mkdir()
    subprocess.run(["tar", "xf", path, "-C", by_hand], check=True)
    check = ("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin")
    openssl(*check, "-in", by_hand / "index.json", "-sigfile", by_hand / "index.sig")
    (by_hand / "index.json").write_bytes((by_hand / "index.json").read_bytes() + b" ")
    with pytest.raises(subprocess.CalledProcessError):
        openssl(*check, "-in", by_hand / "index.json", "-sigfile", by_hand / "index.sig")


def openssl(*arguments: Any) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def test_keys_that_are_none(h200: Path, packed: Path, keys: Any, tmp_path: Path) -> None:
    rsa = generate_private_key(65537, 2048)
    wrong = tmp_path / "wrong.pem"

    def refused(content: bytes, message: str, *, private: bool) -> None:
        wrong.write_bytes(content)
        with pytest.raises(BundleError, match=message):
            if private:
                bundle([h200], tmp_path / "b", sign_key=wrong)
            else:
                verify(packed, public_key=wrong)

    refused(b"not a key", "is not a private key in PEM", private=True)
    refused(b"not a key", "is not a public key in PEM", private=False)
    plain = rsa.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    refused(plain, "but not of Ed25519", private=True)
    public = rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    refused(public, "but not of Ed25519", private=False)
    refused(keys.private.read_bytes(), "is a private key; a reader must not", private=False)
    ours = load_pem_private_key(keys.private.read_bytes(), None)
    locked = ours.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    refused(locked, "protected by a password", private=True)
    wrong.unlink()
    with pytest.raises(BundleError, match=r"can't be read"):
        verify(packed, public_key=wrong)
    assert not (tmp_path / "b").exists()


def test_without_the_library_nothing_counts_as_checked(
    signed: Path, packed: Path, keys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert verify(packed, device=False).signature == "unsigned"
    for path, key in ((signed, None), (signed, keys.public), (packed, keys.public)):
        with pytest.raises(RuntimeUnavailableError, match="can't be made or checked") as raised:
            verify(path, public_key=key)
        assert "vggt-deploy[edge]" in raised.value.fix
