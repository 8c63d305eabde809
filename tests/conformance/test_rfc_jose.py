"""Published examples: RFC 7515 appendix A, RFC 8037 appendix A, RFC 7517 appendix A."""

import json

import pytest

from authz_server.core.errors import InvalidValueError, RequestFault
from authz_server.core.jose import (
    CompactJws,
    decode_base64url,
    encode_base64url,
    parse_jwks,
    verify_signature,
)

# RFC 7515 §A.1.1 and §A.3.1: the claims all its examples sign, CRLF and blanks included.
PAYLOAD = (
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
)
RSA_N = (
    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4Ql"
    "L-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUs"
    "LA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoud"
    "F8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"
)
EXAMPLES = {
    "RFC 7515 A.2 RS256": (
        "RS256",
        {"kty": "RSA", "n": RSA_N, "e": "AQAB"},
        f"eyJhbGciOiJSUzI1NiJ9.{PAYLOAD}."
        "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5"
        "jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb"
        "1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QO"
        "YEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
    ),
    "RFC 7515 A.3 ES256": (
        "ES256",
        {
            "kty": "EC",
            "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        },
        f"eyJhbGciOiJFUzI1NiJ9.{PAYLOAD}."
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    ),
}


@pytest.mark.parametrize(("algorithm", "jwk", "token"), EXAMPLES.values(), ids=EXAMPLES)
def test_published_signatures_verify(algorithm: str, jwk: dict[str, str], token: str) -> None:
    keys = parse_jwks(json.dumps({"keys": [jwk | {"kid": "1"}]}).encode())
    jws = CompactJws.parse(token)
    verify_signature(jws, algorithm=algorithm, key=keys["1"])
    assert jws.payload["http://example.com/is_root"] is True


def test_published_eddsa_signature_verifies() -> None:
    # RFC 8037 §A.4. Its payload is text, which `parse` would refuse.
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    keys = parse_jwks(json.dumps({"keys": [jwk | {"kid": "1"}]}).encode())
    jws = CompactJws(
        header={},
        payload={},
        signing_input=b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
        signature=decode_base64url(
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
        ),
        digest=b"",
    )
    verify_signature(jws, algorithm="EdDSA", key=keys["1"])


def test_published_hmac_and_unsecured_examples_have_no_algorithm() -> None:
    # RFC 7515 §A.1 (HS256) and RFC 7519 §6.1 (none).
    signature = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    hmac = f"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{PAYLOAD}.{signature}"
    header = CompactJws.parse(hmac).header
    assert header["alg"] == "HS256"
    with pytest.raises(RequestFault):
        CompactJws.parse(f"eyJhbGciOiJub25lIn0.{PAYLOAD}.")


def test_published_key_set() -> None:
    # RFC 7517 §A.1: an EC key for encryption, which is not ours to use, and an RSA key.
    x, y = (
        "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
        "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
    )
    keys = parse_jwks(
        json.dumps(
            {
                "keys": [
                    {"kty": "EC", "crv": "P-256", "x": x, "y": y, "use": "enc", "kid": "1"},
                    {"kty": "RSA", "n": RSA_N, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"},
                ]
            }
        ).encode()
    )
    assert list(keys) == ["2011-04-29"]


def test_published_private_key_set_is_refused() -> None:
    # RFC 7517 §A.2 and §A.3 hold private and symmetric keys.
    for secret in ({"kty": "EC", "crv": "P-256", "d": "x"}, {"kty": "oct", "k": "x"}):
        with pytest.raises(InvalidValueError, match="secret"):
            parse_jwks(json.dumps({"keys": [secret | {"kid": "1"}]}).encode())


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"", ""), (b"\x03\xec\xff\xe0\xc1", "A-z_4ME")],  # RFC 7515 §C
)
def test_published_base64url(data: bytes, text: str) -> None:
    assert encode_base64url(data) == text
    if text:
        assert decode_base64url(text) == data
