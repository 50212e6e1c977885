"""Ed25519 over the bytes of index.json, with keys as OpenSSL writes them.

    openssl genpkey -algorithm ed25519 -out private.pem
    openssl pkey -in private.pem -pubout -out public.pem

A signature proves who made the bundle only against a key that the reader already has. The key
inside the bundle just shows that index and signature belong together.

A bundle can also be checked by hand, after `tar xf`:

    openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in index.json -sigfile index.sig
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vggt_deploy.errors import BundleError, RuntimeUnavailableError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE_BYTES = 64
_MAKE_KEY = "make one with: openssl genpkey -algorithm ed25519 -out private.pem"


@dataclass(frozen=True)
class Signature:
    """What is known about who made a bundle.

    state: "unsigned"; "unproven": a signature fits the key inside, no key was given to check
        against; "valid": made with the key that was given
    signer: SHA-256 of the raw public key, or None
    """

    state: Literal["unsigned", "unproven", "valid"]
    signer: str | None


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """An Ed25519 private key, PEM, without a password."""
    _require()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path), password=None)
    except TypeError as error:  # cryptography's word for "a password is needed"
        raise BundleError(
            f"the key {path} is protected by a password",
            "decrypt it first: openssl pkey -in KEY -out plain.pem, and delete that afterwards",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(
            f"{path} is not a private key in PEM form ({error})", _MAKE_KEY
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"{path} is a key, but not of Ed25519", _MAKE_KEY)
    return key


def read_public_key(data: bytes, name: str) -> Ed25519PublicKey:
    """An Ed25519 public key from PEM bytes; `name` is for messages."""
    _require()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    fix = "take it from the private key: openssl pkey -in private.pem -pubout -out public.pem"
    if b"PRIVATE KEY" in data:
        raise BundleError(f"{name} is a private key; a reader must not have it", fix)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BundleError(f"{name} is not a public key in PEM form ({error})", fix) from error
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"{name} is a public key, but not of Ed25519", fix)
    return key


def sign(key: Ed25519PrivateKey, index: bytes) -> tuple[bytes, bytes]:
    """Signature of the index, and the public key as PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return key.sign(index), pem


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the 32 raw bytes of a public key, as hex."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def check(
    bundle: Path, index: bytes, stored: tuple[bytes, bytes] | None, public_key: Path | None
) -> Signature:
    """Check `stored` (signature, public key as PEM) over the index, with the reader's key if given.

    Raises:
        BundleError: a key was given and the bundle is unsigned, or signed with another one, or the
            signature does not fit the index.
    """
    given = None
    if public_key is not None:
        given = read_public_key(_read(public_key), str(public_key))
    if stored is None:
        if given is not None:
            raise BundleError(
                f"{bundle} is not signed, and a signature was asked for (--public-key)",
                "get the signed bundle from who made it; or, if you trust where it comes from, "
                "leave --public-key out",
            )
        return Signature("unsigned", None)
    signature, pem = stored
    inside = read_public_key(pem, f"{bundle}: index.pub")
    if given is not None and fingerprint(given) != fingerprint(inside):
        raise BundleError(
            f"{bundle} was signed with another key: {fingerprint(inside)[:16]}…, "
            f"{public_key} is {fingerprint(given)[:16]}…",
            "do not use it unless you trust that key: then give it with --public-key",
        )
    _verify(bundle, inside, signature, index)
    return Signature("unproven" if given is None else "valid", fingerprint(inside))


def check_signer(bundle: Path, signed_by: str | None, signature: Signature) -> None:
    """Whether the signature is the one that the index speaks of."""
    if signed_by is not None and signature.signer is None:
        raise BundleError(
            f"{bundle}: the signature was taken out (the index names the signer {signed_by[:16]}…)",
            "do not use it: get the bundle from who made it",
        )
    if signed_by != signature.signer:
        raise BundleError(
            f"{bundle}: the signature is by {str(signature.signer)[:16]}…, the index names "
            f"{'nobody' if signed_by is None else f'{signed_by[:16]}…'}",
            "do not use it: get the bundle from who made it",
        )


def _verify(bundle: Path, key: Ed25519PublicKey, signature: bytes, index: bytes) -> None:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, index)
    except InvalidSignature as error:
        raise BundleError(
            f"{bundle}: the signature does not fit index.json, which was changed after signing",
            "do not use it: get the bundle from who made it",
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"the key {path} can't be read ({error.strerror})", "give a PEM file"
        ) from error


def _require() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"signatures can't be made or checked: {error}", "pip install 'vggt-deploy[edge]'"
        ) from error
