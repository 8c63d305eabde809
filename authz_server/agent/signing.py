"""Minting of compact JWSs, for delegators and the development issuer."""

import json
from collections.abc import Mapping

from authz_server.agent.svid import SigningKey
from authz_server.core.errors import InvalidValueError
from authz_server.core.jose import ALGORITHMS, encode_base64url, fits


def algorithm_for(key: SigningKey) -> str:
    """Return the algorithm that fits `key`: ES256, ES384, or PS256 for RSA.

    Raises `InvalidValueError` for another curve, or an RSA key under 2048 bits.
    """
    public_key = key.public_key()
    for algorithm in ("ES256", "ES384", "PS256"):
        if fits(algorithm, public_key):
            return algorithm
    raise InvalidValueError("key is neither P-256, P-384 nor RSA of at least 2048 bits")


def sign(header: Mapping[str, object], payload: Mapping[str, object], key: SigningKey) -> str:
    """Return the compact JWS of `payload` under `header`, whose `alg` decides how it is signed."""
    signing_input = f"{_encode(header)}.{_encode(payload)}"
    signature = ALGORITHMS[str(header["alg"])].sign(signing_input.encode("ascii"), key)
    return f"{signing_input}.{encode_base64url(signature)}"


def _encode(value: Mapping[str, object]) -> str:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return encode_base64url(text.encode("utf-8"))
